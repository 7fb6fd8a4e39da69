"""Writing videos: exact sizes, rates and time stamps, whole files or none."""

import io
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedva_runtime.clips import make_clip
from onedva_runtime.errors import VideoError
from onedva_runtime.metrics import psnr
from onedva_runtime.video_io import VideoWriter, probe, read_video
from onedva_runtime.video_pipe import PipeWriter

TICKS = np.array([100, 140, 300, 301, 302, 330, 1000], np.int64)


@pytest.mark.parametrize(("height", "width"), [(121, 161), (161, 121), (120, 161), (17, 16), (320, 180), (1, 1)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_written_sizes_are_exact(tmp_path: Path, suffix: str, height: int, width: int) -> None:
    frames = make_clip(4, height, width)
    with VideoWriter(tmp_path / f"a{suffix}", width=width, height=height, fps=Fraction(30000, 1001)) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:])
    video = read_video(tmp_path / f"a{suffix}")
    assert video.frames.shape == frames.shape
    assert psnr(frames, video.frames) > 30


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(25, 2), Fraction(27133, 905)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_written_rates_are_exact(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    path = tmp_path / f"a{suffix}"
    with VideoWriter(path, width=32, height=32, fps=fps) as writer:
        writer.write(make_clip(7, 32, 32))
    info = probe(path)
    assert info.fps == fps
    assert info.duration_s == pytest.approx(7 / float(fps), abs=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_time_stamps_are_kept(tmp_path: Path, suffix: str) -> None:
    path, frames = tmp_path / f"a{suffix}", make_clip(7, 32, 48)
    with VideoWriter(path, width=48, height=32, fps=25, time_base=Fraction(1, 1000)) as writer:
        writer.write(frames[:3], TICKS[:3])
        writer.write(frames[3:], TICKS[3:])
    video = read_video(path)
    assert [t * video.time_base for t in video.timestamps.tolist()] == [Fraction(int(t), 1000) for t in TICKS]
    assert psnr(frames, video.frames) > 30
    if suffix in (".mp4", ".mov"):  # from the first frame to the end of the last
        assert video.info.duration_s == pytest.approx(0.900 + 0.040, abs=1e-3)


def test_nothing_appears_before_the_end_and_nothing_is_left_by_an_error(tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mp4", make_clip(5, 32, 32)
    with pytest.raises(RuntimeError, match="full"), VideoWriter(path, width=32, height=32, fps=25) as writer:
        writer.write(frames)
        assert not path.exists()
        raise RuntimeError("full")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(VideoError, match="no frames"), VideoWriter(path, width=32, height=32, fps=25):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_text("mine")
    with pytest.raises(VideoError, match="exists already"):
        VideoWriter(path, width=32, height=32, fps=25)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]
    with VideoWriter(path, width=32, height=32, fps=25, overwrite=True) as writer:
        writer.write(make_clip(2, 32, 32))
        assert path.read_text() == "mine"
    assert probe(path).width == 32
    with VideoWriter(path.with_name("b.mkv"), width=32, height=32, fps=25) as writer:
        writer.write(make_clip(2, 32, 32))
        path.with_name("b.mkv").write_text("somebody else's, meanwhile")
        with pytest.raises(VideoError, match="exists already"):
            writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.odva", {}, r"\.mp4, \.mov, \.mkv, \.webm"),
        ("a", {}, r"\.mp4, \.mov, \.mkv, \.webm"),
        ("no/a.mp4", {}, "cannot be written here"),
        ("a.mp4", {"codec": "nonesuch"}, "nonesuch"),
        ("a.webm", {"codec": "libx264"}, "libx264"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        VideoWriter(tmp_path / name, width=32, height=32, fps=25, **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_say_what_is_allowed(tmp_path: Path) -> None:
    frames = make_clip(2, 32, 48)
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, fps=25, time_base=Fraction(1, 25)) as writer:
        with pytest.raises(TypeError, match="uint8 array, got float64"):
            writer.write(frames / 255)  # type: ignore[arg-type]
        for wrong in (frames[0], frames[:, :, :32], frames.transpose(0, 3, 1, 2)):
            with pytest.raises(ValueError, match=r"\(n, 32, 48, 3\)"):
                writer.write(wrong)
        for ticks in ([5, 5], [5, 4], [5], [1, 2, 3]):
            with pytest.raises(ValueError, match="2 ticks that rise"):
                writer.write(frames, np.array(ticks))
        writer.write(frames, np.array([-3, 6]))
        with pytest.raises(ValueError, match="rise, after 9"):
            writer.write(frames, np.array([6, 7]))
    video = read_video(tmp_path / "a.mp4")
    assert [tick * video.time_base for tick in video.timestamps.tolist()] == [0, Fraction(9, 25)]
    for options in ({"width": 0}, {"height": -1}, {"fps": 0}, {"time_base": Fraction(0)}, {"crf": 64}):
        with pytest.raises(ValueError, match="must be"):
            VideoWriter(tmp_path / "b.mp4", **({"width": 32, "height": 32, "fps": 25} | options))  # type: ignore[arg-type]


HUGE = Fraction(10**19)


@pytest.mark.parametrize(
    ("fps", "time_base", "ticks"),
    [
        (HUGE, None, None),
        (Fraction(25), 1 / HUGE, None),
        (Fraction(25), HUGE, None),
        (Fraction(25), Fraction(1, 25), [-(2**63), 0, 2**63 - 1]),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", "y4m", "nut"])
def test_numbers_that_ffmpeg_cannot_count_in_are_errors_of_ours(
    tmp_path: Path, fps: Fraction, time_base: Fraction | None, ticks: list[int] | None, suffix: str
) -> None:
    """They come out of `.odva` files, whose rationals have up to 20 digits."""
    frames, times = make_clip(3, 32, 48), None if ticks is None else np.array(ticks, np.int64)
    options: dict[str, Any] = {"width": 48, "height": 32, "fps": fps, "time_base": time_base}
    fine = (suffix == "y4m" and fps == 25) or (suffix == "nut" and ticks is not None)  # no times, or any
    refusal = nullcontext() if fine else pytest.raises(VideoError, match=r"cannot write|writing failed")
    with refusal:
        if suffix.startswith("."):
            with VideoWriter(tmp_path / f"a{suffix}", **options) as writer:
                writer.write(frames, times)
        else:
            with PipeWriter(io.BytesIO(), **options, kind=suffix) as pipe:
                pipe.write(frames, times)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_of_nothing_is_refused_by_a_pipe() -> None:
    with pytest.raises(ValueError, match="must be positive, got 48, 32, 1/10000000000000000000, None"):
        PipeWriter(io.BytesIO(), width=48, height=32, fps=1 / HUGE)
