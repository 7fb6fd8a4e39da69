"""The encoder graph as two: its transformer, which may run in bf16, and the linear transform after it, which must not.

In bf16, columns of patches would choose other classes of directions than in float32. Where the two meet, the exporter
names the values (`onedva_export.graphs.ENCODER_HEADS`).
"""

from __future__ import annotations

from typing import Any, cast

__all__ = ["MEETING", "split_encoder"]

# name of a value where both parts meet → its axes as long as there are latents
MEETING: dict[str, tuple[int, ...]] = {
    "vit_structural": (),  # (B, Tg, Hg, Wg, 2·Zs)
    "vit_coefficients": (),  # (B, N, R)
    "vit_latents": (1,),  # (B, K, 2·Z)
    "vit_error": (1,),  # (B, K, 1)
}


def split_encoder(model: Any) -> tuple[Any, Any] | None:
    """An OpenVINO model of the encoder → its transformer, whose outputs are the values of `MEETING`, and the rest,
    which has them as inputs beside its own. None for graphs whose values have no such names."""
    import openvino
    import openvino.opset15 as operators

    ov, ops = cast(Any, openvino), cast(Any, operators)
    first, rest = model.clone(), model.clone()
    found = _values(first)
    if set(found) != set(MEETING):
        return None
    results = []
    for name, value in found.items():
        result = ops.result(value)
        result.set_friendly_name(name)
        results.append(result)
    transformer = ov.Model(results, first.get_parameters(), "encoder_transformer")
    added = []
    for name, value in _values(rest).items():
        parameter = ops.parameter(value.get_partial_shape(), value.get_element_type())
        parameter.set_friendly_name(name)
        value.replace(parameter.output(0))
        parameter.output(0).set_names({name})
        added.append(parameter)
    rest.add_parameters(added)
    rest.validate_nodes_and_infer_types()
    return transformer, rest


def _values(model: Any) -> dict[str, Any]:
    """The values of `MEETING` that a model has, by name."""
    outputs = [output for node in model.get_ordered_ops() for output in node.outputs()]
    return {name: output for output in outputs for name in sorted(output.get_names()) if name in MEETING}
