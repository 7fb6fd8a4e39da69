"""What `onedva export --trt` adds to a bundle: static graphs of every clip size asked for, proved against PyTorch.

The encoder's graph is float32 at every dtype: in fewer bits, columns would choose other classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onedva.checkpoint import WEIGHTS
from onedva.model import OneDVA
from onedva_export.mixed_precision import emulated, filter_nodes, lower, transform_nodes
from onedva_export.static_graphs import bytes_at_the_border_only, sizes_of, specialise, sums_as_products
from onedva_export.verify import Case, ParityError, compare
from onedva_export.weights import stored_tensors
from onedva_runtime.backends.onnxruntime import load_onnxruntime
from onedva_runtime.manifest import FEW_STEPS, GraphSpec, TensorSpec
from onedva_runtime.placement import grid_of, longest

__all__ = ["BARS_DB", "GOLDEN_SIZE", "StaticSizes", "as_spec", "write_static_graph", "write_static_graphs"]

logger = logging.getLogger("onedva")
BARS_DB = {"fp32": (60.0, 50.0), "fp16": (60.0, 50.0), "bf16": (45.0, 40.0)}  # at one step, at four
# their products stay float32: one looks at what comes out
TABLES = ("transform.overlap", "transform.basis", "transform.directions")
GOLDEN_SIZE = (9, 64, 96)  # of the clip that `VideoCodec.selftest` runs
SHARED = "keys_values"  # goes from graph to graph on the device, so in the dtype that products take


@dataclass(frozen=True)
class StaticSizes:
    """Which static graphs to make."""

    resolutions: tuple[tuple[int, int], ...]
    """(height, width) in pixels; rounded up to multiples of 16."""
    frames: tuple[int, ...] | None = None
    """Frames of a clip, each 1 + 4n; None: every length, since videos end and scenes cut anywhere."""
    dtype: str = "fp16"
    """"fp32", "fp16" or "bf16"."""

    def __post_init__(self) -> None:
        if self.dtype not in BARS_DB:
            raise ValueError(f"engines compute in {', '.join(BARS_DB)}; got dtype {self.dtype!r}")
        if wrong := [count for count in self.frames or () if count < 1 or count % 4 != 1]:
            raise ValueError(f"frames of engines must be 1 + 4n, got {', '.join(map(str, wrong))}")

    def sizes(self, most: int) -> list[tuple[int, int, int]]:
        """(frames, height, width) of every clip, the golden clip's among them: the self-test is run on engines too.

        most: frames of the model's longest clip. Raises ValueError where more are asked for.
        """
        counts = tuple(range(most, 0, -4)) if self.frames is None else self.frames
        if max(counts) > most:
            raise ValueError(f"frames of engines must be at most a clip's {most}, got {max(counts)}")
        wanted = [
            (frames, -(-height // 16) * 16, -(-width // 16) * 16)
            for height, width in self.resolutions
            for frames in counts
        ]
        return list(dict.fromkeys([*wanted, GOLDEN_SIZE]))


def write_static_graphs(
    model: OneDVA,
    folder: Path,
    graphs: Mapping[str, Mapping[str, Any]],
    sizes: Sequence[tuple[int, int, int]],
    *,
    dtype: str,
    max_tokens: int,
) -> list[dict[str, Any]]:
    """Write static graphs beside the dynamic ones in `folder`; returns their entries for the manifest.

    graphs: the manifest's entries of the dynamic graphs; on a GPU, steps go on in pixels, so of `begin`, `step` and
    `finish` none are made. sizes: (frames, height, width) of clips. Raises ParityError under the bars, naming the case.
    """
    specs = {name: as_spec(entry) for name, entry in graphs.items() if name not in FEW_STEPS}
    entries = []
    for frames, height, width in sizes:
        logger.info("fixing the graphs at %d×%d×%d, %s", frames, height, width, dtype)
        found = {
            name: write_static_graph(folder, name, spec, (frames, height, width), dtype) for name, spec in specs.items()
        }
        worst = _prove(model, folder, found, (frames, height, width), dtype, max_tokens=max_tokens)
        entries.append(
            {
                "frames": frames,
                "height": height,
                "width": width,
                "dtype": dtype,
                "graphs": found,
                "parity": worst,
            }
        )
    return entries


def as_spec(entry: Mapping[str, Any]) -> GraphSpec:
    """A graph's entry in the manifest as the runtime reads it."""

    def tensors(kind: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(value["name"], value["dtype"], tuple(value["shape"])) for value in entry[kind])

    return GraphSpec(entry["file"], entry["opset"], entry["ir_version"], tensors("inputs"), tensors("outputs"))


