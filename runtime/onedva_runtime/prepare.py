"""What stands between a caller's arguments and the graphs: checks of frames and options, padding, and how many latents
to take."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime import placement
from onedva_runtime.errors import PacketError, WrongModel
from onedva_runtime.limits import Limits
from onedva_runtime.manifest import Manifest
from onedva_runtime.packet import Packet, as_packet, padded_frames, padded_grid, padded_size

if TYPE_CHECKING:
    from onedva_runtime.clipper import Clip

__all__ = [
    "Decibels",
    "check_clip",
    "check_deadline",
    "check_fps",
    "check_frame",
    "check_frames",
    "check_integer",
    "check_packet",
    "check_timestamps",
    "clip_frames_for",
    "grouped",
    "pad_clip",
    "parse_tokens",
    "place_latents",
    "reaches",
    "shortest_prefix",
]

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decibels:
    """A target: the shortest prefix whose predicted PSNR is at least this."""

    target: float
    """PSNR in dB, in (0, 100]."""


def check_frames(frames: object) -> Uint8:
    """`frames` if it is a (T, H, W, 3) uint8 array with T, H, W ≥ 1; TypeError or ValueError saying what was got and
    wanted."""
    wanted = "frames must be a NumPy array (T, H, W, 3) of uint8, RGB in 0..255"
    if not isinstance(frames, np.ndarray):
        raise TypeError(f"{wanted}; got {type(frames).__module__}.{type(frames).__name__}")
    array = cast(npt.NDArray[np.generic], frames)
    shape = array.shape
    if array.dtype != np.uint8:
        hint = "; scale to 0..255, round and convert first" if array.dtype.kind == "f" else ""
        raise TypeError(f"{wanted}; got {array.dtype}{hint}")
    if array.ndim == 5:
        raise ValueError(f"{wanted}; got the shape {shape}: for several clips use encode_clips")
    if array.ndim != 4 or shape[3] != 3:
        layouts = {1: "T C H W: transpose(0, 2, 3, 1)", 0: "C T H W: transpose(1, 2, 3, 0)"}
        hint = next(
            (
                f"; this looks like {text} first"
                for axis, text in layouts.items()
                if array.ndim == 4 and shape[axis] == 3
            ),
            "",
        )
        raise ValueError(f"{wanted}; got the shape {shape}{hint}")
    if 0 in shape:
        raise ValueError(f"{wanted}, at least one frame and one pixel; got the shape {shape}")
    return cast(Uint8, array)


def check_frame(name: str, frame: object) -> Uint8:
    """`frame` if it is a (H, W, 3) uint8 array with H, W ≥ 1; TypeError or ValueError, calling it `name`, otherwise."""
    wanted = f"{name} must be a NumPy array (H, W, 3) of uint8, RGB in 0..255"
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8:
        raise TypeError(f"{wanted}; got {getattr(frame, 'dtype', type(frame).__name__)}")
    array = cast(Uint8, frame)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{wanted}; got the shape {array.shape}")
    return array


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as int if it is an integer in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    number = int(cast(int, value))
    if not low <= number <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {number}")
    return number


def check_fps(fps: object) -> float:
    """`fps` as float if it is a positive finite number; TypeError or ValueError otherwise."""
    try:
        number = float(fps)  # pyright: ignore[reportArgumentType]  # Fraction and NumPy scalars convert too
    except (TypeError, ValueError):
        raise TypeError(f"fps must be a number, got {fps!r}") from None
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"fps must be positive and finite, got {number}")
    return number


def check_deadline(deadline_ms: float | None) -> float | None:
    """`deadline_ms` in seconds, or None; TypeError or ValueError unless it is a positive finite number."""
    if deadline_ms is None:
        return None
    if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float | np.number):
        raise TypeError(f"deadline_ms must be a number of milliseconds or None, got {deadline_ms!r}")
    if not (math.isfinite(deadline_ms) and deadline_ms > 0):
        raise ValueError(f"deadline_ms must be positive and finite, or None, got {deadline_ms}")
    return float(deadline_ms) / 1000


def check_timestamps(
    timestamps: npt.NDArray[np.int64] | None, count: int, time_base: Fraction | None
) -> npt.NDArray[np.int64] | None:
    """`timestamps` if they are `count` rising int64 ticks of a positive `time_base`; TypeError or ValueError
    otherwise."""
    if time_base is not None and not (isinstance(time_base, Fraction) and time_base > 0):
        raise ValueError(f"time_base must be a positive Fraction of a second, got {time_base!r}")
    if timestamps is None:
        return None
    ticks = np.asarray(timestamps)
    if ticks.dtype.kind != "i" or ticks.shape != (count,):
        got = f"{ticks.dtype} of shape {ticks.shape}"
        raise ValueError(f"timestamps must be integers of shape ({count},), one per frame, got {got}")
    if bool((np.diff(ticks) <= 0).any()):
        raise ValueError(f"timestamps must rise from frame to frame, got {ticks[:8].tolist()}")
    if time_base is None:
        raise ValueError("timestamps need time_base, the seconds per tick as a Fraction")
    return ticks.astype(np.int64)


def parse_tokens(tokens: object) -> int | Decibels | None:
    """What tokens= asks for: None for "auto", a count ≥ 0, or a target in dB.

    tokens: "auto", an integer, the same as text ("64"), or a PSNR target as text ("35dB"). Raises TypeError or
    ValueError.
    """
    if isinstance(tokens, str):
        text = tokens.strip()
        if text.lower() == "auto":
            return None
        if re.fullmatch(r"[0-9]{1,9}", text):
            return int(text)
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*db", text, re.IGNORECASE)
        if match and 0 < float(match[1]) <= 100:
            return Decibels(float(match[1]))
        raise ValueError(
            f"tokens must be 'auto', a count such as 64, or a target such as '35dB' (0..100); got {tokens!r}"
        )
    return check_integer("tokens", tokens, 0, 2**31 - 1)


def pad_clip(frames: Uint8) -> Uint8:
    """Frames (T, H, W, 3) with the last frame, row and column repeated up to T = 1 + 4n and multiples of 16."""
    count, height, width, _ = frames.shape
    extra = (padded_frames(count) - count, padded_size(height) - height, padded_size(width) - width)
    if not any(extra):
        return frames
    return np.pad(frames, (*((0, n) for n in extra), (0, 0)), mode="edge")


def shortest_prefix(predicted_error: npt.NDArray[np.float32], target: Decibels, multiple: int) -> int:
    """The smallest multiple of `multiple` (or the whole length) at which the predicted PSNR meets the target; all if
    none does.

    predicted_error: natural log of the MSE on the [-1, 1] scale after each prefix (K,), so PSNR = 10·log10(4 / MSE).
    """
    total = predicted_error.shape[0]
    for length in [*range(multiple, total, multiple), total]:
        if predicted_error[length - 1] <= _allowed(target):
            return length
    return total


def reaches(packet: Packet, target: Decibels) -> bool:
    """Whether a packet is predicted to meet the target; True where nothing is predicted."""
    error = packet.predicted_error
    return error is None or not error.size or bool(error[-1] <= _allowed(target))


def _allowed(target: Decibels) -> float:
    """Natural log of the MSE on the [-1, 1] scale at which the target is just met."""
    return math.log(4) - target.target * math.log(10) / 10


def grouped(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Yield the indices of `keys` in runs of at most `size` that share one key, groups in the order of their first
    index."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def clip_frames_for(height: int, width: int, manifest: Manifest) -> int:
    """Frames of a full clip of this size: fewer than the bundle's where those would be more positions than it takes.

    Raises ValueError where not even one frame fits.
    """
    _, rows, columns = padded_grid(1, height, width)
    groups = min(padded_grid(manifest.clip.frames, 1, 1)[0], manifest.clip.max_video_positions // (rows * columns))
    if groups < 1:
        most = manifest.clip.max_video_positions
        got = f"one frame of {width}x{height} is {rows * columns} grid positions of 16x16"
        raise ValueError(f"{got}, {manifest.name} takes {most}: scale the video down")
    return 4 * groups - 3


def check_clip(clip: Clip, manifest: Manifest) -> None:
    """Raise TypeError or ValueError unless the clip is one that the bundle takes."""
    count, height, width, _ = check_frames(clip.frames).shape
    most = clip_frames_for(height, width, manifest)
    kind = "clip"
    if clip.context_frame is not None:
        most, kind = most - 1, "continuation clip"
        context = check_frame("context_frame", clip.context_frame)
        if context.shape != clip.frames.shape[1:]:
            got = f"{context.shape[1]}x{context.shape[0]} for frames of {width}x{height}"
            raise ValueError(f"context_frame must have the size of the clip's frames, got {got}")
        if clip.first_frame < 1:
            raise ValueError(f"the first_frame of a continuation clip must be at least 1, got {clip.first_frame}")
    if most < 1:
        raise ValueError(f"a clip of {width}x{height} has 1 frame in {manifest.name}: no room for a context frame")
    if count > most:
        raise ValueError(
            f"a {kind} of {width}x{height} has 1..{most} frames in {manifest.name}, got {count}; use encode"
        )


def check_switch(name: str, value: object) -> bool:
    """`value` if it is True or False; TypeError otherwise: a text such as "no" would count as yes."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def place_latents(
    coded_frames: Uint8, is_key: bool, budget: int | Decibels | None, limit: int, manifest: Manifest
) -> npt.NDArray[np.int64]:
    """Where the latents of a clip go: anchors (K,), at most `limit` of them.

    coded_frames: (T, H, W, 3), a continuation clip's context frame first. budget: how many, as `parse_tokens` gives it;
    a target in dB takes as many as it may, to be cut after encoding.
    """
    multiple, grid = manifest.lengths.length_multiple, padded_grid(*coded_frames.shape[:3])
    longest = placement.longest(grid, max_tokens=manifest.max_tokens, is_key=is_key)
    if limit < longest:
        longest = limit // multiple * multiple
    content = manifest.model.anchors == "content"
    if isinstance(budget, Decibels):
        count = longest
    elif budget is not None:
        count = placement.round_tokens(budget, longest, length_multiple=multiple)
    else:
        count = None
    if not content and count is not None:
        return placement.fixed_anchors(grid, count, is_key=is_key)
    detail = placement.detail_map(pad_clip(coded_frames))
    if count is None:
        density = manifest.policy.density
        count = placement.choose_tokens(
            detail, density=density, max_tokens=longest, is_key=is_key, length_multiple=multiple
        )
    if not content:
        return placement.fixed_anchors(grid, count, is_key=is_key)
    return placement.place(detail, count, is_key=is_key, length_multiple=multiple)


