"""The graphs as TensorRT engines of this GPU, built by `onedva engines`. One engine per graph and clip size, with a
profile per range of latent lengths; a pool of streams, each with execution contexts of its own (tensorrt_slot.py).

What goes from graph to graph stays on the device; NumPy comes in and goes out through pinned memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Condition, Float32
from onedva_runtime.backends.cuda_memory import Cuda
from onedva_runtime.backends.device_sampler import DeviceSampler, Sampling, device_kernels
from onedva_runtime.backends.device_tensors import Feeds, Tensor, clip_size, latent_feeds
from onedva_runtime.backends.gpu import find_gpu
from onedva_runtime.backends.tensorrt_slot import Engine, Slot, open_engine
from onedva_runtime.engines import find_engine
from onedva_runtime.errors import BackendError
from onedva_runtime.turns import Turns

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["TensorRtBackend"]

Size = tuple[int, int, int]


@dataclass(frozen=True)
class _Condition:
    """The condition graph's outputs on the device, of as many runs as the batch took."""

    backend: TensorRtBackend
    size: Size
    parts: tuple[tuple[int, dict[str, Tensor]], ...]  # clips of the part, tensors by name

    def preview(self) -> Float32:
        """A copy of the preview (B, 3, T, H, W); KeyError where the model has none."""
        return np.concatenate([self.backend.to_host(tensors["preview"]) for _, tensors in self.parts])


