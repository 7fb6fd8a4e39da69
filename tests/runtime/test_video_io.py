"""Reading and writing good videos of every kind: each frame, each pixel's place, each time stamp."""

import logging
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onedva_runtime.clips import make_clip
from onedva_runtime.errors import VideoError
from onedva_runtime.metrics import psnr
from onedva_runtime.video_io import Limits, open_reader, probe, read_video


def encode(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    container_format: str | None = None,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rotation: tuple[float, bool] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A file as others write it, through PyAV directly."""
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=25, options={"crf": "4"} if "x26" in codec else {}))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        stream.codec_context.time_base = time_base
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1])
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = (ticks[index] if ticks else index), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format", "floor"),
    [
        (".mp4", "libx264", "yuv420p", 34),
        (".mov", "prores_ks", "yuv422p10le", 34),
        (".mkv", "libx265", "yuv420p10le", 34),
        (".webm", "libvpx-vp9", "yuv420p", 28),
        (".avi", "mpeg4", "yuv420p", 24),
        (".avi", "mjpeg", "yuvj420p", 24),
        (".ts", "mpeg2video", "yuv420p", 24),
        (".mpg", "mpeg1video", "yuv420p", 24),
        (".flv", "libx264", "yuv420p", 34),
        (".wmv", "wmv2", "yuv420p", 24),
        (".ivf", "libsvtav1", "yuv420p", 24),
        (".mxf", "mpeg2video", "yuv420p", 24),
        (".nut", "ffv1", "yuv444p", 40),
        (".y4m", "wrapped_avframe", "yuv420p", 34),
        (".h264", "libx264", "yuv420p", 34),
        (".gif", "gif", "rgb8", 14),
        (".apng", "apng", "rgb24", 90),
    ],
)
def test_formats_that_are_read(tmp_path: Path, suffix: str, codec: str, pixel_format: str, floor: float) -> None:
    frames = make_clip(8, 64, 80)
    path = encode(tmp_path / f"in{suffix}", frames, codec=codec, pixel_format=pixel_format)
    hidden = path.rename(tmp_path / "content.decides")
    video = read_video(hidden)
    assert video.frames.shape == frames.shape
    assert abs(float(video.fps) - 25) < 0.01
    assert min(psnr(frames, video.frames), 99) > floor
    assert not video.info.truncated
    assert video.info.frames == 8


TICKS = np.array([100, 140, 300, 301, 302, 330, 1000], np.int64)


def test_variable_rate_with_reordered_frames_is_read_in_order(tmp_path: Path) -> None:
    frames = make_clip(7, 64, 64)
    path = encode(tmp_path / "a.mp4", frames, ticks=TICKS.tolist(), time_base=Fraction(1, 1000))
    video = read_video(path)
    assert [t * video.time_base for t in video.timestamps.tolist()] == [Fraction(int(t), 1000) for t in TICKS]
    assert psnr(frames, video.frames) > 30


def test_a_missing_clock_is_made_up_and_always_rises(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.h264", make_clip(9, 32, 32))  # a raw stream holds no time stamps
    video = read_video(path)
    assert len(video.timestamps) == 9
    assert (np.diff(video.timestamps) > 0).all()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_in_the_metadata_is_applied(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    upright = make_clip(3, 64, 112)
    flipped = upright[:, :, ::-1] if mirrored else upright  # the file's matrix is: turn, then flip
    stored = np.rot90(flipped, degrees // 90, axes=(1, 2))  # counterclockwise: to be turned back clockwise
    path = encode(tmp_path / "a.mp4", np.ascontiguousarray(stored), rotation=(-degrees, mirrored))
    video = read_video(path)
    assert video.frames.shape == upright.shape
    assert psnr(upright, video.frames) > 30
    # We say it the other way round: flip, then turn, which turns against the first.
    assert (video.info.rotation, video.info.mirrored) == (-degrees % 360 if mirrored else degrees, mirrored)
    assert (video.info.width, video.info.height) == (112, 64)
    with open_reader(path, batch=2) as reader:
        assert np.array_equal(np.concatenate([frames for frames, _ in reader]), video.frames)


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 20), count=st.integers(1, 14))
def test_batches_are_the_video_in_pieces(tmp_path_factory: pytest.TempPathFactory, batch: int, count: int) -> None:
    path = tmp_path_factory.getbasetemp() / f"batches{count}.mkv"
    if not path.exists():
        encode(path, make_clip(count, 16, 24), codec="ffv1")
    video = read_video(path)
    with open_reader(path, batch=batch, threads=1) as reader:
        pieces = list(reader)
        assert reader.info.frames == count
    assert [len(frames) for frames, _ in pieces] == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    assert np.array_equal(np.concatenate([frames for frames, _ in pieces]), video.frames)
    assert np.array_equal(np.concatenate([times for _, times in pieces]), video.timestamps)
    first = read_video(path, max_frames=batch)
    assert np.array_equal(first.frames, video.frames[:batch])


def test_more_frames_than_the_file_announces(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", make_clip(100, 16, 16), codec="ffv1")  # announces none: grows on the way
    assert probe(path).frames is None
    video = read_video(path)
    assert video.frames.shape == (100, 16, 16, 3)
    assert read_video(path, limits=Limits(max_bytes=max(100 * 768, path.stat().st_size))).frames.shape[0] == 100


def test_a_size_that_changes_is_scaled_to_the_first(tmp_path: Path) -> None:
    first, second = make_clip(3, 64, 96), make_clip(3, 128, 192, seed=1)
    parts = [encode(tmp_path / f"{n}.ts", frames).read_bytes() for n, frames in enumerate((first, second))]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    video = read_video(path)
    assert video.frames.shape == (6, 64, 96, 3)
    smaller = second.reshape(3, 64, 2, 96, 2, 3).mean((2, 4)).round().astype(np.uint8)
    assert psnr(smaller, video.frames[3:]) > 22
    assert (np.diff(video.timestamps) > 0).all()  # though the clock of the file starts again
    with pytest.raises(VideoError, match=r"192x128.*Limits\.max_pixels|truncated|no frame"):
        list(open_reader(path, limits=Limits(max_pixels=64 * 96)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_cut_off_files_give_what_is_there_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    frames = make_clip(50, 96, 128)
    whole = encode(tmp_path / f"whole{suffix}", frames, options=options)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with caplog.at_level(logging.WARNING, "onedva"):
        assert not read_video(whole).info.truncated
        assert caplog.text == ""
        video = read_video(path)
    count = len(video.frames)
    assert 10 < count < 50
    assert psnr(frames[: count - 2], video.frames[:-2]) > 30
    assert video.info.frames == count
    if suffix != ".ts":  # a transport stream has no length to miss
        assert video.info.truncated
        assert f"cut{suffix}: damaged or cut off, read {count} frames" in caplog.text


def test_a_broken_part_is_skipped_and_said(tmp_path: Path) -> None:
    frames = make_clip(40, 96, 128)
    path = encode(tmp_path / "a.mkv", frames)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    path.write_bytes(data)
    video = read_video(path)
    assert video.info.truncated
    assert len(video.frames) >= 30


def test_real_clips_are_read_frame_by_frame_as_pyav_does(dev_clips: list[Path]) -> None:
    for path in dev_clips[:3]:
        video = read_video(path, max_frames=20)
        with av.open(str(path)) as container:
            decoded = zip(container.decode(video=0), range(20), strict=False)
            expected = [frame.to_ndarray(format="rgb24") for frame, _ in decoded]
        assert (
            psnr(np.stack(cast("list[Any]", expected)), video.frames) > 32
        )  # PyAV guesses other matrices and rounds down
        assert not video.info.truncated
