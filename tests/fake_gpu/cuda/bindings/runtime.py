"""The calls of cuda.bindings.runtime that onedva makes, over host memory. Every access is checked against what was
allocated, fresh memory is poisoned, and a stream that captures records instead of running."""

from __future__ import annotations

import bisect
import ctypes
import enum
import itertools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

POISON = 0xA5
ALIGNMENT = 256
LIMIT = int(os.environ.get("FAKE_GPU_BYTES", 1 << 40))
pinned: dict[int, np.ndarray] = {}
blocks: dict[int, np.ndarray] = {}  # by address
starts: list[int] = []
streams: dict[int, Stream] = {}
numbers = itertools.count(1)


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0
OK, INVALID = cudaError_t.cudaSuccess, cudaError_t.cudaErrorInvalidValue


class Stream(int):
    """A handle, with what it has captured."""

    recording: list[Callable[[], None]] | None
    poisoned: bool


def cudaGetDeviceCount() -> tuple[Any, int]:
    return (OK, 1) if os.environ.get("FAKE_GPU", "Fake H100") else (cudaError_t.cudaErrorNoDevice, 0)


def cudaSetDevice(device: int) -> tuple[Any]:
    return (OK,)


def cudaGetDeviceProperties(device: int) -> tuple[Any, Any]:
    name = os.environ.get("FAKE_GPU", "Fake H100")
    major = 8 if "A100" in name else 9
    return OK, SimpleNamespace(name=name.encode() + b"\0", major=major, minor=0, totalGlobalMem=LIMIT)


def cudaMemGetInfo() -> tuple[Any, int, int]:
    return OK, LIMIT - sum(block.size for block in blocks.values()), LIMIT


def cudaMalloc(size: int) -> tuple[Any, int]:
    if sum(block.size for block in blocks.values()) + size > LIMIT:
        return cudaError_t.cudaErrorMemoryAllocation, 0
    memory = np.full(size + ALIGNMENT, POISON, np.uint8)
    offset = -memory.ctypes.data % ALIGNMENT
    block = memory[offset : offset + size]
    blocks[block.ctypes.data] = block
    bisect.insort(starts, block.ctypes.data)
    return OK, block.ctypes.data


def cudaFree(address: int) -> tuple[Any]:
    if address not in blocks:
        return (INVALID,)
    blocks.pop(address)
    starts.remove(address)
    return (OK,)


def cudaHostAlloc(size: int, flags: int) -> tuple[Any, int]:
    memory = np.full(size, POISON, np.uint8)
    pinned[memory.ctypes.data] = memory
    return OK, memory.ctypes.data


def cudaFreeHost(address: int) -> tuple[Any]:
    return (OK if pinned.pop(address, None) is not None else INVALID,)


def device_memory(address: int, size: int) -> np.ndarray:
    """The bytes at an address; AssertionError where they are not all of one allocation, as a sanitizer would say."""
    index = bisect.bisect_right(starts, address) - 1
    assert index >= 0, f"{address:#x} is not device memory"
    block = blocks[starts[index]]
    offset = address - starts[index]
    assert offset >= 0 and offset + size <= block.size, f"{size} bytes at {address:#x} are out of bounds"
    return block[offset : offset + size]


def host_memory(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def submit(stream: int, work: Callable[[], None]) -> None:
    """Run `work` on a stream: now, or when the graph that it is captured into is launched."""
    recording = streams[int(stream)].recording
    if recording is None:
        work()
    else:
        recording.append(work)


def cudaMemcpyAsync(target: int, source: int, size: int, kind: Any, stream: Any) -> tuple[Any]:
    to_device, from_device = kind in (1, 3), kind in (2, 3)

    def copy() -> None:
        out = device_memory(target, size) if to_device else host_memory(target, size)
        out[:] = device_memory(source, size) if from_device else host_memory(source, size)

    submit(stream, copy)
    return (OK,)


def cudaMemsetAsync(target: int, value: int, size: int, stream: Any) -> tuple[Any]:
    submit(stream, lambda: device_memory(target, size).fill(value))
    return (OK,)


def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, Stream]:
    assert flags == cudaStreamNonBlocking, "the default stream waits for everyone"
    stream = Stream(next(numbers))
    stream.recording = None
    streams[int(stream)] = stream
    return OK, stream


def cudaStreamDestroy(stream: Any) -> tuple[Any]:
    streams.pop(int(stream))
    return (OK,)


def cudaStreamSynchronize(stream: Any) -> tuple[Any]:
    assert streams[int(stream)].recording is None, "waiting for a stream that captures"
    return (OK,)


def cudaStreamBeginCapture(stream: Any, mode: Any) -> tuple[Any]:
    streams[int(stream)].recording = []
    return (OK,)


def cudaStreamEndCapture(stream: Any) -> tuple[Any, list[Callable[[], None]]]:
    found, streams[int(stream)].recording = streams[int(stream)].recording, None
    return OK, found or []


def cudaGraphGetNodes(graph: Any, numNodes: int = 0) -> tuple[Any, list[Any], int]:
    return OK, list(graph), len(graph)


def cudaGraphInstantiate(graph: Any, flags: int) -> tuple[Any, Any]:
    return OK, list(graph)


def cudaGraphLaunch(executable: Any, stream: Any) -> tuple[Any]:
    for work in executable:
        submit(stream, work)
    return (OK,)


def cudaGraphDestroy(graph: Any) -> tuple[Any]:
    return (OK,)


def cudaGraphExecDestroy(executable: Any) -> tuple[Any]:
    return (OK,)
