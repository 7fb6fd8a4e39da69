"""Clips of several clients in one run: the same results, in bounded time, and one client's failure is nobody else's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from onedva_runtime import VideoCodec
from onedva_runtime.bundle import read_bundle
from onedva_runtime.clips import make_clip
from onedva_runtime.serve.batching import BatchedBackend, Batcher


class Slow:
    """A backend of which only what batching uses is there: it doubles, and takes its time."""

    name, threads, dtype, has_one_step, has_few_steps = "slow", 64, "fp32", True, False

    def __init__(self) -> None:
        self.runs: list[int] = []  # rows of each, negative where it failed
        self.values: list[float] = []
        self.go = threading.Event()

    def encode(self, *arrays):
        self.go.wait(10)
        if any((array < 0).any() for array in arrays):
            self.runs.append(-len(arrays[0]))
            raise ValueError("negative")
        self.runs.append(len(arrays[0]))
        self.values += [float(row.flat[0]) for row in arrays[0]]
        return tuple(2 * array for array in arrays)


@pytest.fixture
def slow():
    backend = Slow()
    batcher = Batcher(backend, max_batch=4, wait_ms=50)  # type: ignore[arg-type]
    yield backend, batcher
    backend.go.set()
    batcher.close()


def calls(batcher, backend, values, *, urgent=(), widths=None):
    """One call per value, each in a thread of its own, in this order; a first one that holds up the others."""
    pool = ThreadPoolExecutor(len(values) + 1)
    view = {flag: BatchedBackend(batcher, urgent=flag) for flag in (False, True)}
    batcher.clients = len(values)

    def one(index):
        array = np.full((1, (widths or [3] * len(values))[index]), values[index], float)
        return view[index in urgent].encode(array, array, array, array)[0]

    backend.go.clear()
    futures = []
    for index in range(len(values)):
        futures.append(pool.submit(one, index))
        time.sleep(0.1 if index == 0 else 0.02)  # the first runs, the others wait
    backend.go.set()
    return futures


def test_what_waits_and_fits_goes_together(slow) -> None:
    backend, batcher = slow
    futures = calls(batcher, backend, list(range(1, 8)))
    for value, future in enumerate(futures, start=1):
        np.testing.assert_array_equal(future.result(), np.full((1, 3), 2.0 * value))
    assert backend.runs == [1, 4, 2]


def test_other_shapes_go_apart(slow) -> None:
    backend, batcher = slow
    futures = calls(batcher, backend, [1, 2, 3, 4], widths=[3, 3, 5, 3])
    for value, width, future in zip([1, 2, 3, 4], [3, 3, 5, 3], futures, strict=True):
        np.testing.assert_array_equal(future.result(), np.full((1, width), 2.0 * value))
    assert backend.runs == [1, 2, 1]


def test_live_goes_before_whole_videos(slow) -> None:
    backend, batcher = slow
    batcher._max = 1
    for future in calls(batcher, backend, [1, 2, 3], urgent={2}):
        future.result()
    assert backend.values == [1, 3, 2]


def test_a_failure_is_its_own(slow) -> None:
    backend, batcher = slow
    futures = calls(batcher, backend, [1, 2, -1, 3])
    np.testing.assert_array_equal(futures[1].result(), np.full((1, 3), 4.0))
    np.testing.assert_array_equal(futures[3].result(), np.full((1, 3), 6.0))
    with pytest.raises(ValueError, match="negative"):
        futures[2].result()
    assert backend.runs == [1, -3, 1, -1, 1]


def test_the_wait_is_bounded_and_not_for_nobody(slow) -> None:
    backend, batcher = slow
    backend.go.set()
    view, array = BatchedBackend(batcher, urgent=True), np.ones((1, 3))
    typed: Any = view
    for clients, low, high in ((1, 0, 0.04), (3, 0.045, 2)):
        batcher.clients = clients
        start = time.monotonic()
        typed.encode(array, array, array, array)
        assert low <= time.monotonic() - start < high


def test_batched_clips_are_the_codecs_own(fake_bundle) -> None:
    alone = VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
    batcher = Batcher(alone._backend, max_batch=4, wait_ms=100)
    batcher.clients = 4
    codec = VideoCodec(read_bundle(fake_bundle), BatchedBackend(batcher, urgent=True))
    clips = [make_clip(17, 48, 64, seed=seed) for seed in range(4)]

    def there_and_back(clip: np.ndarray) -> np.ndarray:
        return codec.decode_clip(codec.encode_clip(clip, tokens=16))

    with ThreadPoolExecutor(4) as pool:
        frames = list(pool.map(there_and_back, clips))
    batcher.close()
    for clip, decoded in zip(clips, frames, strict=True):
        expected = alone.decode_clip(alone.encode_clip(clip, tokens=16))
        assert np.abs(decoded.astype(int) - expected).max() <= 1
    with pytest.raises(RuntimeError, match="stopping"):
        codec.encode_clip(clips[0])
