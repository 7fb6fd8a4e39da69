"""8-bit linear layers for the OpenVINO backend: weights with one scale per output channel, activations quantised while
running, with a scale for each group of channels of each position. So what one position becomes does not depend on the
others, and a prefix of the latents stays what a shorter clip would have."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

__all__ = ["quantise_weights"]

PATCH_VALUES = 3 * PATCH_FRAMES * PATCH_SIZE**2
SMALLEST = 256 * 64  # weights; smaller layers are not worth the quantisation of what goes in
LEVELS = 127


def quantise_weights(model: Any) -> int:
    """Replace, in place, the weights of the linear layers of an OpenVINO model; returns how many layers were.

    Not of layers from or to pixels: they are the linear transform, and what comes out is what one looks at.
    """
    import openvino.opset15 as operators
    from openvino.passes import ConstantFolding, Manager

    ops = cast(Any, operators)
    of_pixels = _pixel_layers(model)
    manager = cast(Any, Manager())
    manager.register_pass(ConstantFolding())  # weights are stored as fp16 and Cast: constants after this
    manager.run_passes(model)
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
            continue
        weights = node.input_value(1).get_node().data.astype(np.float32)
        if weights.ndim != 2 or weights.size < SMALLEST or node.get_friendly_name() in of_pixels:
            continue
        turns = node.get_attributes()
        if not turns["transpose_b"]:
            weights = weights.T  # (out, in)
        scale = np.maximum(np.abs(weights).max(axis=1, keepdims=True) / LEVELS, np.finfo(np.float32).tiny)
        stored = ops.convert(ops.constant(np.rint(weights / scale).astype(np.int8)), "f32")
        restored = ops.multiply(stored, ops.constant(scale.astype(np.float32)))
        layer = ops.matmul(node.input_value(0), restored, turns["transpose_a"], True)
        layer.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(layer.output(0))
        count += 1
    model.validate_nodes_and_infer_types()
    return count


def _pixel_layers(model: Any) -> set[str]:
    """Names of the products with weights that are, or are made of, stored weights with an axis of a patch's values."""
    found = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        waiting, seen = [node.input_value(1).get_node()], set()
        while waiting:
            source = waiting.pop()
            if source.get_friendly_name() in seen:
                continue
            seen.add(source.get_friendly_name())
            waiting += [value.get_node() for value in source.input_values()]
            if source.get_type_name() == "Constant" and PATCH_VALUES in source.get_output_shape(0):
                found.add(node.get_friendly_name())
    return found
