"""The graphs on OpenVINO's CPU plugin, at a precision that is always said and never the plugin's own choice.

A graph is compiled once for each batch, frame count and frame size, with only the number of latents left open: that
runs as fast as a graph of fixed shapes, and a clip of another length needs no compilation. Compiled graphs are kept in
memory for the shapes used last, and on disk in `ONEDVA_CACHE`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import LATENT_INPUTS, Condition, Float32, cpu_name, usable_cores
from onedva_runtime.backends.openvino_split import MEETING, split_encoder
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.private_cache import cache_key, private_folder, trim
from onedva_runtime.turns import Turns

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["OpenVinoBackend", "precisions"]

# graphs in memory, about 25 MB of weights each for `tiny`: all seven that encodes and decodes of any number of steps
# use, for each of four sizes or clip lengths, and the golden test's. With fewer, threads of mixed sizes would compile
# all the time.
MAX_COMPILED = 32
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}  # what is not quantised stays float32
# whatever the dtype: in bf16, columns would choose other classes, and errors of a generator's many steps add up. The
# encoder's transformer may run apart
FLOAT32_GRAPHS = ("encoder", "generator")
TRANSFORMER = "encoder_transformer"
ACTIVATION_GROUP = 64  # channels of one position that share a scale: positions never share one


def precisions() -> list[str]:
    """The dtypes that this CPU can compute in, "fp32" first."""
    capabilities = set(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
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
        # More runs at once than there are streams for would only wait inside OpenVINO, with the memory of a run each.
        self._slots = Turns(streams)
        self._settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads * streams,
            "ENABLE_CPU_PINNING": False,  # cores are shared with the video decoder, the caller and other processes
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": ACTIVATION_GROUP if dtype == "int8" else 0,
        }
        self._bundle = bundle
        self._compiled: OrderedDict[tuple[object, ...], _Compiled] = OrderedDict()
        self._quantised: set[str] = set()
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._cache = self._open_cache()
        self._models = {graph: self._read(graph) for graph in bundle.manifest.graphs}
        parts = split_encoder(self._models["encoder"]) if HINTS[dtype] != "f32" else None
        if parts is not None:
            self._models[TRANSFORMER], self._models["encoder"] = parts
        inputs = [spec.name for spec in bundle.manifest.graphs["velocity"].inputs]
        self._shared = [name for name in inputs if name not in ("noisy_video", "t")]
        missing = set(self._shared) - {spec.name for spec in bundle.manifest.graphs["condition"].outputs}
        if missing:
            raise BundleError(
                f"the velocity graph wants {', '.join(sorted(missing))}, which the condition graph does not give"
            )

    def _open_cache(self) -> dict[str, str]:
        """The setting that keeps compiled graphs, in a folder for exactly this bundle, version, precision and CPU."""
        import openvino

        files = self._bundle.manifest.files
        graphs = {graph: files[spec.file].sha256 for graph, spec in self._bundle.manifest.graphs.items()}
        facts = [
            graphs,
            {graph: files[self._bundle.manifest.weights_of(graph)].sha256 for graph in graphs},
            openvino.__version__,
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
            model = _core().read_model(os.fspath(path))
        except Exception as error:  # its exceptions are RuntimeErrors and others
            raise BundleError(f"OpenVINO refuses {path.name}: {_last_line(error)}") from error
        for kind, said, found in (("inputs", spec.inputs, model.inputs), ("outputs", spec.outputs, model.outputs)):
            got, wanted = {port.get_any_name() for port in found}, {value.name for value in said}
            if got != wanted:
                raise BundleError(f"{path.name} has the {kind} {sorted(got)}, the manifest says {sorted(wanted)}")
        return model

    def _prepared(self, graph: str) -> Any:
        """The graph as it is compiled: at int8 with its weights quantised, which takes time, so when it is used."""
        model = self._models[graph]
        if self.dtype == "int8" and graph not in (*self._quantised, "generator"):
            from onedva_runtime.backends.openvino_int8 import quantise_weights

            quantise_weights(model)
            self._quantised.add(graph)
        return model.clone()

    def _compile(self, graph: str, feeds: Mapping[str, Any]) -> _Compiled:
        """The graph for the shapes of these inputs, from memory, from disk, or made now."""
        shapes = self._shapes(graph, feeds)
        key = (graph, *(size for sizes in shapes.values() for size in sizes))
        found = self._found(key)
        if found is None:
            with self._making:  # one at a time; what is there can be used meanwhile
                found = self._found(key) or self._make(graph, key, shapes)
        return found

    def _found(self, key: tuple[object, ...]) -> _Compiled | None:
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
            return self._compiled.get(key)

    def _make(self, graph: str, key: tuple[object, ...], shapes: dict[str, list[int]]) -> _Compiled:
        model = self._prepared(graph)
        hint = "f32" if graph in FLOAT32_GRAPHS else HINTS[self.dtype]
        try:
            model.reshape(shapes)
            settings = {**self._settings, **self._cache, "INFERENCE_PRECISION_HINT": hint}
            compiled = _core().compile_model(model, "CPU", settings)
        except Exception as error:
            raise BackendError(f"OpenVINO cannot compile the {graph} graph: {_last_line(error)}") from error
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != hint:
            raise BackendError(f"OpenVINO compiled the {graph} graph at {got}, asked for {hint}")
        with self._lock:
            self._compiled[key] = made = _Compiled(graph, compiled)
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return made

    def _shapes(self, graph: str, feeds: Mapping[str, Any]) -> dict[str, list[int]]:
        """Of each input, with the axes that are as long as there are latents left open."""
        whole = "encoder" if graph == TRANSFORMER else graph
        open_axes = {
            value.name: tuple(axis for axis, symbol in enumerate(value.shape) if str(symbol).startswith("K"))
            for value in self._bundle.manifest.graphs[whole].inputs
        }
        return {
            name: [-1 if axis in (open_axes | MEETING)[name] else size for axis, size in enumerate(feed.shape)]
            for name, feed in feeds.items()
        }

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        feeds: dict[str, Any] = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        transformer = self._run(TRANSFORMER, feeds) if TRANSFORMER in self._models else None
        if transformer is not None:
            feeds |= {name: transformer.tensor(name) for name in MEETING}
        lease = self._run("encoder", feeds)
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
        return _Condition(self._run("condition", dict(zip(LATENT_INPUTS, given, strict=True))))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        held = cast(_Condition, condition).lease
        feeds = {"noisy_video": noisy_video, "t": t, **{name: held.tensor(name) for name in self._shared}}
        lease = self._run("velocity", feeds)
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
        lease = self._run("one_step", feeds)
        frames: npt.NDArray[np.uint8] = lease.output("frames").copy()
        lease.give_back()
        return frames

    def begin(
        self, given: Sequence[npt.NDArray[Any]], context_frame: npt.NDArray[np.uint8], noise: Float32
    ) -> tuple[Float32, Condition]:
        feeds = {**dict(zip(LATENT_INPUTS, given, strict=True)), "context_frame": context_frame, "noise": noise}
        lease = self._run("begin", feeds)
        return lease.output("state").copy(), _Condition(lease)

    def step(self, state: Float32, t: Float32, condition: Condition) -> Float32:
        lease = self._run("step", {"state": state, "t": t, **self._stepping(condition)})
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
        lease = self._run("finish", {**feeds, **self._stepping(condition)})
        frames: npt.NDArray[np.uint8] = lease.output("frames").copy()
        lease.give_back()
        return frames

    @staticmethod
    def _stepping(condition: Condition) -> dict[str, Any]:
        """What `begin` left for the steps, where it left it."""
        held = cast(_Condition, condition).lease
        return {name: held.tensor(name) for name in ("context", "keys_values")}

    def latent_velocity(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        lease = self._run("generator", feeds)
        structural, sequence = (lease.output(f"{name}_velocity").copy() for name in ("structural", "sequence"))
        lease.give_back()
        return structural, sequence

    def _run(self, graph: str, feeds: Mapping[str, Any]) -> _Lease:
        """Run a graph; its outputs stay in the lease's memory until that is given back. Releases the GIL."""
        given = {name: np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x for name, x in feeds.items()}
        compiled = self._compile(graph, given)
        with self._slots, _errors(graph):
            lease = _Lease(compiled)  # in turn: whoever waits needs no memory for a run yet
            lease.request.infer(given, share_inputs=True, share_outputs=True)
        return lease


