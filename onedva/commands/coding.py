"""`onedva encode` and `onedva decode`: a video file to an .odva file and back, clip by clip, so memory does not
grow with the video."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from onedva.commands.clip_streams import StreamChoice, decoded_clips, encoded_clips, followed
from onedva.commands.console import Terminal, check_output
from onedva.commands.failures import Incomplete
from onedva.commands.pipes import data_out, is_pipe, open_source, opened_data, owned, shown, uneven
from onedva.commands.tables import Table, counted

if TYPE_CHECKING:
    from onedva_runtime import Packet, VideoCodec
    from onedva_runtime.container import Header, PacketReader
    from onedva_runtime.quantiser import Quantiser
    from onedva_runtime.stream_report import StreamReport
    from onedva_runtime.video_io import VideoInfo, VideoWriter
    from onedva_runtime.video_pipe import PipeWriter

__all__ = [
    "CodecChoice",
    "as_stored",
    "check_tokens",
    "codec_facts",
    "decode_file",
    "encode_file",
    "refuse_truncated",
    "spread",
]

logger = logging.getLogger("onedva")


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """Which model runs where, as the command line names it."""

    model: str = "tiny"
    """A shipped name, a bundle folder, or a hub id with its revision."""
    backend: str = "auto"
    """A backend's name, or auto."""
    dtype: str = "auto"
    """What the backend computes in, or auto."""
    device: str = "auto"
    """Where the backend runs."""
    threads: int | None = None
    """CPU threads of the backend; None lets it use all cores."""

    def open(self, *, made_by: str | None = None) -> VideoCodec:
        """Load the bundle and check it. made_by: fingerprint of the model that made what is to be decoded; a name
        without a version then means that version, where it is shipped. Raises BundleError, BackendError."""
        from onedva_runtime import VideoCodec
        from onedva_runtime.hub import shipped_maker

        maker = shipped_maker(made_by) if made_by is not None else None
        model = maker if maker is not None and maker.rpartition("-v")[0] == self.model else self.model
        return VideoCodec.from_pretrained(
            model, backend=self.backend, dtype=self.dtype, device=self.device, threads=self.threads
        )


def codec_facts(codec: VideoCodec) -> dict[str, str]:
    """The model and backend in use, and why that backend, for a verb's result."""
    return {"model": codec.name, "backend": codec.backend_name, "backend_reason": codec.info()["backend_reason"]}


def check_tokens(text: str) -> None:
    """Check `--tokens` before any work. Raises ValueError saying what is allowed."""
    from onedva_runtime.prepare import parse_tokens

    parse_tokens(text)


def as_stored(packet: Packet, quantiser: Quantiser) -> tuple[Packet, int]:
    """The packet as a decoder finds it in an .odva file, quantised, and how many bytes it takes there."""
    from onedva_runtime.container_packet import join, store_packet
    from onedva_runtime.entropy_tables import TABLES

    coded, stored = store_packet(packet, quantiser, TABLES)
    return stored, len(join(coded))


