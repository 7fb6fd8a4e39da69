"""Streams of clips, synchronous: an encoder that takes frames in batches of any size and gives packets as clips fill,
and a decoder that takes packets and gives frames. One object per stream; many streams may share a codec. Memory stays
that of one clip."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from onedva_runtime.packet import Packet
from onedva_runtime.prepare import check_frames

if TYPE_CHECKING:
    from onedva_runtime.codec import VideoCodec

__all__ = ["StreamDecoder", "StreamEncoder"]


class StreamEncoder:
    """Made by `VideoCodec.open_encoder`. `push` frames, `flush` at the end."""

    def __init__(self, codec: VideoCodec, *, fps: float, tokens: int | str, max_tokens: int | None) -> None:
        self._codec, self._fps, self._tokens, self._max_tokens = codec, fps, tokens, max_tokens
        self._clip: npt.NDArray[np.uint8] | None = None  # one clip's worth of frames, filled up to _held
        self._held = 0
        self._first_frame = 0

    def push(self, frames: npt.NDArray[np.uint8]) -> list[Packet]:
        """Take frames (T, H, W, 3) uint8, any T ≥ 1, and return the packets of the clips that are now full.

        Raises TypeError or ValueError for other arrays, and for frames of another size than the stream's.
        """
        frames = check_frames(frames)
        if self._clip is None:
            length = self._codec.clip_frames_for(height=frames.shape[1], width=frames.shape[2])
            self._clip = np.empty((length, *frames.shape[1:]), np.uint8)
        if frames.shape[1:] != self._clip.shape[1:]:
            height, width, _ = self._clip.shape[1:]
            raise ValueError(
                f"a stream's frames have one size; got {frames.shape[2]}x{frames.shape[1]} after {width}x{height}"
            )
        packets: list[Packet] = []
        taken = 0
        while taken < len(frames):
            count = min(len(self._clip) - self._held, len(frames) - taken)
            self._clip[self._held : self._held + count] = frames[taken : taken + count]
            self._held += count
            taken += count
            if self._held == len(self._clip):
                packets += self.flush()
        return packets

    def flush(self) -> list[Packet]:
        """Encode the frames of the clip that is not full, if any; more frames may be pushed after."""
        if self._clip is None or not self._held:
            return []
        packets = self._codec.encode_clips(
            [self._clip[: self._held]],
            tokens=self._tokens,
            max_tokens=self._max_tokens,
            fps=self._fps,
            first_frames=[self._first_frame],
        )
        self._first_frame += self._held
        self._held = 0
        return packets

    def __enter__(self) -> StreamEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Warn where frames were pushed and never encoded: nothing is dropped silently."""
        if kind is None and self._held:
            warnings.warn(
                f"{self._held} pushed frames were not encoded: call flush() at the end", RuntimeWarning, stacklevel=2
            )


class StreamDecoder:
    """Made by `VideoCodec.open_decoder`. `push` packets, `flush` at the end."""

    def __init__(self, codec: VideoCodec, *, num_steps: int, seed: int) -> None:
        self._codec, self._num_steps, self._seed = codec, num_steps, seed

    def push(self, packet: Packet) -> list[npt.NDArray[np.uint8]]:
        """Decode a packet and return the frames that are ready, as arrays (T, H, W, 3) uint8. Raises as `decode_clip`
        does."""
        return [self._codec.decode_clip(packet, num_steps=self._num_steps, seed=self._seed)]

    def flush(self) -> list[npt.NDArray[np.uint8]]:
        """The frames held back; key clips hold none."""
        return []

    def __enter__(self) -> StreamDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to release: the codec owns the sessions."""
