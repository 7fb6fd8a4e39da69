"""`Quantiser`: latents ↔ integers, with a step per channel that comes from the checkpoint.

Latents are whitened: each has unit variance over the training clips, and `latent_std` of the checkpoint says what one
unit is worth in pixels. So equal error in pixels asks for steps ∝ 1 / latent_std, and one number is left to choose:
`step`, the quantisation step in units of the orthonormal transform, where pixels are in [-1, 1].

A file holds *levels*, 8·log2 of the steps per unit, whole numbers. An integer stands for the mean of what is rounded
to it, a little nearer to 0: value = sign · (|integer| − inset) · 2^(−level / 8). Reading needs no model, and gives the
same float32 on every machine.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.entropy import LARGEST
from onedva_runtime.errors import BundleError, MissingLevels, PacketError
from onedva_runtime.packet import Packet

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["DEFAULT_STEP", "Kind", "Levels", "Quantiser", "latent_std", "to_integers", "to_values"]

DEFAULT_STEP = 0.125
# Of the step. Beyond, columns would be told the wrong class: its slot has a standard deviation of as many units as
# there are classes, so that at 2 what is rounded stays nearest to its own class.
LEAST_STEP, MOST_STEP = 2**-10, 2.0
LOWEST_LEVEL, HIGHEST_LEVEL = -160, 136  # at the highest, values to ±8 still fit
_STD = "transform.latent_std"
# 2^(−k/8), k = 0 … 7, in float32 by name, since libraries round powers differently.
_EIGHTHS = np.array([0x3F800000, 0x3F6AC0C7, 0x3F5744FD, 0x3F45672A, 0x3F3504F3, 0x3F25FED7, 0x3F1837F0, 0x3F0B95C2])
# Insets in 1/256 of a step for integers of magnitude 1, 2, and 3 or more, by level: below −16, then every 4 levels, the
# last two for 16 to 23 and above. Means over the training clips; they take 4 to 12 % off the error of quantisation.
_INSETS = np.array(
    [
        *((59, 54, 42), (52, 43, 39), (42, 34, 28), (37, 28, 23), (30, 22, 18), (27, 18, 14), (26, 16, 12)),
        *((25, 14, 9), (21, 13, 8), (20, 12, 6), (20, 12, 6), (13, 8, 4)),
    ]
)

Kind = tuple[bool, int]
"""(is_key, Tg): which row of levels a clip uses."""
Levels = NDArray[np.int16]
"""(coded groups, Zs + Z): a continuation clip does not code group 0."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantiser:
    """Steps for every kind of clip. `VideoCodec.quantiser` makes one; a file that is read brings its own."""

    structural_channels: int
    """Zs."""
    latent_channels: int
    """Z."""
    step: float
    """Quantisation step in units of the orthonormal transform; halved, it costs about a bit more per value."""
    levels: Mapping[Kind, Levels] = field(default_factory=dict[Kind, Levels])
    """Steps per unit of each kind of clip, as 8·log2, (coded groups, Zs + Z)."""

    def of(self, kind: Kind) -> Levels:
        """The levels of a kind of clip; MissingLevels where there are none."""
        if kind not in self.levels:
            name = "key" if kind[0] else "continuation"
            known = ", ".join(f"{'key' if key else 'continuation'} of {groups}" for key, groups in sorted(self.levels))
            raise MissingLevels(
                f"no quantiser steps for a {name} clip of {kind[1]} groups of frames (there are: {known})"
            )
        return self.levels[kind]

    def apply(self, packet: Packet) -> Packet:
        """The packet as a reader finds it in a file. Applied twice it changes nothing more."""
        structural, latents = to_integers(packet, self)
        return to_values(packet, structural, latents, self)


