"""A backend inside Triton: every graph is another model of the repository, called over BLS, so that Triton batches the
calls of all clients. What `condition` gives stays where Triton keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Condition, Float32
from onedva_runtime.errors import BackendError, OneDVAError
from onedva_runtime.manifest import Manifest
from onedva_runtime.manifest_parsing import parse_manifest

__all__ = ["TritonBackend", "answered", "read_manifest"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TritonCondition:
    """Triton's tensors by output name of the condition graph."""

    tensors: Mapping[str, Any]

    def preview(self) -> Float32:
        """The preview (B, 3, T, H, W); KeyError where the model has none."""
        return self.tensors["preview"].as_numpy()


class TritonBackend:
    """See `Backend`. One per Python model."""

    name, dtype, threads = "triton", "fp32", 1
    samples_on_device = False

    def __init__(self, manifest: Manifest) -> None:
        self._triton: Any = import_module("triton_python_backend_utils")
        self.has_one_step = "one_step" in manifest.graphs
        self.has_few_steps = False
        self._condition_outputs = tuple(spec.name for spec in manifest.graphs["condition"].outputs)
        self._shared = {spec.name for spec in manifest.graphs["velocity"].inputs} - {"noisy_video", "t"}

    def encode(
        self, frames: npt.NDArray[np.uint8], resolution: Float32, is_key: npt.NDArray[np.bool_], anchors: Array
    ) -> tuple[Float32, Float32, Float32]:
        inputs = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        outputs = self._call("encoder", ("structural", "latents", "predicted_error"), inputs)
        structural, latents, error = (tensor.as_numpy() for tensor in outputs.values())
        return structural, latents, error

    def condition(
        self,
        structural: Float32,
        latents: Float32,
        anchors: Array,
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
    ) -> Condition:
        inputs = {"structural": structural, "latents": latents, "anchors": anchors}
        inputs |= {"has_latents": has_latents, "resolution": resolution, "is_key": is_key}
        return TritonCondition(self._call("condition", self._condition_outputs, inputs))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        assert isinstance(condition, TritonCondition)
        shared = {name: condition.tensors[name] for name in self._shared}
        inputs = {"noisy_video": noisy_video, "t": t, **shared}
        return self._call("velocity", ("velocity",), inputs)["velocity"].as_numpy()

    def one_step(
        self,
        structural: Float32,
        latents: Float32,
        anchors: Array,
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        inputs = {"structural": structural, "latents": latents, "anchors": anchors, "has_latents": has_latents}
        inputs |= {"resolution": resolution, "is_key": is_key, "context_frame": context_frame}
        return self._call("one_step", ("frames",), inputs)["frames"].as_numpy()

    def _call(self, model: str, outputs: tuple[str, ...], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run another model of the repository. A vector over the batch is a column to Triton, as its config says."""
        tensors: list[Any] = []
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                array: Array = value[:, None] if value.ndim == 1 else value
                value = self._triton.Tensor(name, np.ascontiguousarray(array))
            tensors.append(value)
        request = self._triton.InferenceRequest(
            model_name=f"onedva_{model}", requested_output_names=list(outputs), inputs=tensors
        )
        response = request.exec()
        if response.has_error():
            raise BackendError(f"onedva_{model}: {response.error().message()}")
        return {name: self._triton.get_output_tensor_by_name(response, name) for name in outputs}


def answered(request: Any, work: Callable[..., dict[str, Any]]) -> Any:
    """Triton's answer to a request: what `work` makes of its inputs, by name, or its error."""
    triton: Any = import_module("triton_python_backend_utils")
    inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
    scalars = {name: value.reshape(-1)[0].item() for name, value in inputs.items() if value.size == value.ndim == 1}
    single = {"tokens", "fps", "num_steps", "seed", "first_frame"}
    try:
        outputs = work(**{**inputs, **{name: value for name, value in scalars.items() if name in single}})
    except (OneDVAError, ValueError, TypeError) as error:
        return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
    return triton.InferenceResponse(
        output_tensors=[triton.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
    )


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle that the repository was made of. Raises BundleError."""
    return parse_manifest(json.loads(path.read_text()))
