"""The examples run as their first paragraphs say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from onedva_runtime import load_packets
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter, read_video

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 96x64."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, width=96, height=64, fps=Fraction(24)) as writer:
        writer.write(make_clip(24, 64, 96))
    return path


def run(example: str, *arguments: object) -> str:
    """What an example prints. Fails with what it says where it ends with an error."""
    command = [sys.executable, EXAMPLES / example, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("shipped_bundle")
def test_asyncio_service() -> None:
    lines = run("asyncio_service.py", "--streams", 2, "--seconds", 1).splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == [f"stream {n}: 24 frames sent" for n in (0, 1)]
    assert all("24 shown" in line for line in lines[:2])
    held = re.search(r"held up for (\d+) ms", lines[2])
    assert held is not None and int(held[1]) < 1000


@pytest.mark.usefixtures("shipped_bundle")
@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here")
def test_between_ffmpeg(film: Path, tmp_path: Path) -> None:
    kept, target = tmp_path / "kept.odva", tmp_path / "out.mp4"
    assert run("between_ffmpeg.py", film, target, "--tokens", 16, "--odva", kept) == "24 frames\n"
    assert read_video(target).frames.shape == (24, 64, 96, 3)
    assert load_packets(kept).frames == 24
    with pytest.raises(AssertionError, match=r"nothing of .* came through ffmpeg"):
        run("between_ffmpeg.py", kept, tmp_path / "other.mp4")


@pytest.mark.usefixtures("shipped_bundle")
def test_camera(film: Path, tmp_path: Path) -> None:
    """A file stands in for the camera, at its own rate."""
    target = tmp_path / "seen.mp4"
    lines = run(
        "camera.py",
        "--device",
        film,
        "--seconds",
        30,
        "--side",
        96,
        "--tokens",
        16,
        "--backend",
        "onnxruntime",
        "-o",
        target,
    ).splitlines()
    assert lines[-1] == "24 frames" and re.match(r"frame 0: 16 latents, \d+ bits, \d+ ms", lines[0])
    assert read_video(target).frames.shape == (24, 64, 96, 3)
