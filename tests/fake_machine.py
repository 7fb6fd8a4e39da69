"""How tests get at the GPU in tests/fake_gpu: by module path in this process and in those that it starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from onedva_runtime.noise import gaussian
from onedva_runtime.sampler import reference_pack, reference_update

FOLDER = Path(__file__).with_name("fake_gpu")
MODULES = ("tensorrt", "cuda", "cuda.bindings", "cuda.bindings.runtime")


@contextmanager
def fake_machine(cache: Path, *, gpu: str = "Fake H100", tensorrt: str = "10.16.1.11") -> Iterator[pytest.MonkeyPatch]:
    """A machine with a GPU, a TensorRT and an empty cache, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("PYTHONPATH", str(FOLDER))
        patch.setenv("ONEDVA_CACHE", str(cache))
        patch.setenv("FAKE_GPU", gpu)
        patch.setenv("FAKE_TENSORRT", tensorrt)
        patch.setenv("FAKE_TENSORRT_LOG", str(cache.with_suffix(".log")))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        try:
            yield patch
        finally:
            for name in MODULES:
                sys.modules.pop(name, None)


def builds(cache: Path) -> list[str]:
    """What was built so far: file name, flags and size of the timing cache of each engine."""
    log = cache.with_suffix(".log")
    return log.read_text().splitlines() if log.exists() else []


class FakeKernels:
    """`_sampler`'s kernels over the fake GPU's memory, by the NumPy references; on streams, like every other work."""

    has_cuda = True

    def __init__(self) -> None:
        from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

        self._cuda = runtime

    def _view(self, pointer: int, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._cuda.device_memory(pointer, size).view(dtype).reshape(shape)

    def _at(self, table: int, counter: int) -> np.float32:
        return self._view(table + 4 * int(self._view(counter, (1,), np.int32)[0]), (1,))[0]

    def device_gaussian(self, out, table, seed, first_frame, top, left, frames, height, width, stream) -> None:
        def work() -> None:
            box = {"first_frame": first_frame, "top": top, "left": left}
            noise = gaussian(seed, frames=frames, height=height, width=width, **box)
            self._view(out, noise.shape)[:] = noise

        self._cuda.submit(stream, work)

    def device_unpack(self, out, frame, frames, height, width, stream) -> None:
        def work() -> None:
            levels = self._view(frame, (height, width, 3), np.uint8)
            video = self._view(out, (3, frames, height, width))
            video[:, 0] = levels.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)

        self._cuda.submit(stream, work)

    def device_begin(self, t, generated, times, counter, count, stream) -> None:
        def work() -> None:
            self._view(counter, (1,), np.int32)[0] = 0
            self._view(t, (count,))[:] = self._view(generated, (count,)) * self._at(times, counter)

        self._cuda.submit(stream, work)

    def device_advance(self, t, generated, times, counter, count, stream) -> None:
        def work() -> None:
            self._view(counter, (1,), np.int32)[0] += 1
            self._view(t, (count,))[:] = self._view(generated, (count,)) * self._at(times, counter)

        self._cuda.submit(stream, work)

    def device_update(self, video, velocity, kind, count, lengths, counter, stream) -> None:
        assert kind == 0

        def work() -> None:
            dt = float(self._at(lengths, counter))
            reference_update(self._view(video, (count,)), self._view(velocity, (count,)), dt)

        self._cuda.submit(stream, work)

    def device_pack(self, out, video, velocity, kind, lengths, counter, batch, frames, height, width, stream) -> None:
        assert kind == 0

        def work() -> None:
            shape, dt = (batch, 3, frames, height, width), float(self._at(lengths, counter))
            packed = reference_pack(self._view(video, shape), velocity=self._view(velocity, shape), dt=dt)
            self._view(out, packed.shape, np.uint8)[:] = packed

        self._cuda.submit(stream, work)