class TensorRtBackend:
    """See `Backend`. Calls from more threads than there are streams take turns."""

    name = "tensorrt"
    threads = 1

    def __init__(self, bundle: Bundle, *, dtype: str = "fp16", streams: int = 1, device: int = 0) -> None:
        """Find the GPU and the engines of the golden clip; others are opened when a clip of their size comes first.

        dtype: which of the bundle's graphs to take. streams: how many calls may run at once, each with memory of its
        own. device: number of the GPU. Raises BackendError where TensorRT, a GPU, graphs of this dtype or engines are
        missing, ValueError for streams below 1.
        """
        found = [static for static in bundle.manifest.tensorrt if static.dtype == dtype]
        if not found:
            known = ", ".join(sorted({static.dtype for static in bundle.manifest.tensorrt}))
            what = f"it has {known}" if known else f"`onedva export {bundle.folder} --trt` makes them"
            raise BackendError(f"{bundle.manifest.name} has no graphs for TensorRT at dtype {dtype!r}: {what}")
        if streams < 1:
            raise ValueError(f"streams must be at least 1, got {streams}")
        self.dtype, self._bundle = dtype, bundle
        self._statics = {(s.frames, s.height, s.width): s for s in found}
        self._gpu, self._cuda = find_gpu(device), Cuda(device)
        self._engines: dict[tuple[Size, str], Engine] = {}
        self._opening = threading.Lock()
        self._turns, self._slots = Turns(streams), [Slot(self._cuda) for _ in range(streams)]
        self.has_one_step = "one_step" in found[0].graphs
        self.has_few_steps = False
        self.samples_on_device = device_kernels() is not None
        for static in found:
            for graph in static.graphs:
                find_engine(bundle, static, graph, self._gpu)  # what is missing is told now, not at the first clip

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        feeds = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        size = cast(Size, frames.shape[1:4])
        structural, latents, error = self._to_host("encoder", size, feeds, ("structural", "latents", "predicted_error"))
        return structural, latents, error

    def condition(
        self,
        structural: Float32,
        latents: Float32,
        anchors: npt.NDArray[np.int64],
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
    ) -> Condition:
        feeds = latent_feeds(structural, latents, anchors, has_latents, resolution, is_key)
        size = clip_size(structural)
        engine = self._engine(size, "condition")
        parts: list[tuple[int, dict[str, Tensor]]] = []
        for part in batches(feeds, engine.max_batch):
            with self._slot() as slot:
                parts.append((len(part["is_key"]), slot.run(engine, part, fresh=True)))
                self._cuda.wait(slot.stream)
        return _Condition(self, size, tuple(parts))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        held = cast(_Condition, condition)
        engine, results, start = self._engine(held.size, "velocity"), list[Float32](), 0
        for count, tensors in held.parts:
            rows = slice(start, start + count)
            start += count
            feeds = {"noisy_video": noisy_video[rows], "t": t[rows], **tensors}
            with self._slot() as slot:
                results.append(slot.fetch(slot.run(engine, feeds)["velocity"]))
        return np.concatenate(results)

    def one_step(
        self,
        structural: Float32,
        latents: Float32,
        anchors: npt.NDArray[np.int64],
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        feeds = latent_feeds(structural, latents, anchors, has_latents, resolution, is_key)
        (frames,) = self._to_host(
            "one_step", clip_size(structural), {**feeds, "context_frame": context_frame}, ("frames",)
        )
        return frames

    def sample(
        self, given: Sequence[npt.NDArray[Any]], sampling: Sampling, wrap: Callable[[Tensor], Any] | None = None
    ) -> Any:
        """Decode with the whole loop on the device; see `SamplesOnDevice`. wrap: takes the frames (B, T, H, W, 3) as
        they lie on the device in place of the copy to NumPy, and may be called once per part of the batch."""
        feeds = latent_feeds(*given)  # pyright: ignore[reportArgumentType]
        size = clip_size(given[0])
        first, second = self._engine(size, "condition"), self._engine(size, "velocity")
        results: list[Any] = []
        for start, part in enumerate_batches(feeds, first.max_batch):
            count = len(part["is_key"])
            rows = slice(start, start + count)
            own = Sampling(
                (count, *sampling.shape[1:]),
                sampling.seed,
                sampling.places[rows],
                sampling.timesteps,
                sampling.context_frames[rows],
            )
            with self._slot() as slot:
                frames = self._sample(slot, first, second, part, own)
                results.append(wrap(frames) if wrap else slot.fetch(frames))
        return results[0] if len(results) == 1 else results if wrap else np.concatenate(results)

    def _sample(self, slot: Slot, first: Engine, second: Engine, feeds: Feeds, sampling: Sampling) -> Tensor:
        """One part of a batch, on one slot's stream; the frames are whole once the stream has got there."""
        batch, _, frames, height, width = sampling.shape
        tensors = slot.run(first, feeds)
        groups = 1 + (frames - 1) // 4
        tokens = int(feeds["anchors"].shape[1])
        video = Tensor(slot.buffer(second, "noisy_video", tokens), sampling.shape)
        t = Tensor(slot.buffer(second, "t", tokens), (batch, groups))
        context, outputs = slot.bind(second, {"noisy_video": video, "t": t, **tensors})
        sampler = slot.sampler(lambda: DeviceSampler(self._cuda, device_kernels(), slot.stream, capture=True))
        packed = sampler.run(
            sampling,
            video=video.buffer,
            velocity=outputs["velocity"].buffer,
            t=t.buffer,
            enqueue=lambda: slot.enqueue(context, second),
            key=(id(context), tokens, slot.arena_pointer),
        )
        return Tensor(packed, (batch, frames, height, width, 3), "uint8")

    def to_host(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor."""
        with self._slot() as slot:
            return slot.fetch(tensor)

    def _to_host(
        self, graph: str, size: Size, feeds: Mapping[str, npt.NDArray[Any]], names: Sequence[str]
    ) -> list[npt.NDArray[Any]]:
        """Outputs of a graph as NumPy, whatever number of runs the batch takes."""
        engine = self._engine(size, graph)
        found: list[list[npt.NDArray[Any]]] = []
        for part in batches(feeds, engine.max_batch):
            with self._slot() as slot:
                outputs = slot.run(engine, part)
                found.append([slot.fetch(outputs[name]) for name in names])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    @contextmanager
    def _slot(self) -> Generator[Slot]:
        """A stream with its contexts that is ours alone until the block ends."""
        with self._turns:
            slot = self._slots.pop()  # there is one for each turn
            try:
                self._cuda.use()
                yield slot
            finally:
                self._slots.append(slot)

    def _engine(self, size: Size, graph: str) -> Engine:
        """The engine of one graph for clips of one size, from the cache. Raises BackendError where there is none."""
        with self._opening:
            engine = self._engines.get((size, graph))
            if engine is None:
                static = self._statics.get(size)
                if static is None:
                    known = ", ".join(static.size for static in self._statics.values())
                    raise BackendError(
                        f"no engine for clips of {'×'.join(map(str, size))}: {self._bundle.manifest.name} has graphs "
                        f"for {known}; export with --trt, that --resolution and that number of --engine-frames"
                    )
                self._cuda.use()
                stored = find_engine(self._bundle, static, graph, self._gpu)
                engine = self._engines[size, graph] = open_engine(stored, static.graphs[graph], self._gpu)
            return engine


def batches(feeds: Mapping[str, npt.NDArray[Any]], most: int) -> list[dict[str, npt.NDArray[Any]]]:
    """A batch as runs of at most `most` clips."""
    return [part for _, part in enumerate_batches(feeds, most)]


def enumerate_batches(
    feeds: Mapping[str, npt.NDArray[Any]], most: int
) -> list[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """`batches`, each with the number of its first clip."""
    count = len(feeds["is_key"])
    return [
        (start, {name: value[start : start + most] for name, value in feeds.items()}) for start in range(0, count, most)
    ]
