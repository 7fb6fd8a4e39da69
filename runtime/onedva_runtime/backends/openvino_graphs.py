"""Graphs compiled by OpenVINO's CPU plugin, one for each set of shapes, and the runs that use them.

Only the number of latents is left open: that runs as fast as a graph of fixed shapes, and a clip of another length
needs no compilation. Compiled graphs stay in memory for the shapes used last.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.errors import BackendError
from onedva_runtime.turns import Turns

__all__ = ["CompiledGraphs", "Lease", "core", "last_line", "load_openvino"]

# graphs in memory, about 25 MB of weights each for `tiny`: all seven that encodes and decodes of any number of steps
# use, for each of four sizes or clip lengths, and the golden test's. With fewer, threads of mixed sizes would compile
# all the time.
MAX_COMPILED = 32


class CompiledGraphs:
    """Compiles graphs when a shape comes first and runs them. Runs from many threads take turns for `streams` slots:
    more at once would only wait inside OpenVINO, with the memory of a run each."""

    def __init__(
        self,
        prepared: Callable[[str], Any],
        open_axes: Callable[[str], Mapping[str, tuple[int, ...]]],
        *,
        settings: dict[str, Any],
        hint: Callable[[str], str],
        streams: int,
    ) -> None:
        """prepared: a graph by name, to be compiled, ours to change. open_axes: of each of its inputs, the axes that
        are as long as there are latents. settings: of the plugin, for all; hint: the precision of each, by name."""
        self._prepared, self._open_axes = prepared, open_axes
        self.settings, self._hint = settings, hint
        self._slots = Turns(streams)
        self._compiled: OrderedDict[tuple[object, ...], _Compiled] = OrderedDict()
        self._lock, self._making = threading.Lock(), threading.Lock()

    def __len__(self) -> int:
        return len(self._compiled)

    def idle_runs(self) -> list[int]:
        """How many requests of each compiled graph nobody uses at the moment."""
        with self._lock:
            return [len(compiled.idle) for compiled in self._compiled.values()]

    def run(self, graph: str, feeds: Mapping[str, Any]) -> Lease:
        """Run a graph; its outputs stay in the lease's memory until that is given back. Releases the GIL."""
        given = {name: np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x for name, x in feeds.items()}
        compiled = self._compiled_for(graph, given)
        with self._slots, _errors(graph):
            lease = Lease(compiled)  # in turn: whoever waits needs no memory for a run yet
            lease.request.infer(given, share_inputs=True, share_outputs=True)
        return lease

    def _compiled_for(self, graph: str, feeds: Mapping[str, Any]) -> _Compiled:
        """The graph for the shapes of these inputs, from memory, from disk, or made now."""
        axes = self._open_axes(graph)
        shapes = {
            name: [-1 if axis in axes[name] else size for axis, size in enumerate(feed.shape)]
            for name, feed in feeds.items()
        }
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
        model, hint = self._prepared(graph), self._hint(graph)
        try:
            model.reshape(shapes)
            compiled = core().compile_model(model, "CPU", {**self.settings, "INFERENCE_PRECISION_HINT": hint})
        except Exception as error:
            raise BackendError(f"OpenVINO cannot compile the {graph} graph: {last_line(error)}") from error
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != hint:
            raise BackendError(f"OpenVINO compiled the {graph} graph at {got}, asked for {hint}")
        with self._lock:
            self._compiled[key] = made = _Compiled(compiled)
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return made


class _Compiled:
    """A compiled graph and its requests that nobody uses at the moment; each has memory for a run of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.idle: list[Any] = []  # append and pop are atomic

    def borrow(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


class Lease:
    """A request that is ours until it is given back, at the latest when nothing refers to the lease any more."""

    def __init__(self, compiled: _Compiled) -> None:
        self.request = compiled.borrow()
        self.give_back = weakref.finalize(self, compiled.idle.append, self.request)

    def tensor(self, name: str) -> Any:
        return self.request.get_tensor(name)

    def output(self, name: str) -> npt.NDArray[Any]:
        """The output over the request's own memory: copy what must outlive the lease."""
        return self.request.get_tensor(name).data


def core() -> Any:
    """OpenVINO's entry point. One per process: each loads its own copy of the plugins."""
    global _shared_core
    if _shared_core is None:
        _shared_core = load_openvino().Core()
    return _shared_core


def load_openvino() -> Any:
    """The module `openvino`, without its converter of models, which nothing here needs: with it, every import reports
    over the network and takes a tenth of a second longer. Others in the process get it when they ask for it.
    """
    converter = "openvino.tools.ovc"
    if "openvino" in sys.modules:
        import openvino

        return openvino
    absent = cast(dict[str, Any], sys.modules)
    absent[converter] = None  # importing it fails now, which openvino allows
    try:
        import openvino
    finally:
        del absent[converter]

    def asked(name: str) -> Any:
        if name != "convert_model":
            raise AttributeError(f"module 'openvino' has no attribute {name!r}")
        return import_module(converter).convert_model

    openvino.__dict__.setdefault("__getattr__", asked)
    return openvino


_shared_core: Any = None


@contextmanager
def _errors(graph: str) -> Generator[None]:
    """What OpenVINO raises while it runs a graph, no memory above all, as one clear line."""
    try:
        yield
    except Exception as error:
        raise BackendError(f"OpenVINO failed in the {graph} graph: {last_line(error)}") from error


def last_line(error: Exception) -> str:
    """Its messages begin with where in its source they were raised; the reason stands last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
