"""The plan of a bundle's graphs, and their trip through `torch.onnx`: dynamic batch, length, frames, size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from onedva.config import OneDVAConfig
from onedva.decoder import Condition
from onedva.few_steps import in_coefficients
from onedva.model import OneDVA
from onedva_export.graph_modules import (
    BeginGraph,
    ConditionGraph,
    EncoderGraph,
    FinishGraph,
    OneStepGraph,
    StepGraph,
    VelocityGraph,
)
from onedva_runtime import placement

OPSET = 23
IR_VERSION = 10
NAME_SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note on a node: the modules it comes from
# What the transformer of the encoder gives, by module: values with these names part the encoder graph in two, for
# backends that compute the transformer at another precision than the linear transform after it.
ENCODER_HEADS = {
    "encoder.structural_head": "vit_structural",
    "encoder.latents_head": "vit_latents",
    "encoder.error_head": "vit_error",
    "encoder.coefficients_head": "vit_coefficients",
}


@dataclass(frozen=True)
class GraphPlan:
    """One graph to export: module, groups of its longest clip, example inputs by name, the symbol of each axis, output
    names and their symbols."""

    name: str
    module: nn.Module
    max_groups: int
    inputs: dict[str, Tensor]
    symbols: dict[str, tuple[int | str, ...]]
    outputs: dict[str, tuple[int | str, ...]]


def plan_graphs(model: OneDVA) -> list[GraphPlan]:
    """The graphs with example inputs: 2 clips of 9 frames (or all that the model takes), 48×80, 24 latents."""
    config = model.config
    most = placement.grid_of(config.clip_frames, 16, 16)[0]
    batch, groups, height, width, count = 2, min(3, most), 3, 5, 24
    positions = groups * height * width
    video = (batch, 3, 4 * groups - 3, 16 * height, 16 * width)
    anchors = torch.stack([torch.randperm(positions)[:count] for _ in range(batch)])
    common = {
        "resolution": torch.tensor([[*video[2:], 24.0]]).float().repeat(batch, 1),
        "is_key": torch.ones(batch, dtype=torch.bool),
    }
    grid = ("B", "Tg", "Hg", "Wg")
    resolution: dict[str, tuple[int | str, ...]] = {"resolution": ("B", 4), "is_key": ("B",)}
    structural, latents = (
        torch.randn(batch, groups, height, width, config.structural_channels),
        torch.randn(batch, count, config.latent_channels),
    )
    keys_values = keys_values_symbols(config)
    pixels = ("B", 3, "T", "H", "W")
    with torch.no_grad():
        has_latents = torch.ones(batch, dtype=torch.bool)
        condition = model.decoder.condition(
            structural, latents, anchors, has_latents, **common, transform=model.transform
        )
    latent_inputs = {"structural": structural, "latents": latents, "anchors": anchors, "has_latents": has_latents}
    latent_symbols: dict[str, tuple[int | str, ...]] = {
        "structural": (*grid, config.structural_channels),
        "latents": ("B", "K", config.latent_channels),
        "anchors": ("B", "K"),
        "has_latents": ("B",),
    }
    plans = [
        GraphPlan(
            "encoder",
            EncoderGraph(model),
            most,
            {
                "frames": torch.randint(0, 256, (batch, video[2], *video[3:], 3), dtype=torch.uint8),
                **common,
                "anchors": anchors,
            },
            {"frames": ("B", "T", "H", "W", 3), **resolution, "anchors": ("B", "K")},
            {
                "structural": (*grid, config.structural_channels),
                "latents": ("B", "K", config.latent_channels),
                "predicted_error": ("B", "K"),
            },
        ),
        GraphPlan(
            "condition",
            ConditionGraph(model),
            most,
            {**latent_inputs, **common},
            {**latent_symbols, **resolution},
            {"context": (*grid, condition.context.shape[-1]), "keys_values": keys_values, "preview": pixels},
        ),
        GraphPlan(
            "velocity",
            VelocityGraph(model),
            most,
            {
                "noisy_video": torch.randn(video),
                "t": torch.ones(batch, groups),
                "context": condition.context,
                "keys_values": condition.keys_values,
                "preview": condition.preview,
            },
            {
                "noisy_video": pixels,
                "t": ("B", "Tg"),
                "context": (*grid, condition.context.shape[-1]),
                "keys_values": keys_values,
                "preview": pixels,
            },
            {"velocity": pixels},
        ),
    ]
    if in_coefficients(config):
        plans += plan_coefficient_graphs(model, most, latent_inputs | common, latent_symbols | resolution, condition)
    return plans


def plan_coefficient_graphs(
    model: OneDVA,
    max_groups: int,
    latent_inputs: dict[str, Tensor],
    latent_symbols: dict[str, tuple[int | str, ...]],
    condition: Condition,
) -> list[GraphPlan]:
    """`one_step`, and `begin`, `step`, `finish`, for a model that decodes in coefficients.

    latent_inputs, latent_symbols: of `condition`, which is what the model made of them.
    """
    config = model.config
    batch, groups, height, width = condition.context.shape[:4]
    count, size = 4 * groups - 3, (16 * height, 16 * width)
    grid = ("B", "Tg", "Hg", "Wg")
    frame = {"context_frame": torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8)}
    noise = {"noise": torch.randn(batch, 3, count, *size)}
    state = {
        "state": torch.randn(batch, groups, height, width, config.components),
        "t": torch.full((batch, groups), 0.5),
        "context": condition.context,
        "keys_values": condition.keys_values,
    }
    is_key = {"is_key": latent_inputs["is_key"]}
    symbols: dict[str, tuple[int | str, ...]] = {
        **latent_symbols,
        "context_frame": ("B", "H", "W", 3),
        "noise": ("B", 3, "T", "H", "W"),
        "state": (*grid, config.components),
        "t": ("B", "Tg"),
        "context": (*grid, condition.context.shape[-1]),
        "keys_values": keys_values_symbols(config),
        "velocity": (*grid, config.components),
        "frames": ("B", "T", "H", "W", 3),
    }

    def plan(name: str, module: nn.Module, inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> GraphPlan:
        given, made = ({one: symbols[one] for one in names} for names in (inputs, outputs))
        return GraphPlan(name, module, max_groups, inputs, given, made)

    return [
        plan("one_step", OneStepGraph(model), latent_inputs | frame, ("frames",)),
        plan("begin", BeginGraph(model), latent_inputs | frame | noise, ("state", "context", "keys_values")),
        plan("step", StepGraph(model), state, ("velocity",)),
        plan("finish", FinishGraph(model), state | is_key | frame, ("frames",)),
    ]


def keys_values_symbols(config: OneDVAConfig) -> tuple[int | str, ...]:
    """The axes of what the diffusion transformer attends to of the 1D latents."""
    if config.conditioning == "in_context":
        return ("B", "K+5", config.width + 3)
    return ("B", config.diffusion_depth, 2, config.heads, "K", 64)


def export_graph(plan: GraphPlan) -> onnx.ModelProto:
    """One graph as ONNX with its weights inside, float32.

    Axes with the same symbol are one dimension to the exporter; T = 4·Tg − 3, H = 16·Hg and W = 16·Wg are derived, so
    the graph holds for every frame count and size that the patches allow.
    """
    groups = Dim("Tg", min=1, max=plan.max_groups)
    height, width = Dim("Hg", min=1, max=1024), Dim("Wg", min=1, max=1024)
    count = Dim("K", min=1, max=8192)
    dims: dict[str, Any] = {
        "B": Dim("B", min=1, max=256), "K": count, "K+5": count + 5, "Tg": groups, "Hg": height, "Wg": width,
        "T": 4 * groups - 3, "H": 16 * height, "W": 16 * width,
    }  # fmt: skip
    shapes = {
        name: {axis: dims[symbol] for axis, symbol in enumerate(symbols) if isinstance(symbol, str)}
        for name, symbols in plan.symbols.items()
    }
    program = torch.onnx.export(
        plan.module.eval(),
        kwargs=plan.inputs,
        dynamic_shapes=shapes,
        input_names=list(plan.inputs),
        output_names=list(plan.outputs),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    if plan.name == "encoder":
        name_outputs(graph, ENCODER_HEADS)
    return graph


def name_outputs(graph: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename, in place, what submodules of the exported module give: names[module] for each that the graph has."""
    last: dict[str, str] = {}  # of the nodes of a module, the last one's output is the module's
    for node in graph.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == NAME_SCOPES), "")
        last |= {module: node.output[0] for module in names if f"'{module}'" in scopes}
    renamed = {value: names[module] for module, value in last.items()}
    for node in graph.graph.node:
        for values in (node.input, node.output):
            values[:] = [renamed.get(value, value) for value in values]
    for value in graph.graph.value_info:
        value.name = renamed.get(value.name, value.name)
