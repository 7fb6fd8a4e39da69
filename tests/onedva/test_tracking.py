"""What a run leaves behind while it goes: lines, TensorBoard events, and nothing of steps that were lost."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from onedva.tracking import Tracker, take_back


def track(folder: Path, *, step: int = 0, active: bool = True) -> None:
    with Tracker(folder, stage="joint", step=step, quiet=True, active=active) as tracker:
        for now in (step + 1, step + 2):
            tracker.step(now, done=0.1 * now, seconds=0.5, clips=4, values={"loss": 1.0 / now, "flow": 0.5})
        tracker.scores(step + 2, minutes=1.23, means={0: 27.5, 64: 29.0}, clips=[{"clip": "a.mp4", "psnr": 27.5}])
        tracker.picture(step + 2, "dev/a.mp4", np.zeros((6, 8, 3), np.uint8))


def test_lines_say_what_every_step_and_every_evaluation_gave(tmp_path: Path) -> None:
    track(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [
        {"stage": "joint", "step": 1, "clips_per_second": 8.0, "loss": 1.0, "flow": 0.5},
        {"stage": "joint", "step": 2, "clips_per_second": 8.0, "loss": 0.5, "flow": 0.5},
    ]
    assert json.loads((tmp_path / "eval.jsonl").read_text()) == {
        "stage": "joint",
        "step": 2,
        "minutes": 1.2,
        "psnr": {"0": 27.5, "64": 29.0},
        "clips": [{"clip": "a.mp4", "psnr": 27.5}],
    }


def test_tensorboard_has_losses_scores_and_pictures_and_forgets_lost_steps(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(tmp_path)
    logging.disable(logging.WARNING)  # it says which lost steps it drops
    try:
        track(tmp_path, step=1)
        events = EventAccumulator(str(tmp_path / "tensorboard" / "joint")).Reload()
    finally:
        logging.disable(logging.NOTSET)
    loss = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert loss == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [event.step for event in events.Scalars("dev/psnr_64")] == [3]
    assert events.Tags()["images"] == ["dev/a.mp4"]
    picture = events.Images("dev/a.mp4")[-1]
    assert (picture.width, picture.height) == (8, 6)


def test_without_tensorboard_there_are_still_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    track(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.jsonl", "log.jsonl"]


def test_other_processes_than_the_first_write_nothing(tmp_path: Path) -> None:
    track(tmp_path, active=False)
    assert list(tmp_path.iterdir()) == []


def test_the_bar_averages_the_last_steps(tmp_path: Path) -> None:
    with Tracker(tmp_path, stage="joint", step=0, quiet=True) as tracker:
        for step in range(1, 31):
            tracker.step(step, done=step / 30, seconds=2.0, clips=4, values={"loss": float(step)})
        task = tracker.progress.tasks[0]
        assert task.completed == 1.0
        assert task.description == "step 30  loss 20.5000  2.0 clips/s"  # the mean of 11 to 30


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (3, ["encoder 1", "encoder 2", "joint 1", "joint 2", "joint 3"]),
        (2, ["encoder 1", "encoder 2", "joint 1", "joint 2"]),
        (0, ["encoder 1", "encoder 2"]),  # the stage begins, and what is there was never saved
    ],
)
def test_lines_of_lost_steps_are_taken_back(step: int, kept: list[str], tmp_path: Path) -> None:
    written = [("encoder", 1), ("encoder", 2), ("joint", 1), ("joint", 2), ("joint", 3)]
    lines = "".join(json.dumps({"stage": stage, "step": at}) + "\n" for stage, at in written)
    log = tmp_path / "log.jsonl"
    log.write_text(lines + '{"stage": "joint", "st')  # killed while it wrote
    take_back(log, stage="joint", step=step)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [f"{line['stage']} {line['step']}" for line in found] == kept
