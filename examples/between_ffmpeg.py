"""The codec between two ffmpeg processes, in flat memory: any file in, any file out, latents in between.

    python examples/between_ffmpeg.py IN OUT.mp4 [--tokens 128] [--odva KEPT.odva]

What `ffmpeg … - | onedva encode - - | onedva decode - - | ffmpeg - …` does, in one process, with the packets at hand:
they could go over a network between the two loops. Frames go through in y4m pipes; ffmpeg does the rest.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from onedva import VideoCodec
from onedva_runtime import Packet, VideoError
from onedva_runtime.container import PacketWriter
from onedva_runtime.video_io import open_reader
from onedva_runtime.video_pipe import PipeWriter

QUIET = ["-hide_banner", "-loglevel", "error", "-nostdin"]


def packets(codec: VideoCodec, source: Path, tokens: str) -> Iterator[Packet]:
    """The packets of a video that ffmpeg reads."""
    command = [
        "ffmpeg",
        *QUIET,
        "-i",
        str(source),
        "-an",
        "-fps_mode",
        "passthrough",
        "-f",
        "yuv4mpegpipe",
        "-pix_fmt",
        "yuv420p",
        "-",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            with open_reader(pipe(process.stdout)) as reader:
                encoder = codec.open_encoder(fps=float(reader.info.fps), tokens=tokens)
                for frames, _ in reader:
                    yield from encoder.push(frames)
                yield from encoder.flush()
        except VideoError as error:  # ffmpeg has said why
            raise SystemExit(f"nothing of {source} came through ffmpeg: {error}") from None
    if process.returncode:
        raise SystemExit(f"ffmpeg could not read all of {source}")


def convert(source: Path, target: Path, *, tokens: str, odva: Path | None) -> int:
    """All of it; returns how many frames went through."""
    codec = VideoCodec.from_pretrained("tiny", backend="onnxruntime")
    decoder = codec.open_decoder()
    frames = 0
    process = writer = kept = None
    try:
        for packet in packets(codec, source, tokens):
            if process is None:
                command = ["ffmpeg", *QUIET, "-y", "-f", "yuv4mpegpipe", "-i", "-", "-pix_fmt", "yuv420p", str(target)]
                process = subprocess.Popen(command, stdin=subprocess.PIPE)
                height, width = packet.whole_size
                writer = PipeWriter(pipe(process.stdin), width=width, height=height, fps=packet.fps)
                if odva is not None:
                    kept = PacketWriter(odva.open("xb"), quantiser=codec.quantiser())
            if kept is not None:
                kept.write(packet)
            for shown in decoder.push(packet):
                assert writer is not None
                writer.write(shown)
                frames += len(shown)
        if kept is not None:
            kept.finish()
        if writer is not None:
            writer.close()
    finally:
        if process is not None:
            pipe(process.stdin).close()
            process.wait()
    if process is None or process.returncode:
        raise SystemExit(f"ffmpeg could not write {target}")
    return frames


def pipe(stream: object) -> BinaryIO:
    """A pipe of a process, which is there because it was asked for."""
    return cast(BinaryIO, stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--tokens", default="auto")
    parser.add_argument("--odva", type=Path, help="keep the packets in this file, too")
    options = parser.parse_args()
    print(f"{convert(options.source, options.target, tokens=options.tokens, odva=options.odva)} frames")


if __name__ == "__main__":
    main()
