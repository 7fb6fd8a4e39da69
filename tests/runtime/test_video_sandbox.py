"""Decoding in a process with limits: the same frames as without, and hogs, crashes and lies end in a SandboxError."""

import json
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedva_runtime import video_sandbox
from onedva_runtime.clips import make_clip
from onedva_runtime.errors import SandboxError, VideoError
from onedva_runtime.limits import Limits
from onedva_runtime.video_io import VideoWriter, open_reader, read_video
from onedva_runtime.video_sandbox import Sandbox, open_sandboxed


def frames_of(path: Path, *, sandbox: Sandbox | None = None, limits: Limits | None = None) -> np.ndarray:
    """All frames, through the sandbox."""
    with open_sandboxed(path, sandbox=sandbox, limits=limits) as reader:
        return np.concatenate([frames for frames, _ in reader])


def write(path: Path, *, frames: int = 20, height: int = 48, width: int = 64) -> Path:
    with VideoWriter(path, width=width, height=height, fps=Fraction(25)) as writer:
        if width < 100:
            writer.write(make_clip(frames, height, width))
        else:  # black: a made-up clip of this size would take minutes
            for _ in range(frames):
                writer.write(np.zeros((1, height, width, 3), np.uint8))
    return path


def test_a_normal_video_gives_identical_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    with open_reader(path, batch=7, threads=1) as plain, open_sandboxed(path, batch=7) as boxed:
        assert boxed.info == plain.info
        for (frames, times), (boxed_frames, boxed_times) in zip(plain, boxed, strict=True):
            np.testing.assert_array_equal(frames, boxed_frames)
            np.testing.assert_array_equal(times, boxed_times)
        assert boxed.info == plain.info and boxed.info.frames == 20


def test_real_clips_are_the_same(dev_clips: list[Path]) -> None:
    with open_sandboxed(dev_clips[0], batch=20) as reader:
        np.testing.assert_array_equal(next(iter(reader))[0], read_video(dev_clips[0], max_frames=20).frames)


def test_a_cut_video_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mkv"
    data = write(tmp_path / "whole.mkv", frames=60).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_sandboxed(path) as reader:
        count = sum(len(frames) for frames, _ in reader)
        assert reader.info.truncated and 0 < count < 60
    assert "damaged or cut off" in caplog.text


def test_what_is_refused_is_refused_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello " * 100)
    video = write(tmp_path / "a.mp4")
    for path, limits, message in (
        (tmp_path / "a.txt", None, "not read as video|not a video"),
        (tmp_path / "none.mp4", None, "No such file"),
        (tmp_path, None, "regular file"),
        (video, Limits(max_pixels=1000), r"Limits\.max_pixels"),
        (video, Limits(max_frames=3), r"Limits\.max_frames"),
    ):
        with pytest.raises(VideoError, match=message) as caught:
            frames_of(path, limits=limits)
        assert not isinstance(caught.value, SandboxError)
    wrong: list[dict[str, Any]] = [
        {"memory_bytes": 0},
        {"memory_bytes": 1e9},
        {"cpu_seconds": -1},
        {"cpu_seconds": 1.5},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"Sandbox\..* must be a whole number of at least 1"):
            Sandbox(**options)
    for stall in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"Sandbox\.stall_seconds must be above 0 and finite"):
            Sandbox(stall_seconds=stall)
    with pytest.raises(ValueError, match="batch"):
        open_sandboxed(video, batch=0)


def test_a_hog_of_memory_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "large.mp4", frames=3, height=2160, width=3840)
    with open_sandboxed(path, batch=1) as reader:  # with the usual limits it is read
        assert sum(len(frames) for frames, _ in reader) == 3
    small = Sandbox(memory_bytes=600 << 20)
    assert frames_of(write(tmp_path / "a.mp4"), sandbox=small).shape[0] == 20
    refusal = pytest.raises(SandboxError, match=rf"takes more memory than {600 << 20} bytes \(Sandbox\.memory_bytes\)")
    with refusal, open_sandboxed(path, sandbox=small, batch=30) as reader:  # 746 MB of pixels
        list(reader)


def test_a_hog_of_time_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", frames=250, height=720, width=1280)
    refusal = pytest.raises(SandboxError, match=r"more than 1 seconds \(Sandbox\.cpu_seconds\)")
    with refusal, open_sandboxed(path, sandbox=Sandbox(cpu_seconds=1)) as reader:
        for _ in reader:
            pass


