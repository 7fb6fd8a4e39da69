"""What a training run shows: a bar on the terminal, a line per step in log.jsonl, TensorBoard scalars and pictures."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from onedva.checkpoint import write_whole

LOG, SCORES = "log.jsonl", "eval.jsonl"
WINDOW = 20  # steps over which the bar averages loss and speed


class Tracker:
    """Context manager of one run's reports, on the main process; elsewhere (`active=False`) it does nothing.

    TensorBoard event files go to `folder`/tensorboard/`stage` where the package is installed; the JSON lines are always
    there. step: that a run resumes from; what an earlier process of the same stage wrote of later ones is taken back.
    """

    def __init__(self, folder: Path, *, stage: str, step: int, quiet: bool, active: bool = True) -> None:
        self.folder, self.stage, self.first, self.active = folder, stage, step, active
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), disable=quiet or not active)
        self.recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.board: Any = None

    def __enter__(self) -> Tracker:
        self.progress.start()
        self.task = self.progress.add_task("training", total=1.0)
        if self.active:
            for name in (LOG, SCORES):
                take_back(self.folder / name, stage=self.stage, step=self.first)
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:  # a part of the `train` extra that a trimmed install may lack
                pass
            else:
                self.board = SummaryWriter(str(self.folder / "tensorboard" / self.stage), purge_step=self.first + 1)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self.progress.update(self.task, completed=1.0)
        self.progress.stop()
        if self.board is not None:
            self.board.close()

    def step(self, step: int, *, done: float, seconds: float, clips: int, values: dict[str, float]) -> None:
        """One optimizer step: done in [0, 1] of the run, its wall time, clips over all processes, and its losses."""
        if not self.active:
            return
        self.recent.append((values["loss"], clips / seconds))
        loss, speed = (mean(column) for column in zip(*self.recent, strict=True))
        self.progress.update(
            self.task, completed=done, description=f"step {step}  loss {loss:.4f}  {speed:.1f} clips/s"
        )
        with (self.folder / LOG).open("a") as handle:
            line = {"stage": self.stage, "step": step, "clips_per_second": round(clips / seconds, 2), **values}
            handle.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"train/{name}", value, step)
            self.board.add_scalar("train/clips_per_second", clips / seconds, step)

    def scores(self, step: int, *, minutes: float, means: dict[int, float], clips: list[dict[str, Any]]) -> None:
        """Dev PSNR per latent length."""
        if not self.active:
            return
        with (self.folder / SCORES).open("a") as handle:
            line = {"stage": self.stage, "step": step, "minutes": round(minutes, 1), "psnr": means, "clips": clips}
            handle.write(json.dumps(line) + "\n")
        if self.board is not None:
            for tokens, value in means.items():
                self.board.add_scalar(f"dev/psnr_{tokens}", value, step)
            self.board.flush()

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """An (H, W, 3) uint8 image, such as a strip of source, decode and error."""
        if self.board is not None:
            self.board.add_image(name, image, step, dataformats="HWC")


def take_back(path: Path, *, stage: str, step: int) -> None:
    """Drop the last lines of a log that are of `stage` and past `step`, or that a killed process left unfinished.

    At step 0 a stage begins: then all of its lines there are a process's that saved nothing.
    """
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = len(lines)
    while kept:
        try:
            last = json.loads(lines[kept - 1])
        except ValueError:
            last = None
        if last is not None and (last["stage"] != stage or (step and last["step"] <= step)):
            break
        kept -= 1
    if kept < len(lines):
        write_whole(path, lambda temporary: temporary.write_text("".join(lines[:kept])))