def latent_std(path: str | os.PathLike[str]) -> NDArray[np.float64] | None:
    """`transform.latent_std` (rows, Zs + Z) of a model.safetensors; None where the model has no such transform.

    Raises BundleError where the file is not one, or the numbers are not positive.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 100 << 20:
            raise BundleError(f"{os.fspath(path)}: not a safetensors file (its header claims {size} bytes)")
        try:
            entry = json.loads(file.read(size)).get(_STD)
            if entry is None:
                return None
            start, end = entry["data_offsets"]
            file.seek(8 + size + start)
            dtype = {"F16": "<f2", "F32": "<f4", "BF16": "<u2"}[entry["dtype"]]
            values = np.frombuffer(file.read(end - start), dtype).reshape(entry["shape"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{os.fspath(path)}: {_STD} cannot be read ({error!r})") from error
    if entry["dtype"] == "BF16":
        values = (values.astype("<u4") << 16).view("<f4")
    if not bool((np.isfinite(values) & (values > 0)).all()):
        raise BundleError(f"{os.fspath(path)}: {_STD} must be positive and finite")
    return values.astype(np.float64)


def quantiser_of(bundle: Bundle, *, step: float = DEFAULT_STEP) -> Quantiser:
    """The quantiser of a bundle's latents. step: 1/1024 to 2, see `Quantiser.step`; a model without a transform of
    columns has latents of unit scale, and `step` is in those. Raises BundleError or ValueError."""
    if not (math.isfinite(step) and LEAST_STEP <= step <= MOST_STEP):
        raise ValueError(f"the quantiser's step must be from 1/1024 to {MOST_STEP:g}, got {step}")
    manifest, model = bundle.manifest, bundle.manifest.model
    channels = model.structural_channels + model.latent_channels
    most = 1 + (manifest.clip.frames - 1) // 4
    rows = {(True, groups): groups for groups in range(1, most + 1)}
    rows |= {(False, groups): groups - 1 for groups in range(2, most + 1)}
    std = latent_std(bundle.folder / "model.safetensors")
    if std is None:
        std = np.ones((sum(rows.values()), channels))
    if std.shape != (sum(rows.values()), channels):
        wanted = (sum(rows.values()), channels)
        raise BundleError(f"{manifest.name}: {_STD} has the shape {std.shape}, clips and channels ask for {wanted}")
    fine = levels_of(std, step)
    ends = np.cumsum(list(rows.values()))
    levels = {kind: fine[end - rows[kind] : end] for kind, end in zip(rows, ends.tolist(), strict=True)}
    return Quantiser(
        structural_channels=model.structural_channels, latent_channels=model.latent_channels, step=step, levels=levels
    )


def levels_of(std: NDArray[np.float64], step: float) -> Levels:
    """The levels that `step` asks for where one unit of a latent is worth `std`, both in units of the transform."""
    return np.clip(np.rint(8 * np.log2(std / step)), LOWEST_LEVEL, HIGHEST_LEVEL).astype(np.int16)


def steps_of(levels: Levels) -> NDArray[np.float32]:
    """2^(−level / 8), each the same float32 everywhere; the shape of `levels`."""
    whole, eighth = np.divmod(levels.astype(np.int32), 8)
    return np.ldexp(_EIGHTHS.astype(np.uint32).view(np.float32)[eighth], -whole)


def to_integers(packet: Packet, quantiser: Quantiser) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Round a packet: integers of its coded structural groups (n, Hg, Wg, Zs) and of its latents (K, Z).

    PacketError where the channels are not the quantiser's or a value is too large for it.
    """
    structural, latents = _levels(packet, quantiser)
    first = 0 if packet.is_key else 1
    return _round("structural", packet.structural[first:], structural), _round("latents", packet.latents, latents)


def to_values(
    packet: Packet, structural: NDArray[np.int32], latents: NDArray[np.int32], quantiser: Quantiser
) -> Packet:
    """Inverse of `to_integers` but for the rounding: `packet` with the values that the integers stand for."""
    structural_levels, latent_levels = _levels(packet, quantiser)
    groups = np.zeros((packet.grid[0] - structural.shape[0], *structural.shape[1:]), np.float32)
    return replace(
        packet,
        structural=np.concatenate([groups, _values(structural, structural_levels)]),
        latents=_values(latents, latent_levels),
    )


def layers_of(packet: Packet) -> NDArray[np.int64]:
    """Row of the levels (K,) that each latent uses: its anchor's layer among the coded ones."""
    _, height, width = packet.grid
    return packet.anchors // (height * width) - (0 if packet.is_key else 1)


def _levels(packet: Packet, quantiser: Quantiser) -> tuple[Levels, Levels]:
    """Levels of the structural part (n, 1, 1, Zs) and of the latents (K, Z)."""
    got = packet.structural.shape[-1], packet.latents.shape[-1]
    wanted = quantiser.structural_channels, quantiser.latent_channels
    if got != wanted:
        raise PacketError(f"the packet has (structural, latent) channels {got}, the quantiser has {wanted}")
    levels = quantiser.of((packet.is_key, packet.grid[0]))
    return levels[:, None, None, : wanted[0]], levels[layers_of(packet), wanted[0] :]


def _round(name: str, values: NDArray[np.float32], levels: Levels) -> NDArray[np.int32]:
    scaled = np.rint(values.astype(np.float64) / steps_of(levels))
    largest = float(np.max(np.abs(scaled), initial=0))
    if largest > LARGEST:
        raise PacketError(f"packet {name} reach {largest:.0f} quantiser steps; allowed: {LARGEST}")
    return scaled.astype(np.int32)


def _values(integers: NDArray[np.int32], levels: Levels) -> NDArray[np.float32]:
    magnitude = np.abs(integers)
    row = np.clip((levels.astype(np.int32) + 20) // 4, 0, len(_INSETS) - 1)
    inset = _INSETS[np.broadcast_to(row, integers.shape), np.clip(magnitude, 1, 3) - 1]
    inner = np.where(magnitude > 0, 256 * magnitude - inset, 0).astype(np.int32)
    return (np.sign(integers) * inner).astype(np.float32) * np.float32(1 / 256) * steps_of(levels)
