"""Training runs: one overfits a clip, one resumed equals one uninterrupted, and what stops a run says why."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onedva import losses
from onedva import train as training
from onedva.checkpoint import load_model
from onedva.config import OneDVAConfig, TrainConfig
from onedva.data import Clip, centre_clip
from onedva.evaluate import evaluate, mean_by_length
from onedva.model import OneDVA, to_video

QUICK: dict[str, Any] = {
    "frames": 5,
    "sizes": ((48, 64, 0.5), (32, 32, 0.5)),
    "positions_per_batch": 32,
    "warmup": 5,
    "evaluate_every": 0.0,
    "save_every": 0.0,  # after every step
}


@pytest.fixture(autouse=True)
def quick_start(quick_pca: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear start from one crop, and float32 whatever this machine is faster at."""

    def linear_model(config: OneDVAConfig, clips: list[Clip]) -> OneDVA:
        torch.manual_seed(0)
        model = OneDVA(config)
        crop = centre_clip(clips[0], frames=config.clip_frames, size=64)
        components = config.structural_channels + config.latent_channels
        model.start_from_pca(quick_pca(to_video(torch.from_numpy(crop)[None]), components))
        return model

    monkeypatch.setattr(training, "linear_model", linear_model)
    monkeypatch.setattr(training, "fit_neighbours", lambda model, clips: None)
    monkeypatch.setattr(training, "bf16_is_faster", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=12, height=64, width=80, seed=seed)
    return tmp_path / "videos"


def start(folder: Path, output: Path, model: OneDVAConfig, *, resume: bool = False, **changes: Any) -> dict[int, float]:
    config = TrainConfig(**{**QUICK, "steps": 6, **changes})
    return training.run(clips=folder, output=output, model=model, train=config, resume=resume, quiet=True)


def log_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_a_run_overfits_one_clip(tmp_path: Path, nano, make_frames, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = Clip("only", make_frames(1, 5, 64, 64)[0], 24.0)

    def only(folder: Path, *, split: str, minimum_frames: int) -> list[Clip]:
        if split == "dev":
            raise FileNotFoundError
        return [clip]

    monkeypatch.setattr(training, "load_clips", only)
    model = nano(structural_channels=2, latent_channels=4)
    floor = mean_by_length(evaluate(training.linear_model(model, [clip]), [clip], tokens=(0, 16), size=64))
    rates: dict[str, Any] = {"learning_rate": 3e-3, "muon_learning_rate": 1e-2, "ema": 0.9, "p_full": 1.0}
    start(tmp_path, tmp_path / "run", model, steps=80, sizes=((64, 64, 1.0),), save_every=60.0, **rates)
    reached = mean_by_length(evaluate(load_model(tmp_path / "run"), [clip], tokens=(0, 16), size=64))
    assert reached[0] > floor[0] + 0.3  # two channels a patch: little to go by
    assert reached[16] > floor[16] + 1.0
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 81))
    assert log[-1]["rate"] < 0.06 < 0.99 < max(line["rate"] for line in log)


class Stop(Exception):
    """What ends a run in the middle."""


def stop_at(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.training_step

    def step_or_stop(*args: Any, step: int, **options: Any) -> dict[str, float]:
        if step == last:
            raise Stop
        return original(*args, step=step, **options)

    monkeypatch.setattr(training, "training_step", step_or_stop)


@pytest.mark.parametrize(
    "changes", [{}, {"anchors": "fixed", "pca": False, "preview": False, "prediction": "velocity"}]
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    changes: dict[str, Any], tmp_path: Path, folder: Path, nano, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nano(**changes)
    start(folder, tmp_path / "whole", model)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Stop):
            start(folder, tmp_path / "parts", model)
    assert len(log_of(tmp_path / "parts")) == 3
    torch.manual_seed(1234)  # nothing hangs on the state the process happens to be in
    start(folder, tmp_path / "parts", model, resume=True)

    for name in ("training.safetensors", "model.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert set(whole) == set(parts)
        assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "parts"), strict=True):
        del one["elapsed"], other["elapsed"]
        assert one == other


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, folder: Path, nano, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = losses.flow_loss, iter(range(100))
    monkeypatch.setattr(losses, "flow_loss", lambda *a: original(*a) * (float("nan") if next(calls) == 2 else 1.0))
    with pytest.raises(FloatingPointError, match="loss is nan at step 2; the last checkpoint is in"):
        start(folder, tmp_path / "run", nano())
    assert len(log_of(tmp_path / "run")) == 2
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "training.safetensors").values())


