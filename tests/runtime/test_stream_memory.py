"""A long stream through the whole pipeline keeps its memory, and its frames. bench/stream_memory.py does the same for
ten minutes of the shipped model at full size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onedva_runtime.codec import VideoCodec
from onedva_runtime.packet import Packet
from onedva_runtime.pipeline import Pipeline

STATM, PAGE = Path("/proc/self/statm"), 4096
FRAMES, BATCH = 3000, 25


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc to see its memory")
def test_memory_stays_and_every_frame_comes_out(codec: VideoCodec) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (BATCH, 96, 128, 3), np.uint8)
    memory: list[int] = []
    firsts: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for start in range(0, FRAMES, BATCH):
            yield np.roll(scene, start, axis=2)

    def encoded(batches: Iterator[np.ndarray]) -> Iterator[Packet]:
        with codec.open_encoder(tokens=16) as encoder:
            for batch in batches:
                yield from encoder.push(batch)
            yield from encoder.flush()

    decoder = codec.open_decoder(on_report=lambda report: firsts.append(report.first_frame))

    def decoded(packets: Iterator[Packet]) -> Iterator[np.ndarray]:
        for packet in packets:
            yield from decoder.push(packet)

    shown = 0
    with Pipeline() as pipeline:
        packets = pipeline.stage("encode", encoded(pipeline.stage("read", camera())))
        for frames in pipeline.stage("decode", decoded(packets)):
            assert shown in firsts[-4:]  # reports are a little ahead of what is shown
            shown += len(frames)
            memory.append(int(STATM.read_text().split()[1]) * PAGE)
    quarter = len(memory) // 4
    assert shown == FRAMES and len(memory) > 150
    grown = np.mean(memory[-quarter:]) - np.mean(memory[quarter : 2 * quarter])
    assert grown <= 10 * 2**20  # all frames are 110 MB
