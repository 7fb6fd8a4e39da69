"""What the walk over a graph's protobuf refuses, on models that the onnx package writes, and that damage never escapes
as another error."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onedva_runtime.errors import BundleError
from onedva_runtime.onnx_check import check_graph


def check(model: onnx.ModelProto | bytes, *, weights_bytes: int = 100):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return check_graph(data, name="encoder.onnx", weights_name="model.safetensors", weights_bytes=weights_bytes)


def model(
    nodes: list[onnx.NodeProto] | None = None, initializers: list[TensorProto] | None = None, **options
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 23)], **options)


def weight(**entries: object) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "model.safetensors", "offset": 8, "length": 4} | entries).items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def subgraph(node: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])])


def test_a_plain_graph_passes_and_its_facts_are_read() -> None:
    facts = check(model(initializers=[weight()]))
    assert (facts.ir_version, facts.opset, facts.operators) == (10, 23, {"Relu"})


def foreign(domain: str = "com.evil") -> onnx.NodeProto:
    return helper.make_node("Custom", ["x"], ["z"], domain=domain)


def in_attribute() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("body", subgraph(foreign())))
    return model([node])


def in_graphs_attribute() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("bodies", [subgraph(foreign())]))
    return model([node])


def in_function(node: onnx.NodeProto, domain: str = "") -> onnx.ModelProto:
    function = helper.make_function(domain, "F", ["x"], ["z"], [node], [helper.make_opsetid("", 23)])
    return model(functions=[function])


def in_tensor_attribute() -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"])
    tensor = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=weight(location="other"))
    node.attribute.append(tensor)
    return model([node])


def in_sparse() -> onnx.ModelProto:
    built = model()
    built.graph.sparse_initializer.append(onnx.SparseTensorProto(values=weight(location="/etc/passwd"), dims=[2]))
    return built


def training() -> onnx.ModelProto:
    built = model()
    built.training_info.add()
    return built


def imports() -> onnx.ModelProto:
    built = model()
    built.opset_import.append(helper.make_opsetid("pkg.torch", 1))
    return built


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "foreign operator": (lambda: model([foreign()]), "foreign operator domain 'com.evil'"),
    "contrib operator": (lambda: model([foreign("com.microsoft")]), "foreign operator domain 'com.microsoft'"),
    "foreign in subgraph": (in_attribute, "foreign operator domain"),
    "foreign in subgraphs": (in_graphs_attribute, "foreign operator domain"),
    "foreign in function": (lambda: in_function(foreign()), "foreign operator domain"),
    "foreign function": (
        lambda: in_function(helper.make_node("Relu", ["x"], ["z"]), "mine"),
        "function of the foreign",
    ),
    "loop in function": (lambda: in_function(helper.make_node("Loop", ["x"], ["z"])), "operator Loop"),
    "foreign import": (imports, "opset import of the foreign operator domain 'pkg.torch'"),
    "If": (lambda: model([helper.make_node("If", ["x"], ["y"])]), "operator If"),
    "Scan": (lambda: model([helper.make_node("Scan", ["x"], ["y"])]), "operator Scan"),
    "random": (lambda: model([helper.make_node("RandomNormalLike", ["x"], ["y"])]), "operator RandomNormalLike"),
    "training": (training, "training section"),
    "other file": (lambda: model(initializers=[weight(location="other.bin")]), "external data in 'other.bin'"),
    "parent folder": (lambda: model(initializers=[weight(location="../model.safetensors")]), "'../model.safetensors'"),
    "absolute path": (lambda: model(initializers=[weight(location="/etc/passwd")]), "'/etc/passwd'"),
    "other file in attribute": (in_tensor_attribute, "external data in 'other'"),
    "other file in sparse": (in_sparse, "external data in '/etc/passwd'"),
    "past the end": (lambda: model(initializers=[weight(offset=98)]), "byte 102 of model.safetensors, which has 100"),
    "negative offset": (lambda: model(initializers=[weight(offset=-4)]), "offset '-4'"),
    "offset is text": (lambda: model(initializers=[weight(offset="0x8")]), "offset '0x8'"),
    "unknown key": (lambda: model(initializers=[weight(basepath="/")]), "basepath"),
    "no operators": (lambda: onnx.ModelProto(ir_version=10), "no operators"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(BundleError, match=r"encoder\.onnx") as caught:
        check(build())
    assert message in str(caught.value)


def test_a_key_given_twice_is_refused() -> None:
    tensor = weight()
    tensor.external_data.add(key="location", value="elsewhere")
    with pytest.raises(BundleError, match="once each"):
        check(model(initializers=[tensor]))


def test_a_message_that_protobuf_would_merge_is_refused() -> None:
    data = model().SerializeToString()
    with pytest.raises(BundleError, match="stands twice"):
        check(data + data)


def test_deep_nesting_is_refused() -> None:
    graph = subgraph(helper.make_node("Relu", ["x"], ["z"]))
    for _ in range(20):
        node = helper.make_node("Relu", ["x"], ["z"])
        node.attribute.append(helper.make_attribute("body", graph))
        graph = subgraph(node)
    built = model()
    built.graph.CopyFrom(graph)
    with pytest.raises(BundleError, match="nested deeper"):
        check(built)


@pytest.mark.parametrize("data", [b"", b"\x08", b"not a model", b"\xff" * 40, b"\x3a" + b"\xff" * 9 + b"\x01"])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        check(data)


@given(st.data())
def test_damage_ends_in_a_bundle_error_or_passes(data: st.DataObject) -> None:
    whole = bytearray(model(initializers=[weight()]).SerializeToString())
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        check(bytes(whole[:cut]))
    except BundleError as error:
        assert "\n" not in str(error)


def test_the_fake_bundle_passes(fake_bundle: Path) -> None:
    size = (fake_bundle / "model.safetensors").stat().st_size
    for graph in ("encoder", "condition", "velocity"):
        assert check((fake_bundle / f"{graph}.onnx").read_bytes(), weights_bytes=size).opset == 23
