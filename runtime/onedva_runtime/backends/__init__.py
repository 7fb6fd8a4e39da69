"""Backends: what runs a bundle's graphs. One small class each behind one protocol; `open_backend` opens one by name,
`available` says for each known backend whether it can be used here and why not, `choose.open_fastest` measures which
to take. Nothing falls back silently."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onedva_runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onedva_runtime.backends.device_sampler import Sampling
    from onedva_runtime.bundle import Bundle

__all__ = [
    "DTYPES",
    "LATENT_INPUTS",
    "Backend",
    "BackendStatus",
    "Condition",
    "LatentBackend",
    "SamplesOnDevice",
    "StepsInCoefficients",
    "available",
    "device_number",
    "open_backend",
    "usable_cores",
]

DTYPES = ("fp32", "fp16", "bf16", "int8")

LATENT_INPUTS = ("structural", "latents", "anchors", "has_latents", "resolution", "is_key")  # of `condition`

Float32 = npt.NDArray[np.float32]


class Condition(Protocol):
    """What `condition` gives, kept in the backend's own memory; opaque but for the preview."""

    def preview(self) -> Float32:
        """The preview (B, 3, T, H, W) as NumPy; KeyError where the model has none."""
        ...


class Backend(Protocol):
    """Runs a bundle's graphs. Safe to share between threads; releases the GIL while a graph runs."""

    name: str
    threads: int
    dtype: str
    """What it computes in, one of DTYPES; inputs and outputs are float32 for all."""
    has_one_step: bool
    """Whether the bundle has the graph that `one_step` runs."""
    has_few_steps: bool
    """Whether it is a `StepsInCoefficients`, and the bundle has the graphs for that."""
    samples_on_device: bool
    """Whether it is a `SamplesOnDevice`, and can be one here."""

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        """frames (B,T,H,W,3), resolution (B,4), is_key (B,), anchors (B,K) → structural, latents, predicted_error."""
        ...

    def condition(
        self,
        structural: Float32,
        latents: Float32,
        anchors: npt.NDArray[np.int64],
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
    ) -> Condition:
        """Everything about a clip's latents that does not depend on time."""
        ...

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        """noisy_video (B,3,T,H,W), t (B,Tg) → velocity (B,3,T,H,W)."""
        ...

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
        """As `condition`, and context_frame (B,H,W,3) → frames (B,T,H,W,3) of a decode with one step."""
        ...


