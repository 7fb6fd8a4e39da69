"""One file of weights for everything: ONNX initializers become pointers into the 16-bit `model.safetensors`.

An initializer that holds a parameter (as it is, reshaped, or transposed by the exporter) is replaced by the stored
tensor at its byte offset, a Cast to float32, and the Transpose or Reshape it needs; runtimes fold these at load.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SMALLEST_POINTER = 256  # values; smaller initializers stay in the graph


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes
    values: NDArray[np.float32]  # what it reads as


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Every float16 tensor of a safetensors file with its place (8-byte little-endian header size, JSON, data)."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    found = []
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F16":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data, np.float16, (end - begin) // 2, 8 + size + begin)
        shape = tuple(entry["shape"])
        found.append(StoredTensor(name, shape, 8 + size + begin, end - begin, values.reshape(shape).astype(np.float32)))
    return found


def point_into(graph: onnx.ModelProto, weights: Path) -> int:
    """Replace, in place, every initializer that is a parameter by a pointer into `weights`; returns how many were.

    Raises ValueError when a large initializer matches no stored tensor: its bytes would be shipped twice.
    """
    by_bytes: dict[bytes, tuple[StoredTensor, bool]] = {}
    for stored in stored_tensors(weights):
        if stored.values.size >= SMALLEST_POINTER:
            by_bytes.setdefault(stored.values.tobytes(), (stored, False))
            if stored.values.ndim == 2:
                by_bytes.setdefault(np.ascontiguousarray(stored.values.T).tobytes(), (stored, True))
    kept, nodes, count = [], [], 0
    for initializer in graph.graph.initializer:
        array = numpy_helper.to_array(initializer)
        match = by_bytes.get(array.tobytes()) if array.dtype == np.float32 and array.size >= SMALLEST_POINTER else None
        if match is None:
            if array.nbytes > 65536:
                raise ValueError(
                    f"initializer {initializer.name} ({array.shape}, {array.nbytes} bytes) is no parameter"
                )
            kept.append(initializer)
            continue
        stored, transposed = match
        kept.append(_pointer(stored, f"{initializer.name}/stored", weights.name))
        nodes += _unpack(initializer.name, array.shape, stored, transposed)
        count += 1
    rest = list(graph.graph.node)
    del graph.graph.initializer[:]
    del graph.graph.node[:]
    graph.graph.initializer.extend(kept + _shape_constants(nodes))
    graph.graph.node.extend(nodes + rest)
    return count


def _pointer(stored: StoredTensor, name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=stored.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(stored.offset)), ("length", str(stored.length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _unpack(name: str, shape: tuple[int, ...], stored: StoredTensor, transposed: bool) -> list[onnx.NodeProto]:
    """Nodes that turn the stored tensor back into the initializer called `name`."""
    steps: list[tuple[str, dict[str, Any]]] = [("Cast", {"to": TensorProto.FLOAT})]
    now = stored.shape
    if transposed:
        steps.append(("Transpose", {"perm": [1, 0]}))
        now = now[::-1]
    if now != shape:
        steps.append(("Reshape", {"shape": list(shape)}))
    nodes, value = [], f"{name}/stored"
    for index, (kind, attributes) in enumerate(steps):
        result = name if index == len(steps) - 1 else f"{name}/{kind}"
        inputs = [value]
        if kind == "Reshape":
            inputs.append(f"{name}/shape:{','.join(map(str, shape))}")
            attributes = {}
        nodes.append(helper.make_node(kind, inputs, [result], name=f"{name}/{kind}", **attributes))
        value = result
    return nodes


def _shape_constants(nodes: list[onnx.NodeProto]) -> list[TensorProto]:
    constants = []
    for node in nodes:
        if node.op_type == "Reshape":
            shape = np.array([int(size) for size in node.input[1].rsplit(":", 1)[1].split(",")], np.int64)
            constants.append(numpy_helper.from_array(shape, node.input[1]))
    return constants


def strip_metadata(graph: onnx.ModelProto) -> None:
    """Remove what only tells where and how the graph was made: doc strings, node metadata, value infos of insides."""
    graph.doc_string = ""
    del graph.metadata_props[:]
    graph.graph.doc_string = ""
    del graph.graph.metadata_props[:]
    del graph.graph.value_info[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*graph.graph.input, *graph.graph.output, *graph.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
