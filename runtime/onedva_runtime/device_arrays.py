"""Frames that lie on a GPU: what PyCUDA, CuPy, PyTorch and others hold goes in, and a view that they take comes out.

    packet = codec.encode_clip(gpu_array)  # anything with __cuda_array_interface__
    frames = to_device(codec.decode_clip(packet))
    torch.as_tensor(frames, device="cuda")  # PyTorch; cupy.asarray(frames)
    GPUArray(frames.shape, frames.dtype, gpudata=frames.pointer, base=frames)  # PyCUDA

The codec places latents, and softens the edges of clips, on the CPU. So frames pass through host memory either way: a
copy of 3 MB for 17×256×256. No PyCUDA is imported; the interface is the one that its arrays have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends.cuda_memory import Buffer, Cuda

__all__ = ["DeviceArray", "is_on_device", "to_device", "to_host"]


@cache
def _cuda(device: int) -> tuple[Cuda, int]:
    """A GPU and the stream that copies here go through."""
    cuda = Cuda(device)
    return cuda, cuda.stream()


class DeviceArray:
    """An array in device memory that is ours until nothing refers to it; whole when you get it, on any stream."""

    def __init__(self, buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._buffer, self.shape, self.dtype = buffer, shape, dtype

    @property
    def pointer(self) -> int:
        """Device address of the first element."""
        return self._buffer.pointer

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": None,
        }


def is_on_device(value: object) -> bool:
    """Whether `value` is an array on a GPU."""
    return hasattr(value, "__cuda_array_interface__")


def to_device(array: npt.NDArray[Any], *, device: int = 0) -> DeviceArray:
    """A copy of a NumPy array on a GPU. device: its number. Raises BackendError where there is none, or no memory."""
    cuda, stream = _cuda(device)
    cuda.use()
    whole = np.ascontiguousarray(array)
    buffer = cuda.take(whole.nbytes)
    cuda.to_device(buffer.pointer, whole, stream)
    cuda.wait(stream)
    return DeviceArray(buffer, whole.shape, whole.dtype)


def to_host(value: object, *, stream: object = None, device: int = 0) -> npt.NDArray[Any]:
    """A copy in NumPy of an array that lies on a GPU.

    value: has `__cuda_array_interface__`, C-contiguous. stream: what its last writer ran on (a handle, or PyCUDA's,
    CuPy's or PyTorch's stream), waited for first; None: the one that the interface names. device: the GPU's number.
    Raises TypeError for anything else, ValueError for an array with gaps, BackendError where there is no GPU.
    """
    found = getattr(value, "__cuda_array_interface__", None)
    if not isinstance(found, Mapping):
        raise TypeError(f"an array on a GPU has __cuda_array_interface__; got {type(value).__name__}")
    facts = cast(Mapping[str, Any], found)
    dtype, shape = np.dtype(facts["typestr"]), tuple(int(side) for side in facts["shape"])
    packed = tuple(dtype.itemsize * int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape)))
    strides = facts.get("strides")
    if strides is not None and tuple(strides) != packed:
        raise ValueError(f"the array must be C-contiguous; got the shape {shape} with the strides {tuple(strides)}")
    cuda, own = _cuda(device)
    cuda.use()
    writer = _handle(stream if stream is not None else facts.get("stream"))
    if writer is not None:
        cuda.wait(writer)
    out = np.empty(shape, dtype)
    cuda.to_host(out, int(facts["data"][0]), own)
    cuda.wait(own)
    return out


def _handle(stream: Any) -> int | None:
    """A stream's number: of PyCUDA (`handle`), PyTorch (`cuda_stream`), CuPy (`ptr`), or as it is."""
    for name in ("handle", "cuda_stream", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    return None if stream is None else int(stream)
