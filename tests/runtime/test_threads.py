"""One codec shared by threads: 8 threads of mixed encode and decode calls give, bit for bit, what the calls give one
after another, and memory stays where it is."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onedva_runtime.bundle import shipped
from onedva_runtime.codec import VideoCodec

THREADS, CALLS = 8, 200
PAGE = 4096
STATM = Path("/proc/self/statm")
SHAPES = [(5, 32, 48), (1, 64, 64), (9, 20, 33), (17, 48, 32)]


def call(codec: VideoCodec, index: int) -> list[np.ndarray]:
    """The index-th call: arrays that depend on nothing but index."""
    frames = np.random.default_rng(index % 40).integers(0, 256, (*SHAPES[index % len(SHAPES)], 3), np.uint8)
    packet = codec.encode_clip(frames, tokens=[0, 16, 48, "auto"][index % 16 // 4], first_frame=index)
    return [packet.structural, packet.latents, codec.decode_clip(packet, num_steps=index % 3, seed=index)]


def digest(arrays: list[np.ndarray]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def resident_megabytes() -> float:
    """Memory of this process that is in RAM."""
    return int(STATM.read_text().split()[1]) * PAGE / 2**20


@pytest.fixture(scope="module", params=["fake", pytest.param("tiny", marks=pytest.mark.slow)])
def shared(request: pytest.FixtureRequest) -> VideoCodec:
    """The codec that the threads share: of the fake bundle, and of the shipped one with every core it may use."""
    if request.param == "fake":
        return request.getfixturevalue("codec")
    if not shipped():
        pytest.skip("this checkout ships no bundle")
    return VideoCodec.from_pretrained("tiny")


def test_eight_threads_equal_the_serial_results_and_memory_stays(shared: VideoCodec) -> None:
    codec = shared
    serial = [digest(call(codec, index)) for index in range(CALLS)]
    memory: list[float] = []

    def thread(number: int) -> int:
        """The thread's calls in an order of its own; how many differ from the serial ones."""
        wrong = 0
        for index in np.random.default_rng(number).permutation(CALLS):
            wrong += digest(call(codec, int(index))) != serial[index]
            memory.append(resident_megabytes() if STATM.exists() else 0)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(thread, range(THREADS))) == [0] * THREADS
    quarter = len(memory) // 4
    assert len(memory) == THREADS * CALLS
    # 1 %: the memory of one run of one graph, which a size may need for the first time as late as that
    grown = np.mean(memory[-quarter:]) - np.mean(memory[quarter : 2 * quarter])
    assert grown <= max(10, 0.01 * memory[-1])


def test_the_comparison_can_fail(codec: VideoCodec) -> None:
    assert digest(call(codec, 1)) != digest(call(codec, 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_thread_count_is_the_users(fake_bundle: Path, threads: int) -> None:
    assert VideoCodec.from_pretrained(fake_bundle, threads=threads).info()["threads"] == threads
