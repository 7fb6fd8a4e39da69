"""The training loop of latent diffusion, top to bottom.

    onedva tokenize VIDEOS -o latents/
    onedva train-ldm --latents latents/ -o runs/ldm --minutes 90

One step: rows of the latent set (`onedva.generation.step`), flow matching on clean-latent predictions, one update by
Muon and AdamW and of the averaged weights that generation uses. The folder holds the autoencoder too.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onedva.checkpoint import CONFIG, TRAINING, copy_into, load_training, part_of, save_training, write_whole
from onedva.config import OneDVAConfig
from onedva.distributed import bf16_is_faster, check_device
from onedva.generation.checkpoint import copy_autoencoder, load_generator, save_generator
from onedva.generation.config import GeneratorConfig, LatentTrainConfig
from onedva.generation.latent_shards import AUTOENCODER, LatentSet
from onedva.generation.model import LatentDiT
from onedva.generation.step import LatentStep, draw_step, load_texts, set_statistics
from onedva.optim import Optimizers
from onedva.tracking import Tracker
from onedva.train import update_average
from onedva.train_config import TrainConfig

__all__ = ["generator_config", "run"]

logger = logging.getLogger("onedva")
STAGE = "ldm"  # what logs and checkpoints of these runs call themselves


def generator_config(data: LatentSet, *, text: tuple[int, int] = (0, 0), **shape: Any) -> GeneratorConfig:
    """The configuration of a generator for a set of latents. text: (L, C) of its embeddings. shape: width, depth, …"""
    first = data.rows(np.zeros(1, np.int64))
    autoencoder = OneDVAConfig.from_json((data.folder / AUTOENCODER / CONFIG).read_text())
    return GeneratorConfig(
        structural_channels=first.structural.shape[-1],
        latent_channels=first.latents.shape[-1],
        clip_frames=data.plan.frames,
        max_tokens=data.plan.tokens,
        length_multiple=autoencoder.length_multiple,
        fold=autoencoder.pca,
        anchors=data.plan.anchors,
        classes=data.plan.classes,
        continuation=data.plan.continuation,
        sizes=(data.plan.size,),
        text_tokens=text[0],
        text_channels=text[1],
        autoencoder=data.plan.autoencoder,
        **shape,
    )


def run(
    *,
    latents: Path,
    output: Path,
    train: LatentTrainConfig,
    shape: dict[str, Any] | None = None,
    text: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    device: str | None = None,
) -> LatentDiT:
    """Train a generator on a folder of latents and leave the averaged weights in `output`; returns them.

    shape: fields of `GeneratorConfig` to change, such as width and depth. text: embeddings by video name
    (`step.load_texts`). resume: go on from `output`. device: "cpu" or "cuda", default what is there. Raises
    FileNotFoundError for missing latents or nothing to resume, FileExistsError for an output already begun, ValueError
    for latents that are not of the kind a run was begun with, FloatingPointError when the loss stops being finite.
    """
    device = check_device(device)
    if (output / TRAINING).exists() != resume:
        problem = "nothing to resume in" if resume else "there is a run (--resume goes on with it) in"
        raise (FileNotFoundError if resume else FileExistsError)(f"{problem} {output}")
    data = LatentSet(latents)
    texts = load_texts(text, data.names) if text else None
    one = next(iter(texts.values())) if texts else torch.zeros(0, 0)
    config = generator_config(data, text=(one.shape[0], one.shape[1]), **(shape or {}))
    torch.manual_seed(train.seed)
    if resume:
        generator = load_generator(output).train()
        check_same(generator.config, config, where=f"the run in {output}")
    else:
        generator = LatentDiT(config).train()
        set_statistics(generator, data, seed=train.seed)
        copy_autoencoder(latents / AUTOENCODER, output)
    loop = Loop(generator, train, output, device=device, resume=resume)
    return loop.run(data, texts, quiet=quiet)


def check_same(begun: GeneratorConfig, now: GeneratorConfig, *, where: str) -> None:
    """ValueError where latents or texts are not of the kind that a run was begun with. The shape may differ."""
    own = {"width", "depth", "mlp_ratio"}
    differ = [
        field.name
        for field in fields(GeneratorConfig)
        if field.name not in own and getattr(begun, field.name) != getattr(now, field.name)
    ]
    if "text_channels" in differ and not (begun.text_channels and now.text_channels):
        raise ValueError(f"{where} was begun {'with' if begun.text_channels else 'without'} text: give --text as then")
    if differ:
        raise ValueError(f"{where} was begun with other latents ({', '.join(differ)}): give --latents as then")


class Loop:
    """What a run holds between steps, and the steps."""

    def __init__(
        self, generator: LatentDiT, train: LatentTrainConfig, output: Path, *, device: str, resume: bool
    ) -> None:
        self.train, self.output, self.device = train, output, torch.device(device)
        tensors, facts = load_training(output) if resume else ({}, {})
        if resume and facts.get("stage") != STAGE:
            raise ValueError(f"{output / TRAINING} is of stage {facts.get('stage')}, not of onedva train-ldm")
        # measured once a run: a resumed one must compute what an uninterrupted one would
        self.bf16 = bool(facts.get("bf16", self.device.type == "cuda" or bf16_is_faster()))
        self.module = LatentStep(generator, train).to(self.device)
        if resume:
            copy_into(self.module.state_dict(), part_of(tensors, "module."))
        self.average = {name: tensor.detach().clone() for name, tensor in generator.state_dict().items()}
        self.optimizers = Optimizers(self.module, optimizer_settings(train), bf16=self.bf16)
        self.step, self.elapsed = 0, 0.0
        if resume:
            self.step, self.elapsed = facts["step"], facts["elapsed"]
            copy_into(self.average, part_of(tensors, "average."))
            if facts["optimizer"] == train.optimizer:
                self.optimizers.load_tensors(part_of(tensors, "optimizer."))
            else:
                logger.warning("the optimizer was %s: its state begins anew", facts["optimizer"])

    def run(self, data: LatentSet, texts: dict[str, torch.Tensor] | None, *, quiet: bool) -> LatentDiT:
        train, generator = self.train, self.module.generator
        facts = {**asdict(train), "generator": asdict(generator.config), "clips": len(data)}
        self.output.mkdir(parents=True, exist_ok=True)
        write_whole(self.output / "train-ldm.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))
        size = generator.parameters_count / 1e6
        logger.info("%.1f M parameters, %d clips, %s, bf16 %s", size, len(data), self.device, self.bf16)
        with Tracker(self.output, stage=STAGE, step=self.step, quiet=quiet) as tracker:
            saved = self.elapsed
            while (done := self.done()) < 1:
                begun = time.monotonic()
                self.optimizers.set_rate(self.step, done)
                draw = draw_step(data, generator, train, step=self.step, texts=texts, device=self.device)
                values = self.update(draw)
                seconds = time.monotonic() - begun
                self.step += 1
                self.elapsed += seconds
                tracker.step(self.step, done=done, seconds=seconds, clips=train.batch, values=values)
                if self.elapsed - saved >= 60 * train.save_every:
                    self.save()
                    saved = self.elapsed
            self.save()
        averaged = LatentDiT(generator.config)
        averaged.load_state_dict(self.average)
        return averaged.eval()

    def done(self) -> float:
        """How much of the run is behind, by steps or by time."""
        minutes = self.elapsed / 60 / self.train.minutes if self.train.minutes else 0.0
        return max(self.step / self.train.steps, minutes)

    def update(self, draw: Any) -> dict[str, float]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            parts = self.module(draw)
        parts["loss"].backward()
        norm = self.optimizers.step()
        if not (math.isfinite(parts["loss"].item()) and math.isfinite(norm)):
            saved = (self.output / TRAINING).exists()
            where = f"the last checkpoint is in {self.output}" if saved else "no checkpoint was saved yet"
            raise FloatingPointError(f"the loss or gradient of step {self.step} is not finite; {where}")
        update_average(
            self.average, self.module.generator, decay=min(self.train.ema, (1 + self.step) / (10 + self.step))
        )
        return {**{name: part.item() for name, part in parts.items()}, "gradient_norm": norm}

    def save(self) -> None:
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizers.tensors().items()}
        facts = {"stage": STAGE, "step": self.step, "elapsed": self.elapsed, "bf16": self.bf16}
        save_generator(self.average, self.module.generator.config, self.output)
        save_training(self.output, tensors, {**facts, "optimizer": self.train.optimizer})


def optimizer_settings(train: LatentTrainConfig) -> TrainConfig:
    """The part of a training configuration that the optimizers look at."""
    return TrainConfig(
        optimizer=train.optimizer,
        learning_rate=train.learning_rate,
        muon_learning_rate=train.muon_learning_rate,
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
    )
