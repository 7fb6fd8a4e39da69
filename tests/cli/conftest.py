"""What the tests of the command line share: a runner, a real process, a difficult little video, what a refusal is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from onedva.cli import app
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter


@pytest.fixture
def run(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`run("encode", …)` in this process; verbs that take a model get the fake bundle."""
    monkeypatch.delenv("ONEDVA_DEBUG", raising=False)

    def invoke(*arguments: str | Path) -> Result:
        verb, *rest = [str(argument) for argument in arguments]
        model = [] if verb in ("train", "export", "shard", "thin") or "-m" in rest else ["-m", str(fake_bundle)]
        return CliRunner().invoke(app, [verb, *model, *rest])

    return invoke


@pytest.fixture
def console() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`console("encode", …, NAME="value")`: a process of its own, with those environment variables."""

    def invoke(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from onedva.cli import main; main()", *arguments]
        plain = {name: value for name, value in os.environ.items() if name != "ONEDVA_DEBUG"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**plain, **environment})

    return invoke


@pytest.fixture
def onedva(fake_bundle: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`onedva("encode", "-", "-", data=bytes)`: a process of its own, bytes in and out."""

    def invoke(verb: str, *arguments: str | Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        code = "from onedva.cli import main; main()"
        command = [sys.executable, "-c", code, verb, "-m", str(fake_bundle), *map(str, arguments)]
        plain = {name: value for name, value in os.environ.items() if name != "ONEDVA_DEBUG"}
        return subprocess.run(command, input=data, capture_output=True, timeout=120, env=plain)

    return invoke


@pytest.fixture
def refused() -> Callable[..., None]:
    """`refused(result, word, …)`: exit 2, nothing on stdout, one line on stderr that holds the words."""

    def check(result: Result, *words: str) -> None:
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("onedva: "), result.stderr
        for word in words:
            assert word in result.stderr

    return check


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 frames of odd size (65×49) whose time stamps are alternately 20 and 60 ms apart."""
    path = tmp_path_factory.mktemp("video") / "uneven.mp4"
    ticks = np.cumsum([0, *([20, 60] * 10)]).astype(np.int64)
    with VideoWriter(path, width=65, height=49, fps=Fraction(25), time_base=Fraction(1, 1000)) as writer:
        writer.write(make_clip(21, 49, 65), ticks)
    return path
