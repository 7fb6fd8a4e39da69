"""Can the joints between clips be seen? Clips of the dev split through encoder and decoder, with keys more or less
often.

    python bench/seams.py --clips CLIPS --intervals 1,4,8 -o seams.json

With e = decode − source, an edge is mean |e(t+1) − e(t)| over the pixels of two neighbouring frames. Edges between
clips, of both kinds, are given over those between groups of four frames inside clips (1: a joint cannot be told from
any other), with PSNR and latent values per frame beside them. Edges at scene cuts are left out: nothing goes on there.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onedva_runtime import Packet, VideoCodec
from onedva_runtime.cuts import CutDetector
from onedva_runtime.metrics import psnr
from onedva_runtime.video_io import read_video

PSNR_CAP = 45.0


@dataclass
class Edges:
    """Edges of one or many clips, by what stands on both sides."""

    continuation: list[float] = field(default_factory=list)
    key: list[float] = field(default_factory=list)
    group: list[float] = field(default_factory=list)

    def add(self, packets: list[Packet], error: npt.NDArray[np.int16], *, regular: set[int]) -> None:
        """Look at the packets of a video and its error (T, H, W, 3). regular: first frames of keys that are no cuts."""
        jumps = np.abs(np.diff(error, axis=0)).mean(axis=(1, 2, 3))  # jumps[t]: from frame t to t + 1
        for packet in packets:
            first = packet.first_frame
            if not packet.is_key:
                self.continuation.append(float(jumps[first - 1]))
            elif first in regular:
                self.key.append(float(jumps[first - 1]))
            start = first + (5 if packet.is_key else 4)  # the frame 0 of a key clip is a group of its own
            self.group.extend(float(jumps[t - 1]) for t in range(start, first + packet.frames, 4))


def dev_clips(folder: Path, *, frames: int, size: int) -> list[tuple[str, float, npt.NDArray[np.uint8]]]:
    """Name, rate and the middle `size` pixels of each dev clip's first frames."""
    with (folder / "MANIFEST.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "dev"]
    clips: list[tuple[str, float, npt.NDArray[np.uint8]]] = []
    for row in rows:
        video = read_video(folder / row["name"], max_frames=frames).frames
        height, width = (min(size, side) for side in video.shape[1:3])
        top, left = (video.shape[1] - height) // 2, (video.shape[2] - width) // 2
        part = np.ascontiguousarray(video[:, top : top + height, left : left + width])
        clips.append((row["name"], float(row["fps"]), part))
    return clips


def measure(
    codec: VideoCodec, clips: list[tuple[str, float, npt.NDArray[np.uint8]]], interval: int, tokens: int
) -> dict[str, object]:
    """All clips with a key every `interval` clips."""
    edges, scores, values = Edges(), list[float](), list[float]()
    ratios: dict[str, float] = {}
    for name, fps, source in clips:
        packets = codec.encode(source, tokens=tokens, fps=fps, keyframe_interval=interval)
        detector = CutDetector()
        cuts = {index for index, frame in enumerate(source) if detector.is_cut(frame)}
        decoded, own = codec.decode(packets), Edges()
        regular = {packet.first_frame for packet in packets if packet.is_key} - cuts - {0}
        for target in (edges, own):
            target.add(packets, decoded.astype(np.int16) - source, regular=regular)
        if joints := own.continuation + own.key:
            ratios[name] = float(np.mean(joints) / np.mean(own.group))
        scores.append(min(PSNR_CAP, psnr(source, decoded)))
        sent = sum(p.latents.size + p.structural.size - (0 if p.is_key else p.structural[0].size) for p in packets)
        values.append(sent / len(source))
    group = float(np.mean(edges.group))
    return {
        "interval": interval,
        "tokens": tokens,
        "psnr_db": float(np.mean(scores)),
        "values_per_frame": float(np.mean(values)),
        "continuation_over_group": float(np.mean(edges.continuation)) / group if edges.continuation else None,
        "key_over_group": float(np.mean(edges.key)) / group if edges.key else None,
        "all_over_group": float(np.mean(edges.continuation + edges.key)) / group,
        "clips": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos with a MANIFEST.csv")
    parser.add_argument("--intervals", default="1,8", help="clips from key to key, by comma")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--frames", type=int, default=161, help="of each clip")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    codec = VideoCodec.from_pretrained(options.model, threads=options.threads)
    clips = dev_clips(options.clips, frames=options.frames, size=options.size)
    results = [measure(codec, clips, int(interval), options.tokens) for interval in options.intervals.split(",")]
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    for result in results:
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()})


if __name__ == "__main__":
    main()
