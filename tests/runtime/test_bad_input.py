"""Bad and hostile video input: one clear VideoError, nothing else opened, no more memory than the limits, no crash."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onedva_runtime.clips import make_clip
from onedva_runtime.errors import VideoError
from onedva_runtime.video_io import Limits, VideoWriter, open_reader, probe, read_video


def write(path: Path, *, frames: int = 12, height: int = 48, width: int = 64) -> Path:
    with VideoWriter(path, width=width, height=height, fps=Fraction(25)) as writer:
        writer.write(make_clip(frames, height, width))
    return path


def refused(path: Path | str, message: str, **options: Any) -> None:
    """All three ways in refuse `path`, on one line that names it."""
    for read in (probe, read_video, open_reader):
        with pytest.raises(VideoError, match=message) as caught:
            read(path, **options)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "a.txt"])
@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"hello, world\n" * 100,
        bytes(5000),
        np.random.default_rng(0).bytes(50_000),
        b"GIF89a",
        b"\x1aE\xdf\xa3",
        b"RIFF",
    ],
    ids=["byte", "text", "zeros", "noise", "gif-start", "mkv-start", "avi-start"],
)
def test_what_is_not_a_video(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, "not a video, or damaged|not read as video|no video|no frame")


def test_pictures_and_sound_are_not_videos(tmp_path: Path) -> None:
    for codec, suffix in (("png", ".png"), ("mjpeg", ".jpg")):
        with av.open(str(tmp_path / f"a{suffix}"), "w", format="image2") as container:
            stream = cast(VideoStream, container.add_stream(codec, rate=1))
            stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24" if codec == "png" else "yuvj420p"
            frame = av.VideoFrame.from_ndarray(make_clip(1, 32, 32)[0], "rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        refused(tmp_path / f"a{suffix}", "not read as video .allowed: mp4")
    for codec, suffix, message in (
        ("pcm_s16le", ".wav", "not read as video"),
        ("aac", ".m4a", r"no video in it \(audio\)"),
        ("aac", ".mkv", r"no video in it \(.*audio.*\)"),
    ):
        path = tmp_path / f"a{suffix}"
        with av.open(str(path), "w") as container:
            sound = cast(Any, container.add_stream(codec, rate=48000))
            sound.layout = "mono"
            if suffix == ".mkv":  # a cover picture does not make a video of it
                container.add_attachment("cover.png", "image/png", (tmp_path / "a.png").read_bytes())
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), "s16", "mono")
            silence.sample_rate = 48000
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
        refused(path, message)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_without_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as container:
        stream = cast(VideoStream, container.add_stream("libx264", rate=25))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    refused(path, "no frame of its video could be decoded|not a video, or damaged|no video in it")


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "none.mp4", "No such file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "the file is empty")
    refused("/dev/zero", "not a regular file")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "not a regular file")  # and does not wait for a writer
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    refused(tmp_path / "link.mp4", "not a regular file")


@pytest.mark.parametrize(
    "address",
    ["-", "http://127.0.0.1:9/a.mp4", "rtsp://127.0.0.1/a", "tcp://127.0.0.1:9", "pipe:0", "concat:{0}|{0}", "file:{0}",
     "subfile,,start,0,end,99,,:{0}", "lavfi:testsrc", "data:video/mp4;base64,AAAA", "cache:{0}"],
)  # fmt: skip
def test_addresses_are_refused(tmp_path: Path, address: str) -> None:
    refused(address.format(write(tmp_path / "real.mp4")), "addresses and stdin are not read")


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], int]]:
    """A function that counts how often anyone has opened `path` since, asked of the kernel (inotify)."""
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(handle, os.fsencode(path), 0x20) >= 0  # IN_OPEN
    count = 0

    def counted() -> int:
        nonlocal count
        with suppress(BlockingIOError):
            count += len(os.read(handle, 4096)) // 16
        return count

    try:
        yield counted
    finally:
        os.close(handle)


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile '{name}'\n",
    "ffconcat-full-path": "ffconcat version 1.0\nfile '{path}'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "m3u8-master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{path}\n",
    "m3u8-init": '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MAP:URI="file://{path}"\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n',
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{path}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "asx": "[Reference]\nRef1={path}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    "avisynth": 'DirectShowSource("{path}")\n',
}


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat", ".mpd", ".txt"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_text_that_names_a_file_does_not_get_it_opened(tmp_path: Path, kind: str, suffix: str) -> None:
    secret = write(tmp_path / "secret.mp4", frames=2)
    path = tmp_path / f"list{suffix}"
    path.write_text(PLAYLISTS[kind].format(name=secret.name, path=secret))
    with opens(secret) as count:
        refused(path, "not a video, or damaged|not read as video")
        assert count() == 0


def test_the_test_above_would_notice(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.mp4", frames=2)
    path = tmp_path / "list.ffconcat"
    path.write_text(PLAYLISTS["ffconcat"].format(name=secret.name, path=secret))
    with opens(secret) as count, av.open(str(path)) as container:  # what a program without our white list does
        assert len(list(container.decode(video=0))) == 2
        assert count() > 0


def alias_to(target: Path, movie: bytes) -> bytes:
    """`movie` (mp4, moov at the end) with an alias to `target` for its data reference (QuickTime file format)."""
    folder, name = os.fsencode(target.parent), os.fsencode(target.name)
    record = bytes(10) + bytes([4]) + b"disk".ljust(27, b"\0") + bytes(12)
    record += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    for kind, text in (
        (2, b"disk:" + os.fsencode(target).lstrip(b"/").replace(b"/", b":")),
        (18, os.fsencode(target)),
        (0, folder),
    ):
        record += struct.pack(">hh", kind, len(text)) + text + b"\0" * (len(text) % 2)
    record += struct.pack(">hh", -1, 0)
    alias = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    url = movie.index(b"url \0\0\0\1") - 4
    grown = bytearray(movie[:url] + alias + movie[url + 12 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = movie.index(box) - 4
        size = int.from_bytes(movie[start : start + 4], "big") + len(alias) - 12
        grown[start : start + 4] = size.to_bytes(4, "big")
    return bytes(grown)


def test_a_movie_whose_pictures_are_in_another_file_does_not_get_it_opened(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.mp4")
    path = tmp_path / "reference.mov"
    path.write_bytes(alias_to(secret, secret.read_bytes()))
    with opens(secret) as count:
        with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
            list(container.demux())
        assert count() > 0  # the reference is a good one
    with opens(secret) as count:
        with suppress(VideoError):
            read_video(path)
        assert count() == 0


def test_limits_are_the_readers(tmp_path: Path) -> None:
    announced, not_announced = write(tmp_path / "a.mp4"), write(tmp_path / "a.mkv")
    size = announced.stat().st_size
    exact = Limits(max_pixels=64 * 48, max_frames=12, max_bytes=max(size, 12 * 64 * 48 * 3))
    assert len(read_video(announced, limits=exact).frames) == len(read_video(not_announced, limits=exact).frames) == 12
    for path in (announced, not_announced):
        refused(path, r"64x48.*Limits\.max_pixels", limits=Limits(max_pixels=64 * 48 - 1))
        refused(path, r"bytes, over the limit .*Limits\.max_bytes", limits=Limits(max_bytes=size // 2))
        with pytest.raises(VideoError, match=r"open_reader.*max_frames"):
            read_video(path, limits=Limits(max_bytes=11 * 64 * 48 * 3))
        assert len(read_video(path, limits=Limits(max_bytes=11 * 64 * 48 * 3), max_frames=11).frames) == 11
    refused(announced, r"12 frames.*Limits\.max_frames", limits=Limits(max_frames=11))  # before decoding
    with (
        open_reader(not_announced, limits=Limits(max_frames=11), batch=4) as reader,
        pytest.raises(VideoError, match="more than 11 frames"),
    ):
        list(reader)


@pytest.mark.parametrize(
    "header",
    [
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x00\x00\x00",
        b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000),
    ],
    ids=["gif", "y4m"],
)
def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(header)
    refused(tmp_path / "a.bin", r"Limits\.max_pixels|not a video, or damaged|no frame|no video")


def test_limits_and_arguments_are_checked() -> None:
    for name in ("max_pixels", "max_frames", "max_latents", "max_bytes"):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: 0})
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        read_video("a.mp4", max_frames=0)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        open_reader("a.mp4", batch=0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_cut_gives_frames_or_one_clear_error(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"whole{suffix}", frames=30)
    data, path, counts = whole.read_bytes(), tmp_path / f"cut{suffix}", list[int]()
    for part in range(1, 20):
        path.write_bytes(data[: len(data) * part // 20])
        try:
            video = read_video(path)
        except VideoError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            assert video.info.truncated or len(video.frames) > 22  # or within a quarter of a second of the end
            counts.append(len(video.frames))
    assert all(0 < count <= 30 for count in counts)
    assert counts if suffix == ".mkv" else not counts  # our mp4 has its index at the end: nothing can be read without


@settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from([".mp4", ".mkv", ".webm", ".mov"]), seed=st.integers(0, 2**32 - 1), flips=st.integers(1, 30)
)
def test_damaged_bytes_never_do_worse_than_an_error(tmp_path: Path, suffix: str, seed: int, flips: int) -> None:
    good = tmp_path / f"good{suffix}"
    data = bytearray((good if good.exists() else write(good, frames=8)).read_bytes())
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), flips):
        data[place] ^= int(random.integers(1, 256))
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(data)
    limits = Limits(max_pixels=1 << 20, max_frames=100, max_bytes=1 << 24)
    try:
        video = read_video(path, limits=limits)
    except VideoError as error:
        assert str(path) in str(error)
    else:
        assert video.frames.ndim == 4
        assert len(video.frames) == len(video.timestamps) >= 1
        assert (np.diff(video.timestamps) > 0).all()
