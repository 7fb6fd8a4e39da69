"""Videos as streams of clips, for the verbs that encode and decode: generators that a pipeline runs in threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime import Packet, VideoCodec
    from onedva_runtime.container_losses import Lost
    from onedva_runtime.stream_decoder import StreamDecoder
    from onedva_runtime.stream_report import StreamReport
    from onedva_runtime.video_io import VideoInfo

    Frames = npt.NDArray[np.uint8]

__all__ = ["StreamChoice", "by_clip", "decoded_clips", "encoded_clips"]

logger = logging.getLogger("onedva")


@dataclass(frozen=True, kw_only=True)
class StreamChoice:
    """How a video becomes clips and packets, as the command line says."""

    tokens: str = "auto"
    """1D latents of a clip, or of each tile of a large one."""
    keyframe_interval: int = 8
    """Clips from one key clip to the next; 1: key clips only, 0: none but the first and those at cuts."""
    low_latency: bool = False
    """Clips of 5 frames, handed on as soon as they are there."""
    follow_camera: bool = True
    """See `VideoCodec.encode_clip`."""
    batch: int = 1
    """Clips per call of the backend."""

    @property
    def batch_frames(self) -> int:
        """Frames to read at once: no more than may wait for each other."""
        return 1 if self.low_latency else 17


def encoded_clips(
    codec: VideoCodec, batches: Iterable[tuple[Frames, npt.NDArray[np.int64]]], *, info: VideoInfo, choice: StreamChoice
) -> Iterator[list[Packet]]:
    """Encode frames (n, H, W, 3) and their times (n,) as they come, to the packets of each clip.

    info: of the source; times before zero are moved to start there, as no file that we write has a place for them.
    """
    from onedva_runtime.prepare import Decibels, parse_tokens, reaches

    encoder = codec.open_encoder(
        fps=float(info.fps),
        tokens=choice.tokens,
        keyframe_interval=choice.keyframe_interval,
        clip_frames=5 if choice.low_latency else None,
        time_base=info.time_base,
        follow_camera=choice.follow_camera,
        batch_size=choice.batch,
    )
    asked = parse_tokens(choice.tokens)
    clips = missed = most = 0

    def watched(packets: list[Packet]) -> Iterator[list[Packet]]:
        nonlocal clips, missed, most
        for clip in by_clip(packets):
            clips += 1
            most = max(most, *(packet.tokens for packet in clip))
            missed += isinstance(asked, Decibels) and not all(reaches(packet, asked) for packet in clip)
            yield clip

    shift: int | None = None
    for frames, timestamps in batches:
        if shift is None:
            shift = min(0, int(timestamps[0]))
        yield from watched(encoder.push(frames, timestamps - shift))
    yield from watched(encoder.flush())
    if clips and isinstance(asked, int) and most < asked:
        logger.warning("%d latents were asked for; clips of this size carry up to %d with this model", asked, most)
    if missed:
        logger.warning(
            "%d of %d clips are predicted to stay below %s even with all the latents they can have",
            *(missed, clips, choice.tokens),
        )


def followed(clip: Sequence[Packet]) -> bool:
    """Whether the camera of a clip, or of one of its tiles, was followed."""
    return any(packet.camera is not None for packet in clip)


def by_clip(packets: Iterable[Packet]) -> Iterator[list[Packet]]:
    """Whole clips of packets: one each, or all the tiles of one."""
    for _, clip in groupby(packets, key=lambda packet: packet.first_frame):
        yield list(clip)


def decoded_clips(
    codec: VideoCodec, packets: Iterable[Packet | Lost], *, steps: int, seed: int, frame_size: tuple[int, int]
) -> Iterator[tuple[Frames, StreamReport]]:
    """Decode packets as they come, to the frames (T, H, W, 3) of each clip and what there is to say of it.

    What was lost is concealed, with a warning. steps: 0 for previews, which need no frame before them. frame_size:
    (height, width), for what is lost before the first packet.
    """
    from onedva_runtime.container_losses import Lost

    reports: list[StreamReport] = []
    decoder: StreamDecoder | PreviewStream
    if steps == 0:
        decoder = PreviewStream(codec, seed=seed, on_report=reports.append)
    else:
        decoder = codec.open_decoder(num_steps=steps, seed=seed, on_report=reports.append)

    def told(outputs: list[Frames]) -> Iterator[tuple[Frames, StreamReport]]:
        for frames, report in zip(outputs, reports, strict=True):
            if report.concealed:
                last = report.first_frame + report.frames - 1
                logger.warning("frames %d to %d: %s, concealed", report.first_frame, last, report.concealed)
            yield frames, report
        reports.clear()

    for item in packets:
        if isinstance(item, Lost):
            place = {"first_frame": item.first_frame, "frame_size": frame_size}
            yield from told(decoder.lost(item.frames, timestamps=item.timestamps, **place))
        else:
            yield from told(decoder.push(item))
    yield from told(decoder.flush())


class PreviewStream:
    """Previews of packets, with the methods of a `StreamDecoder` that `decoded_clips` calls: no clip needs another, and
    what is lost shows the last frame, or grey."""

    def __init__(self, codec: VideoCodec, *, seed: int, on_report: Callable[[StreamReport], None]) -> None:
        self._codec, self._seed, self._on_report = codec, seed, on_report
        self._tiles: list[Packet] = []
        self._last: Frames | None = None

    def push(self, packet: Packet) -> list[Frames]:
        """The clips that are complete with it."""
        from onedva_runtime.tiles import same_clip
        from onedva_runtime.whole_frames import ends_clip

        outputs = [] if not self._tiles or same_clip(self._tiles[-1], packet) else self.flush()
        self._tiles.append(packet)
        return outputs + (self.flush() if ends_clip(packet) else [])

    def flush(self) -> list[Frames]:
        """The clip that waits for tiles, if any, as it is."""
        from onedva_runtime.stream_report import StreamReport
        from onedva_runtime.tiles import check_tiles
        from onedva_runtime.whole_frames import joined

        if not self._tiles:
            return []
        clip, self._tiles = self._tiles, []
        first = clip[0]
        decoded = self._codec.decode_clips(clip, num_steps=0, seed=self._seed, batch_size=1)
        report = StreamReport(
            first_frame=first.first_frame,
            frames=first.frames,
            timestamps=first.timestamps,
            is_key=first.is_key,
            tokens=sum(packet.tokens for packet in clip),
            concealed="" if check_tiles(clip) else "tiles lost",
        )
        return [self._shown(joined(clip, decoded, self._last), report)]

    def lost(
        self,
        frames: int,
        *,
        timestamps: npt.NDArray[np.int64] | None,
        first_frame: int,
        frame_size: tuple[int, int],
    ) -> list[Frames]:
        """What conceals lost frames."""
        import numpy as np

        from onedva_runtime.stream_decoder import GREY
        from onedva_runtime.stream_report import StreamReport

        outputs = self.flush()
        last = np.full((*frame_size, 3), GREY, np.uint8) if self._last is None else self._last
        report = StreamReport(first_frame=first_frame, frames=frames, timestamps=timestamps, concealed="lost")
        return [*outputs, self._shown(np.broadcast_to(last, (frames, *last.shape)), report)]

    def _shown(self, frames: Frames, report: StreamReport) -> Frames:
        self._last = frames[-1].copy()
        self._on_report(report)
        return frames
