"""The graphs on OpenVINO's CPU plugin, at a precision that is always said and never the plugin's own choice.

Compiled graphs (`openvino_graphs`) are also kept on disk, in `ONEDVA_CACHE`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import LATENT_INPUTS, Condition, Float32, cpu_name, usable_cores
from onedva_runtime.backends.openvino_graphs import CompiledGraphs, Lease, core, last_line, load_openvino
from onedva_runtime.backends.openvino_split import MEETING, split_encoder
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.private_cache import cache_key, private_folder, trim

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["OpenVinoBackend", "precisions"]

HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # what is not quantised stays float32
# whatever the dtype: in bf16, columns would choose other classes, and errors of a generator's many steps add up. The
# encoder's transformer may run apart
FLOAT32_GRAPHS = ("encoder", "generator")
TRANSFORMER = "encoder_transformer"
ACTIVATION_GROUP = 64  # channels of one position that share a scale: positions never share one


def precisions() -> list[str]:
    """The dtypes that this CPU can compute in, "fp32" first."""
    capabilities = set(core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    wanted = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}
    return [dtype for dtype, capability in wanted.items() if capability in capabilities]


class OpenVinoBackend:
    """See `Backend`. Calls from many threads take turns where there are more of them than cores."""

    name = "openvino"
    samples_on_device = False

    def __init__(self, bundle: Bundle, *, threads: int | None = None, dtype: str = "fp32") -> None:
        """Read the graphs of `bundle`; they are compiled when a shape comes first.

        threads: CPU threads of each run (None: every core this process may use). dtype: "fp32", "bf16", or "int8"
        (linear layers with 8-bit weights and activations, the linear transform and attention in float32).
        Raises BackendError for a dtype that this CPU does not have, BundleError where OpenVINO refuses a graph.
        """
        if dtype not in precisions():
            raise BackendError(f"OpenVINO on this CPU computes in {', '.join(precisions())}; got dtype {dtype!r}")
        self.threads, self.dtype = threads or usable_cores(), dtype
        self.has_one_step = "one_step" in bundle.manifest.graphs
        self.has_few_steps = bundle.manifest.has_few_steps
        streams = max(1, usable_cores() // self.threads)
        self._settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads * streams,
            "ENABLE_CPU_PINNING": False,  # cores are shared with the video decoder, the caller and other processes
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATION_GROUP if dtype == "int8" else 0,
        }
        self._bundle = bundle
        self._quantised: set[str] = set()
        settings = {**self._settings, **self._disk_cache()}
        self._models = {graph: self._read(graph) for graph in bundle.manifest.first_graphs}
        parts = split_encoder(self._models["encoder"]) if HINTS[dtype] != "f32" else None
        if parts is not None:
            self._models[TRANSFORMER], self._models["encoder"] = parts
        self._graphs = CompiledGraphs(
            self._prepared, self._open_axes, settings=settings, hint=self._hint, streams=streams
        )
        self._shared = bundle.manifest.stepping_values

    def _disk_cache(self) -> dict[str, str]:
        """The setting that keeps compiled graphs, in a folder for exactly this bundle, version, precision and CPU."""
        files = self._bundle.manifest.files
        graphs = {graph: files[spec.file].sha256 for graph, spec in self._bundle.manifest.graphs.items()}
        facts = [
            graphs,
            {graph: files[self._bundle.manifest.weights_of(graph)].sha256 for graph in graphs},
            load_openvino().__version__,
            self._settings,
            self.dtype,
            cpu_name(),
        ]
        folder = private_folder("openvino", cache_key(facts))
        if folder is None:
            return {}
        trim(folder.parent, keep=[folder])
        return {"CACHE_DIR": os.fspath(folder)}

    def _read(self, graph: str) -> Any:
        """The graph as OpenVINO has it, with the inputs and outputs that the manifest says."""
        path, spec = self._bundle.graph_path(graph), self._bundle.manifest.graphs[graph]
        try:
            model = core().read_model(os.fspath(path))
        except Exception as error:  # its exceptions are RuntimeErrors and others
            raise BundleError(f"OpenVINO refuses {path.name}: {last_line(error)}") from error
        for kind, said, found in (("inputs", spec.inputs, model.inputs), ("outputs", spec.outputs, model.outputs)):
            got, wanted = {port.get_any_name() for port in found}, {value.name for value in said}
            if got != wanted:
                raise BundleError(f"{path.name} has the {kind} {sorted(got)}, the manifest says {sorted(wanted)}")
        return model

    def _prepared(self, graph: str) -> Any:
        """The graph as it is compiled: at int8 with its weights quantised, which takes time, so when it is used."""
        model = self._models.get(graph)
        if model is None:  # compiled by one thread at a time, so read once
            model = self._models[graph] = self._read(graph)
        if self.dtype == "int8" and graph not in (*self._quantised, "generator"):
            from onedva_runtime.backends.openvino_int8 import quantise_weights

            quantise_weights(model)
            self._quantised.add(graph)
        return model.clone()

    def _hint(self, graph: str) -> str:
        return "f32" if graph in FLOAT32_GRAPHS else HINTS[self.dtype]

    def _open_axes(self, graph: str) -> dict[str, tuple[int, ...]]:
        whole = "encoder" if graph == TRANSFORMER else graph
        return MEETING | {
            value.name: tuple(axis for axis, symbol in enumerate(value.shape) if str(symbol).startswith("K"))
            for value in self._bundle.manifest.graphs[whole].inputs
        }

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        feeds: dict[str, Any] = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        transformer = self._graphs.run(TRANSFORMER, feeds) if TRANSFORMER in self._models else None
        if transformer is not None:
            feeds |= {name: transformer.tensor(name) for name in MEETING}
        lease = self._graphs.run("encoder", feeds)
        outputs = [lease.output(name).copy() for name in ("structural", "latents", "predicted_error")]
        lease.give_back()
        if transformer is not None:
            transformer.give_back()
        return outputs[0], outputs[1], outputs[2]

    def condition(
        self,
        structural: Float32,
        latents: Float32,
        anchors: npt.NDArray[np.int64],
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
    ) -> Condition:
        given = structural, latents, anchors, has_latents, resolution, is_key
        return _Condition(self._graphs.run("condition", dict(zip(LATENT_INPUTS, given, strict=True))))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        held = cast(_Condition, condition).lease
        feeds = {"noisy_video": noisy_video, "t": t, **{name: held.tensor(name) for name in self._shared}}
        lease = self._graphs.run("velocity", feeds)
        velocity: _Held = lease.output("velocity").view(_Held)
        velocity.lease = lease  # 13 MB that need no copy: the request is back once nothing refers to them
        return velocity

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
        given = structural, latents, anchors, has_latents, resolution, is_key
        feeds = {**dict(zip(LATENT_INPUTS, given, strict=True)), "context_frame": context_frame}
        lease = self._graphs.run("one_step", feeds)
        frames: npt.NDArray[np.uint8] = lease.output("frames").copy()
        lease.give_back()
        return frames

    def begin(
        self, given: Sequence[npt.NDArray[Any]], context_frame: npt.NDArray[np.uint8], noise: Float32
    ) -> tuple[Float32, Condition]:
        feeds = {**dict(zip(LATENT_INPUTS, given, strict=True)), "context_frame": context_frame, "noise": noise}
        lease = self._graphs.run("begin", feeds)
        return lease.output("state").copy(), _Condition(lease)

    def step(self, state: Float32, t: Float32, condition: Condition) -> Float32:
        lease = self._graphs.run("step", {"state": state, "t": t, **self._stepping(condition)})
        velocity: Float32 = lease.output("velocity").copy()
        lease.give_back()
        return velocity

    def finish(
        self,
        state: Float32,
        t: Float32,
        condition: Condition,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        feeds = {"state": state, "t": t, "is_key": is_key, "context_frame": context_frame}
        lease = self._graphs.run("finish", {**feeds, **self._stepping(condition)})
        frames: npt.NDArray[np.uint8] = lease.output("frames").copy()
        lease.give_back()
        return frames

    @staticmethod
    def _stepping(condition: Condition) -> dict[str, Any]:
        """What `begin` left for the steps, where it left it."""
        held = cast(_Condition, condition).lease
        return {name: held.tensor(name) for name in ("context", "keys_values")}

    def latent_velocity(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        lease = self._graphs.run("generator", feeds)
        structural, sequence = (lease.output(f"{name}_velocity").copy() for name in ("structural", "sequence"))
        lease.give_back()
        return structural, sequence


class _Held(np.ndarray):  # pyright: ignore[reportMissingTypeArgument]
    """An output over the request's own memory, which is ours as long as this array is there."""

    lease: Lease


class _Condition:
    """The condition graph's outputs where the graph left them."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease

    def preview(self) -> Float32:
        """A copy of the preview (B, 3, T, H, W); KeyError where the model has none."""
        try:
            return self.lease.output("preview").copy()
        except RuntimeError as error:
            raise KeyError("preview") from error
