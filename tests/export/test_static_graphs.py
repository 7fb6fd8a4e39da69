"""Graphs for TensorRT: sizes fixed but batch and length, bytes at the border only, no scatter, products of few bits
with float32 between them, and as close to PyTorch as said."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onedva.checkpoint import load_model
from onedva_export import static_export
from onedva_export.mixed_precision import MOVES, emulated, lower
from onedva_export.static_export import BARS_DB, StaticSizes, as_spec, write_static_graph, write_static_graphs
from onedva_export.static_graphs import element_types
from onedva_export.verify import ParityError
from onedva_runtime.bundle import read_bundle, write_manifest

SIZE = (5, 64, 96)


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano bundle with static graphs of one size in fp32, fp16 and bf16."""
    target = tmp_path_factory.mktemp("static") / "nano-v1"
    shutil.copytree(bundle, target)
    content = json.loads((target / "manifest.json").read_text())
    model = load_model(target)
    content["tensorrt"] = [
        entry
        for dtype in BARS_DB
        for entry in write_static_graphs(model, target, content["graphs"], [SIZE], dtype=dtype, max_tokens=64)
    ]
    content.pop("files")
    write_manifest(target, content)
    return target


def graphs(folder: Path, dtype: str) -> dict[str, onnx.ModelProto]:
    static = next(s for s in read_bundle(folder).manifest.tensorrt if s.dtype == dtype)
    return {name: onnx.load(folder / spec.file, load_external_data=False) for name, spec in static.graphs.items()}


@pytest.mark.parametrize("dtype", list(BARS_DB))
def test_they_pass_their_bars_at_the_shortest_and_longest_length(folder: Path, dtype: str) -> None:
    """The nano model's weights are all random and alive: a rounding anywhere shows."""
    static = next(s for s in read_bundle(folder).manifest.tensorrt if s.dtype == dtype)
    one, four = BARS_DB[dtype]
    parity = static.parity
    assert parity["one_step_db"] >= one and parity["four_step_db"] >= four and parity["latents_error"] < 1e-3  # type: ignore[operator]
    assert parity["cases"] == 3
    finer = {"fp32": None, "fp16": "fp32", "bf16": "fp16"}[dtype]
    if finer:
        better = next(s for s in read_bundle(folder).manifest.tensorrt if s.dtype == finer)
        assert better.parity["one_step_db"] > parity["one_step_db"], "fewer bits must show, or nothing was rounded"  # type: ignore[operator]


@pytest.mark.parametrize("dtype", list(BARS_DB))
def test_only_batch_and_length_stay_open(folder: Path, dtype: str) -> None:
    for name, model in graphs(folder, dtype).items():
        for value in (*model.graph.input, *model.graph.output):
            axes = {dim.dim_param for dim in value.type.tensor_type.shape.dim if dim.dim_param}
            assert axes <= {"B", "K"}, (name, value.name, axes)
        sources = {node.input[0] for node in model.graph.node if node.op_type == "Shape"}
        shapes = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
        for source in sources - {value.name for value in model.graph.input}:
            dims = shapes[source].type.tensor_type.shape.dim
            assert any(dim.dim_param for dim in dims), f"{name}: the shape of {source} could have been folded"


@pytest.mark.parametrize("dtype", list(BARS_DB))
def test_tensorrt_finds_nothing_that_it_cannot_do(folder: Path, dtype: str) -> None:
    for name, model in graphs(folder, dtype).items():
        kinds, border = element_types(model), {v.name for v in (*model.graph.input, *model.graph.output)}
        inside = {tensor for tensor, kind in kinds.items() if kind == TensorProto.UINT8} - border
        assert inside == set(), f"{name}: bytes inside"
        operators = Counter(node.op_type for node in model.graph.node)
        assert not operators["ScatterElements"] and not operators["RMSNormalization"]
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 23)] and model.ir_version <= 10
        for node in model.graph.node:
            if node.op_type == "Attention":
                assert len(node.output) == 1 and len(node.input) <= 4


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_products_take_few_bits_and_the_rest_float32(folder: Path, dtype: str) -> None:
    low = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[dtype]
    for name, model in graphs(folder, dtype).items():
        kinds = element_types(model)
        lowered, kept = [], []
        for node in model.graph.node:
            types = {kinds[tensor] for tensor in (*node.input, *node.output) if kinds.get(tensor)}
            if node.op_type in ("MatMul", "Gemm", "Attention", "Conv"):
                (lowered if low in types else kept).append(node)
                assert not {low, TensorProto.FLOAT} <= types, f"{name}: {node.name} mixes types"
            elif node.op_type != "Cast" and node.op_type not in MOVES:
                assert low not in types, f"{name}: {node.op_type} computes in {dtype}"
        if name == "encoder":
            assert not lowered, "in few bits, columns would choose other classes"
        else:
            assert lowered and len(kept) <= 17, "only the transform's products stay float32, and filters across borders"
            inside = {t.name for t in model.graph.initializer if list(t.dims) == [48, 48] and not t.external_data}
            filters = [node for node in (*lowered, *kept) if inside.intersection(node.input)]
            assert all(node in kept for node in filters) and (filters or name != "one_step")
    static = next(s for s in read_bundle(folder).manifest.tensorrt if s.dtype == dtype)
    (shared,) = [v for v in static.graphs["velocity"].inputs if v.name == "keys_values"]
    assert shared.dtype == {"fp16": "float16", "bf16": "bfloat16"}[dtype]


