"""ONNX graphs for TensorRT: those of the bundle with frames, height and width fixed, so that only batch and latent
length stay open.

They are derived from the dynamic graphs, which parity was shown for, not exported again: that takes seconds, not
minutes, and needs no PyTorch. Three things TensorRT wants otherwise are rewritten: shapes that are known now are
folded, uint8 appears at inputs and outputs only, and scattering with a sum becomes a product with one-hot rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onedva_export.weights import strip_metadata
from onedva_runtime.manifest import GraphSpec
from onedva_runtime.placement import grid_of

FREE = frozenset({"B", "K", "K+5"})  # symbols of axes that stay open
FOLDED_VALUES = 8192  # larger tensors are left to TensorRT to fold: weights must stay pointers into the weights file


def sizes_of(frames: int, height: int, width: int) -> dict[str, int]:
    """What the symbols of the axes are for clips of this size in pixels, multiples of 16, frames 1 + 4n."""
    groups, rows, columns = grid_of(frames, height, width)
    return {"T": frames, "H": height, "W": width, "Tg": groups, "Hg": rows, "Wg": columns}


def specialise(path: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """The graph in `path` for the sizes of `sizes_of`, with what depends on them folded.

    Its weights still point into the bundle's weights file. Raises ValueError where a shape other than batch and latent
    length stays unknown at an input or output.
    """
    import onnx_ir
    from onnxscript import optimizer

    model = onnx_ir.load(path)
    said = {value.name: value.shape for value in (*spec.inputs, *spec.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.name is not None
        shape = [sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in said[value.name]]
        if left := {axis for axis in shape if isinstance(axis, str)} - FREE:
            raise ValueError(f"{path.name}: {value.name} keeps the open axes {', '.join(sorted(left))}")
        value.shape = onnx_ir.Shape(shape)
    optimizer.optimize_ir(model, num_iterations=3, input_size_limit=FOLDED_VALUES, output_size_limit=FOLDED_VALUES)
    fixed = onnx_ir.to_proto(model)
    strip_metadata(fixed)
    return fixed


def bytes_at_the_border_only(model: onnx.ModelProto) -> None:
    """Turn uint8 inside a graph into float32, in place: TensorRT takes and gives bytes, but computes with none.

    Values are the same: bytes are moved and chosen from inside our graphs, nothing else.
    """
    kinds = element_types(model)
    casts, nodes = [], []
    names: dict[str, str] = {}  # tensors that another one stands for
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            names[value.name] = f"{value.name}/float"
            casts.append(helper.make_node("Cast", [value.name], [names[value.name]], to=TensorProto.FLOAT))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        if node.op_type == "Cast" and TensorProto.UINT8 in (kinds[node.output[0]], kinds.get(_source(node, names))):
            names[node.output[0]] = node.input[0]  # from or to bytes: nothing is left to do
            continue
        nodes.append(node)
    for value in model.graph.output:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            last = names.get(value.name)
            if last is None:  # made by a node that moves bytes
                last = f"{value.name}/float"
                for node in nodes:
                    for index, name in enumerate(node.output):
                        if name == value.name:
                            node.output[index] = last
                    for index, name in enumerate(node.input):
                        if name == value.name:
                            node.input[index] = last
            nodes.append(helper.make_node("Cast", [last], [value.name], to=TensorProto.UINT8))
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)


def _source(node: onnx.NodeProto, names: Mapping[str, str]) -> str:
    """What a node's first input was called before tensors were renamed."""
    return next((old for old, new in names.items() if new == node.input[0]), node.input[0])


def sums_as_products(model: onnx.ModelProto, positions: int) -> int:
    """Replace every ScatterElements that adds rows at `anchors`, in place, by a product; returns how many there were.

    data + one_hot(anchors)ᵀ · updates is the same sum, and TensorRT's own scatter has none (it needs a plugin).
    positions: N, rows of what is scattered into. Raises ValueError for a scatter along another axis.
    """
    kept, count = [], 0
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred(model).graph.value_info}
    for node in model.graph.node:
        if node.op_type != "ScatterElements":
            kept.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("axis", 0) != 1 or attributes.get("reduction") != b"add":
            raise ValueError(f"{node.name}: only sums along axis 1 can be made a product, got {attributes}")
        data, _, updates = node.input
        (out,) = node.output
        if not count:
            grid = np.arange(positions, dtype=np.int64).reshape(1, positions, 1)
            model.graph.initializer.append(numpy_helper.from_array(grid, "positions"))
            model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "positions/axis"))
            model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "positions/last"))
            kept += [
                helper.make_node("Unsqueeze", ["anchors", "positions/axis"], ["anchors/row"]),
                helper.make_node("Equal", ["anchors/row", "positions"], ["anchors/equal"]),
                helper.make_node("Cast", ["anchors/equal"], ["anchors/one_hot"], to=TensorProto.FLOAT),
            ]
        flat = ranks.get(updates, 3) == 2
        if flat:
            kept.append(helper.make_node("Unsqueeze", [updates, "positions/last"], [f"{updates}/column"]))
            updates = f"{updates}/column"
        kept.append(helper.make_node("MatMul", ["anchors/one_hot", updates], [f"{out}/sum"], name=f"{out}/sum"))
        if flat:
            kept.append(helper.make_node("Squeeze", [f"{out}/sum", "positions/last"], [f"{out}/flat"]))
        kept.append(helper.make_node("Add", [data, f"{out}/flat" if flat else f"{out}/sum"], [out]))
        count += 1
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return count


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the types and shapes of every tensor inside."""
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of every tensor of a graph."""
    known = inferred(model).graph
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*known.input, *known.output, *known.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    if unknown := [name for node in model.graph.node for name in node.output if name and not found.get(name)]:
        raise ValueError(f"the types of {', '.join(unknown[:5])} cannot be inferred")
    return found
