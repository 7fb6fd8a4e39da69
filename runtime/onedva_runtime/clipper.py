"""Frames to clips: `Clipper` cuts a video into key clips and continuation clips, whatever the sizes of the batches it
comes in.

A key clip has up to 1 + 4n frames and stands alone. A continuation clip has up to 4n new frames and the frame before
them as context: the source's, so that no clip waits for another's decode. A key clip comes first, then every
`keyframe_interval` clips, at scene cuts, and when asked for. A cut also ends the clip before it early.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onedva_runtime.cuts import CutDetector

__all__ = ["KEYFRAME_INTERVAL", "Clip", "Clipper"]

Uint8 = npt.NDArray[np.uint8]
KEYFRAME_INTERVAL = 8  # clips from one key clip to the next where nothing else is asked for


@dataclass(frozen=True, eq=False, kw_only=True)
class Clip:
    """The frames of one clip, or of one tile of it."""

    frames: Uint8
    """New frames (T, H, W, 3)."""
    first_frame: int
    """Number of the first of them in the video."""
    context_frame: Uint8 | None = None
    """The source's frame before them (H, W, 3) in a continuation clip, None in a key clip."""
    timestamps: npt.NDArray[np.int64] | None = None
    """Presentation times (T,) in ticks."""
    corner: tuple[int, int] = (0, 0)
    """As in `Packet`."""
    frame_size: tuple[int, int] | None = None
    """As in `Packet`."""

    @property
    def is_key(self) -> bool:
        """Whether it stands alone."""
        return self.context_frame is None

    @property
    def coded_frames(self) -> Uint8:
        """The context frame, if any, and the new frames: what the encoder sees."""
        if self.context_frame is None:
            return self.frames
        return np.concatenate([self.context_frame[None], self.frames])


class Clipper:
    """State of one stream of frames of one size. It holds copies: pushed arrays may be reused."""

    def __init__(self, *, clip_frames: int, keyframe_interval: int, cuts: bool, first_frame: int = 0) -> None:
        """clip_frames: of a full key clip, 1 + 4n; with 1 every clip is a key clip. keyframe_interval: clips from one
        key clip to the next, 1 makes all of them key clips, 0 none but the first and those at cuts. cuts: look for
        them. first_frame: number of the first frame that will be pushed.
        """
        self._full, self._interval = clip_frames, keyframe_interval
        self._detector = CutDetector() if cuts else None
        self._buffer: Uint8 | None = None  # context frame, then new frames
        self._ticks = np.zeros(clip_frames, np.int64)
        self._timed = False
        self._held = 0
        self._first_frame = first_frame
        self._is_key, self._key_wanted = True, True
        self._since_key = 0  # clips since the newest key clip, itself counted

    @property
    def held(self) -> int:
        """Frames that wait for their clip to fill."""
        return self._held

    @property
    def next_frame(self) -> int:
        """Number of the next frame to be pushed."""
        return self._first_frame + self._held

    def push(self, frames: Uint8, timestamps: npt.NDArray[np.int64] | None = None) -> list[Clip]:
        """Take frames (T, H, W, 3) and, always or never, their times (T,); return the clips that are complete.

        Raises ValueError for frames of another size than those before.
        """
        if self._buffer is None:
            self._buffer = np.empty((1 + self._full, *frames.shape[1:]), np.uint8)
        if frames.shape[1:] != self._buffer.shape[1:]:
            height, width, _ = self._buffer.shape[1:]
            got = f"{frames.shape[2]}x{frames.shape[1]}"
            raise ValueError(f"a stream's frames have one size; got {got} after {width}x{height}")
        self._timed = timestamps is not None
        clips: list[Clip] = []
        for index, frame in enumerate(frames):
            if self._detector is not None and self._detector.is_cut(frame):
                self._key_wanted = True
            if self._key_wanted:
                clips += self.flush()
            if not self._held:
                self._begin()
            self._buffer[1 + self._held] = frame
            self._ticks[self._held] = 0 if timestamps is None else timestamps[index]
            self._held += 1
            if self._held == (self._full if self._is_key else self._full - 1):
                clips += self.flush()
        return clips

    def flush(self) -> list[Clip]:
        """The clip that is not full, if it has any frames; more may be pushed after."""
        if self._buffer is None or not self._held:
            return []
        clip = Clip(
            frames=self._buffer[1 : 1 + self._held].copy(),
            first_frame=self._first_frame,
            context_frame=None if self._is_key else self._buffer[0].copy(),
            timestamps=self._ticks[: self._held].copy() if self._timed else None,
        )
        self._buffer[0] = self._buffer[self._held]
        self._first_frame += self._held
        self._held = 0
        return [clip]

    def request_key(self) -> None:
        """Let the next frame to be pushed begin a key clip; the clip before it ends early."""
        self._key_wanted = True

    def _begin(self) -> None:
        due = self._interval > 0 and self._since_key >= self._interval
        self._is_key = self._key_wanted or due or self._full == 1
        self._key_wanted = False
        self._since_key = 1 if self._is_key else self._since_key + 1
