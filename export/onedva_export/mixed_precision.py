"""Strong types for TensorRT: a float32 graph whose matrix products, attention and convolutions take fp16 or bf16.

Networks are strongly typed there, so precision is in the graph. What goes into a product is rounded, products
accumulate in float32, and everything between products stays float32: residual sums, statistics of norms, the linear
transform (`islands`), and the velocity's division. TensorRT fuses the casts into the kernels beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx
from onnx import TensorProto, helper

from onedva.lapped import HALF
from onedva_export.static_graphs import element_types

DTYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LOW = frozenset({"MatMul", "Gemm", "Attention", "Conv"})
# sides of the matrices of `onedva.lapped`, planar and packed: mirrors and filters
FILTERS = frozenset((side * colours,) * 2 for side in (HALF, 2 * HALF) for colours in (1, 3))
# What moves values and computes none: it works on rounded values as it does on others, in half of the memory.
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Expand", "Concat", "Identity"})
ALL_DATA = frozenset({"Concat"})  # every input is moved; elsewhere the first


def lower(model: onnx.ModelProto, dtype: str, *, islands: Collection[str] = (), bordered: Iterable[str] = ()) -> int:
    """Rewrite a float32 graph in place; returns how many nodes compute in `dtype` now.

    dtype: "fp16" or "bf16". islands: names of nodes that stay float32. bordered: inputs and outputs of the graph that
    are of `dtype` from now on, because another graph makes or takes them on the same device.
    """
    low, border = DTYPES[dtype], set(bordered)
    kinds = element_types(model)
    work = _Rewriter(low, kinds)
    for value in model.graph.input:
        if value.name in border:
            value.type.tensor_type.elem_type = low
            work.exact[value.name] = value.name
            work.made.add(value.name)
    count = 0
    for node in model.graph.node:
        if node.op_type == "Cast" and kinds.get(node.input[0]) == low and kinds[node.output[0]] == TensorProto.FLOAT:
            work.exact[node.output[0]] = node.input[0]  # a stored weight: what reads it decides in which type
            continue
        data = list(node.input) if node.op_type in ALL_DATA else list(node.input[:1])
        floats = [name for name in node.output if kinds.get(name) == TensorProto.FLOAT]
        if node.op_type in LOW and floats and node.name not in islands:
            names = [work.low(n) if kinds.get(n) == TensorProto.FLOAT else n for n in node.input]
            count += 1
        elif node.op_type in MOVES and floats and all(name in work.exact for name in data):
            names = [work.exact[n] if n in data else work.full(n) for n in node.input]
        else:
            work.nodes.append(work.renamed(node, [work.full(n) for n in node.input], list(node.output)))
            continue
        for name in floats:
            work.exact[name] = f"{name}/{dtype}"
        work.nodes.append(work.renamed(node, names, [work.exact.get(n, n) for n in node.output]))
    for value in model.graph.output:
        if value.name in border:
            value.type.tensor_type.elem_type = low
            work.end_low(value.name)
        else:
            work.end_full(value.name)
    del model.graph.node[:]
    model.graph.node.extend(work.nodes)
    return count


class _Rewriter:
    """The nodes so far, and under which names a tensor of the float32 graph can be had."""

    def __init__(self, low: int, kinds: dict[str, int]) -> None:
        self._low, self._kinds = low, kinds
        self.nodes: list[onnx.NodeProto] = []
        self.exact: dict[str, str] = {}  # float32 tensors that are a tensor of fewer bits, and which
        self.made: set[str] = set()  # tensors of `exact` whose own name is taken by the one of fewer bits
        self._rounded: dict[str, str] = {}
        self._widened: dict[str, str] = {}

    @staticmethod
    def renamed(node: onnx.NodeProto, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.extend(outputs)
        return copy

    def low(self, name: str) -> str:
        """The tensor in fewer bits, rounded where it must be."""
        if name in self.exact:
            return self.exact[name]
        if name not in self._rounded:
            self._rounded[name] = f"{name}/rounded"
            self.nodes.append(helper.make_node("Cast", [name], [self._rounded[name]], to=self._low))
        return self._rounded[name]

    def full(self, name: str) -> str:
        """The tensor in float32, or in its own type where that is another."""
        if name not in self.exact:
            return name
        if name not in self._widened:
            self._widened[name] = f"{name}/full" if name in self.made else name
            self.nodes.append(helper.make_node("Cast", [self.exact[name]], [self._widened[name]], to=TensorProto.FLOAT))
        return self._widened[name]

    def end_full(self, name: str) -> None:
        """Make a float32 output of the graph."""
        assert self.full(name) == name

    def end_low(self, name: str) -> None:
        """Make an output of the graph that has fewer bits, under the name that the float32 tensor had."""
        source = self.exact.get(name)
        if source is None:
            source = f"{name}/float"
            self._rename(name, source)
            self.nodes.append(helper.make_node("Cast", [source], [name], to=self._low))
        else:
            self._rename(name, f"{name}/full")
            self._rename(source, name)

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == old:
                        names[index] = new


def transform_nodes(model: onnx.ModelProto, tables: Collection[str]) -> set[str]:
    """Names of the matrix products one of whose sides is made of the tensors `tables` alone, by moves and scaling."""
    makers = {name: node for node in model.graph.node for name in node.output}
    steps = {"Cast", "Mul", "Gather", "GatherND", "ReduceMean", "ReduceSum", *MOVES}

    def leads_to_table(name: str, depth: int) -> bool:
        if name in tables:
            return True
        node = makers.get(name)
        if node is None or depth == 0 or node.op_type not in steps:
            return False
        return any(leads_to_table(source, depth - 1) for source in node.input)

    return {
        node.name
        for node in model.graph.node
        if node.op_type in LOW and any(leads_to_table(name, 12) for name in node.input)
    }


def filter_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the matrix products that filter pixels across borders of patches (`onedva.lapped`): their matrices were
    computed from the transform's when the graph was exported, and are told by their sides."""
    held = {tensor.name for tensor in model.graph.initializer if tuple(tensor.dims) in FILTERS}
    return {node.name for node in model.graph.node if node.op_type == "MatMul" and held.intersection(node.input)}


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes in float32 and rounds where a `lower`ed graph does: ONNX Runtime's CPU has hardly a kernel
    of fewer bits, and computes more exactly than it was asked to where it inserts casts of its own.

    Inputs and outputs of fewer bits become float32 ones that hold rounded values.
    """
    kinds, copy = element_types(model), onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.elem_type in DTYPES.values():
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for node in model.graph.node:
        inputs = []
        for name in node.input:
            wide = f"{name}/float32"
            if name in stored and node.op_type != "Cast":
                if wide not in stored:
                    copy.graph.node.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
                    stored.add(wide)
                name = wide
            inputs.append(name)
        low = next((kinds[name] for name in node.output if kinds.get(name) in DTYPES.values()), None)
        if low is None or node.op_type in MOVES:
            copy.graph.node.append(_Rewriter.renamed(node, inputs, list(node.output)))
            continue
        (name,) = node.output
        exact = node.input[0] if node.op_type == "Cast" else f"{name}/exact"
        if node.op_type != "Cast":
            copy.graph.node.append(_Rewriter.renamed(node, inputs, [exact]))
        copy.graph.node.append(helper.make_node("Cast", [exact], [f"{name}/rounded"], to=low))
        copy.graph.node.append(helper.make_node("Cast", [f"{name}/rounded"], [name], to=TensorProto.FLOAT))
    return copy
