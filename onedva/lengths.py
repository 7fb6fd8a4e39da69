"""How well a clip's number of latents is chosen: every policy against an oracle that tries all lengths.

    onedva eval CHECKPOINT --clips FOLDER --policies

Each clip is decoded at a grid of lengths once; policies (`onedva.policies`) are then compared by the tokens they spend,
on average over clips, at equal pooled error: the mean of the clips' MSE, as one long file of all of them would have.
PSNR here is of that error, uncapped: a mean of decibels would reward spending on easy clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from onedva import policies
from onedva.config import OneDVAConfig
from onedva.data import Clip, centre_clip
from onedva.evaluate import lengths_of
from onedva.model import OneDVA, to_frames, to_video
from onedva.policies import Curve, pooled, tokens_at
from onedva_runtime import placement
from onedva_runtime.warp import hold_still

SMALLEST_ERROR = 1e-7  # of MSE relative to 255²: 70 dB; keeps logarithms finite where a blank clip comes back exactly
SHARES = (0.25, 0.5)  # of the full length: the fixed lengths that policies are held against
TARGETS = tuple(range(24, 42, 2))  # dB


def motion_score(frames: NDArray[np.uint8]) -> float:
    """Mean absolute difference of neighbouring frames (T, H, W, 3) uint8, in levels of 255."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def measure_curves(
    model: OneDVA,
    clips: Sequence[Clip],
    *,
    spacing: int = 64,
    steps: int = 1,
    size: int = 256,
    seed: int = 0,
    autocast: bool = False,
    progress: bool = False,
) -> list[Curve]:
    """Decode every clip (the view of `onedva.evaluate`) at every multiple of `spacing` latents, and at the longest.

    Raises ValueError for a spacing that is no multiple of `length_multiple`, where a prefix would not be what placement
    gives.
    """
    config = model.config
    if spacing < 1 or spacing % config.length_multiple:
        raise ValueError(f"spacing must be a positive multiple of {config.length_multiple}, got {spacing}")
    model.eval()
    device = next(model.parameters()).device
    lengths = lengths_of(config, range(0, config.queries + spacing, spacing), size=size)
    curves = []
    for clip in track(clips, "lengths", console=Console(stderr=True), disable=not progress):
        frames = centre_clip(clip, frames=config.clip_frames, size=size)
        video = to_video(torch.from_numpy(frames)[None]).to(device)
        noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        errors = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            posterior = model.encode(video, tokens=lengths[-1], fps=clip.fps, follow_camera=True).latent_dist
            z = posterior.mode()
            for count in lengths:
                decoded = to_frames(model.decode(z.thin(count), num_steps=steps, noise=noise).sample)[0]
                errors.append(np.square((decoded.astype(np.float64) - frames) / 255).mean())
            predicted = posterior.output.predicted_error[0].double().exp() / 4  # from the scale of [-1, 1]
        camera = z.cameras[0] if z.cameras else None
        held = frames if camera is None else hold_still(frames, camera)
        curves.append(
            Curve(
                clip=clip.name,
                lengths=np.array(lengths),
                errors=np.maximum(errors, SMALLEST_ERROR),
                predicted=predicted.cpu().numpy(),
                detail=placement.detail_map(held),
                motion=motion_score(frames),
            )
        )
    return curves


def policy_report(curves: Sequence[Curve], config: OneDVAConfig) -> dict[str, Any]:
    """Every policy against fixed lengths, as plain data; policies that cannot reach an error have None there.

    Raises ValueError for no curves.
    """
    if not curves:
        raise ValueError("no clips to choose lengths for")
    full = int(curves[0].lengths[-1])
    frontiers = {
        "fixed": pooled(curves, policies.fixed(curves)),
        "auto": pooled(curves, policies.auto(curves, config)),
        "error head, equal slopes": pooled(curves, policies.head_slope(curves, config)),
        "error head, one target": pooled(curves, policies.head_target(curves, config)),
        "oracle": pooled(curves, policies.oracle(curves)),
    }
    chosen = policies.auto_lengths(curves, config, density=config.policy_density)
    calibrated = pooled(curves, [chosen])
    same = tokens_at(frontiers["fixed"], calibrated.errors[0])
    return {
        "clips": len(curves),
        "full": full,
        "at_fixed": [at_fixed(curves, frontiers, share * full) for share in SHARES],
        "auto": {
            "density": config.policy_density,
            "tokens": float(calibrated.tokens[0]),
            "psnr_db": decibels(calibrated.errors[0]),
            "fixed_tokens_for_as_much": same,
            "tokens_by_clip": {curve.clip: count for curve, count in zip(curves, chosen, strict=True)},
            "rank_correlation_with_motion": policies.spearman(chosen, [curve.motion for curve in curves]),
        },
        "error_head": head_accuracy(curves),
        "targets": [row for target in TARGETS if (row := target_accuracy(curves, config, float(target)))],
        "frontiers": {
            name: {"tokens": found.tokens.tolist(), "psnr_db": [decibels(error) for error in found.errors]}
            for name, found in frontiers.items()
        },
        "curves": [
            {
                "clip": curve.clip,
                "motion": curve.motion,
                "lengths": curve.lengths.tolist(),
                "psnr_db": [decibels(error) for error in curve.errors],
            }
            for curve in curves
        ],
    }


def at_fixed(curves: Sequence[Curve], frontiers: dict[str, policies.Frontier], length: float) -> dict[str, Any]:
    """Tokens of every policy at the pooled error of one fixed length, and as a share of it."""
    error = pooled(curves, [[length] * len(curves)]).errors[0]
    tokens = {name: tokens_at(found, error) for name, found in frontiers.items() if name != "fixed"}
    shares = {name: None if count is None else count / length for name, count in tokens.items()}
    return {"fixed": length, "psnr_db": decibels(error), "tokens": tokens, "share": shares}


def head_accuracy(curves: Sequence[Curve]) -> dict[str, float]:
    """Predicted less measured dB over all clips and measured lengths above none: mean and root mean square."""
    errors = [
        decibels(float(curve.predicted[length - 1])) - decibels(float(error))
        for curve in curves
        for length, error in zip(curve.lengths.tolist(), curve.errors, strict=True)
        if length
    ]
    return {"bias_db": float(np.mean(errors)), "rms_db": float(np.sqrt(np.mean(np.square(errors))))}


def target_accuracy(curves: Sequence[Curve], config: OneDVAConfig, target: float) -> dict[str, Any] | None:
    """Reached less asked dB at one target, over the clips whose length it decides; None where there are none.

    A clip that no length is predicted to bring there, or that the shortest already does, says nothing of accuracy. What
    is reached between measured lengths is interpolated.
    """
    reached, tokens = [], []
    for curve in curves:
        count = policies.target_length(curve, target, config)
        allowed = 10 ** (-target / 10)
        if curve.predicted[int(count) - 1] > allowed or curve.predicted[0] <= allowed:
            continue
        reached.append(decibels(curve.error_at(count)) - target)
        tokens.append(count)
    if not reached:
        return None
    return {
        "asked_db": target,
        "clips": len(reached),
        "tokens": float(np.mean(tokens)),
        "bias_db": float(np.mean(reached)),
        "rms_db": float(np.sqrt(np.mean(np.square(reached)))),
    }


def decibels(error: float) -> float:
    """PSNR of an MSE relative to 255²."""
    return float(-10 * np.log10(error))
