"""`onedva` between other programs: any source keeps its frame count, size and times from pipe to pipe, stdout carries
nothing but data, and sound stays in step."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from typer.testing import Result

from onedva_runtime.clips import make_clip
from onedva_runtime.container import load_packets
from onedva_runtime.metrics import psnr
from onedva_runtime.video_io import open_reader, read_video
from onedva_runtime.video_pipe import RawFormat, RawReader
from pipe_files import as_pipe

Run = Callable[..., Result]
Refused = Callable[..., None]
Onedva = Callable[..., subprocess.CompletedProcess[bytes]]

UNEVEN = np.cumsum([0, *[20, 60, 35] * 7]).astype(np.int64)


def from_pipe(data: bytes) -> tuple[np.ndarray, list[Fraction], Any]:
    """Frames, times in seconds, and what is known of them."""
    with open_reader(io.BytesIO(data)) as reader:
        batches = list(reader)
        info = reader.info
    times = [tick * info.time_base for _, ticks in batches for tick in ticks.tolist()]
    return np.concatenate([frames for frames, _ in batches]), times, info


def write_source(path: Path, *, codec: str, pixel_format: str, size: tuple[int, int], ticks: np.ndarray) -> None:
    """A file with times in milliseconds, of made-up frames in any pixel format."""
    frames = make_clip(len(ticks), *size, seed=2)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, 25, {"crf": "12", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixel_format
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for picture, tick in zip(frames, ticks.tolist(), strict=True):
            frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def rotated(path: Path) -> None:
    """Turn the display matrix of an mp4's track by a quarter, in place: a, b, c, d of its tkhd box."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4")
    data[place : place + 36] = matrix.tobytes()
    path.write_bytes(bytes(data))


