"""Fits the frequency tables that every `.odva` file starts from, on clips of the training split:

    python bench/fit_tables.py --clips CLIPS        # rewrites runtime/onedva_runtime/entropy_tables.py

Each class of expected magnitude counts its symbols over clips and quantiser steps. Files carry their tables, so new
ones change no old file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from onedva.data import centre_clip, load_clips
from onedva_runtime import VideoCodec
from onedva_runtime.container_packet import SEGMENT
from onedva_runtime.entropy import CLASSES, ESCAPE, MOST, SYMBOLS, TOTAL, Tables, classes_of
from onedva_runtime.latent_coding import Neighbourhood, encode_segment, encode_structural
from onedva_runtime.packet import Packet
from onedva_runtime.quantiser import Quantiser, to_integers

STEPS = (0.125, 0.25, 0.5, 1.0)
TARGET = Path(__file__).parents[1] / "runtime" / "onedva_runtime" / "entropy_tables.py"


class Counter:
    """Stands in for an encoder and counts symbols by class."""

    def __init__(self) -> None:
        self.counts = np.zeros((CLASSES, SYMBOLS), np.int64)

    def code(self, expected: np.ndarray, integers: np.ndarray, *, signed: bool = True) -> np.ndarray:
        classes, shifts = classes_of(expected)
        np.add.at(self.counts, (classes, np.minimum(np.abs(integers) >> shifts, ESCAPE)), 1)
        return integers


def count(packet: Packet, quantiser: Quantiser, counter: Counter) -> None:
    """Count the symbols of one packet."""
    structural, latents = to_integers(packet, quantiser)
    levels = quantiser.of((packet.is_key, packet.grid[0]))
    encode_structural(counter, structural, levels)  # type: ignore[arg-type]
    around = Neighbourhood(structural, levels)
    skipped = 0 if packet.is_key else packet.grid[1] * packet.grid[2]
    for start in range(0, packet.tokens, SEGMENT):
        part = slice(start, start + SEGMENT)
        encode_segment(counter, packet.anchors[part] - skipped, latents[part], around)  # type: ignore[arg-type]


def tables_of(counts: np.ndarray) -> Tables:
    """Counts (CLASSES, SYMBOLS) as frequencies: neighbouring classes fill in what was too rare to count."""
    smooth = counts + 0.02 * (np.roll(counts, 1, 0) + np.roll(counts, -1, 0)) + 0.5
    share = smooth / smooth.sum(1, keepdims=True)
    frequencies = np.clip(np.rint(share * TOTAL), 1, MOST - SYMBOLS).astype(np.int64)
    for row in frequencies:  # what rounding left over goes to the likeliest that has room
        order = np.argsort(-row)
        row[order[0] if row[order[0]] + TOTAL - row.sum() <= MOST else order[1]] += TOTAL - row.sum()
    return Tables(frequencies)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fit the frequency tables of the .odva format.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with MANIFEST.csv")
    codec, counter = VideoCodec.from_pretrained("tiny", threads=1), Counter()
    for clip in load_clips(parser.parse_args().clips, split="train"):
        for frames in (17, 9):
            packet = codec.encode_clip(centre_clip(clip, frames=frames), tokens=1024, fps=clip.fps)
            for step in STEPS:
                count(packet, codec.quantiser(step=step), counter)
    rows = "".join(f"        {row},\n" for row in tables_of(counter.counts).frequencies.tolist())
    TARGET.write_text(
        '"""Frequencies of symbols by class of expected magnitude, for new files. Made by bench/fit_tables.py."""\n\n'
        "import numpy as np\n\nfrom onedva_runtime.entropy import Tables\n\n"
        f"TABLES = Tables(\n    np.array([\n{rows}    ])\n)  # fmt: skip\n"
    )


if __name__ == "__main__":
    main()
