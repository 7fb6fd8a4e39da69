"""`onedva train`: which settings a command line means, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import Result

from onedva import train as training
from onedva.cli import app
from onedva.commands.training import parse, settings
from onedva.config import OneDVAConfig, preset
from onedva.train_config import STAGES, TrainConfig

Run = Callable[..., Result]
Refused = Callable[..., None]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `onedva.train.run` was asked for, in place of training."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "run", lambda **options: calls.append(options))
    return calls


def test_shown_defaults_are_the_configuration_s() -> None:
    command: Any = typer.main.get_command(app)
    flags = {parameter.name: parameter for parameter in command.commands["train"].params}
    defaults, found = TrainConfig(), 0
    for name, flag in flags.items():
        if name in TrainConfig.__dataclass_fields__:
            assert flag.default is None, name  # or a resumed run could not tell what was asked for
            wanted = getattr(defaults, name)
            if isinstance(flag.show_default, str):
                shown = parse(name, flag.show_default, type(wanted))
                assert shown == wanted, name
                found += 1
            else:
                assert wanted in (None, False), name
    assert found > 20


def test_flags_and_assignments_become_the_configuration(run: Run, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    flags = "--steps 5 --sizes 128x128:0.5,240x144:0.5 --frames 9 --learning-rate 1e-3 --checkpointing --device cpu"
    more = ["--set", "only=decoder.,encoder.norm", "--set", "minutes=none", "--set", "linear_start=false"]
    output = tmp_path / "out"
    result = run("train", "--clips", tmp_path, "-o", output, "--preset", "small", *flags.split(), *more)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{output}\n"
    assert asked == [
        {
            "clips": tmp_path,
            "output": output,
            "model": preset("small"),
            "train": TrainConfig(
                steps=5,
                sizes=((128, 128, 0.5), (144, 240, 0.5)),
                frames=((9, 1.0),),
                learning_rate=1e-3,
                checkpointing=True,
                only=("decoder.", "encoder.norm"),
                linear_start=False,
            ),
            "start": None,
            "resume": False,
            "quiet": False,
            "device": "cpu",
        }
    ]


def test_a_stage_sets_what_flags_do_not(run: Run, asked: list[dict[str, Any]], tmp_path: Path) -> None:
    result = run("train", "--clips", tmp_path, "--stage", "distill", "--init", "tiny", "--p-continuation", "0.5")
    assert result.exit_code == 0, result.output
    assert asked[0]["train"] == TrainConfig(**{**STAGES["distill"], "p_continuation": 0.5})
    assert asked[0]["start"] == "tiny"


def test_resuming_keeps_the_settings_of_the_stage(tmp_path: Path) -> None:
    before = TrainConfig(steps=7, frames=((5, 1.0),), checkpointing=True, minutes=3.0)
    stored = {**before.__dict__, "model": {"width": 64}, "processes": 2}
    (tmp_path / "train.json").write_text(json.dumps(stored))
    assert settings({}, [], output=tmp_path) == before
    assert settings({"stage": "joint", "steps": 9}, [], output=tmp_path).frames == ((5, 1.0),)
    assert settings({"steps": 9, "checkpointing": False}, ["minutes=none"], output=tmp_path) == TrainConfig(
        steps=9, frames=((5, 1.0),)
    )
    assert settings({"stage": "encoder"}, [], output=tmp_path) == TrainConfig(stage="encoder")
    assert settings({"steps": 9}, []) == TrainConfig(steps=9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--set", "lr=1"],
            ["--set lr: no such setting", "accumulate, checkpointing", "warmup, weight_decay, workers"],
        ),
        (["--set", "stage=joint"], ["no such setting"]),
        (["--set", "ema"], ["wants NAME=VALUE, got 'ema'"]),
        (["--set", "ema=high"], ["ema wants a number, got 'high'"]),
        (["--set", "warmup=1.5"], ["warmup wants a whole number, got '1.5'"]),
        (["--set", "linear_start=maybe"], ["linear_start wants true or false, got 'maybe'"]),
        (["--sizes", "256"], ["sizes wants WIDTHxHEIGHT:SHARE", "'256'"]),
        (["--sizes", "256x250"], ["sizes are multiples of 16"]),
        (["--frames", "17x2"], ["frames wants 17:0.9,5:0.1, got '17x2'"]),
        (["--sizes", "axb:1"], ["sizes wants WIDTHxHEIGHT:SHARE", "'axb:1'"]),
        (["--frames", "16:1"], ["frames are 1 + 4n"]),
        (["--stage", "last"], ["unknown stage 'last'; choose from encoder, joint, distill, post"]),
        (["--optimizer", "sgd"], ["optimizer must be one of muon, adamw"]),
        (["--sharded"], ['optimizer="adamw"']),
        (["--preset", "huge"], ["unknown preset 'huge'; choose from nano"]),
        (["--preset", "tiny", "--resume"], ["--preset does not go with --init or --resume"]),
        (["--init", "tiny", "--resume"], ["--init does not go with --resume"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    arguments: list[str], words: list[str], run: Run, refused: Refused, asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    refused(run("train", "--clips", tmp_path, "-o", tmp_path / "out", *arguments), *words)
    assert not asked


def test_a_run_that_stops_says_why_in_one_line(
    run: Run, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("train", "--clips", tmp_path / "missing", "-o", tmp_path / "out"), "no such folder")
    refused(run("train", "--clips", tmp_path, "-o", tmp_path / "out", "--resume"), "nothing to resume")

    def diverges(**options: Any) -> None:
        raise FloatingPointError("the loss or gradient of batch 3 is not finite")

    monkeypatch.setattr(training, "run", diverges)
    refused(run("train", "--clips", tmp_path, "-q"), "batch 3 is not finite")


def test_other_processes_than_the_first_say_nothing(
    run: Run, asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    result = run("train", "--clips", tmp_path)
    assert (result.exit_code, result.stdout, len(asked)) == (0, "", 1)


@pytest.mark.slow
def test_torchrun_starts_the_command(tmp_path: Path, video: Path) -> None:
    """Two processes run `python -m onedva.cli train`, for one step from a model that is there."""
    from onedva.model import OneDVA

    tiny = OneDVAConfig(
        preset="nano", width=64, encoder_depth=1, stem_depth=1, diffusion_depth=1, components=96, clip_frames=5
    )
    OneDVA(tiny).save_pretrained(tmp_path / "init")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "onedva.cli", "train", "--clips", str(video.parent), "-o", str(tmp_path / "out")]
    command += ["--init", str(tmp_path / "init"), "--steps", "1", "--frames", "5", "--sizes", "32x32"]
    command += ["--positions-per-batch", "16", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ONEDVA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}\n"
    assert done.stderr.count("M parameters") == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()
