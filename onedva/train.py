"""The training loop, top to bottom.

    onedva train --clips FOLDER -o runs/tiny --minutes 75

One step: a batch of crops, their anchors, a number of latents, a time and noise; flow loss on x̂, preview loss on the
stem, a little KL; Muon on the matrices inside blocks, AdamW on the rest; an average of the weights for release.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from onedva import flow, losses
from onedva.calibrate import calibrate_density
from onedva.checkpoint import load_model, load_training, save_training, save_weights
from onedva.config import OneDVAConfig, TrainConfig
from onedva.data import Batch, ClipSampler, load_clips
from onedva.evaluate import as_json, evaluate, mean_by_length
from onedva.linear_start import fit_neighbours, linear_model
from onedva.model import OneDVA, TrainingOutput
from onedva.optim import Optimizers
from onedva_runtime import placement

logger = logging.getLogger("onedva")


def run(
    *,
    clips: Path,
    output: Path,
    model: OneDVAConfig,
    train: TrainConfig,
    start: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[int, float]:
    """Train `model` on the train split of a folder of videos and leave the averaged weights in `output`.

    Returns the mean dev PSNR per latent length at the end (empty without a dev split). start: a model folder whose
    weights and configuration to begin from, instead of `model`'s linear start. resume: go on from `output`.
    Raises FileNotFoundError for missing clips or nothing to resume, FileExistsError for an output already begun.
    """
    if not resume and (output / "training.safetensors").exists():
        raise FileExistsError(f"{output} already holds a run: resume it, or choose another folder")
    torch.manual_seed(train.seed)
    data = load_clips(clips, split="train", minimum_frames=train.frames)
    try:
        dev = load_clips(clips, split="dev", minimum_frames=train.frames)
    except FileNotFoundError:
        dev = []
    sampler = ClipSampler(
        data,
        frames=train.frames,
        sizes=train.sizes,
        positions_per_batch=train.positions_per_batch,
        seed=train.seed,
    )
    model = replace(model, policy_density=calibrate_density(data, model))
    network = OneDVA(model)
    if start is not None:
        network = load_model(start).train()
        model = network.config
    elif model.pca and model.preview and not resume:
        network = linear_model(model, data)
        fit_neighbours(network, data)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not train.only or name.startswith(train.only))
    average = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    optimizers = Optimizers(network, train)
    step, elapsed = 0, 0.0
    if resume:
        step, elapsed = restore(output, network, average, optimizers)
    bf16 = bf16_is_faster()
    logger.info("%.1f M parameters, %d videos, bf16 %s", network.parameters_count / 1e6, len(data), bf16)
    output.mkdir(parents=True, exist_ok=True)
    (output / "train.json").write_text(json.dumps({**asdict(train), "model": asdict(model)}, indent=2) + "\n")

    def save() -> None:
        save_weights(average, model, output)
        tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
        tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizers.tensors().items()}
        save_training(output, tensors, {"step": step, "elapsed": elapsed})

    def score() -> dict[int, float]:
        if not dev:
            return {}
        averaged = OneDVA(model)
        averaged.load_state_dict(average)
        scores = evaluate(averaged, dev, autocast=bf16)
        means = mean_by_length(scores)
        line = {"step": step, "minutes": round(elapsed / 60, 1), "psnr": means, "clips": as_json(scores)}
        with (output / "eval.jsonl").open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        logger.info("step %d  dev %s", step, "  ".join(f"{k}: {v:.2f} dB" for k, v in means.items()))
        return means

    if step == 0:
        score()  # what the linear start gives
    saved = evaluated = elapsed
    with progress_bar(quiet) as report:
        while True:
            begun = time.monotonic()
            done = max(step / train.steps, elapsed / 60 / train.minutes if train.minutes else 0.0)
            if done >= 1:
                break
            batch = sampler(step)
            rate = optimizers.set_rate(step, done)
            values = training_step(network, batch, step=step, train=train, bf16=bf16)
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(f"loss is {values['loss']} at step {step}; the last checkpoint is in {output}")
            optimizers.step()
            update_average(average, network, decay=min(train.ema, (1 + step) / (10 + step)))
            step += 1
            elapsed += time.monotonic() - begun
            report(done, step, batch.video.shape[0] / (time.monotonic() - begun), values)
            with (output / "log.jsonl").open("a") as handle:
                handle.write(json.dumps({"step": step, "elapsed": round(elapsed, 2), "rate": rate, **values}) + "\n")
            if elapsed - saved >= 60 * train.save_every:
                save()
                saved = elapsed
            if train.evaluate_every and elapsed - evaluated >= 60 * train.evaluate_every:
                score()
                evaluated = elapsed
    save()
    return score()


def training_step(network: OneDVA, batch: Batch, *, step: int, train: TrainConfig, bf16: bool) -> dict[str, float]:
    """Forward and backward of one step; gradients are left on the parameters. Returns the losses.

    Everything random comes from (train.seed, step), so a resumed run repeats an uninterrupted one.
    """
    network.train()
    random = np.random.default_rng([train.seed, step, 1])
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    torch.manual_seed(int(random.integers(2**62)))
    video, count = batch.video, batch.video.shape[0]
    frames, height, width = video.shape[2:]
    grid = placement.grid_of(frames, height, width)
    is_key = torch.full((count,), bool(random.random() >= train.p_continuation))
    anchors = batch_anchors(network.config, batch, grid, is_key=bool(is_key[0]), train=train, random=random)
    resolution = torch.stack([torch.tensor([frames, height, width, fps]) for fps in batch.fps.tolist()])

    t = flow.sample_time(count, p_full=train.p_full, generator=generator)[:, None].expand(count, grid[0]).clone()
    t[~is_key, 0] = 0.0  # the context frame of a continuation clip is given
    noise = torch.randn(video.shape, generator=generator)
    noisy = flow.add_noise(video, noise, flow.per_frame(t, frames))
    if not is_key[0]:  # what was decoded before is never quite the source
        blur = 0.1 * torch.rand(count, 1, 1, 1, 1, generator=generator)
        noisy[:, :, :1] += blur * torch.randn(noisy[:, :, :1].shape, generator=generator)

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output: TrainingOutput = network(video, anchors=anchors, is_key=is_key, resolution=resolution, noisy=noisy, t=t)
    posterior = output.posterior
    errors = losses.frame_errors(output.video, video)
    zero = video.new_zeros(())
    parts = {
        "flow": losses.flow_loss(errors, t, is_key),
        "preview": losses.preview_loss(losses.frame_errors(output.preview, video), is_key)
        if train.preview_weight
        else zero,
        "kl": losses.kl_loss(posterior.structural_mean, posterior.structural_logvar)
        + losses.kl_loss(posterior.latents_mean, posterior.latents_logvar),
        "frame_difference": losses.frame_difference_loss(output.video, video)
        if train.frame_difference_weight
        else zero,
        "error": error_loss(posterior.predicted_error, errors, t, anchors.shape[1], is_key),
    }
    loss = (
        parts["flow"]
        + train.preview_weight * parts["preview"]
        + train.kl_weight * parts["kl"]
        + train.frame_difference_weight * parts["frame_difference"]
        + train.error_weight * parts["error"]
    )
    loss.backward()
    return {"loss": loss.item(), **{name: part.item() for name, part in parts.items()}, "tokens": anchors.shape[1]}


def batch_anchors(
    config: OneDVAConfig,
    batch: Batch,
    grid: tuple[int, int, int],
    *,
    is_key: bool,
    train: TrainConfig,
    random: np.random.Generator,
) -> Tensor:
    """Anchors (B, K) of a batch; K, shared by it, is what tail dropout leaves: none, all, or log-uniform between."""
    longest = placement.longest(grid, max_tokens=min(config.queries, config.trained_tokens), is_key=is_key)
    kind, where = random.random(), random.random()
    if kind < train.p_no_latents:
        tokens = 0
    elif kind < train.p_no_latents + train.p_all_latents:
        tokens = longest
    else:
        asked = round(config.length_multiple * (longest / config.length_multiple) ** where)
        tokens = placement.round_tokens(max(asked, 1), longest, length_multiple=config.length_multiple)
    if config.anchors == "fixed":
        rows = [placement.fixed_anchors(grid, tokens, is_key=is_key)] * len(batch.frames)
    else:
        details = [placement.detail_map(frames) for frames in batch.frames]
        rows = [
            placement.place(detail, tokens, is_key=is_key, length_multiple=config.length_multiple) for detail in details
        ]
    return torch.from_numpy(np.stack(rows))


def error_loss(predicted: Tensor, errors: Tensor, t: Tensor, tokens: int, is_key: Tensor) -> Tensor:
    """Error head (B, K) against what one-step decodes of `tokens` latents reached, where t was 1."""
    whole = t[:, -1] == 1
    if not tokens or not bool(whole.any()):
        return predicted.sum() * 0.0
    weights = losses.frame_weights(is_key, errors.shape[1])
    reached = ((errors * weights).sum(dim=1) / weights.sum(dim=1)).clamp(min=1e-5).log()
    return losses.error_prediction_loss(predicted[whole, tokens - 1], reached[whole])


@torch.no_grad()
def update_average(average: dict[str, Tensor], network: OneDVA, *, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights."""
    for name, tensor in network.state_dict().items():
        average[name].lerp_(tensor, 1 - decay)


def restore(output: Path, network: OneDVA, average: dict[str, Tensor], optimizers: Optimizers) -> tuple[int, float]:
    """Load the training state of `output` in place; returns the step and the seconds already spent."""
    tensors, facts = load_training(output)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    network.load_state_dict(parts["model"])
    for name, tensor in parts["average"].items():
        average[name].copy_(tensor)
    optimizers.load_tensors(parts["optimizer"])
    return facts["step"], facts["elapsed"]


def bf16_is_faster() -> bool:
    """Whether a bfloat16 matrix product beats float32 by half on this machine: measured, since CPUs differ by 5×."""
    fastest = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - begun)
        fastest[dtype] = min(times)
    return fastest[torch.bfloat16] * 1.5 < fastest[torch.float32]


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[float, int, float, dict[str, float]], None]]:
    """A bar on stderr with loss, clips/s and time left; yields report(done, step, clips per second, losses)."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("training", total=1.0)

        def report(done: float, step: int, speed: float, values: dict[str, float]) -> None:
            text = f"step {step}  loss {values['loss']:.4f}  {speed:.1f} clips/s"
            progress.update(task, completed=done, description=text)

        yield report
