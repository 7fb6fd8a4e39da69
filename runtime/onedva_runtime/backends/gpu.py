"""Which GPU this machine has and which TensorRT, asked without opening a model; what is missing is named with what
brings it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

from onedva_runtime.engines import Gpu
from onedva_runtime.errors import BackendError

__all__ = ["MissingGpu", "cuda_runtime", "find_gpu", "tensorrt_version"]

OLDEST, TOO_NEW = (10, 15), 12


class MissingGpu(BackendError):
    """TensorRT, a GPU, or what talks to one is missing here."""


def cuda_runtime() -> Any:
    """The module `cuda.bindings.runtime`; MissingGpu where it is not installed or finds no GPU."""
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        raise MissingGpu("cuda-python is not installed: pip install 'onedva[trt]'")
    from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

    module = cast(Any, runtime)
    try:
        error, count = module.cudaGetDeviceCount()
    except RuntimeError as problem:  # it finds no CUDA library to load
        raise MissingGpu(f"CUDA cannot be loaded: {problem}") from problem
    if int(error) or not count:
        raise MissingGpu(f"no NVIDIA GPU here that CUDA can use ({getattr(error, 'name', error)})")
    return module


def tensorrt_version() -> str:
    """Version of the installed TensorRT; MissingGpu where it is missing, or one that onedva does not know."""
    if find_spec("tensorrt") is None:
        raise MissingGpu("TensorRT is not installed: pip install 'onedva[trt]'")
    try:
        import tensorrt  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as problem:
        raise MissingGpu(f"TensorRT is installed and cannot be loaded: {problem}") from problem
    version = str(cast(Any, tensorrt).__version__)
    parts = tuple(int(part) for part in version.split(".")[:2])
    if not (parts >= OLDEST and parts[0] < TOO_NEW):
        raise MissingGpu(f"TensorRT {version} is not one that onedva knows: 10.15 and up, below 12")
    return version


def find_gpu(device: int = 0) -> Gpu:
    """This machine's GPU and TensorRT. device: number of the GPU. Raises MissingGpu where one is missing."""
    version, runtime = tensorrt_version(), cuda_runtime()
    error, properties = runtime.cudaGetDeviceProperties(device)
    if int(error):
        raise MissingGpu(f"GPU {device} cannot be asked for its properties ({getattr(error, 'name', error)})")
    name = properties.name
    name = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
    return Gpu(name.strip("\0 "), f"{properties.major}.{properties.minor}", version)