def test_weights_stay_in_the_one_file(folder: Path) -> None:
    for path in folder.glob("trt-*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        inside = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
        assert all(tensor.ByteSize() < 150_000 for tensor in inside), path.name  # rotations of a grid, at most
    assert len(list(folder.glob("trt-*-encoder.onnx"))) == 1  # one for every dtype


def test_onnxruntime_runs_the_typed_graphs_as_they_are(folder: Path) -> None:
    """The emulation is a copy; what ships must be a valid graph itself. ONNX Runtime's CPU takes fp16."""
    import onnxruntime

    static = next(s for s in read_bundle(folder).manifest.tensorrt if s.dtype == "fp16")
    rng, feeds = np.random.default_rng(0), {}
    for value in static.graphs["one_step"].inputs:
        shape = [axis if isinstance(axis, int) else {"B": 2, "K": 7}[axis] for axis in value.shape]
        feeds[value.name] = (
            rng.integers(0, 24, shape) if value.dtype in ("int64", "uint8") else rng.standard_normal(shape)
        ).astype(value.dtype)
    feeds["resolution"] = np.array([[*SIZE, 24]] * 2, np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    outputs = []
    for path in (folder / "one_step.onnx", folder / static.graphs["one_step"].file):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(["frames"], feeds)[0])
    assert outputs[1].shape == (2, *SIZE, 3) and outputs[1].dtype == np.uint8
    assert np.abs(outputs[0].astype(int) - outputs[1]).max() <= 1 and (outputs[0] != outputs[1]).mean() < 0.01


def test_the_proof_can_fail(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One activation that is left out, and nothing is shown to be right."""
    copy = tmp_path / "nano-v1"
    shutil.copytree(bundle, copy)
    entries = json.loads((copy / "manifest.json").read_text())["graphs"]
    border = static_export.bytes_at_the_border_only

    def broken(model: onnx.ModelProto) -> None:
        border(model)
        gelu = next(node for node in reversed(model.graph.node) if node.op_type == "Gelu")
        gelu.op_type = "Identity"
        del gelu.attribute[:]

    monkeypatch.setattr(static_export, "bytes_at_the_border_only", broken)
    with pytest.raises(ParityError, match=r"static graphs broke at 1×5×64×96, 1 latents, key clip, fp32: 1 step .* dB"):
        write_static_graphs(load_model(copy), copy, entries, [SIZE], dtype="fp32", max_tokens=64)


def test_sizes_that_make_no_sense_are_refused(folder: Path) -> None:
    assert StaticSizes(((250, 256),), (17, 5)).sizes(17) == [(17, 256, 256), (5, 256, 256), (9, 64, 96)]
    assert [size[0] for size in StaticSizes(((64, 96),)).sizes(9)] == [9, 5, 1]  # the golden clip's is there already
    with pytest.raises(ValueError, match="must be 1 \\+ 4n, got 4"):
        StaticSizes(((64, 64),), (4,))
    with pytest.raises(ValueError, match="at most a clip's 9, got 17"):
        StaticSizes(((64, 64),), (17,)).sizes(9)
    with pytest.raises(ValueError, match="engines compute in fp32, fp16, bf16; got dtype 'int8'"):
        StaticSizes(((64, 64),), (5,), "int8")


def test_rounding_happens_where_the_graph_says() -> None:
    """x·W in bf16 by hand: inputs rounded, sums in float32, the result rounded."""
    import onnxruntime

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]>'
        "g (float[2,3] x, float[3,2] w) => (float[2,2] y) { p = MatMul(x, w) \n y = Add(p, p) }"
    )
    model.graph.node[0].name = "product"
    assert lower(model, "bf16") == 1
    x, w = (
        np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        for seed, shape in ((0, (2, 3)), (1, (3, 2)))
    )

    def bf16(values: np.ndarray) -> np.ndarray:
        bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
        return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        emulated(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expected = 2 * bf16(bf16(x) @ bf16(w))
    np.testing.assert_array_equal(session.run(None, {"x": x, "w": w})[0], expected)
    assert np.abs(expected - 2 * (x @ w)).max() > 0

    kept = onnx.ModelProto()
    kept.CopyFrom(model)
    assert lower(kept, "bf16", islands={"product"}) == 0


def test_a_scatter_that_is_no_sum_of_rows_is_refused(fake_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fake"
    shutil.copytree(fake_bundle, copy)
    model = onnx.load(copy / "condition.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "ScatterElements":
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("axis", 0))
    (copy / "condition.onnx").write_bytes(model.SerializeToString())
    entry = json.loads((copy / "manifest.json").read_text())["graphs"]["condition"]
    with pytest.raises(ValueError, match="only sums along axis 1"):
        write_static_graph(copy, "condition", as_spec(entry), (5, 32, 48), "fp32")