def encode_file(
    source: Path,
    target: Path,
    *,
    choice: CodecChoice,
    stream: StreamChoice,
    step: float,
    raw: str | None,
    sandbox: bool,
    force: bool,
    terminal: Terminal,
) -> None:
    """The verb `encode`: read `source`, write `target`, show what it took. Either may be `-`."""
    if not is_pipe(target):
        check_output(target, force=force, source=source, suffixes=(".odva",))
    check_tokens(stream.tokens)
    terminal.start_logging()
    from onedva_runtime.container import save_packets
    from onedva_runtime.pipeline import Pipeline
    from onedva_runtime.video_sandbox import SandboxedReader

    start = time.perf_counter()
    coded: list[tuple[int, int, bool, bool]] = []  # frames, latents, kind of each clip, and if its camera was followed
    with (
        data_out(wanted=is_pipe(target)) as stdout,
        ExitStack() as opened,
        Pipeline() as pipeline,
        ExitStack() as hurried,  # what wakes a stage before its thread is waited for
    ):
        reader = opened.enter_context(open_source(source, raw=raw, batch=stream.batch_frames, sandbox=sandbox))
        info, codec = reader.info, choice.open()
        quantiser = codec.quantiser(step=step)
        # The stage closes what it reads: nobody else may while it waits for the next byte of a pipe.
        read = owned(reader, opened.pop_all())
        if isinstance(reader, SandboxedReader):
            hurried.callback(reader.stop)
        batches = pipeline.stage("read", read, may_stall=is_pipe(source))
        clips = pipeline.stage("encode", encoded_clips(codec, batches, info=info, choice=stream))
        with terminal.progress("encode", total=info.frames) as advance:

            def packets() -> Iterator[Packet]:
                for clip in clips:
                    yield from clip
                    tokens = sum(packet.tokens for packet in clip)
                    coded.append((clip[0].frames, tokens, clip[0].is_key, followed(clip)))
                    advance(clip[0].frames)

            options = {"quantiser": quantiser, "fps": info.fps, "colour": str(info.colour)}
            size = save_packets(stdout or target, packets(), **options, overwrite=force)
        seconds = time.perf_counter() - start
        frames = sum(count for count, *_ in coded)
        document = {
            "source": str(source),
            "target": str(target),
            **codec_facts(codec),
            "width": info.width,
            "height": info.height,
            "frames": frames,
            "fps": float(info.fps),
            "clips": len(coded),
            "key_clips": sum(is_key for _, _, is_key, _ in coded),
            "followed_clips": sum(follows for *_, follows in coded),
            "tokens": [count for _, count, *_ in coded],
            "source_bytes": None if is_pipe(source) else source.stat().st_size,
            "bytes": size,
            "bits_per_pixel": 8 * size / (frames * info.width * info.height),
            "kbps": 8e-3 * size * float(info.fps) / frames,
            "seconds": seconds,
        }
        terminal.show(document, [_coded_table("encode", document)])
    refuse_truncated(reader.info, source, frames)


def refuse_truncated(info: VideoInfo, source: Path, frames: int) -> None:
    """Raise Incomplete where a source that has been read to its end, `frames` of it, was damaged or cut off."""
    if info.truncated:
        read = f"the {counted(frames, 'frame')} that could be read"
        raise Incomplete(f"{shown(source)}: damaged or cut off: done with {read}")


def decode_file(
    source: Path,
    target: Path,
    *,
    choice: CodecChoice,
    steps: int,
    seed: int,
    audio: Path | None,
    pipe: str | None,
    skip_damage: bool,
    force: bool,
    terminal: Terminal,
) -> None:
    """The verb `decode`: read `source`, write a video of its size, frame count, rate and time stamps. Either may be
    `-`. skip_damage: damaged clips are concealed, and told of, in place of an error."""
    from onedva_runtime.container import open_packets
    from onedva_runtime.container_losses import with_losses
    from onedva_runtime.errors import PacketError
    from onedva_runtime.pipeline import Pipeline

    if pipe is not None and not is_pipe(target):
        raise ValueError(f"--pipe says what goes to stdout: give - in place of {target}")
    pipe = pipe or "y4m"
    check_video_target(source, target, audio=audio, force=force)
    terminal.start_logging()
    with (
        data_out(wanted=is_pipe(target)) as stdout,
        open_packets(opened_data(source), on_error="skip" if skip_damage else "raise") as reader,
        Pipeline() as pipeline,
    ):
        header = reader.header
        codec = choice.open(made_by=header.model)
        start = time.perf_counter()
        reports: list[StreamReport] = []
        packets = pipeline.stage("read", with_losses(reader), may_stall=is_pipe(source))
        size = header.height, header.width
        clips = pipeline.stage("decode", decoded_clips(codec, packets, steps=steps, seed=seed, frame_size=size))
        with (
            open_target(stdout or target, header=header, audio=audio, pipe=pipe, force=force) as writer,
            terminal.progress("decode", total=None) as advance,
        ):
            for frames, report in clips:
                if stdout is not None and pipe in ("y4m", "raw") and uneven(report.timestamps, header):
                    logger.warning("frames are unevenly spaced in time, which %s cannot say: --pipe nut can", pipe)
                writer.write(frames, report.timestamps)
                reports.append(report)
                advance(report.frames)
            if not reports and reader.gaps:
                raise PacketError(f"{shown(source)}: no clip in it can be read: {reader.gaps[0].problem}")
        for gap in reader.gaps:
            where = "latents only" if gap.first_frame is None else f"clips from frame {gap.first_frame} on"
            logger.warning("%s: byte %d: %s (%s)", source, gap.offset, gap.problem, where)
        decoded = [report for report in reports if not report.concealed]
        document = {
            "source": str(source),
            "target": str(target),
            **codec_facts(codec),
            "width": header.width,
            "height": header.height,
            "frames": sum(report.frames for report in reports),
            "fps": float(header.fps),
            "clips": len(decoded),
            "key_clips": sum(report.is_key for report in decoded),
            "tokens": [report.tokens for report in decoded],
            "steps": steps,
            "seed": seed,
            "concealed": sum(report.frames for report in reports if report.concealed),
            "damage": [f"byte {gap.offset}: {gap.problem}" for gap in reader.gaps],
            "seconds": time.perf_counter() - start,
        }
        terminal.show(document, [_coded_table("decode", document)])
        if reader.gaps:
            raise Incomplete(_damage(reader, source, document))


