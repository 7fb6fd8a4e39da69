"""Does a folder of graphs compute what the PyTorch model computes? Whole encodes and decodes, many shapes, one answer.

A bundle that fails here is not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onedva.flow import schedule
from onedva.model import HybridLatents, OneDVA, to_video
from onedva_runtime import placement
from onedva_runtime.backends.onnxruntime import load_onnxruntime
from onedva_runtime.manifest import FEW_STEPS
from onedva_runtime.noise import gaussian

ONE_STEP_DB = 60.0
FOUR_STEP_DB = 50.0
SMALL = 17 * 64 * 64  # pixels of a clip, up to which graphs are also run unoptimised, which takes its time


class ParityError(ValueError):
    """The graphs and the model disagree; the message says where and by how much."""


@dataclass(frozen=True)
class Case:
    """One shape to compare at: frames, height and width in pixels, 1D latents (0 = none sent), kind of each clip."""

    frames: int
    height: int
    width: int
    tokens: int
    is_key: tuple[bool, ...] = (True,)

    @property
    def batch(self) -> int:
        return len(self.is_key)

    def __str__(self) -> str:
        kind = "key" if all(self.is_key) else "mixed" if any(self.is_key) else "continuation"
        clips = "clip" if self.batch == 1 else "clips"
        return f"{self.batch}×{self.frames}×{self.height}×{self.width}, {self.tokens} latents, {kind} {clips}"


@dataclass(frozen=True)
class Parity:
    """What one case came to. PSNR in dB of the decoded float video against PyTorch's, peak 2 (the range [-1, 1])."""

    case: Case
    optimised: bool
    latents_error: float
    structural_error: float
    one_step_db: float
    four_step_db: float