SOURCES = {
    "variable rate": {"codec": "libx264", "pixel_format": "yuv420p", "size": (48, 64), "ticks": UNEVEN},
    "rotated": {"codec": "libx264", "pixel_format": "yuv420p", "size": (48, 64), "ticks": np.arange(22) * 40},
    "10 bits": {"codec": "libx265", "pixel_format": "yuv420p10le", "size": (48, 64), "ticks": np.arange(22) * 40},
    "odd size": {"codec": "libx264", "pixel_format": "yuv444p", "size": (49, 65), "ticks": UNEVEN},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_through_files_and_pipes_keeps_count_size_and_times(onedva: Onedva, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source.mp4"
    write_source(source, **SOURCES[kind])
    if kind == "rotated":
        rotated(source)
    wanted = read_video(source)
    assert wanted.frames.shape[1:3] == ((64, 48) if kind == "rotated" else SOURCES[kind]["size"])
    times = [tick * wanted.time_base for tick in wanted.timestamps.tolist()]

    packets = onedva("encode", source, "-", "--tokens", "16")
    assert packets.returncode == 0, packets.stderr
    frames = onedva("decode", "-", "-", "--pipe", "nut", data=packets.stdout)
    assert frames.returncode == 0, frames.stderr
    decoded, decoded_times, info = from_pipe(frames.stdout)
    assert decoded.shape == wanted.frames.shape and decoded_times == times
    assert float(info.fps) == pytest.approx(float(wanted.fps), rel=0.01)  # where it varies, readers estimate

    again = onedva("encode", "-", tmp_path / "again.odva", "--tokens", "16", data=frames.stdout)
    assert again.returncode == 0, again.stderr
    file = load_packets(tmp_path / "again.odva")
    assert file.timestamps is not None and file.header.time_base is not None
    assert [tick * file.header.time_base for tick in file.timestamps.tolist()] == times
    assert (file.frames, file.header.height, file.header.width) == wanted.frames.shape[:3]
    written = onedva("decode", tmp_path / "again.odva", tmp_path / "again.mp4")
    assert written.returncode == 0, written.stderr
    video = read_video(tmp_path / "again.mp4")
    assert video.frames.shape == wanted.frames.shape
    assert [tick * video.time_base for tick in video.timestamps.tolist()] == times


@pytest.mark.parametrize("size", [(48, 64), (49, 65)])
def test_y4m_in_and_out(onedva: Onedva, size: tuple[int, int]) -> None:
    """Between two programs that speak y4m, with nothing but y4m on stdout; results are on stderr."""
    source = make_clip(44, *size, seed=1)[:22]
    packets = onedva("encode", "-", "-", "--json", "--tokens", "0", data=as_pipe(source))
    assert packets.returncode == 0 and packets.stdout.startswith(b"\x89ODVA"), packets.stderr
    report = json.loads(packets.stderr[packets.stderr.index(b"{") :])  # after notes, such as of measuring once
    assert (report["source"], report["target"], report["frames"], report["key_clips"]) == ("-", "-", 22, 1)
    assert report["bytes"] == len(packets.stdout) and report["source_bytes"] is None
    frames = onedva("decode", "-", "-", data=packets.stdout)
    assert frames.returncode == 0 and frames.stdout.startswith(b"YUV4MPEG2 "), frames.stderr
    decoded, times, info = from_pipe(frames.stdout)
    assert decoded.shape == source.shape and info.fps == 25 and times == [Fraction(n, 25) for n in range(22)]


def test_raw_frames_in_and_out(onedva: Onedva) -> None:
    source = make_clip(44, 33, 50, seed=1)[:22]
    packets = onedva("encode", "-", "-", "--raw", "50x33@30000/1001", "--tokens", "0", data=source.tobytes())
    assert packets.returncode == 0, packets.stderr
    header = load_packets(io.BytesIO(packets.stdout)).header
    assert (header.width, header.height, header.fps) == (50, 33, Fraction(30000, 1001))
    frames = onedva("decode", "-", "-", "--pipe", "raw", data=packets.stdout)
    assert frames.returncode == 0 and len(frames.stdout) == source.nbytes, frames.stderr
    decoded = np.frombuffer(frames.stdout, np.uint8).reshape(source.shape)
    nut = from_pipe(onedva("decode", "-", "-", "--pipe", "nut", data=packets.stdout).stdout)[0]
    np.testing.assert_array_equal(decoded, nut)  # both are the decoder's frames, bit for bit


def test_a_rate_that_varies_is_warned_about_where_y4m_loses_it(onedva: Onedva) -> None:
    data = as_pipe(make_clip(22, 48, 64), kind="nut", ticks=UNEVEN)
    packets = onedva("encode", "-", "-", "--tokens", "0", data=data).stdout
    assert b"--pipe nut" in onedva("decode", "-", "-", data=packets).stderr
    assert b"--pipe nut" not in onedva("decode", "-", "-", "--pipe", "nut", data=packets).stderr


def test_low_latency_hands_packets_on_while_frames_still_come(fake_bundle: Path) -> None:
    """The packet of the first five frames comes out before the sixth goes in."""
    frames = make_clip(18, 48, 64, seed=3)[:9]
    code = "from onedva.cli import main; main()"
    options = ["--raw", "64x48@25", "--low-latency", "--tokens", "0", "-q"]
    command = [sys.executable, "-c", code, "encode", "-m", str(fake_bundle), "-", "-", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(frames[:5].tobytes())
        process.stdin.flush()
        early = process.stdout.read(64)  # waits until there is something
        assert early.startswith(b"\x89ODVA")
        process.stdin.write(frames[5:].tobytes())
        process.stdin.close()
        rest = process.stdout.read()
    packets = load_packets(io.BytesIO(early + rest)).packets
    assert [(packet.first_frame, packet.frames, packet.is_key) for packet in packets] == [(0, 5, True), (5, 4, False)]


def test_key_clips_come_as_often_as_asked(run: Run, video: Path, tmp_path: Path) -> None:
    for interval, wanted in (("1", [True] * 5), ("0", [True, False, False, True, False])):
        target = tmp_path / f"{interval}.odva"
        options = ("--low-latency", "--keyframe-interval", interval)
        assert run("encode", video, target, *options).exit_code == 0
        assert [packet.is_key for packet in load_packets(target).packets][:5] == wanted[:5]
    result = run("reconstruct", video, "--low-latency", "--keyframe-interval", "0", "--steps", "0", "--json")
    assert json.loads(result.stdout)["clips"] == 6  # a scene ends after frame 9


def test_wrong_uses_of_pipes_are_refused(run: Run, video: Path, tmp_path: Path, refused: Refused) -> None:
    refused(run("encode", video, tmp_path / "a.odva", "--raw", "64x48@25"), "--raw", "give - in place of")
    refused(run("encode", "-", tmp_path / "a.odva", "--raw", "64x48"), "WIDTHxHEIGHT@FPS", "64x48")
    run("encode", video, tmp_path / "a.odva")
    refused(run("decode", tmp_path / "a.odva", "-", "--audio", video), "--audio", "pictures only")
    refused(run("decode", tmp_path / "a.odva", "-", "--pipe", "webm"), "y4m, nut, raw, mp4", "'webm'")


RATES = {"640x360@24": Fraction(24), "1x1@30000/1001": Fraction(30000, 1001), "9x9@12.5": Fraction(25, 2)}


@pytest.mark.parametrize(("text", "fps"), RATES.items())
def test_raw_formats(text: str, fps: Fraction) -> None:
    assert RawFormat.parse(text).fps == fps
    for bad in ("640x360", "0x5@24", "5x5@0", "5x5@1/0", "5x5@-1", "axb@24"):
        with pytest.raises(ValueError, match="a raw format is WIDTHxHEIGHT@FPS"):
            RawFormat.parse(bad)


def test_a_raw_reader_takes_what_a_pipe_gives_piece_by_piece() -> None:
    frames = make_clip(9, 5, 7)

    class Trickle(io.RawIOBase):
        data = io.BytesIO(frames.tobytes())

        def readinto(self, buffer: Any) -> int:
            piece = self.data.read(min(len(buffer), 11))
            buffer[: len(piece)] = piece
            return len(piece)

    got = list(RawReader(cast(BinaryIO, Trickle()), RawFormat(7, 5, Fraction(25)), batch=4))
    assert [len(part) for part, _ in got] == [4, 4, 1]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in got]), frames)