def worker(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_sandbox, "WORKER", ("-c", "import os, sys, time, signal\n" + code))


INFO = {
    "width": 64, "height": 48, "frames": None, "fps": "25", "time_base": "1/25", "duration_s": None, "codec": "x",
    "colour": {"matrix": "rgb", "full_range": True, "primaries": "x", "transfer": "x", "guessed": False},
    "pixel_format": "x", "rotation": 0, "mirrored": False, "has_audio": False, "truncated": False,
}  # fmt: skip


def says(*messages: tuple[bytes, bytes]) -> str:
    data = b"".join(struct.pack("<cI", kind, len(text)) + text for kind, text in messages)
    return f"sys.stdout.buffer.write({data!r})"


def info(**changes: object) -> tuple[bytes, bytes]:
    return b"I", json.dumps({**INFO, **changes}).encode()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("time.sleep(60)", r"nothing came for 0\.5 seconds"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed"),
        ("sys.exit(3)", "exit status 3"),
        ("os.close(1)\ntime.sleep(60)", "closed its output"),
        (says((b"I", b"{}")), "nonsense"),
        (says((b"I", b"\xff{")), "nonsense"),
        (says((b"I", b"[" * 60000)), "nonsense"),
        (says(info(width="64")), "nonsense"),
        (says(info(frames=-1)), "nonsense"),
        (says(info(fps="1e999999999")), "nonsense"),
        (says(info(codec="\x1b[2J")), "nonsense"),
        (says((b"I", json.dumps({**INFO, "duration_s": None}).replace("null", "1e999").encode())), "nonsense"),
        (says((b"E", b"no JSON")), "nonsense"),
        (says((b"E", b"[" * 60000)), "nonsense"),
        (says((b"E", b'["VideoError"]')), "nonsense"),
        (says((b"E", b"7")), "nonsense"),
        (says((b"E", b'["VideoError", 7]')), "nonsense"),
        (says((b"E", b'["VideoError", "\\u001b[2J bad"]')), r": \?\[2J bad"),
        (says((b"I", b"[]")), "nonsense"),
        (says((b"F", b"")), "what was not asked"),
        (says(info(fps="1/0")), "nonsense"),
        (says(info(colour=[])), "nonsense|colour"),
        (says(info(width=1 << 30)), r"Limits\.max_pixels"),
        (says(info(), (b"F", b"\0" * 100)), "what was not asked"),
        (says(info(), (b"F", b"")), "what was not asked"),
        (says(info(), (b"X", b"")), "what was not asked"),
        (says(info(), info(width=65)), "changed its mind"),
        (says(info()) + "\nsys.stdout.buffer.write(b'F' + b'\\xff' * 4)", "what was not asked"),
        ("sys.stdout.buffer.write(b'E' + b'\\xff' * 4)", "too much"),
    ],
)
def test_a_worker_that_crashes_stalls_or_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    path = write(tmp_path / "a.mp4", frames=2)
    worker(code, monkeypatch)
    monkeypatch.setattr(video_sandbox, "PATIENCE", 0.5)
    begun = time.monotonic()
    sandbox = Sandbox(stall_seconds=0.5 if "sleep" in code else 30)
    with pytest.raises(VideoError, match=message) as caught, open_sandboxed(path, sandbox=sandbox) as reader:
        list(reader)
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and time.monotonic() - begun < 20


def test_leaving_early_leaves_no_process(tmp_path: Path) -> None:
    with open_sandboxed(write(tmp_path / "a.mp4"), batch=1) as reader:
        next(iter(reader))
        process = reader._process
    assert process.returncode is not None
    reader.close()


def test_the_worker_imports_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", frames=2)
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert frames_of(path).shape[0] == 2


def test_the_worker_imports_nothing_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", frames=2)
    for name in ("resource", "json", "av"):
        (tmp_path / f"{name}.py").write_text("import sys\nsys.exit(77)")
    monkeypatch.chdir(tmp_path)
    assert frames_of(path).shape[0] == 2


def test_limits_that_we_are_under_already_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", frames=2)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (500, 500))\n"
        "from onedva_runtime.video_sandbox import open_sandboxed\n"
        f"with open_sandboxed({str(path)!r}) as reader: print(sum(len(frames) for frames, _ in reader))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n", done.stderr
