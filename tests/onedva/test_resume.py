"""Checkpoints of a run: one resumed equals one uninterrupted, bit for bit; a killed one loses only what is newer."""

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from onedva import train as training
from onedva.checkpoint import load_model, load_training
from onedva.config import OneDVAConfig
from training_runs import log_of, quick_config, quick_start, train_apart


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "linear_start", quick_start)
    monkeypatch.setattr(training, "bf16_is_faster", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=18, height=64, width=80, seed=seed)
    return tmp_path / "videos"


def start(folder: Path, output: Path, model: OneDVAConfig, *, init: Path | None, resume: bool, **changes: Any) -> None:
    config = quick_config(**changes)
    training.run(
        clips=folder, output=output, model=model, train=config, start=init, resume=resume, quiet=True, device="cpu"
    )


class Stop(Exception):
    """What ends a run in the middle."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.Loop.update

    def update_or_stop(loop: training.Loop, micro: list[Any]) -> dict[str, float]:
        if loop.step == step:
            raise Stop
        return original(loop, micro)

    monkeypatch.setattr(training.Loop, "update", update_or_stop)


VELOCITY = {"pca": False, "prediction": "velocity", "anchors": "fixed"}
LENGTHS = {"frames": ((9, 0.5), (5, 0.5))}


@pytest.mark.parametrize(
    ("model", "train"),
    [
        pytest.param({"clip_frames": 9}, {"p_continuation": 0.5, **LENGTHS}, id="joint"),
        pytest.param({}, {"stage": "encoder"}, id="encoder"),
        pytest.param({}, {"stage": "distill"}, id="distill"),
        pytest.param({}, {"optimizer": "adamw", "self_alignment_weight": 0.1}, id="adamw"),
        pytest.param(VELOCITY, {"p_full": 0.1}, id="velocity"),
        pytest.param({}, {"workers": 1, "accumulate": 2, "p_continuation": 0.5}, id="accumulate"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    model: dict[str, Any],
    train: dict[str, Any],
    tmp_path: Path,
    folder: Path,
    nano,
    random_model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    init = tmp_path / "init" if train.get("stage") == "distill" else None
    if init:
        random_model(**model).save_pretrained(init)
    start(folder, tmp_path / "whole", nano(**model), init=init, resume=False, **train)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Stop):
            start(folder, tmp_path / "parts", nano(**model), init=init, resume=False, **train)
    assert len(log_of(tmp_path / "parts")) == 3
    torch.manual_seed(1234)  # nothing hangs on the state the process happens to be in
    start(folder, tmp_path / "parts", nano(**model), init=None, resume=True, **train)

    for name in ("training.safetensors", "model.safetensors"):
        whole, parts = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert set(whole) == set(parts)
        assert [key for key in whole if not torch.equal(whole[key], parts[key])] == []
    logs = [log_of(tmp_path / run) for run in ("whole", "parts")]
    assert len(logs[0]) == 6 and len({line["loss"] for line in logs[0]}) == 6
    for one, other in zip(*logs, strict=True):
        del one["clips_per_second"], other["clips_per_second"]
        assert one == other


def test_more_steps_and_another_optimizer_or_loss_can_be_asked_for_on_resuming(
    tmp_path: Path, folder: Path, nano, caplog: pytest.LogCaptureFixture
) -> None:
    start(folder, tmp_path / "run", nano(), init=None, resume=False, steps=2)
    changes: dict[str, Any] = {"optimizer": "adamw", "only": ("decoder.",), "self_alignment_weight": 0.1}
    with caplog.at_level(logging.WARNING, "onedva"):
        start(folder, tmp_path / "run", nano(), init=None, resume=True, steps=4, **changes)
    assert "the optimizer was muon: its state begins anew" in caplog.text
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2, 3, 4]
    tensors, facts = load_training(tmp_path / "run")
    assert facts["step"] == 4 and facts["optimizer"] == "adamw"
    state = [name for name in tensors if name.startswith("optimizer.")]
    assert state and all(name.split(".")[2] == "decoder" for name in state)


def test_a_run_of_another_version_is_refused(tmp_path: Path, folder: Path, nano) -> None:
    start(folder, tmp_path / "run", nano(), init=None, resume=False, steps=1)
    tensors, facts = load_training(tmp_path / "run")
    del tensors["module.network.encoder.norm.weight"]
    training.save_training(tmp_path / "run", tensors, facts)
    with pytest.raises(ValueError, match=r"lacks network\.encoder\.norm\.weight: it is of another version"):
        start(folder, tmp_path / "run", nano(), init=None, resume=True)


@pytest.mark.slow
def test_a_killed_run_loses_at_most_what_is_newer_than_its_checkpoint(tmp_path: Path, folder: Path, nano) -> None:
    output = tmp_path / "run"
    process = train_apart(folder, output, nano(), steps=10_000)
    try:
        deadline = time.monotonic() + 240
        while not (output / "log.jsonl").exists() or (output / "log.jsonl").read_bytes().count(b"\n") < 5:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout and process.stdout.read()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    tensors, facts = load_training(output)
    steps = (output / "log.jsonl").read_bytes().count(b"\n")
    assert 4 <= steps - 1 <= facts["step"] <= steps  # every step is saved right after its line
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    load_model(output)
    reached = facts["step"]
    start(folder, output, nano(), init=None, resume=True, steps=reached + 2)
    assert [line["step"] for line in log_of(output)] == list(range(1, reached + 3))
