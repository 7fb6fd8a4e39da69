"""One process and two: the same loss at equal global batch, and a sharded run whose checkpoint one process reads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from safetensors.torch import load_file

from onedva import steps
from onedva.checkpoint import load_model, load_training
from onedva.config import OneDVAConfig
from onedva.data import Batch
from onedva.distributed import ALONE, World, mean_over, placed_like, start_world, whole, wrap
from onedva.steps import batch_anchors
from training_runs import log_of, quick_config, train_apart


@pytest.fixture
def folder(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=12, height=64, width=80, seed=seed)
    return tmp_path / "videos"


def test_alone_nothing_is_wrapped_sent_or_moved() -> None:
    layer = torch.nn.Linear(2, 2)
    assert wrap(layer, ALONE, sharded=True) is layer
    values = {"loss": 0.1}
    assert mean_over(values, ALONE) is values
    tensor = torch.ones(3)
    assert whole(tensor) is tensor and placed_like(tensor, torch.zeros(3)) is tensor


def test_the_device_is_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_world("cpu") == ALONE
    with pytest.raises(ValueError, match="device must be cpu or cuda, got 'tpu'"):
        start_world("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_world().device.type == "cpu"
    with pytest.raises(ValueError, match="PyTorch finds no CUDA GPU"):
        start_world("cuda")


def test_processes_part(tmp_path: Path) -> None:
    """DDP that goes last takes no lock with it: of these twelve times, one or two used to hang for good."""
    command = [sys.executable, worlds.__file__, str(tmp_path), "12"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def test_processes_agree_on_the_number_of_latents(
    nano: Callable[..., OneDVAConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has clips of its own, and the policy's mean is that over all of them, by how many each process has."""
    config = nano(length_multiple=4, policy_density=10.0)
    random = np.random.default_rng(0)
    frames = random.integers(0, 255, (4, 9, 48, 64, 3), dtype=np.uint8)
    frames[:3] = 0
    frames[3, :, :, 32:] = 0  # detail in one of four clips, in half of it
    policy = quick_config(p_no_latents=0.0, p_all_latents=0.0, p_policy_latents=1.0)

    def latents(rows: slice, world: World) -> int:
        part = frames[rows]
        share = len(part) / len(frames) if world.size > 1 else 1.0
        batch = Batch(torch.zeros(0), part, torch.zeros(len(part)), share=share)
        random = np.random.default_rng(5)
        return batch_anchors(config, batch, is_key=True, train=policy, random=random, world=world).shape[1]

    wanted = latents(slice(4), ALONE)
    alone = [latents(rows, ALONE) for rows in (slice(3), slice(3, None))]
    assert alone[0] < wanted < alone[1]

    sent: list[float] = []
    worlds = [World(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    monkeypatch.setattr(steps, "mean_over", lambda values, world: (sent.append(values["tokens"]), values)[1])
    parts = (slice(3), slice(3, None))
    for rows, world in zip(parts, worlds, strict=True):
        latents(rows, world)
    monkeypatch.setattr(steps, "mean_over", lambda values, world: {"tokens": sum(sent) / 2})
    assert [latents(rows, world) for rows, world in zip(parts, worlds, strict=True)] == [wanted, wanted]


def finished(*arguments: Any, **options: Any) -> None:
    process = train_apart(*arguments, **options)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert "UserWarning" not in output, output


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["joint", "encoder"])
def test_two_processes_reach_the_loss_of_one(stage: str, tmp_path: Path, folder: Path, nano) -> None:
    # an odd number of clips: unequal shares; t = 1, or the two draws of t would differ by more than all else
    changes = {"stage": stage, "steps": 10, "positions_per_batch": 120, "p_full": 1.0, "save_every": 60.0}
    finished(folder, tmp_path / "one", nano(), **changes)
    finished(folder, tmp_path / "two", nano(), processes=2, **changes)
    one, two = (log_of(tmp_path / name) for name in ("one", "two"))
    assert [line["tokens"] for line in one] == [line["tokens"] for line in two]
    losses = [np.array([line["loss"] for line in log]) for log in (one, two)]
    assert np.abs(losses[1] / losses[0] - 1).mean() < 0.02
    assert losses[1][-3:].mean() == pytest.approx(losses[0][-3:].mean(), rel=0.02)
    if stage == "encoder":  # nothing random in it
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"conditioning": "in_context", "stem_depth": 0}])
def test_a_sharded_run_leaves_a_checkpoint_for_any_number_of_processes(
    model: dict[str, Any], tmp_path: Path, folder: Path, nano
) -> None:
    changes = {"optimizer": "adamw", "steps": 3, "positions_per_batch": 120, "p_full": 1.0, "save_every": 60.0}
    config = nano(**model)
    finished(folder, tmp_path / "one", config, **changes)
    finished(folder, tmp_path / "run", config, processes=2, sharded=True, **changes)
    sharded = load_file(tmp_path / "run" / "training.safetensors")
    whole = load_file(tmp_path / "one" / "training.safetensors")
    assert {name: tensor.shape for name, tensor in sharded.items()} == {n: t.shape for n, t in whole.items()}
    load_model(tmp_path / "run")
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("run", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    for processes, steps_now in ((1, 5), (2, 7)):
        again = {**changes, "steps": steps_now, "sharded": processes > 1}
        finished(folder, tmp_path / "run", config, processes=processes, resume=True, **again)
        assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, steps_now + 1))
    assert load_training(tmp_path / "run")[1]["step"] == 7
