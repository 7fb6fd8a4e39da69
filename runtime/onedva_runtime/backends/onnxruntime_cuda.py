"""The graphs on ONNX Runtime's CUDA provider: any clip size, no build, all tensors bound on the device. Runs and the
sampler's kernels share one stream, so one call at a time; whoever serves many streams takes TensorRT."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Condition, Float32
from onedva_runtime.backends.cuda_memory import Cuda
from onedva_runtime.backends.device_sampler import DeviceSampler, Sampling, device_kernels
from onedva_runtime.backends.device_tensors import Feeds, Tensor, axes_of, byte_count, latent_feeds, shape_of
from onedva_runtime.backends.onnxruntime import load_onnxruntime
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.manifest import FEW_STEPS, GraphSpec
from onedva_runtime.turns import Turns

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["OnnxRuntimeCudaBackend"]

PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class _Condition:
    """The condition graph's outputs on the device."""

    backend: OnnxRuntimeCudaBackend
    tensors: dict[str, Tensor]

    def preview(self) -> Float32:
        """A copy of the preview (B, 3, T, H, W); KeyError where the model has none."""
        return self.backend.to_host(self.tensors["preview"])


class OnnxRuntimeCudaBackend:
    """See `Backend`. Calls from several threads take turns."""

    name = "onnxruntime-cuda"
    dtype = "fp32"
    threads = 1

    def __init__(self, bundle: Bundle, *, device: int = 0) -> None:
        """Open the graphs of `bundle` on a GPU. device: its number.

        Raises BundleError where ONNX Runtime refuses a graph, BackendError where there is no GPU or it drops CUDA.
        """
        self._cuda, self._turns = Cuda(device), Turns(1)
        self._stream = self._cuda.stream()
        graphs = bundle.manifest.graphs
        self._specs = {name: spec for name, spec in graphs.items() if name not in FEW_STEPS}
        self._sessions = {name: self._open(bundle, name, spec) for name, spec in self._specs.items()}
        self._sampler: DeviceSampler | None = None
        self.has_one_step = "one_step" in self._specs
        self.has_few_steps = False
        self.samples_on_device = device_kernels() is not None

    def _open(self, bundle: Bundle, graph: str, spec: GraphSpec) -> Any:
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what it refuses it also raises
        settings = {
            "device_id": str(self._cuda.device),
            "user_compute_stream": str(self._stream),
            "use_tf32": "0",  # its products round as fp16 ones do: columns would choose other classes
        }
        path = bundle.graph_path(graph)
        try:
            session = ort.InferenceSession(os.fspath(path), options, providers=[(PROVIDER, settings)])
        except Exception as error:  # its exceptions share no base but Exception
            raise BundleError(f"ONNX Runtime refuses {path.name}: {_first_line(error)}") from error
        if session.get_providers()[:1] != [PROVIDER]:
            raise BackendError(
                f"ONNX Runtime opened {path.name} on {session.get_providers()}, asked for {PROVIDER}: it needs the "
                "CUDA and cuDNN that onnxruntime-gpu was built for"
            )
        for kind, said, found in (
            ("inputs", spec.inputs, session.get_inputs()),
            ("outputs", spec.outputs, session.get_outputs()),
        ):
            got, wanted = {value.name for value in found}, {value.name for value in said}
            if got != wanted:
                raise BundleError(f"{path.name} has the {kind} {sorted(got)}, the manifest says {sorted(wanted)}")
        return session

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        feeds = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        with self._turn():
            outputs = self._run("encoder", feeds)
            found = [self._fetch(outputs[name]) for name in ("structural", "latents", "predicted_error")]
        return found[0], found[1], found[2]

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
        with self._turn():
            return _Condition(self, self._run("condition", feeds))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        feeds = {"noisy_video": noisy_video, "t": t, **cast(_Condition, condition).tensors}
        with self._turn():
            return self._fetch(self._run("velocity", feeds)["velocity"])

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
        with self._turn():
            return self._fetch(self._run("one_step", {**feeds, "context_frame": context_frame})["frames"])

    def sample(self, given: Sequence[npt.NDArray[Any]], sampling: Sampling) -> npt.NDArray[np.uint8]:
        """See `SamplesOnDevice`. Every step is a run of its own: ONNX Runtime's may not be captured from outside."""
        batch, _, frames, height, width = sampling.shape
        with self._turn():
            tensors = self._run("condition", latent_feeds(*given))  # pyright: ignore[reportArgumentType]
            video = self._empty(sampling.shape, "float32")
            t = self._empty((batch, 1 + (frames - 1) // 4), "float32")
            binding, outputs = self._bind("velocity", {"noisy_video": video, "t": t, **tensors})
            if self._sampler is None:
                self._sampler = DeviceSampler(self._cuda, device_kernels(), self._stream, capture=False)
            packed = self._sampler.run(
                sampling,
                video=video.buffer,
                velocity=outputs["velocity"].buffer,
                t=t.buffer,
                enqueue=lambda: self._enqueue("velocity", binding),
            )
            return self._fetch(Tensor(packed, (batch, frames, height, width, 3), "uint8"))

    def to_host(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy of a tensor."""
        with self._turn():
            return self._fetch(tensor)

    @contextmanager
    def _turn(self) -> Generator[None]:
        with self._turns:
            self._cuda.use()
            try:
                yield
            finally:
                self._cuda.wait(self._stream)  # what was copied to the device may go now

    def _run(self, graph: str, feeds: Feeds) -> dict[str, Tensor]:
        binding, outputs = self._bind(graph, feeds)
        self._enqueue(graph, binding)
        self._cuda.wait(self._stream)
        return outputs

    def _bind(self, graph: str, feeds: Feeds) -> tuple[Any, dict[str, Tensor]]:
        """Inputs and outputs of a run by address; arrays are copied to the device."""
        spec, binding = self._specs[graph], self._sessions[graph].io_binding()
        axes = axes_of(graph, spec, feeds)
        kept: list[Tensor] = []
        for value in spec.inputs:
            feed = feeds[value.name]
            if not isinstance(feed, Tensor):
                array = np.ascontiguousarray(feed)
                feed = self._empty(array.shape, value.dtype)
                self._cuda.to_device(feed.buffer.pointer, array, self._stream)
                self._cuda.wait(self._stream)
            kept.append(feed)
            binding.bind_input(
                value.name, "cuda", self._cuda.device, np.dtype(value.dtype).type, feed.shape, feed.buffer.pointer
            )
        outputs: dict[str, Tensor] = {}
        for value in spec.outputs:
            tensor = outputs[value.name] = self._empty(shape_of(value, axes), value.dtype)
            binding.bind_output(
                value.name, "cuda", self._cuda.device, np.dtype(value.dtype).type, tensor.shape, tensor.buffer.pointer
            )
        return (binding, kept), outputs

    def _enqueue(self, graph: str, bound: tuple[Any, list[Tensor]]) -> None:
        """Put a run on the stream without waiting for it."""
        options = load_onnxruntime().RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            self._sessions[graph].run_with_iobinding(bound[0], options)
        except Exception as error:  # its exceptions share no base but Exception
            raise BackendError(f"ONNX Runtime failed in the {graph} graph: {_first_line(error)}") from error

    def _empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        return Tensor(self._cuda.take(byte_count(shape, dtype)), shape, dtype)

    def _fetch(self, tensor: Tensor) -> npt.NDArray[Any]:
        array = np.empty(tensor.shape, tensor.dtype)
        self._cuda.to_host(array, tensor.buffer.pointer, self._stream)
        self._cuda.wait(self._stream)
        return array


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