def write_static_graph(
    folder: Path, name: str, spec: GraphSpec, size: tuple[int, int, int], dtype: str
) -> dict[str, Any]:
    """Write one static graph; returns its entry in the manifest.

    name, spec: of the dynamic graph in `folder`. size: (frames, height, width) of a clip.
    """
    kind = "fp32" if name == "encoder" else dtype
    path = folder / f"trt-{'x'.join(map(str, size))}-{kind}-{name}.onnx"
    axes = sizes_of(*size)
    graph = specialise(folder / spec.file, spec, axes)
    bytes_at_the_border_only(graph)
    sums_as_products(graph, axes["Tg"] * axes["Hg"] * axes["Wg"])
    if kind != "fp32":
        exact = transform_nodes(graph, _tables(graph, folder / WEIGHTS)) | filter_nodes(graph)
        lower(graph, kind, islands=exact, bordered=[SHARED])
    path.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(path, full_check=True)
    long = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[kind]

    def tensors(values: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": long if value.name == SHARED else value.dtype,
                "shape": [axes.get(axis, axis) if isinstance(axis, str) else axis for axis in value.shape],
            }
            for value in values
        ]

    return {
        "file": path.name,
        "opset": spec.opset,
        "ir_version": graph.ir_version,
        "inputs": tensors(spec.inputs),
        "outputs": tensors(spec.outputs),
    }


def _tables(graph: onnx.ModelProto, weights: Path) -> set[str]:
    """Initializers that point at the transform's tables."""
    offsets = {str(stored.offset) for stored in stored_tensors(weights) if stored.name in TABLES}
    return {
        tensor.name
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset" and entry.value in offsets
    }


def _prove(
    model: OneDVA,
    folder: Path,
    graphs: Mapping[str, Mapping[str, Any]],
    size: tuple[int, int, int],
    dtype: str,
    *,
    max_tokens: int,
) -> dict[str, Any]:
    """Compare whole encodes and decodes with PyTorch float32; what is low is rounded as a GPU would, in ONNX Runtime.

    The shortest and the longest length, and a continuation clip. Returns the worst case.
    """
    sessions = {name: _session(folder, entry["file"], emulate=dtype != "fp32") for name, entry in graphs.items()}
    most = longest(grid_of(*size), max_tokens=max_tokens)
    cases = [Case(*size, count) for count in sorted({1, most})]
    if size[0] > 1:
        cases.append(Case(*size, longest(grid_of(*size), max_tokens=min(77, most), is_key=False), (False,)))
    one, four = BARS_DB[dtype]
    worst = {"one_step_db": 200.0, "four_step_db": 200.0, "latents_error": 0.0}
    for case in cases:
        parity = compare(model, sessions, case, optimised=False)
        if not (parity.one_step_db >= one and parity.four_step_db >= four):
            raise ParityError(
                f"parity of the static graphs broke at {case}, {dtype}: 1 step {parity.one_step_db:.1f} dB "
                f"(≥ {one:.0f}), 4 steps {parity.four_step_db:.1f} dB (≥ {four:.0f})"
            )
        worst["one_step_db"] = min(worst["one_step_db"], round(parity.one_step_db, 1))
        worst["four_step_db"] = min(worst["four_step_db"], round(parity.four_step_db, 1))
        worst["latents_error"] = max(worst["latents_error"], round(parity.latents_error, 7))
    return {**worst, "cases": len(cases), "computed_by": "ONNX Runtime, rounding emulated"}


def _session(folder: Path, file: str, *, emulate: bool) -> Any:
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # unoptimised: it would take a pair of casts, which rounds, for one that does nothing
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = folder / file
    if emulate:
        path = folder / f"emulated-{file}"
        path.write_bytes(emulated(onnx.load(folder / file, load_external_data=False)).SerializeToString())
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        if emulate:
            path.unlink()