def _damage(reader: PacketReader, source: Path, document: dict[str, Any]) -> str:
    """In words: what of a damaged file could not be decoded."""
    frames, concealed = document["frames"], document["concealed"]
    what = f"{concealed:,} of {counted(frames, 'frame')} are concealed" if concealed else "no frame between is missing"
    end = max((gap.first_frame for gap in reader.gaps if gap.first_frame is not None), default=-1)
    if reader.clips() is None and not reader.complete:
        what += "; it has no end, so it may have had more"
    elif reader.clips() is None and end >= frames:
        what += "; how many are missing after them is not known"
    return f"{shown(source)}: damaged in {counted(len(reader.gaps), 'place')}: {what}"


def check_video_target(source: Path, target: Path, *, audio: Path | None, force: bool) -> None:
    """Refuse what cannot be written before any work. Raises as `check_output` does."""
    from onedva_runtime.video_write import CONTAINERS

    if not is_pipe(target):
        check_output(target, force=force, source=source, suffixes=tuple(CONTAINERS))
    elif audio is not None:
        raise ValueError("--audio needs a file to write: a pipe carries pictures only")


def open_target(
    target: Path | BinaryIO, *, header: Header, audio: Path | None, pipe: str, force: bool
) -> VideoWriter | PipeWriter:
    """The file or pipe that a decoded video goes to. Raises VideoError, ValueError."""
    from onedva_runtime.video_pipe import PipeWriter
    from onedva_runtime.video_write import VideoWriter

    width, height, fps, base = header.width, header.height, header.fps, header.time_base
    if isinstance(target, Path):
        return VideoWriter(target, width=width, height=height, fps=fps, time_base=base, overwrite=force, audio=audio)
    return PipeWriter(target, width=width, height=height, fps=fps, time_base=base, kind=pipe)


def spread(tokens: Sequence[int]) -> str:
    """How many latents the clips took: "64", or "16–256, mean 120.0"."""
    low, high = min(tokens), max(tokens)
    return str(low) if low == high else f"{low}–{high}, mean {sum(tokens) / len(tokens):.1f}"


def _coded_table(verb: str, document: dict[str, Any]) -> Table:
    """What was coded, one fact per row."""
    seconds = document["seconds"]
    rows = [
        [verb, f"{document['source']} → {document['target']}"],
        ["model", f"{document['model']} on {document['backend']} ({document['backend_reason']})"],
        ["video", f"{document['width']}×{document['height']}, {document['frames']} frames, {document['fps']:.3f} fps"],
        ["latents per clip", f"{spread(document['tokens'] or [0])} ({counted(document['clips'], 'clip')})"],
    ]
    if document.get("followed_clips"):
        rows.append(["camera followed", f"in {document['followed_clips']} of {counted(document['clips'], 'clip')}"])
    if "bytes" in document:
        rate = f"{document['kbps']:.1f} kbit/s, {document['bits_per_pixel']:.4f} bits per pixel"
        rows.append(["size", f"{document['bytes']:,} bytes, {rate}"])
    rows.append(["time", f"{seconds:.2f} s, {document['frames'] / max(seconds, 1e-9):.1f} frames per second"])
    return Table(title=f"onedva {verb}", columns=["", ""], rows=rows, text=True)