def test_an_output_already_begun_is_refused_and_left_alone(tmp_path: Path, folder: Path, nano) -> None:
    start(folder, tmp_path / "run", nano(), steps=1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "training.safetensors", "train.json", "log.jsonl"}
    with pytest.raises(FileExistsError, match="already holds a run: resume it, or choose another folder"):
        start(folder, tmp_path / "run", nano(), steps=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_nothing_to_resume_is_an_error(tmp_path: Path, folder: Path, nano) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        start(folder, tmp_path / "run", nano(), resume=True)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        start(tmp_path / "missing", tmp_path / "run", nano())


def test_dev_scores_are_returned_and_kept(tmp_path: Path, folder: Path, nano, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "MANIFEST.csv").write_text("name,split\n0.mp4,train\n1.mp4,dev\n")
    monkeypatch.setattr(training, "evaluate", lambda *a, **o: evaluate(a[0], a[1], tokens=(0, 16), size=32))
    means = start(folder, tmp_path / "run", nano(), steps=2)
    assert set(means) == {0, 16} and all(5 < value < 45 for value in means.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert {clip["clip"] for line in lines for clip in line["clips"]} == {"1.mp4"}
    assert lines[-1]["psnr"] == {str(length): value for length, value in means.items()}


@pytest.fixture
def batch(folder: Path) -> Iterator[training.Batch]:
    clips = training.load_clips(folder, split="train", minimum_frames=5)
    sampler = training.ClipSampler(clips, frames=5, sizes=((48, 64, 1.0),), positions_per_batch=48, seed=0)
    yield sampler(0)


def one_step(network: OneDVA, batch: training.Batch, **changes: Any) -> dict[str, float]:
    network.zero_grad()
    config = TrainConfig(**{**QUICK, **changes})
    return training.training_step(network, batch, step=4, train=config, bf16=False)


def test_a_continuation_step_ignores_its_context_frame(
    batch: training.Batch, random_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_model().requires_grad_(True)
    calls: list[dict[str, Tensor]] = []
    network.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    kept = one_step(network, batch, p_continuation=1.0, p_no_latents=0.0)
    original = losses.frame_errors

    def wrong_first_frame(predicted: Tensor, video: Tensor) -> Tensor:
        errors = original(predicted, video)
        return torch.cat([errors[:, :1] + 1e4, errors[:, 1:]], dim=1)

    monkeypatch.setattr(losses, "frame_errors", wrong_first_frame)
    assert one_step(network, batch, p_continuation=1.0, p_no_latents=0.0) == kept
    assert one_step(network, batch, p_continuation=0.0)["flow"] > 1e3

    given, key = calls[0], calls[-1]
    assert not given["is_key"].any() and key["is_key"].all()
    assert (given["t"][:, 0] == 0).all() and (given["t"][:, 1] > 0).all()
    assert given["anchors"].min() >= 12  # group 0 has 3×4 positions, none coded
    blur = given["noisy"][:, :, 0] - batch.video[:, :, 0]
    assert 0 < blur.std() < 0.1
    assert (key["noisy"][:, :, 0] - batch.video[:, :, 0]).std() > 0.1


def test_a_continuation_run_trains(tmp_path: Path, folder: Path, nano) -> None:
    start(folder, tmp_path / "run", nano(), steps=3, p_continuation=1.0)
    weights = load_model(tmp_path / "run")
    before = training.linear_model(nano(), training.load_clips(folder, split="train", minimum_frames=5))
    assert not torch.equal(weights.decoder.absent_structural, before.decoder.absent_structural)


def test_the_step_decides_what_is_random(batch: training.Batch, random_model) -> None:
    network = random_model().requires_grad_(True)
    first = one_step(network, batch)
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    torch.manual_seed(77)
    assert one_step(network, batch) == first
    again = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    assert one_step(network, batch, seed=1) != first


def test_the_loss_is_the_weighted_sum(batch: training.Batch, random_model) -> None:
    network = random_model().requires_grad_(True)
    weights = {"preview": 0.7, "kl": 0.01, "frame_difference": 0.3, "error": 0.2}
    values = one_step(network, batch, p_full=1.0, **{f"{name}_weight": weight for name, weight in weights.items()})
    assert all(values[name] > 0 for name in weights)
    wanted = values["flow"] + sum(weight * values[name] for name, weight in weights.items())
    assert values["loss"] == pytest.approx(wanted, rel=1e-5)
