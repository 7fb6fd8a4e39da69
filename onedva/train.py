"""The training loop, top to bottom.

    onedva train --clips FOLDER -o runs/tiny --minutes 75
    torchrun --nproc-per-node 8 -m onedva.cli train --clips SHARDS -o runs/large --preset large --sharded

One step: batches of crops, their losses (`onedva.steps`, by stage), one update by Muon and AdamW and of the averaged
weights that evaluation and release use. The same loop runs in one process or many.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import math
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from onedva.alignment import AlignmentHeads
from onedva.calibrate import calibrate_density
from onedva.checkpoint import (
    TRAINING,
    copy_into,
    load_model,
    load_training,
    part_of,
    save_model,
    save_training,
    save_weights,
    write_whole,
)
from onedva.config import OneDVAConfig
from onedva.data import Batch, Clip, ClipSampler, batches, load_clips
from onedva.distributed import World, bf16_is_faster, end_world, mean_over, start_world, wait, whole, wrap
from onedva.evaluate import as_json, evaluate, mean_by_length, reconstructions, strip
from onedva.generation.checkpoint import GENERATOR_CONFIG, copy_generator, load_generator
from onedva.generation.model import LatentDiT
from onedva.linear_start import linear_start
from onedva.model import OneDVA
from onedva.optim import Optimizers, is_trained
from onedva.perceptual import load_lpips, load_siglip
from onedva.steps import TrainingStep
from onedva.tracking import Tracker
from onedva.train_config import TrainConfig

logger = logging.getLogger("onedva")

TEACHER = "teacher"  # the folder in a run's own with what stage distill follows


def run(
    *,
    clips: str | Path,
    output: Path,
    model: OneDVAConfig,
    train: TrainConfig,
    start: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    device: str | None = None,
) -> dict[int, float]:
    """Train `model` on the train split of a folder of videos or shards and leave the averaged weights in `output`.

    Returns the mean dev PSNR per latent length at the end (empty without a dev split, and on all processes but the
    first). start: a model whose weights and configuration to begin from, instead of `model`'s linear start. resume: go
    on from `output`, in the same stage or another. device: "cpu" or "cuda", default what is there. Raises
    FileNotFoundError for missing clips or nothing to resume, FileExistsError for an output already begun,
    FloatingPointError when loss or gradient stop being finite, with the batch saved beside the checkpoint.
    """
    if (output / TRAINING).exists() and not resume:
        raise FileExistsError(f"{output} already holds a run: resume it (--resume), or choose another folder")
    if resume and not (output / TRAINING).exists():
        raise FileNotFoundError(f"nothing to resume: {output / TRAINING} is missing")
    if train.stage == "post" and not (output if resume else Path(start or "")).joinpath(GENERATOR_CONFIG).is_file():
        raise ValueError("stage post follows a generator: --init a folder that onedva train-ldm has made")
    if train.stage == "distill" and start is None and not resume:
        raise ValueError("stage distill follows a trained model: give one to start from (--init), or a run to resume")
    world = start_world(device)
    try:
        torch.manual_seed(train.seed)
        start = output if resume else start
        network = load_model(start).train() if start is not None else None  # before the videos: it may fail
        train.check(network.config if network else model)
        longest = max(frames for frames, _ in train.frames)
        sides = {"short_side": train.short_side}
        data = load_clips(clips, split="train", minimum_frames=longest, workers=train.workers, **sides)
        network = network or first_model(data, model, train)
        generator = load_generator(output if resume else Path(start or "")) if train.stage == "post" else None
        loop = Loop(network, train, world, output, generator=generator, resume=resume)
        dev = dev_clips(clips, minimum_frames=network.config.clip_frames, **sides) if world.main else []
        if train.stage == "post" and start is not None and world.main:
            copy_generator(Path(start), output)
        wait(world)
        return loop.run(data, dev, quiet=quiet)
    finally:
        end_world(world)


def first_model(data: list[Clip] | Any, model: OneDVAConfig, train: TrainConfig) -> OneDVA:
    """The weights a run begins from: a linear start on `data`, or random ones."""
    model = replace(model, policy_density=calibrate_density(data, model))
    if model.pca and train.linear_start:
        return linear_start(model, data, seed=train.seed).train()
    network = OneDVA(model).train()
    if network.transform is not None:
        network.transform.start_random()
    return network


def dev_clips(clips: str | Path, *, minimum_frames: int, short_side: int) -> list[Clip] | Any:
    """The dev split, or nothing where there is none."""
    try:
        return load_clips(clips, split="dev", minimum_frames=minimum_frames, short_side=short_side)
    except FileNotFoundError:
        logger.warning("no dev split: there will be no scores (a MANIFEST.csv with columns name, split names one)")
        return []


class Loop:
    """What a run holds between steps, and the steps."""

    def __init__(
        self,
        network: OneDVA,
        train: TrainConfig,
        world: World,
        output: Path,
        *,
        generator: LatentDiT | None = None,
        resume: bool,
    ) -> None:
        self.train, self.world, self.output = train, world, output
        self.config = network.config
        tensors, facts = load_training(output) if resume else ({}, {})
        resume = facts.get("stage") == train.stage  # another stage begins its own schedule, from the averaged weights
        # measured once a run: a resumed one must compute what an uninterrupted one would, and all processes the same
        faster = facts.get("bf16", world.device.type == "cuda" or bf16_is_faster())
        self.bf16 = mean_over({"bf16": float(faster)}, world)["bf16"] > 0.5
        teacher = None
        if train.stage == "distill":
            teacher = load_model(output / TEACHER) if resume else copy.deepcopy(network)
            teacher.eval().requires_grad_(False)
            if world.main and not resume:
                save_model(teacher, output / TEACHER)
        siglip, lpips = (load_siglip(train.siglip), load_lpips(train.lpips)) if train.stage == "joint" else (None, None)
        heads = AlignmentHeads(self.config, repa_channels=siglip.channels if siglip else None)
        if generator is not None:
            generator.requires_grad_(False)
        module = TrainingStep(
            network, train, heads=heads, teacher=teacher, siglip=siglip, lpips=lpips, generator=generator
        )
        for part in (module, *module.frozen.values()):
            if part is not None:
                part.to(world.device)
        if resume:
            copy_into(module.state_dict(), part_of(tensors, "module."))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(is_trained(name, parameter, train))
        prepare_blocks(network, train)
        self.module = module
        self.wrapped = wrap(module, world, sharded=train.sharded)
        self.average = {name: tensor.detach().clone() for name, tensor in module.network.state_dict().items()}
        self.optimizers = Optimizers(module, train, bf16=self.bf16)
        self.step, self.elapsed = 0, 0.0
        if resume:
            self.step, self.elapsed = facts["step"], facts["elapsed"]
            copy_into(self.average, part_of(tensors, "average."))
            if facts["optimizer"] == train.optimizer:
                self.optimizers.load_tensors(part_of(tensors, "optimizer."))
            else:
                logger.warning("the optimizer was %s: its state begins anew", facts["optimizer"])

    def run(self, data: Any, dev: Any, *, quiet: bool) -> dict[int, float]:
        train, world = self.train, self.world
        if world.main:
            self.output.mkdir(parents=True, exist_ok=True)
            facts = {**asdict(train), "model": asdict(self.config), "processes": world.size}
            write_whole(self.output / "train.json", lambda path: path.write_text(json.dumps(facts, indent=2) + "\n"))
        size = self.module.network.parameters_count / 1e6
        logger.info("%.1f M parameters, %d videos, %s, bf16 %s", size, len(data), world.device, self.bf16)
        sampler = ClipSampler(
            data,
            frames=train.frames,
            sizes=train.sizes,
            positions_per_batch=train.positions_per_batch,
            seed=train.seed,
            still_motion=train.still_motion,
            rank=world.rank,
            world=world.size,
        )
        stream = batches(
            sampler,
            start_step=self.step * train.accumulate,
            workers=train.workers,
            before=lambda index: train.stage == "joint" and continues(train, index),
            device=world.device,
        )
        tracker = Tracker(self.output, stage=train.stage, step=self.step, quiet=quiet, active=world.main)
        if self.done() >= 1:
            logger.warning("already at step %d: nothing left to do; ask for more --steps or --minutes", self.step)
        with closing(stream), tracker:
            if self.step == 0:
                self.score(dev, tracker)  # what the start gives
            saved = evaluated = self.elapsed
            while (done := self.done()) < 1:
                begun = time.monotonic()
                self.optimizers.set_rate(self.step, done)
                micro = [next(stream) for _ in range(train.accumulate)]
                values = self.update(micro)
                clips = sum(len(batch.video) for batch in micro) * world.size
                seconds = time.monotonic() - begun
                self.step += 1
                self.elapsed += seconds
                tracker.step(self.step, done=done, seconds=seconds, clips=clips, values=values)
                if self.due(saved, train.save_every):
                    self.save()
                    saved = self.elapsed
                if train.evaluate_every and self.due(evaluated, train.evaluate_every):
                    self.score(dev, tracker)
                    evaluated = self.elapsed
            self.save()
            return self.score(dev, tracker)

    def done(self) -> float:
        """How much of the run is behind, by steps or by time, the same in all processes."""
        minutes = self.elapsed / 60 / self.train.minutes if self.train.minutes else 0.0
        return mean_over({"done": max(self.step / self.train.steps, minutes)}, self.world)["done"]

    def due(self, last: float, minutes: float) -> bool:
        """Whether `minutes` have passed since `last`, the same in all processes."""
        late = float(self.elapsed - last >= 60 * minutes)
        return mean_over({"late": late}, self.world)["late"] > 0.5

    def update(self, micro: list[Batch]) -> dict[str, float]:
        """One optimizer step over the mean gradient of some batches; returns the mean of each loss."""
        total: dict[str, list[float]] = {}
        self.module.train()
        for index, batch in enumerate(micro):
            at = self.step * len(micro) + index
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16):
                parts = self.wrapped(batch, step=at, world=self.world)
            if not math.isfinite(parts["loss"].item()):
                self.keep(batch, at)
            # ranks hold unequal shares of a step's clips; the mean over ranks must be the mean over clips
            share = batch.share * self.world.size
            (parts["loss"] * (share / len(micro))).backward()
            for name, part in parts.items():
                total.setdefault(name, []).append(part.item() * share)
        norm = self.optimizers.step()
        if not math.isfinite(norm):
            self.keep(micro[-1], self.step * len(micro) + len(micro) - 1)
        update_average(self.average, self.module.network, decay=min(self.train.ema, (1 + self.step) / (10 + self.step)))
        values = {name: float(np.mean(column)) for name, column in total.items()}
        return {**mean_over(values, self.world), "gradient_norm": norm, "tokens": self.module.tokens}

    def keep(self, batch: Batch, at: int) -> None:
        """Save the batch whose loss or gradient is not a number, and stop."""
        path = self.output / f"bad-batch-{self.world.rank}.npz"
        np.savez(path, frames=batch.frames, fps=batch.fps.cpu().numpy(), step=at)
        raise FloatingPointError(
            f"the loss or gradient of batch {at} is not finite; it is in {path}, the last checkpoint in {self.output}"
        )

    def save(self) -> None:
        average = {name: whole(tensor) for name, tensor in self.average.items()}
        tensors = {f"module.{name}": whole(tensor) for name, tensor in self.module.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
        tensors |= {f"optimizer.{name}": whole(tensor) for name, tensor in self.optimizers.tensors().items()}
        if self.world.main:
            facts = {"step": self.step, "elapsed": self.elapsed, "bf16": self.bf16}
            facts |= {"stage": self.train.stage, "optimizer": self.train.optimizer}
            save_weights(average, self.config, self.output)
            save_training(self.output, tensors, facts)
        wait(self.world)

    def score(self, dev: Any, tracker: Tracker) -> dict[int, float]:
        """Evaluate the averaged weights on the dev split, in the first process; the others wait."""
        average = {name: whole(tensor) for name, tensor in self.average.items()}
        means: dict[int, float] = {}
        if dev and self.world.main:
            with torch.device("meta"):  # no time and memory for random weights
                averaged = OneDVA(self.config)
            averaged.load_state_dict(average, assign=True)
            size = self.train.evaluation_size
            scores = evaluate(averaged, dev, size=size, autocast=self.bf16 and self.world.device.type == "cpu")
            means = mean_by_length(scores)
            logger.info("step %d  dev %s", self.step, "  ".join(f"{k}: {v:.2f} dB" for k, v in means.items()))
            tracker.scores(self.step, minutes=self.elapsed / 60, means=means, clips=as_json(scores))
            for one in reconstructions(averaged, dev[:2], tokens=(256,), size=size):
                tracker.picture(self.step, f"dev/{one.clip.name}", strip(one.frames, one.decoded))
        wait(self.world)
        return means


def continues(train: TrainConfig, index: int) -> bool:
    """Whether batch `index` trains continuation clips: the same answer in every process and after resuming."""
    return bool(np.random.default_rng([train.seed, index, 3]).random() < train.p_continuation)


def prepare_blocks(network: OneDVA, train: TrainConfig) -> None:
    """Activation checkpointing and compilation, block by block: the whole model has too many shapes for one graph."""
    for block in (*network.encoder.blocks, *network.decoder.stem, *network.decoder.blocks):
        if train.compile:
            block.compile(dynamic=True)
        for name in ("forward", "in_context") if train.checkpointing else ():
            if hasattr(block, name):
                setattr(block, name, functools.partial(checkpoint, getattr(block, name), use_reentrant=False))


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: nn.Module, *, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights."""
    for name, tensor in network.state_dict().items():
        average[name].lerp_(tensor, 1 - decay)
