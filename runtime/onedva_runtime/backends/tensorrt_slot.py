"""One stream of the TensorRT backend: an execution context per engine and profile, all working in one piece of memory
that is ours (the arena), and input and output buffers that are allocated once, as large as their profile allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends.cuda_memory import Buffer, Cuda
from onedva_runtime.backends.device_sampler import DeviceSampler
from onedva_runtime.backends.device_tensors import Feeds, Tensor, axes_of, byte_count, shape_of
from onedva_runtime.engines import REBUILD, StoredEngine, profile_of, read_plan
from onedva_runtime.errors import BackendError
from onedva_runtime.manifest import GraphSpec, TensorSpec

__all__ = ["Engine", "Slot", "open_engine"]

TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}


@dataclass(frozen=True, eq=False)
class Engine:
    """An open engine."""

    graph: str
    spec: GraphSpec
    handle: Any
    """TensorRT's own."""
    profiles: tuple[tuple[int, ...], ...]
    max_batch: int

    def value(self, name: str) -> TensorSpec:
        """What the manifest says of an input or output."""
        return next(value for value in (*self.spec.inputs, *self.spec.outputs) if value.name == name)


def open_engine(stored: StoredEngine, spec: GraphSpec, gpu: object) -> Engine:
    """Open an engine of the cache: its hash is checked before TensorRT sees a byte.

    Raises BackendError for a plan that is damaged or refused, or is not of this graph.
    """
    import tensorrt  # pyright: ignore[reportMissingImports]

    trt = cast(Any, tensorrt)
    graph = str(stored.facts["graph"])
    plan = read_plan(stored)
    logger = trt.Logger(trt.Logger.ERROR)
    trt.init_libnvinfer_plugins(logger, "")
    runtime = trt.Runtime(logger)
    handle = runtime.deserialize_cuda_engine(plan)
    if handle is None:
        raise BackendError(f"TensorRT refuses the engine of {graph} in {stored.folder}, on {gpu}: {REBUILD}")
    kinds = {name: str(handle.get_tensor_dtype(name).name) for name in _names(handle)}
    got = {name: TYPES.get(kind, kind) for name, kind in kinds.items()}
    said = {value.name: value.dtype for value in (*spec.inputs, *spec.outputs)}
    if got != said or handle.num_optimization_profiles != len(stored.profiles):
        raise BackendError(f"the engine in {stored.folder} takes and gives {got}, the bundle says {said}: {REBUILD}")
    return Engine(graph, spec, handle, stored.profiles, int(str(stored.facts["max_batch"])))


def _names(handle: Any) -> list[str]:
    return [str(handle.get_tensor_name(index)) for index in range(handle.num_io_tensors)]


