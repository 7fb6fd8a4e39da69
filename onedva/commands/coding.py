"""`onedva encode` and `onedva decode`: a video file to an .odva file and back, clip by clip, so memory does not
grow with the video."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.commands.console import Terminal, check_output
from onedva.commands.tables import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime import Packet, VideoCodec
    from onedva_runtime.quantiser import Quantiser
    from onedva_runtime.video_io import VideoInfo

__all__ = [
    "CodecChoice",
    "as_stored",
    "check_tokens",
    "codec_facts",
    "decode_file",
    "encode_file",
    "encode_video",
    "spread",
]


@dataclass(frozen=True, kw_only=True)
class CodecChoice:
    """Which model runs where, as the command line names it."""

    model: str = "tiny"
    """A shipped name, a bundle folder, or a hub id with its revision."""
    backend: str = "auto"
    """A backend's name, or auto."""
    dtype: str = "auto"
    """What the backend computes in, or auto."""
    device: str = "cpu"
    """Where the backend runs."""
    threads: int | None = None
    """CPU threads of the backend; None lets it use all cores."""

    def open(self) -> VideoCodec:
        """Load the bundle and check it. Raises BundleError, BackendError."""
        from onedva_runtime import VideoCodec

        return VideoCodec.from_pretrained(
            self.model, backend=self.backend, dtype=self.dtype, device=self.device, threads=self.threads
        )


def encode_video(
    codec: VideoCodec, source: Path, *, info: VideoInfo, tokens: str, batch: int = 1
) -> Iterator[tuple[npt.NDArray[np.uint8], Packet]]:
    """Read a video and encode it, `batch` clips at a time.

    Yields each clip's frames (T, H, W, 3) uint8 with its packet, which carries the frames' numbers and time stamps.
    Raises VideoError where the file turns out to be damaged.
    """
    from onedva_runtime.video_io import open_reader

    first, shift = 0, 0
    length = codec.clip_frames_for(height=info.height, width=info.width)
    with open_reader(source, batch=length * batch) as reader:
        for frames, timestamps in reader:
            if first == 0:
                shift = min(0, int(timestamps[0]))  # no file that we write has a place for times before zero
            starts = range(0, len(frames), length)
            packets = codec.encode_clips(
                [frames[start : start + length] for start in starts],
                tokens=tokens,
                fps=float(info.fps),
                first_frames=[first + start for start in starts],
                batch_size=batch,
            )
            for start, packet in zip(starts, packets, strict=True):
                ticks = timestamps[start : start + length] - shift
                yield frames[start : start + length], replace(packet, timestamps=ticks, time_base=info.time_base)
            first += len(frames)


def codec_facts(codec: VideoCodec) -> dict[str, str]:
    """The model and backend in use, and why that backend, for a verb's result."""
    return {"model": codec.name, "backend": codec.backend_name, "backend_reason": codec.info()["backend_reason"]}


def check_tokens(text: str) -> None:
    """Check `--tokens` before any work. Raises ValueError saying what is allowed."""
    from onedva_runtime.prepare import parse_tokens

    parse_tokens(text)


def as_stored(packet: Packet, quantiser: Quantiser) -> tuple[Packet, int]:
    """The packet as a decoder finds it in an .odva file, quantised, and how many bytes it takes there."""
    from onedva_runtime.container_packet import encode_packet, join
    from onedva_runtime.entropy_tables import TABLES

    return quantiser.apply(packet), len(join(encode_packet(packet, quantiser, TABLES)))


def encode_file(
    source: Path,
    target: Path,
    *,
    choice: CodecChoice,
    tokens: str,
    step: float,
    batch: int,
    force: bool,
    terminal: Terminal,
) -> None:
    """The verb `encode`: read `source`, write `target`, show what it took."""
    check_output(target, force=force, source=source, suffixes=(".odva",))
    check_tokens(tokens)
    terminal.start_logging()
    from onedva_runtime.container import save_packets
    from onedva_runtime.video_io import probe

    info = probe(source)
    codec = choice.open()
    quantiser = codec.quantiser(step=step)
    start = time.perf_counter()
    packets: list[tuple[int, int]] = []  # frames and latents of each
    with terminal.progress("encode", total=info.frames) as advance:

        def encoded() -> Iterator[Packet]:
            for _, packet in encode_video(codec, source, info=info, tokens=tokens, batch=batch):
                yield packet
                packets.append((packet.frames, packet.tokens))
                advance(packet.frames)

        options = {"quantiser": quantiser, "fps": info.fps, "colour": str(info.colour)}
        size = save_packets(target, encoded(), **options, overwrite=force)
    seconds = time.perf_counter() - start
    frames = sum(count for count, _ in packets)
    document = {
        "source": str(source),
        "target": str(target),
        **codec_facts(codec),
        "width": info.width,
        "height": info.height,
        "frames": frames,
        "fps": float(info.fps),
        "clips": len(packets),
        "tokens": [count for _, count in packets],
        "source_bytes": source.stat().st_size,
        "bytes": size,
        "bits_per_pixel": 8 * size / (frames * info.width * info.height),
        "kbps": 8e-3 * size * float(info.fps) / frames,
        "seconds": seconds,
    }
    terminal.show(document, [_coded_table("encode", document)])


def decode_file(
    source: Path, target: Path, *, choice: CodecChoice, steps: int, seed: int, force: bool, terminal: Terminal
) -> None:
    """The verb `decode`: read `source`, write a video of its size, frame count, rate and time stamps."""
    from onedva_runtime.container import open_packets
    from onedva_runtime.video_write import CONTAINERS, VideoWriter

    check_output(target, force=force, source=source, suffixes=tuple(CONTAINERS))
    terminal.start_logging()

    with open_packets(source) as packets:
        header = packets.header
        codec = choice.open()
        start = time.perf_counter()
        written: list[tuple[int, int]] = []  # frames and latents of each clip
        with (
            VideoWriter(
                target,
                width=header.width,
                height=header.height,
                fps=header.fps,
                time_base=header.time_base,
                overwrite=force,
            ) as writer,
            terminal.progress("decode", total=None) as advance,
        ):
            for packet in packets:
                writer.write(codec.decode_clip(packet, num_steps=steps, seed=seed), packet.timestamps)
                written.append((packet.frames, packet.tokens))
                advance(packet.frames)
    document = {
        "source": str(source),
        "target": str(target),
        **codec_facts(codec),
        "width": header.width,
        "height": header.height,
        "frames": sum(count for count, _ in written),
        "fps": float(header.fps),
        "clips": len(written),
        "tokens": [count for _, count in written],
        "steps": steps,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }
    terminal.show(document, [_coded_table("decode", document)])


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
        ["latents per clip", f"{spread(document['tokens'])} ({document['clips']} clips)"],
    ]
    if "bytes" in document:
        rate = f"{document['kbps']:.1f} kbit/s, {document['bits_per_pixel']:.4f} bits per pixel"
        rows.append(["size", f"{document['bytes']:,} bytes, {rate}"])
    rows.append(["time", f"{seconds:.2f} s, {document['frames'] / max(seconds, 1e-9):.1f} frames per second"])
    return Table(title=f"onedva {verb}", columns=["", ""], rows=rows, text=True)
