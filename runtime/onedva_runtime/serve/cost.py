"""Seconds that coding a clip will take on this machine: measured at warm-up, a plane over grid positions and latents.
Requests are charged by this, not by their bytes: a short upload may hold hours of video."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from onedva_runtime.clips import make_clip
from onedva_runtime.container_packet import encode_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.packet import padded_grid

if TYPE_CHECKING:
    from onedva_runtime.codec import VideoCodec

__all__ = ["Cost", "Plane", "measure", "positions_of"]

SIDES = (128, 256)  # pixels of the clips that are measured


@dataclass(frozen=True)
class Plane:
    """seconds = fixed + per_position x positions + per_token x latents, none below 0."""

    fixed: float
    per_position: float
    per_token: float

    def __call__(self, positions: int, tokens: int) -> float:
        return self.fixed + self.per_position * positions + self.per_token * tokens


@dataclass(frozen=True)
class Cost:
    """What clips take of the whole machine, in seconds."""

    encode_plane: Plane
    """Frames to the bytes of a packet."""
    decode_plane: Plane
    """A packet to frames in one step."""
    step_plane: Plane
    """Each step where there are several."""
    clip_frames: int
    """New frames that a clip brings: those of a continuation clip."""
    max_tokens: int

    def encode(self, positions: int, tokens: int) -> float:
        """Encoding one clip of `positions` grid positions with `tokens` latents."""
        return self.encode_plane(positions, tokens)

    def decode(self, positions: int, tokens: int, num_steps: int) -> float:
        """Decoding it in `num_steps` steps."""
        further = num_steps if num_steps > 1 else 0
        return self.decode_plane(positions, tokens) + further * self.step_plane(positions, tokens)

    def clips(self, frames: float) -> float:
        """How many clips so many frames become."""
        return frames / self.clip_frames


def positions_of(frames: int, height: int, width: int) -> int:
    """Grid positions of a clip, all of its tiles together but for their overlaps."""
    groups, rows, columns = padded_grid(frames, height, width)
    return groups * rows * columns


def measure(codec: VideoCodec, *, runs: int = 3) -> Cost:
    """Time encoding and decoding on this machine, after a run of each that does not count."""
    quantiser = codec.quantiser()
    few, many = 16, codec.max_tokens
    steps = min(4, codec.manifest.sampler.max_steps)
    places: list[tuple[int, int]] = []
    times: dict[str, list[float]] = {"encode": [], "decode": [], "step": []}
    picture = make_clip(codec.clip_frames, SIDES[0], SIDES[0])
    for side, tokens in ((SIDES[0], few), (SIDES[0], many), (SIDES[1], few)):
        times_over = side // SIDES[0]
        frames = np.tile(picture[: codec.clip_frames_for(height=side, width=side)], (1, times_over, times_over, 1))
        packet = codec.encode_clip(frames, tokens=tokens)

        def encode(frames: np.ndarray = frames, tokens: int = tokens) -> None:
            encode_packet(codec.encode_clip(frames, tokens=tokens), quantiser, TABLES)

        def decode(num_steps: int, packet: object = packet) -> None:
            codec.decode_clip(packet, num_steps=num_steps)  # type: ignore[arg-type]

        places.append((positions_of(packet.frames, side, side), packet.tokens))
        times["encode"].append(_seconds(encode, runs))
        once = _seconds(lambda decode=decode: decode(1), runs)
        times["decode"].append(once)
        further = _seconds(lambda decode=decode: decode(steps), runs) - once if steps > 1 else 0.0
        times["step"].append(max(0.0, further) / steps)
    planes = {name: _plane(places, seconds) for name, seconds in times.items()}
    return Cost(
        encode_plane=planes["encode"],
        decode_plane=planes["decode"],
        step_plane=planes["step"],
        clip_frames=max(1, codec.clip_frames - 1),
        max_tokens=codec.max_tokens,
    )


def _seconds(work: Callable[[], None], runs: int) -> float:
    work()
    times: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def _plane(places: list[tuple[int, int]], seconds: list[float]) -> Plane:
    """Through three points: small and short, small and long, large and short."""
    (small, few), (_, many), (large, _) = places
    per_token = max(0.0, (seconds[1] - seconds[0]) / max(1, many - few))
    per_position = max(0.0, (seconds[2] - seconds[0]) / max(1, large - small))
    fixed = max(0.0, seconds[0] - per_position * small - per_token * few)
    return Plane(fixed, per_position, per_token)
