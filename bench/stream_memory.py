"""Does a long stream keep its memory? Clips are looped through encoder and decoder as a live stream would be, and the
memory of the process is looked at all the way.

    python bench/stream_memory.py --clips CLIPS --minutes 10 -o memory.json

Says what the last quarter holds beyond the second (the first warms up; 10 MB are allowed), how much of the time the
encoder and the decoder worked, and whether as many frames came out as went in.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onedva_runtime import Packet, VideoCodec
from onedva_runtime.pipeline import Pipeline
from onedva_runtime.video_io import read_video

ALLOWED_MB = 10.0
STATM, PAGE = Path("/proc/self/statm"), 4096


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    return int(STATM.read_text().split()[1]) * PAGE / 2**20


def looped(clips: list[npt.NDArray[np.uint8]], frames: int, batch: int) -> Iterator[npt.NDArray[np.uint8]]:
    """`frames` frames in batches, one clip after the other, over and over."""
    sent = 0
    while True:
        for clip in clips:
            for start in range(0, len(clip), batch):
                part = clip[start : start + batch][: frames - sent]
                sent += len(part)
                yield part.copy()
                if sent == frames:
                    return


def quarters(memory: list[float]) -> tuple[float, float]:
    """Mean memory of the second quarter and of the last."""
    quarter = len(memory) // 4
    return float(np.mean(memory[quarter : 2 * quarter])), float(np.mean(memory[-quarter:]))


def stream(
    codec: VideoCodec, clips: list[npt.NDArray[np.uint8]], *, frames: int, fps: float, tokens: str
) -> dict[str, object]:
    """Run the stream, and say what it took."""
    memory: list[float] = []
    shown = 0
    encoder = codec.open_encoder(fps=fps, tokens=tokens)
    decoder = codec.open_decoder()

    def encoded(batches: Iterator[npt.NDArray[np.uint8]]) -> Iterator[Packet]:
        for batch in batches:
            yield from encoder.push(batch)
        yield from encoder.flush()

    def decoded(packets: Iterator[Packet]) -> Iterator[npt.NDArray[np.uint8]]:
        for packet in packets:
            yield from decoder.push(packet)

    start = time.perf_counter()
    with Pipeline() as pipeline:
        batches = pipeline.stage("read", looped(clips, frames, 17))
        packets = pipeline.stage("encode", encoded(batches))
        for out in pipeline.stage("decode", decoded(packets)):
            shown += len(out)
            memory.append(resident_mb())
    seconds = time.perf_counter() - start
    second, last = quarters(memory)
    return {
        "frames": frames,
        "shown": shown,
        "fps": fps,
        "seconds": seconds,
        "real_time_factor": frames / fps / seconds,
        "busy_s": pipeline.busy_s,
        "second_quarter_mb": second,
        "last_quarter_mb": last,
        "growth_mb": last - second,
        "allowed_mb": ALLOWED_MB,
        "memory_mb": [round(value, 1) for value in memory[:: max(1, len(memory) // 200)]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos")
    parser.add_argument("--minutes", type=float, default=10, help="length of the stream at --fps")
    parser.add_argument("--fps", type=float, default=24)
    parser.add_argument("--size", type=int, default=256, help="pixels of a side, cut from the middle")
    parser.add_argument("--tokens", default="auto")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    clips: list[npt.NDArray[np.uint8]] = []
    for path in sorted(options.clips.glob("*.mp4"))[:8]:
        frames = read_video(path, max_frames=120).frames
        top, left = ((side - options.size) // 2 for side in frames.shape[1:3])
        if min(top, left) >= 0:
            clips.append(np.ascontiguousarray(frames[:, top : top + options.size, left : left + options.size]))
    codec = VideoCodec.from_pretrained(options.model, threads=options.threads)
    count = round(60 * options.minutes * options.fps)
    result = stream(codec, clips, frames=count, fps=options.fps, tokens=options.tokens)
    result |= {"size": options.size, "clips": len(clips), "model": codec.name, "python": platform.python_version()}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    del result["memory_mb"]
    print(json.dumps(result, indent=2))
    if result["shown"] != count or not float(str(result["growth_mb"])) <= ALLOWED_MB:
        raise SystemExit("the stream lost frames, or its memory grows")


if __name__ == "__main__":
    main()