class Slot:
    """One stream and what runs on it. One thread at a time."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.stream = cuda.stream()
        self._contexts: dict[tuple[int, int], Any] = {}
        self._buffers: dict[tuple[int, int, str], Buffer] = {}
        self._pinned: dict[str, npt.NDArray[np.uint8]] = {}
        self._arena: Buffer | None = None
        self._sampler: DeviceSampler | None = None
        self._engines: list[Engine] = []  # their ids are keys

    @property
    def arena_pointer(self) -> int:
        """Where contexts work: graphs captured with another arena are of no use."""
        return self._arena.pointer if self._arena else 0

    def sampler(self, make: Callable[[], DeviceSampler]) -> DeviceSampler:
        """This stream's sampler, made when it is wanted first."""
        if self._sampler is None:
            self._sampler = make()
        return self._sampler

    def run(self, engine: Engine, feeds: Feeds, *, fresh: bool = False) -> dict[str, Tensor]:
        """Put a run on the stream; returns its outputs, which are there once the stream has got there.

        feeds: inputs by name; arrays are copied. fresh: outputs in memory of their own, which outlives the next run.
        """
        context, outputs = self.bind(engine, feeds, fresh=fresh)
        self.enqueue(context, engine)
        return outputs

    def bind(self, engine: Engine, feeds: Feeds, *, fresh: bool = False) -> tuple[Any, dict[str, Tensor]]:
        """Copy inputs and set shapes and addresses; returns the execution context and the outputs to be."""
        inputs = {value.name for value in engine.spec.inputs}
        axes = axes_of(engine.graph, engine.spec, feeds)
        if axes["B"] > engine.max_batch:
            raise BackendError(f"the engine takes up to {engine.max_batch} clips at once, got {axes['B']}")
        profile = profile_of(engine.profiles, axes["K"])
        context = self._context(engine, profile)
        for name in inputs:
            feed = feeds[name]
            if isinstance(feed, Tensor):
                tensor = feed
            else:
                tensor = Tensor(self._input(engine, profile, name, feed), feed.shape)
            _must(context.set_input_shape(name, tensor.shape), f"shape {tensor.shape} for {name}", engine)
            _must(context.set_tensor_address(name, tensor.buffer.pointer), f"address for {name}", engine)
        missing = context.infer_shapes()
        _must(not missing, f"run without {', '.join(missing)}", engine)
        outputs: dict[str, Tensor] = {}
        for value in engine.spec.outputs:
            shape = tuple(context.get_tensor_shape(value.name))
            buffer = (
                self._cuda.take(byte_count(shape, value.dtype)) if fresh else self._buffer(engine, profile, value.name)
            )
            outputs[value.name] = Tensor(buffer, shape, value.dtype)
            _must(context.set_tensor_address(value.name, buffer.pointer), f"address for {value.name}", engine)
        return context, outputs

    def enqueue(self, context: Any, engine: Engine) -> None:
        """Put a run with what is bound on the stream."""
        _must(context.execute_async_v3(self.stream), "run", engine)

    def fetch(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Wait for the stream and copy a tensor to the host, through pinned memory."""
        staging = self._staging("fetch", byte_count(tensor.shape, tensor.dtype))
        self._cuda.to_host(staging, tensor.buffer.pointer, self.stream)
        self._cuda.wait(self.stream)
        return staging.view(tensor.dtype).reshape(tensor.shape).copy()

    def buffer(self, engine: Engine, name: str, tokens: int) -> Buffer:
        """This stream's own memory for an input or output, large enough for every length of the profile."""
        return self._buffer(engine, profile_of(engine.profiles, tokens), name)

    def _buffer(self, engine: Engine, profile: int, name: str) -> Buffer:
        key = (id(engine), profile, name)
        found = self._buffers.get(key)
        if found is None:
            value, longest = engine.value(name), engine.profiles[profile][1]
            most = {"B": engine.max_batch, "K": longest, "K+5": longest + 5}
            found = self._buffers[key] = self._cuda.take(byte_count(shape_of(value, most), value.dtype))
        return found

    def _input(self, engine: Engine, profile: int, name: str, array: npt.NDArray[Any]) -> Buffer:
        """Device memory with a copy of the array, by way of pinned memory."""
        value = engine.value(name)
        if str(array.dtype) != value.dtype:
            raise BackendError(f"{engine.graph} takes {name} as {value.dtype}, got {array.dtype}")
        buffer = self._buffer(engine, profile, name)
        staging = self._staging(f"{engine.graph}/{name}", array.nbytes)
        staging[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._cuda.to_device(buffer.pointer, staging, self.stream)
        return buffer

    def _staging(self, name: str, size: int) -> npt.NDArray[np.uint8]:
        found = self._pinned.get(name)
        if found is None or found.size < size:
            self._cuda.wait(self.stream)  # a copy from what is replaced may be under way
            found = self._pinned[name] = self._cuda.pinned(size)
        return found[:size]

    def _context(self, engine: Engine, profile: int) -> Any:
        """The execution context of a profile, in an arena that is large enough for it."""
        key = (id(engine), profile)
        size = int(engine.handle.get_device_memory_size_for_profile_v2(profile))
        if self._arena is None or self._arena.size < size:
            self._cuda.wait(self.stream)
            self._arena = self._cuda.take(size)
            for context in self._contexts.values():
                context.set_device_memory(self._arena.pointer, self._arena.size)
        found = self._contexts.get(key)
        if found is None:
            import tensorrt  # pyright: ignore[reportMissingImports]

            strategy = cast(Any, tensorrt).ExecutionContextAllocationStrategy.USER_MANAGED
            found = engine.handle.create_execution_context(strategy)
            if found is None:
                raise BackendError(f"TensorRT gives no execution context for {engine.graph}: out of GPU memory?")
            _must(found.set_optimization_profile_async(profile, self.stream), f"profile {profile}", engine)
            found.set_device_memory(self._arena.pointer, self._arena.size)
            self._contexts[key] = found
            self._engines.append(engine)
        return found


def _must(done: object, what: str, engine: Engine) -> None:
    if not done:
        raise BackendError(f"TensorRT refuses the {what} of the {engine.graph} engine")
