"""Backends: what runs a bundle's three graphs. One small class each behind one protocol; `open_backend` picks by name,
`available` says for each known backend whether it can be used here and why not. Nothing falls back silently."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from onedva_runtime.errors import BackendError

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["Backend", "BackendStatus", "Condition", "available", "open_backend"]

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


@dataclass(frozen=True)
class BackendStatus:
    """Whether one known backend can be used here."""

    name: str
    """Name for `backend=`."""
    usable: bool
    """Whether this version can run it on this machine."""
    reason: str
    """Its version where usable, else why not and what to do."""


def _installed(package: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _onnxruntime_status() -> BackendStatus:
    cpu, gpu = _installed("onnxruntime"), _installed("onnxruntime-gpu")
    if find_spec("onnxruntime") is None:
        return BackendStatus("onnxruntime", False, "not installed: pip install 'onedva[cpu]'")
    version = f"onnxruntime {cpu}" if cpu else f"onnxruntime-gpu {gpu}" if gpu else "onnxruntime of unknown origin"
    if cpu and gpu:
        both = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other: uninstall both, install one"
        return BackendStatus("onnxruntime", True, both)
    return BackendStatus("onnxruntime", True, f"{version}, CPU")


def _later_status(name: str) -> BackendStatus:
    found = "" if find_spec(name) is None else ", though the package is installed"
    return BackendStatus(name, False, f"not in this version of onedva{found}")


def available() -> list[BackendStatus]:
    """The known backends, fastest last, each with whether it is usable here; imports none of them."""
    return [_onnxruntime_status(), _later_status("openvino"), _later_status("tensorrt")]


def open_backend(name: str, bundle: Bundle, *, device: str = "cpu", threads: int | None = None) -> Backend:
    """Open the graphs of `bundle`.

    name: "auto" (the fastest usable one) or a backend's name. device: "cpu". threads: CPU threads per graph, ≥ 1; None:
    as many as this process may use. Raises BackendError for an unknown or unusable backend or device, ValueError for
    threads below 1.
    """
    statuses = {status.name: status for status in available()}
    if name != "auto" and name not in statuses:
        raise BackendError(f"unknown backend {name!r}; valid: auto, {', '.join(statuses)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    chosen = statuses["onnxruntime" if name == "auto" else name]
    if not chosen.usable:
        raise BackendError(f"backend {chosen.name} cannot be used: {chosen.reason}")
    if device != "cpu":
        raise BackendError(f"device {device!r} is not in this version of onedva; valid: cpu")
    from onedva_runtime.backends.onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(bundle, threads=threads)