def add_sound(source: Path, target: Path, *, codec: str, seconds: float, start_s: float = 0.0) -> None:
    """A copy of the video `source` with a click at 0.5 s in its sound."""
    rate = 48_000
    samples = np.zeros(int(rate * seconds), np.float32)
    click = int(rate * (0.5 - start_s))
    samples[click : click + 480] = 0.9
    with av.open(source) as pictures, av.open(target, "w") as output:
        video = output.add_stream_from_template(pictures.streams.video[0])
        sound: Any = output.add_stream(codec, rate, layout="mono")
        for packet in pictures.demux(pictures.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                output.mux(packet)
        size = sound.codec_context.frame_size or 1024
        for place in range(0, len(samples) - size, size):
            frame = av.AudioFrame.from_ndarray(samples[None, place : place + size], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, place + int(start_s * rate), Fraction(1, rate)
            output.mux(sound.encode(frame))
        output.mux(sound.encode(None))


def click_s(path: Path) -> float:
    """When the click is heard, in seconds."""
    with av.open(path) as container:
        stream = container.streams.audio[0]
        times: list[float] = []
        for frame in container.decode(stream):
            values = np.abs(frame.to_ndarray()).max(axis=0)
            if frame.pts is not None and frame.time_base is not None and values.max() > 0.3:
                times.append(float(frame.pts * frame.time_base) + int(np.argmax(values > 0.3)) / frame.sample_rate)
        return min(times)


@pytest.mark.parametrize(("suffix", "start_s"), [(".mp4", 0.0), (".mkv", 0.0), (".mp4", 0.25)])
def test_sound_is_copied_bit_for_bit_and_in_step(
    run: Run, video: Path, tmp_path: Path, suffix: str, start_s: float
) -> None:
    source, target = tmp_path / "with_sound.mp4", tmp_path / f"out{suffix}"
    add_sound(video, source, codec="aac", seconds=1.0, start_s=start_s)
    assert run("encode", source, tmp_path / "a.odva").exit_code == 0
    result = run("decode", tmp_path / "a.odva", target, "--audio", source)
    assert result.exit_code == 0, result.output
    with av.open(source) as a, av.open(target) as b:
        sounds = [[bytes(p) for p in file.demux(file.streams.audio[0]) if p.size] for file in (a, b)]
    assert sounds[0] == sounds[1] and len(sounds[0]) > 20
    pictures, wanted = read_video(target), read_video(video)
    assert pictures.frames.shape == wanted.frames.shape
    offset = float(pictures.timestamps[0] * pictures.time_base)  # mkv moves all streams where one starts before 0
    assert offset == 0 or suffix == ".mkv"
    assert click_s(target) - offset == pytest.approx(click_s(source), abs=0.002)
    assert psnr(pictures.frames[:1], wanted.frames[:1]) > 10


def test_sound_from_a_file_of_its_own_and_what_cannot_be_copied(
    run: Run, video: Path, tmp_path: Path, refused: Refused
) -> None:
    run("encode", video, tmp_path / "a.odva")
    with av.open(tmp_path / "side.wav", "w") as output:
        sound: Any = output.add_stream("pcm_s16le", 48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    result = run("decode", tmp_path / "a.odva", tmp_path / "a.mkv", "--audio", tmp_path / "side.wav")
    assert result.exit_code == 0, result.output
    with av.open(tmp_path / "a.mkv") as file:
        assert [stream.codec_context.name for stream in file.streams.audio] == ["pcm_s16le"]
    webm = run("decode", tmp_path / "a.odva", tmp_path / "b.webm", "--audio", tmp_path / "side.wav")
    refused(webm, "pcm_s16le", ".mkv")
    refused(run("decode", tmp_path / "a.odva", tmp_path / "b.mp4", "--audio", video), "no sound in it")
    assert not (tmp_path / "b.mp4").exists() and not (tmp_path / "b.webm").exists()
