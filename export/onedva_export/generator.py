"""The generator of a checkpoint that has one: its graph, its entry in the manifest, and proof that both agree.

Its weights stay in a file of their own, `generator.safetensors`, 16 bit, which the graph points into; so a bundle is
also what `onedva generate` takes as a checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onedva.generation.checkpoint import (
    GENERATOR_WEIGHTS,
    check_autoencoder,
    latent_space,
    load_generator,
    save_generator,
)
from onedva.generation.config import GeneratorConfig
from onedva.generation.model import Asked, LatentDiT, Latents
from onedva.generation.sample import generate_latents
from onedva_export.graphs import GraphPlan
from onedva_export.verify import FOUR_STEP_DB, ONE_STEP_DB, ParityError
from onedva_runtime import placement
from onedva_runtime.backends.onnxruntime import load_onnxruntime

__all__ = ["copy_generator", "generator_entry", "plan_generator", "verify_generator"]

GUIDANCE = 2.0  # of the comparison: both conditions go through the graph


def copy_generator(source: Path, folder: Path) -> LatentDiT | None:
    """Put the generator of a checkpoint, where it has one, into a bundle's folder in 16 bit; returns it as rounded.

    Raises ValueError where the autoencoder beside it is not its own.
    """
    if not (source / GENERATOR_WEIGHTS).is_file():
        return None
    generator = load_generator(source)
    check_autoencoder(source, generator.config)
    config = dataclasses.replace(generator.config, autoencoder=latent_space(folder))
    save_generator(generator.state_dict(), config, folder, dtype=torch.float16)
    return load_generator(folder)


class GeneratorGraph(nn.Module):
    """Noisy latents at t, and what they are to become → velocities."""

    def __init__(self, generator: LatentDiT) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        structural: Tensor,
        sequence: Tensor,
        t: Tensor,
        has_latents: Tensor,
        label: Tensor,
        resolution: Tensor,
        is_key: Tensor,
        anchors: Tensor,
        first: Tensor | None = None,
        text: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        # what a generator has no use for is no input of its graph: `plan_generator` leaves it out
        asked = Asked(
            anchors,
            has_latents,
            label,
            resolution,
            is_key,
            structural.new_zeros(0) if first is None else first,
            structural.new_zeros(0) if text is None else text,
        )
        return tuple(self.generator.velocity(Latents(structural, sequence), t, asked))  # type: ignore[return-value]


def plan_generator(generator: LatentDiT) -> GraphPlan:
    """The graph with example inputs: 2 clips of 3×5 patches, 8 latents."""
    config = generator.config
    batch, height, width = 2, 3, 5
    count = min(8, config.max_tokens)
    channels = config.structural_channels + config.latent_channels
    structural = torch.randn(batch, config.groups, height, width, config.structural_channels)
    inputs = {
        "structural": structural,
        "sequence": torch.randn(batch, count, config.sequence_channels),
        "t": torch.full((batch,), 0.5),
        "has_latents": torch.ones(batch, dtype=torch.bool),
        "label": torch.zeros(batch, dtype=torch.int64),
        "resolution": torch.tensor([[config.clip_frames, 16.0 * height, 16.0 * width, config.fps]]).repeat(batch, 1),
        "is_key": torch.ones(batch, dtype=torch.bool),
        "anchors": torch.arange(count).repeat(batch, 1),
    }
    grid = ("B", config.groups, "Hg", "Wg")
    symbols: dict[str, tuple[int | str, ...]] = {
        "structural": (*grid, config.structural_channels),
        "sequence": ("B", "K", config.sequence_channels),
        "t": ("B",),
        "has_latents": ("B",),
        "label": ("B",),
        "resolution": ("B", 4),
        "is_key": ("B",),
        "anchors": ("B", "K"),
    }
    if config.continuation:
        inputs["first"] = torch.randn(batch, height, width, channels)
        symbols["first"] = ("B", "Hg", "Wg", channels)
    if config.text_channels:
        inputs["text"] = torch.randn(batch, config.text_tokens, config.text_channels)
        symbols["text"] = ("B", config.text_tokens, config.text_channels)
    outputs: dict[str, tuple[int | str, ...]] = {
        "structural_velocity": (*grid, config.structural_channels),
        "sequence_velocity": ("B", "K", config.sequence_channels),
    }
    return GraphPlan("generator", GeneratorGraph(generator), config.groups, inputs, symbols, outputs)


def generator_entry(generator: LatentDiT, *, layered: bool) -> dict[str, Any]:
    """What the manifest says of a generator."""
    config = generator.config
    return {
        "weights": GENERATOR_WEIGHTS,
        "parameters": generator.parameters_count,
        "classes": list(config.classes),
        "frames": config.clip_frames,
        "fps": config.fps,
        "sizes": [list(size) for size in config.sizes],
        "max_tokens": config.max_tokens,
        "length_multiple": config.length_multiple,
        "anchors": config.anchors,
        "layered": layered,
        "continuation": config.continuation,
        "text_tokens": config.text_tokens,
        "text_channels": config.text_channels,
    }


class FromGraph(LatentDiT):
    """A generator whose velocity is that of the exported graph."""

    def __init__(self, generator: LatentDiT, path: Path) -> None:
        super().__init__(generator.config)
        self.load_state_dict(generator.state_dict())
        ort = load_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def velocity(self, noisy: Latents, t: Tensor, asked: Asked) -> Latents:
        feeds = {**noisy._asdict(), "t": t, **asked._asdict()}
        wanted = [value.name for value in self.session.get_inputs()]
        found = self.session.run(
            ["structural_velocity", "sequence_velocity"], {name: feeds[name].contiguous().numpy() for name in wanted}
        )
        return Latents(*(torch.from_numpy(part) for part in found))


def verify_generator(generator: LatentDiT, folder: Path, *, layered: bool) -> list[dict[str, Any]]:
    """Compare latents that PyTorch and the graph generate: every kind of clip, none to the most latents, 1 and 4 steps.

    In dB of the latents' own energy over that of the difference. Raises ParityError under 60 dB (1 step) or 50 (4).
    """
    config = generator.config
    graph = FromGraph(generator, folder / "generator.onnx").eval()
    report = []
    kinds = (True, False) if config.continuation else (True,)
    cases = [(key, size) for key in kinds for size in {*config.sizes[:1], (48, 80)}]
    for is_key, (height, width), tokens in [(*case, tokens) for case in cases for tokens in lengths_of(config, *case)]:
        channels = config.structural_channels + config.latent_channels
        first = None if is_key else torch.randn(2, height // 16, width // 16, channels)
        text = torch.randn(2, config.text_tokens, config.text_channels) if config.text_channels else None
        row: dict[str, Any] = {"is_key": is_key, "height": height, "width": width, "tokens": tokens}
        for steps, floor in ((1, ONE_STEP_DB), (4, FOUR_STEP_DB)):
            made = [
                generate_latents(
                    one,
                    labels=[None, 0 if config.classes else None],
                    tokens=tokens,
                    num_steps=steps,
                    seeds=[0, 1],
                    guidance=GUIDANCE,
                    size=(height, width),
                    first=first,
                    text=text,
                    layered=layered,
                )
                for one in (generator, graph)
            ]
            row[f"{steps}_step_db"] = min(
                decibels(made[0].structural, made[1].structural), decibels(made[0].latents, made[1].latents)
            )
            if not row[f"{steps}_step_db"] >= floor:
                raise ParityError(f"parity of the generator broke at {row}: {steps} steps need {floor:.0f} dB")
        report.append(row)
    return report


def lengths_of(config: GeneratorConfig, is_key: bool, size: tuple[int, int]) -> list[int]:
    """None, the fewest and the most 1D latents of such clips."""
    longest = placement.longest(
        placement.grid_of(config.clip_frames, *size), max_tokens=config.max_tokens, is_key=is_key
    )
    return sorted({0, min(config.length_multiple, longest), longest})


def decibels(wanted: Tensor, got: Tensor) -> float:
    """Energy of `wanted` over that of the difference, in dB; 120 where both are empty or equal."""
    error = (wanted - got).square().sum().item()
    return 10 * torch.log10(wanted.square().sum() / error).item() if error > 0 else 120.0
