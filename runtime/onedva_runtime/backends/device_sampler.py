"""Few-step decode on a GPU: noise, Euler updates and packing by `_sampler`'s kernels, on one stream, nothing copied to
the host between steps. Where the velocity's run can be captured, [velocity; update; advance] is captured once and
replayed for every step but the last, whose update is made while packing.

The arithmetic is that of cpp_ext/arithmetic.h, so frames are those of the CPU path bit for bit, given equal velocities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends.cuda_memory import Buffer, Cuda, GraphCache
from onedva_runtime.noise import native, normal_table

__all__ = ["DeviceSampler", "Sampling", "device_kernels"]

Float32 = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]
FLOAT32 = 0  # `_sampler`'s number of the velocity's type


@cache
def device_kernels() -> Any:
    """The compiled module where it was built with CUDA, else None."""
    module = native()
    return module if module is not None and getattr(module, "has_cuda", False) else None


@dataclass(frozen=True)
class Sampling:
    """What one decode starts from and where it goes."""

    shape: tuple[int, int, int, int, int]
    """(B, 3, T, H, W) of the video."""
    seed: int
    """Of the noise."""
    places: Sequence[tuple[int, int, int]]
    """Of each clip: number of its first frame, and its top and left pixel in the video."""
    timesteps: Float32
    """(S + 1,) falling from 1 to 0."""
    context_frames: Sequence[Uint8 | None]
    """Of each clip: the frame (H, W, 3) it goes on from, None for a key clip."""


class DeviceSampler:
    """The buffers of a decode's loop on one stream. One decode at a time."""

    def __init__(self, cuda: Cuda, kernels: Any, stream: int, *, capture: bool) -> None:
        """capture: whether the velocity's run may be captured into a graph."""
        self._cuda, self._kernels, self._stream = cuda, kernels, stream
        self.graphs = GraphCache(cuda) if capture else None
        table = normal_table()
        self._table = cuda.take(table.nbytes)
        cuda.to_device(self._table.pointer, table, stream)
        self._lookups: Buffer | None = None  # kept: the stream may still read them when `run` returns

    def run(
        self,
        sampling: Sampling,
        *,
        video: Buffer,
        velocity: Buffer,
        t: Buffer,
        enqueue: Callable[[], None],
        key: object = (),
    ) -> Buffer:
        """Integrate and pack; returns device memory of (B, T, H, W, 3) uint8, whole once the stream has got there.

        video, velocity (B, 3, T, H, W) float32 and t (B, Tg) float32: device memory that `enqueue`, which runs the
        velocity graph on the stream, reads and writes. key: what else of `enqueue` a captured graph depends on.
        """
        batch, _, frames, height, width = sampling.shape
        groups, values = 1 + (frames - 1) // 4, 3 * batch * frames * height * width
        steps = len(sampling.timesteps) - 1
        tables = self._tables(sampling, groups)
        times, lengths, generated, counter = (tables.pointer + offset for offset in self._offsets(batch, groups, steps))
        self._start(sampling, video)
        cuda, kernels, stream = self._cuda, self._kernels, self._stream
        kernels.device_begin(t.pointer, generated, times, counter, batch * groups, stream)

        def step() -> None:
            enqueue()
            kernels.device_update(video.pointer, velocity.pointer, FLOAT32, values, lengths, counter, stream)
            kernels.device_advance(t.pointer, generated, times, counter, batch * groups, stream)

        if steps > 1 and self.graphs is not None:
            where = (key, sampling.shape, steps, video.pointer, velocity.pointer, t.pointer, tables.pointer)
            # the first run after shapes were set may do work that must not be captured
            graph = self.graphs.get(where, stream, step, before=enqueue)
            for _ in range(steps - 1):
                cuda.launch(graph, stream)
        else:
            for _ in range(steps - 1):
                step()
        enqueue()
        packed = cuda.take(values)
        kernels.device_pack(
            packed.pointer, video.pointer, velocity.pointer, FLOAT32, lengths, counter,
            batch, frames, height, width, stream,
        )  # fmt: skip
        return packed

    @staticmethod
    def _offsets(batch: int, groups: int, steps: int) -> tuple[int, int, int, int]:
        """Where in the tables the timesteps, their differences, what is generated, and the step counter lie, bytes."""
        times, lengths = 4 * (steps + 1), 4 * steps
        return 0, times, times + lengths, times + lengths + 4 * batch * groups

    def _tables(self, sampling: Sampling, groups: int) -> Buffer:
        """Everything the loop looks up, in one piece of device memory."""
        generated = np.ones((len(sampling.places), groups), np.float32)
        for row, context in enumerate(sampling.context_frames):
            generated[row, 0] = 0 if context is not None else 1
        times = sampling.timesteps.astype(np.float32)
        content = np.concatenate([times, np.diff(times), generated.ravel(), np.zeros(1, np.float32)]).astype(np.float32)
        tables = self._lookups
        if tables is None or tables.size < content.nbytes:
            self._cuda.wait(self._stream)
            tables = self._lookups = self._cuda.take(content.nbytes)
        self._cuda.to_device(tables.pointer, content, self._stream)
        self._cuda.wait(self._stream)  # pageable memory: it must outlive the copy
        return tables

    def _start(self, sampling: Sampling, video: Buffer) -> None:
        """Noise in every clip, and the context frame in frame 0 of continuation clips."""
        _, channels, frames, height, width = sampling.shape
        size, stream, kernels = 4 * channels * frames * height * width, self._stream, self._kernels
        for row, ((first, top, left), context) in enumerate(zip(sampling.places, sampling.context_frames, strict=True)):
            clip = video.pointer + row * size
            kernels.device_gaussian(
                clip, self._table.pointer, sampling.seed, first, top, left, frames, height, width, stream
            )
            if context is not None:
                given = self._cuda.take(context.nbytes)
                self._cuda.to_device(given.pointer, np.ascontiguousarray(context), stream)
                kernels.device_unpack(clip, given.pointer, frames, height, width, stream)
                self._cuda.wait(stream)  # before the frame and its copy go