def default_cases(*, max_tokens: int, frames: int, resolutions: Sequence[tuple[int, int]]) -> list[Case]:
    """Shortest, odd and longest length; every resolution; short and full clips; batches of both kinds of clip.

    frames: of a full clip; no case has more.
    """
    small = [
        Case(1, 64, 96, 5),
        Case(5, 64, 96, 0),
        Case(5, 64, 96, 1),
        Case(5, 16, 48, 1),  # a side of one patch
        Case(9, 96, 64, 37),
        Case(5, 64, 64, 16, is_key=(True, False, True)),
        Case(9, 64, 64, 16, is_key=(False,)),
        Case(frames, 64, 64, 16, is_key=(False, True)),
    ]
    cases = [c for c in small if c.frames <= frames and c.tokens <= max_tokens and (c.frames > 1 or all(c.is_key))]
    for height, width in resolutions:
        grid = placement.grid_of(frames, -(-height // 16) * 16, -(-width // 16) * 16)
        longest = placement.longest(grid, max_tokens=max_tokens)
        cases += [Case(frames, 16 * grid[1], 16 * grid[2], count) for count in sorted({1, min(77, longest), longest})]
    return cases


def verify(model: OneDVA, folder: Path, cases: Sequence[Case]) -> list[Parity]:
    """Compare every case with optimisations on, the small ones also with them off.

    Raises ParityError at the first case under 60 dB (1 step) or 50 dB (4 steps), naming it.
    """
    report = []
    small = [case for case in cases if case.frames * case.height * case.width <= SMALL]
    for optimised in (True, False):
        sessions = open_sessions(folder, optimised=optimised)
        for case in cases if optimised else small:
            parity = compare(model, sessions, case, optimised=optimised)
            report.append(parity)
            if not (parity.one_step_db >= ONE_STEP_DB and parity.four_step_db >= FOUR_STEP_DB):
                raise ParityError(
                    f"parity broke at {case} (optimisations {'on' if optimised else 'off'}): 1 step "
                    f"{parity.one_step_db:.1f} dB (≥ {ONE_STEP_DB:.0f}), 4 steps {parity.four_step_db:.1f} dB "
                    f"(≥ {FOUR_STEP_DB:.0f}), latents off by {parity.latents_error:.2g}, structural by "
                    f"{parity.structural_error:.2g}"
                )
    return report


def open_sessions(folder: Path, *, optimised: bool) -> dict[str, Any]:
    """ONNX Runtime CPU sessions of the graphs that are there."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in ("encoder", "condition", "velocity", "one_step", *sorted(FEW_STEPS))
        if (folder / f"{name}.onnx").exists()
    }


@torch.inference_mode()
def compare(model: OneDVA, sessions: dict[str, Any], case: Case, *, optimised: bool) -> Parity:
    """Run one case through both, each on its own latents, from the same pixels and noise."""
    frames = test_frames(case)
    grid = placement.grid_of(case.frames, case.height, case.width)
    count = max(case.tokens, 1)
    details = [placement.detail_map(clip) for clip in frames]
    anchors = np.stack(
        [placement.place(detail, count, is_key=key) for detail, key in zip(details, case.is_key, strict=True)]
    )
    noise = np.stack(
        [gaussian(0, first_frame=0, frames=case.frames, height=case.height, width=case.width)] * case.batch
    )
    resolution = np.array([[case.frames, case.height, case.width, 24.0]] * case.batch, np.float32)
    is_key = np.array(case.is_key)
    times = np.ones((case.batch, grid[0]), np.float32)
    times[~is_key, 0] = 0.0
    noise[~is_key, :, :1] = frames[~is_key, :1].transpose(0, 4, 1, 2, 3) / np.float32(127.5) - 1

    structural, latents, _ = sessions["encoder"].run(
        ["structural", "latents", "predicted_error"],
        {"frames": frames, "resolution": resolution, "is_key": is_key, "anchors": anchors},
    )
    names = ["context", "keys_values", "preview"]
    latent_feeds = {
        "structural": structural,
        "latents": latents if case.tokens else np.zeros_like(latents),
        "anchors": anchors if case.tokens else np.zeros_like(anchors),  # as model and runtime do where none is sent
        "has_latents": np.full(case.batch, case.tokens > 0),
        "resolution": resolution,
        "is_key": is_key,
    }
    condition = dict(zip(names, sessions["condition"].run(names, latent_feeds), strict=True))

    video = to_video(torch.from_numpy(frames))
    key = torch.from_numpy(is_key)
    z = model.encode(video, anchors=torch.from_numpy(anchors), is_key=key).latent_dist.mode()
    thin: HybridLatents = z if case.tokens else z.thin(0)
    known = model.condition(thin)
    wanted = {value.name for value in sessions["velocity"].get_inputs()}
    shared = {name: value for name, value in condition.items() if name in wanted}
    scores = {}
    for steps in (1, 4):
        got, reference = noise.copy(), torch.from_numpy(noise)
        for now, after in pairwise(schedule(steps)):
            at, dt = times * np.float32(now), after - now
            feeds = {"noisy_video": got, "t": at, **shared}
            got = got + np.float32(dt) * sessions["velocity"].run(["velocity"], feeds)[0]
            reference = reference + dt * model.decoder.velocity(reference, torch.from_numpy(at), known, model.transform)
        error = float(np.square(got - reference.numpy()).mean())
        scores[steps] = 10 * np.log10(4.0 / max(error, 1e-12))
        packed = shortcut(sessions, latent_feeds, frames[:, 0], noise, times, steps=steps)
        if packed is not None:
            decoded = model.decode(thin, num_steps=steps, noise=torch.from_numpy(noise), context_frame=video[:, :, 0])
            scores[steps] = min(scores[steps], levels_db(packed, decoded.sample.numpy()))
    return Parity(
        case,
        optimised,
        float(np.abs(latents - z.latents.numpy()).max()),
        float(np.abs(structural - z.structural.numpy()).max()),
        float(scores[1]),
        float(scores[4]),
    )


def shortcut(
    sessions: dict[str, Any],
    latent_feeds: dict[str, np.ndarray],
    context_frame: np.ndarray,
    noise: np.ndarray,
    times: np.ndarray,
    *,
    steps: int,
) -> np.ndarray | None:
    """Frames (B, T, H, W, 3) by the graphs that make them without a velocity of pixels; None where there are none.

    context_frame (B, H, W, 3); noise as `model.decode` takes it; times (B, Tg): 0 for a given group, else 1.
    """
    feeds = {**latent_feeds, "context_frame": context_frame}
    if steps == 1 and "one_step" in sessions:
        return sessions["one_step"].run(["frames"], feeds)[0]
    if steps == 1 or "begin" not in sessions:
        return None
    state, *made = sessions["begin"].run(["state", "context", "keys_values"], {**feeds, "noise": noise})
    known = dict(zip(("context", "keys_values"), made, strict=True))
    path = schedule(steps)
    for now, after in pairwise(path[:-1]):
        velocity = sessions["step"].run(["velocity"], {"state": state, "t": times * np.float32(now), **known})[0]
        state = state + np.float32(after - now) * velocity
    last = {"state": state, "t": times * np.float32(path[-2]), "is_key": latent_feeds["is_key"]}
    return sessions["finish"].run(["frames"], {**last, **known, "context_frame": context_frame})[0]


def levels_db(packed: np.ndarray, reference: np.ndarray) -> float:
    """PSNR of frames (B, T, H, W, 3) uint8 against a video (B, 3, T, H, W), beyond what rounding costs.

    Rounding moves a value by up to half a level; only what is further away counts.
    """
    exact = np.clip((reference.transpose(0, 2, 3, 4, 1) + 1) * 127.5, 0, 255)
    beyond = np.maximum(np.abs(packed - exact) - 0.5, 0)
    return float(10 * np.log10(255.0**2 / max(float(np.square(beyond).mean()), 1e-8)))


def test_frames(case: Case) -> np.ndarray:
    """Made-up clips with texture and motion: (B, T, H, W, 3) uint8."""
    from onedva_runtime.clips import make_clip

    return np.stack([make_clip(case.frames, case.height, case.width, seed=seed) for seed in range(case.batch)])


def as_json(report: Sequence[Parity]) -> dict[str, Any]:
    """The parity report as the manifest keeps it."""
    return {
        "reference": f"PyTorch {torch.__version__} float32",
        "bars_db": {"one_step": ONE_STEP_DB, "four_step": FOUR_STEP_DB},
        "worst_db": {
            "one_step": round(min(parity.one_step_db for parity in report), 1),
            "four_step": round(min(parity.four_step_db for parity in report), 1),
        },
        "cases": [
            {key: round(value, 7) if isinstance(value, float) else value for key, value in asdict(parity).items()}
            for parity in report
        ],
    }
