"""The graphs on ONNX Runtime's CPU provider. What `condition` makes for `velocity` stays an OrtValue: it is
large, and a copy per step through NumPy would cost more than the update."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import LATENT_INPUTS, Condition, Float32, cpu_name, usable_cores
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.private_cache import cache_key, private_folder, trim
from onedva_runtime.turns import Turns

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["OnnxRuntimeBackend"]

logger = logging.getLogger("onedva")
PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True)
class OrtCondition:
    """OrtValues by output name of the condition graph."""

    values: dict[str, Any]

    def preview(self) -> Float32:
        """The preview (B, 3, T, H, W); KeyError where the model has none."""
        return self.values["preview"].numpy()


class OnnxRuntimeBackend:
    """See `Backend`. Calls from many threads take turns where there are more of them than cores."""

    name = "onnxruntime"
    dtype = "fp32"
    samples_on_device = False

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """Open the graphs of `bundle` with `threads` CPU threads each (None: every core this process may use): those
        that every encode and one-step decode use now, the others when they are first used.

        Raises BundleError where ONNX Runtime refuses a graph, BackendError where it drops the provider asked for.
        """
        self.threads = threads or usable_cores()
        # More runs at once than there are cores for would only take the arena of another run each.
        self._slots = Turns(max(1, usable_cores() // self.threads))
        self._bundle, self._opening = bundle, threading.Lock()
        self.has_one_step = "one_step" in bundle.manifest.graphs
        self.has_few_steps = bundle.manifest.has_few_steps
        self._condition_outputs = [value.name for value in bundle.manifest.graphs["condition"].outputs]
        self._shared = bundle.manifest.stepping_values
        self._opened: dict[str, Any] = {graph: self._open(bundle, graph) for graph in bundle.manifest.first_graphs}

    def _open(self, bundle: Bundle, graph: str) -> Any:
        """A session, with the inputs and outputs that the manifest says."""
        path = bundle.graph_path(graph)
        session = self._optimised_session(bundle, graph)
        try:
            session = session or self._session(path, self._options())
        except Exception as error:  # its exceptions share no base but Exception
            raise BundleError(f"ONNX Runtime refuses {path.name}: {_first_line(error)}") from error
        if session.get_providers() != [PROVIDER]:
            raise BackendError(f"ONNX Runtime opened {path.name} on {session.get_providers()}, asked for {PROVIDER}")
        spec = bundle.manifest.graphs[graph]
        for kind, said, found in (
            ("inputs", spec.inputs, session.get_inputs()),
            ("outputs", spec.outputs, session.get_outputs()),
        ):
            got, wanted = {value.name for value in found}, {value.name for value in said}
            if got != wanted:
                raise BundleError(f"{path.name} has the {kind} {sorted(got)}, the manifest says {sorted(wanted)}")
        return session

    def _options(self) -> Any:
        options = load_onnxruntime().SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = (
            4  # fatal only: what it refuses it also raises, and nothing else is for a user's terminal
        )
        # Idle threads that spin take the cores from the caller's other work, such as the video decoder, and from other
        # calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The arena is worth a quarter of a step's time: without it every large tensor is mapped and faulted in anew.
        # Memory patterns on top keep a block per shape for good, and shapes vary from call to call.
        options.enable_cpu_mem_arena = True
        options.enable_mem_pattern = False
        return options

    @staticmethod
    def _session(path: Path, options: Any) -> Any:
        return load_onnxruntime().InferenceSession(os.fspath(path), sess_options=options, providers=[PROVIDER])

    def _optimised_session(self, bundle: Bundle, graph: str) -> Any:
        """The graph from its optimised form in the cache, which is made where it is missing; None where that cannot be
        read or written: it only saves time."""
        ort = load_onnxruntime()
        kept = self._optimised_path(bundle, graph, ort.__version__)
        if kept is None:
            return None
        options = self._options()
        try:
            if kept.exists():
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                return self._session(kept, options)
        except Exception as error:
            logger.warning("%s is not readable, making it again: %s", kept, _first_line(error))
            kept.unlink(missing_ok=True)
            options = self._options()
        temporary = kept.with_suffix(f".{secrets.token_hex(4)}.tmp")
        options.optimized_model_filepath = os.fspath(temporary)
        try:
            session = self._session(bundle.graph_path(graph), options)
            temporary.replace(kept)
            return session
        except Exception:  # no room, or the graph itself: `_open` tells
            return None
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @staticmethod
    def _optimised_path(bundle: Bundle, graph: str, version: str) -> Path | None:
        """Where ONNX Runtime's own optimised form of a graph is kept: opening it takes half of the time.

        It holds for exactly this graph with its weights, version and CPU: fusions and layouts depend on all of them.
        """
        sha256 = bundle.manifest.files[bundle.manifest.graphs[graph].file].sha256
        weights = bundle.manifest.files[bundle.manifest.weights_of(graph)].sha256
        facts = [sha256, weights, version, cpu_name()]
        folder = private_folder("onnxruntime")
        if folder is None:
            return None
        trim(folder)
        return folder / f"{cache_key(facts)}.onnx"

    def encode(
        self,
        frames: npt.NDArray[np.uint8],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        anchors: npt.NDArray[np.int64],
    ) -> tuple[Float32, Float32, Float32]:
        feeds = {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors}
        session = self._needed("encoder")
        with self._slots, _errors("encoder"):
            structural, latents, error = session.run(["structural", "latents", "predicted_error"], feeds)
        return structural, latents, error

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
        feeds = dict(zip(LATENT_INPUTS, map(_ort_value, given), strict=True))
        session = self._needed("condition")
        with self._slots, _errors("condition"):
            outputs = session.run_with_ort_values(self._condition_outputs, feeds)
        return OrtCondition(dict(zip(self._condition_outputs, outputs, strict=True)))

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        values = cast(OrtCondition, condition).values
        feeds = {name: values[name] for name in self._shared}
        feeds |= {"noisy_video": _ort_value(noisy_video), "t": _ort_value(t)}
        session = self._needed("velocity")
        with self._slots, _errors("velocity"):
            return session.run_with_ort_values(["velocity"], feeds)[0].numpy()

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
        session = self._needed("one_step")
        with self._slots, _errors("one_step"):
            return session.run(["frames"], feeds)[0]

    def begin(
        self, given: Sequence[npt.NDArray[Any]], context_frame: npt.NDArray[np.uint8], noise: Float32
    ) -> tuple[Float32, Condition]:
        feeds = {**dict(zip(LATENT_INPUTS, given, strict=True)), "context_frame": context_frame, "noise": noise}
        session, names = self._needed("begin"), ["state", "context", "keys_values"]
        with self._slots, _errors("begin"):
            outputs = session.run_with_ort_values(names, {name: _ort_value(array) for name, array in feeds.items()})
        values = dict(zip(names, outputs, strict=True))
        return values.pop("state").numpy(), OrtCondition(values)

    def step(self, state: Float32, t: Float32, condition: Condition) -> Float32:
        feeds = {**cast(OrtCondition, condition).values, "state": _ort_value(state), "t": _ort_value(t)}
        session = self._needed("step")
        with self._slots, _errors("step"):
            return session.run_with_ort_values(["velocity"], feeds)[0].numpy()

    def finish(
        self,
        state: Float32,
        t: Float32,
        condition: Condition,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        feeds = {"state": state, "t": t, "is_key": is_key, "context_frame": context_frame}
        values = cast(OrtCondition, condition).values | {name: _ort_value(array) for name, array in feeds.items()}
        session = self._needed("finish")
        with self._slots, _errors("finish"):
            return session.run_with_ort_values(["frames"], values)[0].numpy()

    def latent_velocity(self, feeds: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        session, outputs = self._needed("generator"), ["structural_velocity", "sequence_velocity"]
        with self._slots, _errors("generator"):
            structural, sequence = session.run(outputs, dict(feeds))
        return structural, sequence

    def _needed(self, graph: str) -> Any:
        """The session of a graph, opened now if it was not yet."""
        with self._opening:
            if graph not in self._opened:
                self._opened[graph] = self._open(self._bundle, graph)
            return self._opened[graph]


def _ort_value(array: npt.NDArray[Any]) -> Any:
    """The array as an OrtValue over the same memory."""
    return load_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, without its telemetry, which would write a device id and report over the network.

    Whoever wants that sets ORT_DISABLE_TELEMETRY=0; it counts only before the first import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, onnxruntime)


@contextmanager
def _errors(graph: str) -> Generator[None]:
    """What ONNX Runtime raises while it runs a graph, no memory above all, as one clear line."""
    try:
        yield
    except Exception as error:  # its exceptions share no base but Exception
        raise BackendError(f"ONNX Runtime failed in the {graph} graph: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
