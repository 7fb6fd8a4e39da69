"""Packets and quantisers for tests of `.odva` files: of few channels, of any kind of clip, and the same every time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from onedva_runtime.container import save_packets
from onedva_runtime.packet import Packet, padded_grid
from onedva_runtime.quantiser import Kind, Levels, Quantiser
from onedva_runtime.warp import Camera

STRUCTURAL, LATENT = 2, 4
GROUPS = 6


def make_quantiser(*, structural: int = STRUCTURAL, latent: int = LATENT, step: float = 0.25) -> Quantiser:
    """Levels that fall along groups and channels, as a checkpoint's do."""
    levels: dict[Kind, Levels] = {}
    for key, groups in [(True, n) for n in range(1, GROUPS)] + [(False, n) for n in range(2, GROUPS)]:
        coded = groups - 1 + key
        fall = 4 * np.arange(structural + latent) + np.arange(coded)[:, None]
        levels[key, groups] = (round(8 * float(np.log2(8 / step))) - fall).astype(np.int16)
    return Quantiser(structural_channels=structural, latent_channels=latent, step=step, levels=levels)


def make_packet(
    *,
    frames: int = 5,
    tokens: int = 3,
    height: int = 17,
    width: int = 33,
    first: int = 0,
    key: bool = True,
    times: bool = False,
    errors: bool = True,
    camera: bool = False,
    structural: int = STRUCTURAL,
    latent: int = LATENT,
) -> Packet:
    """A packet of made-up latents; its values follow from the arguments."""
    random = np.random.default_rng([frames, tokens, height, width, first, key])
    grid = padded_grid(frames, height, width, is_key=key)
    strength = random.gamma(1.0, 1.0, (1, *grid[1:], 1))  # columns differ, as in videos
    values = random.laplace(size=(*grid, structural)) * strength
    values[: 0 if key else 1] = 0
    skipped = 0 if key else grid[1] * grid[2]
    places = random.permutation(int(np.prod(grid)) - skipped)[:tokens] + skipped
    groups = [np.sort(places[start : start + 16]) for start in range(0, tokens, 16)]
    return Packet(
        structural=values.astype(np.float32),
        latents=random.laplace(size=(tokens, latent)).astype(np.float32),
        anchors=np.concatenate([np.zeros(0, np.int64), *groups]).astype(np.int64),
        is_key=key,
        frames=frames,
        height=height,
        width=width,
        fps=30000 / 1001,
        first_frame=first,
        timestamps=np.cumsum(random.integers(1, 3000, frames)) + 1001 * first if times else None,
        time_base=Fraction(1, 30000) if times else None,
        camera=Camera(random.integers(-9, 9, (4 * grid[0] - 3, 6), np.int16), (0, 1, 0, 0)) if camera else None,
        predicted_error=np.linspace(-3, -6, tokens, dtype=np.float32) if errors else None,
        model="ab" * 32,
    )


def make_video(clips: Sequence[tuple[int, int]], **options: object) -> list[Packet]:
    """Packets of (frames, tokens) one after the other, every third a key clip."""
    packets: list[Packet] = []
    first = 0
    for number, (frames, tokens) in enumerate(clips):
        key = number % 3 == 0
        packets.append(make_packet(frames=frames, tokens=tokens, first=first, key=key, **options))  # type: ignore[arg-type]
        first += frames
    return packets


def make_tiles(packet: Packet) -> list[Packet]:
    """The packet twice, as tiles of its own size, the second 16 pixels further right."""
    whole = packet.height, packet.width + 16
    return [replace(packet, corner=corner, frame_size=whole) for corner in ((0, 0), (0, 16))]


def as_bytes(packets: Sequence[Packet], **options: object) -> bytes:
    """The file of these packets."""
    file = io.BytesIO()
    save_packets(file, packets, **{"quantiser": make_quantiser(), **options})  # type: ignore[arg-type]
    return file.getvalue()


def assert_same(a: Packet, b: Packet) -> None:
    """All fields are equal, arrays in type and value too."""
    for name in Packet.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            assert x == y, name
