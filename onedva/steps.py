"""What one training step computes, per stage: a batch in, named losses out.

`encoder`: the preview alone, latents without noise. `joint`: preview and one random time of the diffusion transformer,
key and continuation clips. `distill`: few Euler steps follow a teacher's many, from the same latents and noise.
`post`: the decoder alone, from latents that a generator has taken noise off.
Everything random comes from (seed, step), so a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from onedva import flow, losses
from onedva.alignment import AlignmentHeads, middle_features
from onedva.config import OneDVAConfig
from onedva.data import Batch
from onedva.distributed import ALONE, World, mean_over
from onedva.generation.model import LatentDiT
from onedva.generation.partial import predicted_latents
from onedva.linear_start import ERROR_SCALE
from onedva.model import HybridLatents, OneDVA, TrainingOutput, to_video
from onedva.perceptual import LPIPS, Siglip
from onedva.train_config import TrainConfig
from onedva_runtime import placement

CONTEXT_NOISE = 0.1  # the most noise on a source context frame: what was decoded before is never quite the source
TEACHER_STEPS = 4  # of the teacher for each of the student's


class TrainingStep(nn.Module):
    """The model and whatever only training needs, as one module that wrappers for many processes can hold."""

    def __init__(
        self,
        network: OneDVA,
        train: TrainConfig,
        *,
        heads: AlignmentHeads | None = None,
        teacher: OneDVA | None = None,
        siglip: Siglip | None = None,
        lpips: LPIPS | None = None,
        generator: LatentDiT | None = None,
    ) -> None:
        super().__init__()
        self.network, self.train_config, self.heads = network, train, heads
        # a plain dict: neither trained nor saved
        self.frozen = {"teacher": teacher, "siglip": siglip, "lpips": lpips, "generator": generator}
        self.tokens = 0  # 1D latents of the newest batch

    def forward(self, batch: Batch, *, step: int, world: World = ALONE) -> dict[str, Tensor]:
        """Losses of a batch, `loss` their weighted sum. step and this process's rank: with the seed, all randomness."""
        train, config = self.train_config, self.network.config
        shared = np.random.default_rng([train.seed, step, 1])  # what all processes must agree on
        own = np.random.default_rng([train.seed, step, 2, world.rank])
        generator = torch.Generator(batch.video.device).manual_seed(int(own.integers(2**62)))
        torch.manual_seed(int(own.integers(2**62)))
        if train.stage == "post":
            return self.post(batch, shared, generator)
        is_key = not (batch.before is not None and train.stage == "joint")
        anchors = batch_anchors(config, batch, is_key=is_key, train=train, random=shared, world=world)
        self.tokens = anchors.shape[1]
        if train.stage == "distill":
            return self.distill(batch, anchors, shared, generator)
        if train.stage == "encoder":
            return self.encoder(batch, anchors)
        return self.joint(batch, anchors, is_key, shared, generator)

    def encoder(self, batch: Batch, anchors: Tensor) -> dict[str, Tensor]:
        """Deterministic preview: encoder and stem, no noise anywhere, the diffusion transformer at rest."""
        train, network = self.train_config, self.network
        is_key = torch.ones(len(anchors), dtype=torch.bool, device=batch.video.device)
        resolution = resolutions(batch)
        asked, has_latents = at_least_one(anchors)
        posterior = network.encoder(batch.video, resolution, is_key, asked, network.transform)
        condition = network.decoder.condition(
            posterior.structural_mean, posterior.latents_mean, asked, has_latents, resolution, is_key, network.transform
        )
        errors = losses.frame_errors(condition.preview, batch.video)
        parts = {
            "preview": losses.preview_loss(losses.relative(errors, errors, is_key, floor=ERROR_SCALE), is_key),
            "error": error_loss(posterior.predicted_error, errors, is_key, anchors.shape[1], torch.ones_like(is_key)),
        }
        return {"loss": parts["preview"] + train.error_weight * parts["error"], **parts}

    def joint(
        self, batch: Batch, anchors: Tensor, is_key: bool, random: np.random.Generator, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Flow loss at one time per clip beside preview, KL and error head."""
        train, network, video = self.train_config, self.network, batch.video
        count, frames = video.shape[0], video.shape[2]
        keys = torch.full((count,), is_key, device=video.device)
        t = flow.sample_time(count, p_full=train.p_full, generator=generator).to(video.device)
        t = t[:, None].expand(count, 1 + (frames - 1) // placement.PATCH_FRAMES).clone()
        noise = torch.randn(video.shape, generator=generator, device=video.device)
        if not is_key:
            t[:, 0] = 0.0  # the context frame is given
        noisy = flow.add_noise(video, noise, flow.per_frame(t, frames))
        if not is_key:
            context = self.context(batch, anchors.shape[1], random, generator)
            noisy = torch.cat([context[:, :, None], noisy[:, :, 1:]], dim=2)
        # a hook in a block is no friend of compilers: only where REPA looks
        siglip, lpips = self.frozen["siglip"], self.frozen["lpips"]
        with middle_features(network.decoder) if siglip is not None else nullcontext([]) as middle:
            output: TrainingOutput = network(
                video, anchors=anchors, is_key=keys, resolution=resolutions(batch), noisy=noisy, t=t
            )
        posterior = output.posterior
        errors = losses.frame_errors(output.video, video)
        preview_errors = losses.frame_errors(output.preview, video) if network.config.preview else errors
        counted = losses.relative(errors, preview_errors, keys, floor=ERROR_SCALE)
        parts = {"flow": (1.0, losses.flow_loss(counted, t, keys))}
        if network.config.preview:
            counted = losses.relative(preview_errors, preview_errors, keys, floor=ERROR_SCALE)
            parts["preview"] = (train.preview_weight, losses.preview_loss(counted, keys))
        coded = losses.coded_groups(keys, t.shape[1])
        kl = losses.kl_loss(posterior.structural_mean, posterior.structural_logvar, coded=coded)
        if anchors.shape[1]:
            kl = kl + losses.kl_loss(posterior.latents_mean, posterior.latents_logvar)
        parts["kl"] = (train.kl_weight, kl)
        whole = t[:, -1] == 1
        parts["error"] = (
            train.error_weight,
            error_loss(posterior.predicted_error, errors, keys, anchors.shape[1], whole),
        )
        if train.frame_difference_weight:
            difference = losses.frame_difference_loss(output.video, video, keys)
            parts["frame_difference"] = (train.frame_difference_weight, difference)
        if train.edge_weight:
            parts["edges"] = (train.edge_weight, losses.edge_loss(output.video, video, keys) / ERROR_SCALE)
        if train.self_alignment_weight and anchors.shape[1] and self.heads is not None:
            parts["self_alignment"] = (train.self_alignment_weight, self.heads.self_alignment(posterior, keys))
        if train.repa_weight and siglip is not None and self.heads is not None:
            parts["repa"] = (train.repa_weight, self.heads.repa(middle[0], siglip(video), keys))
        if train.lpips_weight and lpips is not None:
            parts["lpips"] = (
                train.lpips_weight,
                losses.lpips_loss(lpips, output.video, video, keys, generator=generator),
            )
        loss = sum((weight * part for weight, part in parts.values()), video.new_zeros(()))
        return {"loss": loss, **{name: part for name, (_, part) in parts.items()}}

    @torch.no_grad()
    def context(self, batch: Batch, tokens: int, random: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Context frames (B, 3, H, W): half the time this model's decode of the clip before, else source plus noise."""
        video, network = batch.video, self.network
        if batch.before is not None and random.random() < 0.5:
            before = to_video(torch.from_numpy(batch.before)).to(video.device)
            z = network.encode(before, tokens=tokens).latent_dist.mode()
            return network.decode(z, num_steps=1, generator=generator).sample[:, :, -1]
        sigma = CONTEXT_NOISE * torch.rand(len(video), 1, 1, 1, generator=generator, device=video.device)
        return video[:, :, 0] + sigma * torch.randn(video[:, :, 0].shape, generator=generator, device=video.device)

    def distill(
        self, batch: Batch, anchors: Tensor, random: np.random.Generator, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One of the student's 1–4 Euler steps: where the teacher gets in four times as many, from the same point.

        Progressive distillation (Salimans & Ho 2022) along the teacher's own path; a one-step decode keeps the clean
        video as its target, so that it does not inherit the teacher's error. Latents are the frozen encoder's.
        """
        teacher, network = self.frozen["teacher"], self.network
        assert isinstance(teacher, OneDVA)
        video, frames = batch.video, batch.video.shape[2]
        steps = int(random.integers(1, 5))
        at = int(random.integers(0, steps))
        times = flow.schedule(steps)
        asked, has_latents = at_least_one(anchors)
        is_key = torch.ones(len(anchors), dtype=torch.bool, device=video.device)
        resolution = resolutions(batch)
        noise = torch.randn(video.shape, generator=generator, device=video.device)
        with torch.no_grad():
            posterior = teacher.encoder(video, resolution, is_key, asked, teacher.transform)
            z = HybridLatents(
                posterior.structural_mean,
                posterior.latents_mean[:, : anchors.shape[1]],
                anchors,
                is_key,
                resolution,
                (video.shape[3], video.shape[4]),
            )
            noisy, target = noise, video
            if steps > 1:
                condition = teacher.condition(z)

                def follow(noisy: Tensor, start: float, end: float) -> Tensor:
                    path = np.linspace(start, end, TEACHER_STEPS + 1).tolist()
                    path = [max(now, flow.MIN_SCHEDULE_TIME) for now in path[:-1]] + [path[-1]]
                    ones = torch.ones(len(video), (frames + 3) // 4, device=video.device)
                    return flow.euler(
                        lambda x, t: teacher.decoder.velocity(x, ones * t, condition, teacher.transform), noisy, path
                    )

                for now, after in pairwise(times[: at + 1]):
                    noisy = follow(noisy, now, after)
                reached = follow(noisy, times[at], times[at + 1])
                # the clean video whose straight line from `noisy` passes through `reached`
                target = noisy + times[at] * (reached - noisy) / (times[at] - times[at + 1])
        condition = network.decoder.condition(
            z.structural,
            posterior.latents_mean,
            asked,
            has_latents,
            resolution,
            is_key,
            network.transform,
        )
        t = torch.full((len(video), (frames + 3) // 4), times[at], device=video.device)
        output = network.decoder.video(noisy, t, condition, network.transform)
        errors = losses.frame_errors(output, target)
        reference = losses.frame_errors(condition.preview, video) if network.config.preview else errors
        part = losses.flow_loss(losses.relative(errors, reference, is_key, floor=ERROR_SCALE), t, is_key)
        return {"loss": part, "one_step" if steps == 1 else "distill": part}

    def post(self, batch: Batch, random: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """The decoder on latents as generation gives them: the clip's own, noised and denoised by the generator.

        So each has a clip to be the target. The encoder rests; a batch has one length, as in the generator's training.
        """
        train, network, video = self.train_config, self.network, batch.video
        model = self.frozen["generator"]
        assert isinstance(model, LatentDiT)
        with torch.no_grad():
            z = predicted_latents(network, model, batch, random, generator, most=train.post_noise, own=train.post_own)
        self.tokens = z.latents.shape[1]
        condition = network.condition(z)
        groups = z.structural.shape[1]
        t = flow.sample_time(len(video), p_full=train.p_full, generator=generator).to(video.device)[:, None]
        t = t.expand(-1, groups)
        noise = torch.randn(video.shape, generator=generator, device=video.device)
        noisy = flow.add_noise(video, noise, flow.per_frame(t, video.shape[2]))
        output = network.decoder.video(noisy, t, condition, network.transform)
        errors = losses.frame_errors(output, video)
        preview_errors = losses.frame_errors(condition.preview, video) if network.config.preview else errors
        parts = {
            "flow": (
                1.0,
                losses.flow_loss(losses.relative(errors, preview_errors, z.is_key, floor=ERROR_SCALE), t, z.is_key),
            ),
            "edges": (train.edge_weight, losses.edge_loss(output, video, z.is_key) / ERROR_SCALE),
        }
        if network.config.preview:
            counted = losses.relative(preview_errors, preview_errors, z.is_key, floor=ERROR_SCALE)
            parts["preview"] = (train.preview_weight, losses.preview_loss(counted, z.is_key))
        loss = sum((weight * part for weight, part in parts.values()), video.new_zeros(()))
        return {"loss": loss, **{name: part for name, (_, part) in parts.items()}}


def resolutions(batch: Batch) -> Tensor:
    """(B, 4): frames, height, width, frames per second of each clip."""
    size = torch.tensor(batch.video.shape[2:], dtype=torch.float32, device=batch.fps.device)
    return torch.cat([size.expand(len(batch.video), 3), batch.fps[:, None].float()], dim=1).to(batch.video.device)


def at_least_one(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors (B, max(K, 1)) and `has_latents` (B,): graphs and kernels want at least one latent, used or not."""
    batch, count = anchors.shape
    has_latents = torch.full((batch,), count > 0, device=anchors.device)
    return (anchors if count else anchors.new_zeros(batch, 1)), has_latents


def batch_anchors(
    config: OneDVAConfig,
    batch: Batch,
    *,
    is_key: bool,
    train: TrainConfig,
    random: np.random.Generator,
    world: World = ALONE,
) -> Tensor:
    """Anchors (B, K) of a batch; K, shared by it and by all processes, is what tail dropout leaves.

    None, all, what the length policy would choose (the mean over the batch, times 2^±1), or log-uniform between.
    """
    grid = placement.grid_of(*batch.frames.shape[1:4])
    multiple = config.length_multiple
    longest = placement.longest(grid, max_tokens=min(config.queries, config.trained_tokens), is_key=is_key)
    kind, where = random.random(), random.random()
    details = [placement.detail_map(frames) for frames in batch.frames]
    if kind < train.p_no_latents:
        tokens = 0
    elif (kind := kind - train.p_no_latents) < train.p_all_latents:
        tokens = longest
    elif kind - train.p_all_latents < train.p_policy_latents:
        chosen = [
            placement.choose_tokens(
                detail, density=config.policy_density, max_tokens=longest, is_key=is_key, length_multiple=multiple
            )
            for detail in details
        ]
        mean = mean_over({"tokens": float(np.mean(chosen)) * batch.share * world.size}, world)["tokens"]
        tokens = placement.round_tokens(round(mean * 2 ** (2 * where - 1)), longest, length_multiple=multiple)
    else:
        asked = round(multiple * (longest / multiple) ** where)
        tokens = placement.round_tokens(max(asked, 1), longest, length_multiple=multiple)
    if config.anchors == "fixed":
        rows = [placement.fixed_anchors(grid, tokens, is_key=is_key)] * len(details)
    else:
        rows = [placement.place(detail, tokens, is_key=is_key, length_multiple=multiple) for detail in details]
    return torch.from_numpy(np.stack(rows)).to(batch.video.device)


def error_loss(predicted: Tensor, errors: Tensor, is_key: Tensor, tokens: int, counted: Tensor) -> Tensor:
    """Error head (B, K) against what decodes of `tokens` latents reached; counted (B,): which clips are decodes."""
    if not tokens or not bool(counted.any()):
        return predicted.sum() * 0.0
    weights = losses.frame_weights(is_key, errors.shape[1])
    reached = ((errors * weights).sum(dim=1) / weights.sum(dim=1)).clamp(min=1e-5).log()
    return losses.error_prediction_loss(predicted[counted, tokens - 1], reached[counted])