class _Compiled:
    """A compiled graph and its requests that nobody uses at the moment; each has memory for a run of its own."""

    def __init__(self, graph: str, model: Any) -> None:
        self.graph, self.model = graph, model
        self.idle: list[Any] = []  # append and pop are atomic

    def borrow(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


class _Lease:
    """A request that is ours until it is given back, at the latest when nothing refers to the lease any more."""

    def __init__(self, compiled: _Compiled) -> None:
        self.request = compiled.borrow()
        self.give_back = weakref.finalize(self, compiled.idle.append, self.request)

    def tensor(self, name: str) -> Any:
        return self.request.get_tensor(name)

    def output(self, name: str) -> npt.NDArray[Any]:
        """The output over the request's own memory: copy what must outlive the lease."""
        return self.request.get_tensor(name).data


class _Held(np.ndarray):  # pyright: ignore[reportMissingTypeArgument]
    """An output over the request's own memory, which is ours as long as this array is there."""

    lease: _Lease


class _Condition:
    """The condition graph's outputs where the graph left them."""

    def __init__(self, lease: _Lease) -> None:
        self.lease = lease

    def preview(self) -> Float32:
        """A copy of the preview (B, 3, T, H, W); KeyError where the model has none."""
        try:
            return self.lease.output("preview").copy()
        except RuntimeError as error:
            raise KeyError("preview") from error


def _core() -> Any:
    """OpenVINO's entry point. One per process: each loads its own copy of the plugins."""
    global _shared_core
    if _shared_core is None:
        import openvino

        _shared_core = cast(Any, openvino).Core()
    return _shared_core


_shared_core: Any = None


@contextmanager
def _errors(graph: str) -> Generator[None]:
    """What OpenVINO raises while it runs a graph, no memory above all, as one clear line."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"OpenVINO failed in the {graph} graph: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    """Its messages begin with where in its source they were raised; the reason stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
