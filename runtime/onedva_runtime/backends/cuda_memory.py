"""Memory, streams and captured graphs of one GPU, over cuda-python: every call checked, every error in words."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends.gpu import cuda_runtime
from onedva_runtime.errors import BackendError

__all__ = ["ALIGNMENT", "Buffer", "Cuda", "GraphCache"]

ALIGNMENT = 256  # bytes: what TensorRT asks of the memory it works in
MAX_GRAPHS = 16  # captured graphs that are kept, those used last


class Buffer:
    """Device memory that goes back to its pool when nothing refers to it any more."""

    def __init__(self, pointer: int, size: int, give_back: Callable[[int, int], None]) -> None:
        self.pointer, self.size = pointer, size
        """Address, and bytes."""
        self.release = weakref.finalize(self, give_back, pointer, size)


class Cuda:
    """One GPU. Safe to share between threads; each thread that uses it calls `use` first."""

    def __init__(self, device: int = 0) -> None:
        """device: number of the GPU. Raises MissingGpu where there is none."""
        self.device, self._runtime = device, cuda_runtime()
        self._free: dict[int, list[int]] = {}  # idle device memory by size
        self._lock = threading.Lock()
        self.use()

    def use(self) -> None:
        """Make this the GPU of the calling thread."""
        self._call("cudaSetDevice", self.device)

    def _call(self, name: str, *arguments: Any) -> Any:
        """A call of the CUDA runtime; what it returns beside its error: nothing, a value, or a tuple of them."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise BackendError(f"CUDA: {name} failed: {getattr(error, 'name', error)}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def take(self, size: int) -> Buffer:
        """Device memory of at least `size` bytes, at a multiple of 256; idle memory of that size where there is any.

        Raises BackendError where the GPU has no more.
        """
        size = max(-(-size // ALIGNMENT), 1) * ALIGNMENT
        with self._lock:
            idle = self._free.get(size)
            pointer = idle.pop() if idle else None
        if pointer is None:
            pointer = self._allocate(size)
        return Buffer(pointer, size, self._give_back)

    def _allocate(self, size: int) -> int:
        error, pointer = self._runtime.cudaMalloc(size)
        if int(error):
            self.trim()  # what is idle may be of the wrong size
            error, pointer = self._runtime.cudaMalloc(size)
        if int(error):
            free, total = self._call("cudaMemGetInfo")
            raise BackendError(
                f"out of GPU memory: {size >> 20} MiB more are wanted, {free >> 20} of {total >> 20} MiB are free; use "
                "fewer streams, a smaller batch, smaller tiles, or a GPU that nothing else runs on"
            )
        return int(pointer)

    def _give_back(self, pointer: int, size: int) -> None:
        with self._lock:
            self._free.setdefault(size, []).append(pointer)

    def trim(self) -> None:
        """Free all idle memory."""
        with self._lock:
            pointers = [pointer for idle in self._free.values() for pointer in idle]
            self._free.clear()
        for pointer in pointers:
            self._call("cudaFree", pointer)

    def pinned(self, size: int) -> npt.NDArray[np.uint8]:
        """Host memory of `size` bytes that the GPU copies to and from directly; freed with the array."""
        pointer = int(self._call("cudaHostAlloc", max(size, 1), self._runtime.cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * max(size, 1)).from_address(pointer)
        weakref.finalize(memory, self._runtime.cudaFreeHost, pointer)
        return np.ctypeslib.as_array(memory)

    def stream(self) -> int:
        """A new stream that does not wait for the default one."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def wait(self, stream: int) -> None:
        """Wait until everything on the stream is done; releases the GIL."""
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, pointer: int, array: npt.NDArray[Any], stream: int) -> None:
        """Copy a contiguous array, which must not change before the stream has got there."""
        self._copy(pointer, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice", stream)

    def to_host(self, array: npt.NDArray[Any], pointer: int, stream: int) -> None:
        """Copy into a contiguous array, which holds the values once the stream has got there."""
        self._copy(array.ctypes.data, pointer, array.nbytes, "cudaMemcpyDeviceToHost", stream)

    def on_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy `size` bytes from device memory to device memory."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice", stream)

    def _copy(self, target: int, source: int, size: int, kind: str, stream: int) -> None:
        if size:
            self._call("cudaMemcpyAsync", target, source, size, getattr(self._runtime.cudaMemcpyKind, kind), stream)

    def fill(self, pointer: int, value: int, size: int, stream: int) -> None:
        """Set bytes: tests poison outputs with it."""
        self._call("cudaMemsetAsync", pointer, value, size, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Any:
        """What `work` puts on the stream, as a graph to `launch`; it is not run.

        Raises BackendError where nothing was captured: then the work went to another stream, or another GPU.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            self._runtime.cudaStreamEndCapture(stream)  # its own error would only hide the first
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            if not int(self._call("cudaGraphGetNodes", graph)[-1]):
                raise BackendError("CUDA captured an empty graph: the work ran elsewhere than on the stream")
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, executable: Any, stream: int) -> None:
        """Run a captured graph on a stream."""
        self._call("cudaGraphLaunch", executable, stream)

    def drop(self, executable: Any) -> None:
        """Free a captured graph."""
        self._call("cudaGraphExecDestroy", executable)


class GraphCache:
    """Captured graphs by what they were captured with: shapes, and addresses, which are baked into them."""

    def __init__(self, cuda: Cuda, *, most: int = MAX_GRAPHS) -> None:
        self._cuda, self._most = cuda, most
        self._graphs: OrderedDict[object, Any] = OrderedDict()
        self.captures = 0
        """How many were made."""

    def get(self, key: object, stream: int, work: Callable[[], None], *, before: Callable[[], None]) -> Any:
        """The graph of `key`, captured from `work` where there is none, after `before`. One thread at a time."""
        graph = self._graphs.get(key)
        if graph is None:
            before()
            graph = self._graphs[key] = self._cuda.capture(stream, work)
            self.captures += 1
            while len(self._graphs) > self._most:
                self._cuda.drop(self._graphs.popitem(last=False)[1])
        self._graphs.move_to_end(key)
        return graph