def check_packet(packet: Packet, manifest: Manifest, limits: Limits | None) -> None:
    """Raise PacketError unless the packet is whole, of this model, and within its limits and the reader's; TypeError
    where it is none."""
    as_packet(packet)
    model = manifest.model
    most: list[tuple[str, int, int]] = [
        ("frames", packet.frames, manifest.clip.frames - (0 if packet.is_key else 1)),
        ("latents", packet.tokens, manifest.max_tokens),
    ]
    if limits is not None or packet.frame_size is not None:  # a tile may claim to be part of any frame
        most.append(("pixels", math.prod(packet.whole_size), (limits or Limits()).max_pixels))
    if limits is not None:
        most.append(("latents", packet.tokens, limits.max_latents))
    if packet.validate().model != model.fingerprint:
        made = packet.model[:12] + "…" if packet.model else "unknown"
        raise WrongModel(f"the packet was made by the model {made}, not by {manifest.name} ({model.fingerprint[:12]}…)")
    channels = packet.structural.shape[3], packet.latents.shape[1]
    if channels != (model.structural_channels, model.latent_channels):
        wanted = (model.structural_channels, model.latent_channels)
        raise PacketError(f"the packet has (structural, latent) channels {channels}, {manifest.name} has {wanted}")
    for what, got, allowed in [*most, ("grid positions", math.prod(packet.grid), manifest.clip.max_video_positions)]:
        if got > allowed:
            raise PacketError(f"the packet has {got} {what}; allowed: {allowed}")
