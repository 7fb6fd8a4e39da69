"""Decoding in a process with limits: the same frames as without, and hogs, crashes and lies end in a SandboxError."""

import json
import struct
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from onedva_runtime import video_sandbox
from onedva_runtime.clips import make_clip
from onedva_runtime.errors import SandboxError, VideoError
from onedva_runtime.limits import Limits
from onedva_runtime.video_io import VideoWriter, open_reader, read_video
from onedva_runtime.video_sandbox import Sandbox, open_sandboxed, read_sandboxed


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
    video, boxed_video = read_video(path), read_sandboxed(path)
    np.testing.assert_array_equal(video.frames, boxed_video.frames)
    assert (video.fps, video.time_base, video.info) == (boxed_video.fps, boxed_video.time_base, boxed_video.info)
    assert read_sandboxed(path, max_frames=3).frames.shape == (3, 48, 64, 3)


def test_real_clips_are_the_same(dev_clips: list[Path]) -> None:
    frames = read_video(dev_clips[0], max_frames=20).frames
    np.testing.assert_array_equal(read_sandboxed(dev_clips[0], max_frames=20).frames, frames)


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
            read_sandboxed(path, limits=limits)
        assert not isinstance(caught.value, SandboxError)
    with pytest.raises(VideoError, match=r"Limits\.max_bytes"):
        read_sandboxed(video, limits=Limits(max_bytes=video.stat().st_size + 100))
    for options in ({"memory_bytes": 0}, {"cpu_seconds": -1}, {"stall_seconds": 0}):
        with pytest.raises(ValueError, match=r"Sandbox\..* must be above 0"):
            Sandbox(**options)
    with pytest.raises(ValueError, match="batch"):
        open_sandboxed(video, batch=0)


def test_a_hog_of_memory_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "large.mp4", frames=3, height=2160, width=3840)
    small = Sandbox(memory_bytes=600 << 20)
    assert read_sandboxed(write(tmp_path / "a.mp4"), sandbox=small).frames.shape[0] == 20
    refusal = pytest.raises(VideoError, match=r"Sandbox\.memory_bytes|Cannot allocate memory|was stopped")
    with refusal, open_sandboxed(path, sandbox=small, batch=30) as reader:
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
        (says((b"I", b"{}")), "nonsense"),
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
    begun = time.monotonic()
    sandbox = Sandbox(stall_seconds=0.5 if "sleep" in code else 30)
    with pytest.raises(VideoError, match=message) as caught, open_sandboxed(path, sandbox=sandbox) as reader:
        list(reader)
    assert str(path) in str(caught.value) and time.monotonic() - begun < 20


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
    assert read_sandboxed(path).frames.shape[0] == 2
    assert sys.executable