class StepsInCoefficients(Backend, Protocol):
    """A backend that takes several steps without making pixels in between (`onedva.few_steps`)."""

    def begin(
        self, given: Sequence[npt.NDArray[Any]], context_frame: npt.NDArray[np.uint8], noise: Float32
    ) -> tuple[Float32, Condition]:
        """given: the six inputs of `condition` in its order; context_frame as of `one_step`; noise (B,3,T,H,W) → the
        state (B,Tg,Hg,Wg,R) at t = 1, and a condition without preview."""
        ...

    def step(self, state: Float32, t: Float32, condition: Condition) -> Float32:
        """state, t (B,Tg) → its velocity (B,Tg,Hg,Wg,R), 0 where t is 0."""
        ...

    def finish(
        self,
        state: Float32,
        t: Float32,
        condition: Condition,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        """A last step from t (B,Tg) to 0 → frames (B,T,H,W,3)."""
        ...


class SamplesOnDevice(Backend, Protocol):
    """A backend on a GPU that runs the whole loop of a decode there."""

    def sample(self, given: Sequence[npt.NDArray[Any]], sampling: Sampling) -> npt.NDArray[np.uint8]:
        """given: the six inputs of `condition` in its order → frames (B, T, H, W, 3)."""
        ...


@runtime_checkable
class LatentBackend(Protocol):
    """A backend that can run the graph `generator` too."""

    def latent_velocity(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """The graph's inputs by name → velocities of structural latent and 1D latents, in float32 whatever the dtype:
        errors of many steps add up. Raises BackendError where it fails."""
        ...


@dataclass(frozen=True)
class BackendStatus:
    """Whether one known backend can be used here."""

    name: str
    """Name for `backend=`."""
    usable: bool
    """Whether this version can run it on this machine."""
    reason: str
    """Its version where usable, else why not and what to do."""
    dtypes: tuple[str, ...] = ()
    """What it can compute in on this machine, the plainest first."""
    device: str = "cpu"
    """Where it runs: "cpu" or "cuda"."""


def usable_cores() -> int:
    """CPU cores this process may run on; containers often allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The CPU's name and abilities, where the kernel tells: what compiled and measured things hold for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def installed(package: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _onnxruntime_status() -> BackendStatus:
    cpu, gpu = installed("onnxruntime"), installed("onnxruntime-gpu")
    if find_spec("onnxruntime") is None:
        return BackendStatus("onnxruntime", False, "not installed: pip install 'onedva[cpu]'")
    version = f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}" if gpu else "onnxruntime of unknown origin"
    if cpu and gpu:
        version = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other: uninstall both, install one"
    return BackendStatus("onnxruntime", True, f"{version}, CPU", ("fp32",))


def _openvino_status() -> BackendStatus:
    if find_spec("openvino") is None:
        return BackendStatus("openvino", False, "not installed: pip install 'onedva[openvino]'")
    from onedva_runtime.backends.openvino import precisions

    dtypes = tuple(precisions())
    return BackendStatus("openvino", True, f"openvino {installed('openvino')}, CPU: {', '.join(dtypes)}", dtypes)


def _onnxruntime_cuda_status() -> BackendStatus:
    name, gpu = "onnxruntime-cuda", installed("onnxruntime-gpu")
    if gpu is None:
        return BackendStatus(name, False, "not installed: pip install 'onedva[gpu]'", device="cuda")
    from onedva_runtime.backends.gpu import MissingGpu, cuda_runtime
    from onedva_runtime.backends.onnxruntime import load_onnxruntime

    if "CUDAExecutionProvider" not in load_onnxruntime().get_available_providers():
        return BackendStatus(name, False, f"onnxruntime-gpu {gpu} has no CUDA provider here", device="cuda")
    try:
        cuda_runtime()
    except MissingGpu as problem:
        return BackendStatus(name, False, str(problem), device="cuda")
    return BackendStatus(name, True, f"onnxruntime-gpu {gpu}, CUDA", ("fp32",), "cuda")


def _tensorrt_status() -> BackendStatus:
    from onedva_runtime.backends.gpu import MissingGpu, find_gpu

    try:
        gpu = find_gpu()
    except MissingGpu as problem:
        return BackendStatus("tensorrt", False, str(problem), device="cuda")
    what = f"TensorRT {gpu.tensorrt} on {gpu.name}, with engines that `onedva engines` builds"
    return BackendStatus("tensorrt", True, what, ("fp16", "bf16", "fp32"), "cuda")


STATUSES = {
    "onnxruntime": _onnxruntime_status,
    "openvino": _openvino_status,
    "onnxruntime-cuda": _onnxruntime_cuda_status,
    "tensorrt": _tensorrt_status,
}


def available() -> list[BackendStatus]:
    """The known backends, each with whether it is usable here. Asks those that are installed for what this machine can
    do; imports no other."""
    return [status() for status in STATUSES.values()]


def device_number(device: str) -> tuple[str, int]:
    """ "cpu", "cuda" or "cuda:1" as kind and number; ("", 0) for "auto". Raises BackendError for anything else."""
    kind, _, number = device.partition(":")
    if device == "auto":
        return "", 0
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdecimal())) or device.endswith(":"):
        raise BackendError(f"unknown device {device!r}; valid: auto, cpu, cuda, cuda:NUMBER")
    return kind, int(number or 0)


def open_backend(
    name: str,
    bundle: Bundle,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str | None = None,
    streams: int = 1,
) -> Backend:
    """Open the graphs of `bundle`.

    name: a backend's name. device: "auto" (where the backend runs), "cpu", "cuda", or "cuda:NUMBER". threads: CPU
    threads per graph, ≥ 1; None: as many as this process may use. dtype: what to compute in; None: the plainest that
    the backend has. streams: calls that may run at once on a GPU, ≥ 1. Raises BackendError for an unknown or unusable
    backend, device or dtype, ValueError for threads or streams below 1.
    """
    if name not in STATUSES:
        raise BackendError(f"unknown backend {name!r}; valid: auto, {', '.join(STATUSES)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    kind, number = device_number(device)
    status = STATUSES[name]()
    if not status.usable:
        raise BackendError(f"backend {name} cannot be used: {status.reason}")
    if kind and kind != status.device:
        raise BackendError(f"backend {name} runs on {status.device}, got device {device!r}")
    dtype = dtype or status.dtypes[0]
    if dtype not in status.dtypes:
        raise BackendError(
            f"backend {name} computes in {', '.join(status.dtypes)} on this machine, got dtype {dtype!r}"
        )
    if name == "openvino":
        from onedva_runtime.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(bundle, threads=threads, dtype=dtype)
    if name == "tensorrt":
        from onedva_runtime.backends.tensorrt import TensorRtBackend

        return TensorRtBackend(bundle, dtype=dtype, streams=streams, device=number)
    if name == "onnxruntime-cuda":
        from onedva_runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

        return OnnxRuntimeCudaBackend(bundle, device=number)
    from onedva_runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads)
