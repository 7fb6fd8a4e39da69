"""What a user can get wrong at the command line is one line and exit 2; an interrupt leaves nothing half-written."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from onedva.cli import app
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter

Run = Callable[..., Result]
Console = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., None]


# What a user can get wrong


def bad_inputs(folder: Path) -> dict[str, Path]:
    """Files that are no video to read, by what they are."""
    import av

    files = {name: folder / name for name in ("empty.mp4", "text.mp4", "list.m3u8", "concat.ffconcat", "sound.mp4")}
    files["empty.mp4"].write_bytes(b"")
    files["text.mp4"].write_text("this is no video\n" * 50)
    files["list.m3u8"].write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    files["concat.ffconcat"].write_text("ffconcat version 1.0\nfile other.mp4\n")
    with av.open(str(files["sound.mp4"]), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return files | {"missing": folder / "missing.mp4", "folder": folder}


@pytest.mark.parametrize(
    "kind", ["empty.mp4", "text.mp4", "list.m3u8", "concat.ffconcat", "sound.mp4", "missing", "folder"]
)
def test_inputs_that_are_no_video_are_refused(run: Run, tmp_path: Path, kind: str, refused: Refused) -> None:
    path = bad_inputs(tmp_path)[kind]
    refused(run("encode", path, tmp_path / "out.odva"), str(path))
    refused(run("reconstruct", path), str(path))
    assert not (tmp_path / "out.odva").exists()


def test_addresses_and_devices_are_refused(run: Run, tmp_path: Path, refused: Refused) -> None:
    for name in ("http://127.0.0.1:1/a.mp4", "-", "/dev/null", "concat:a.mp4|b.mp4"):
        refused(run("encode", name, tmp_path / "out.odva"))


def test_damaged_latents_are_refused(run: Run, video: Path, tmp_path: Path, refused: Refused) -> None:
    coded = tmp_path / "a.odva"
    run("encode", video, coded)
    content = bytearray(coded.read_bytes())
    for name, damaged in (
        ("cut", content[: len(content) // 2]),
        ("bit", content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]),
        ("text", b"hello"),
        ("empty", b""),
    ):
        path = tmp_path / f"{name}.odva"
        path.write_bytes(damaged)
        refused(run("decode", path, tmp_path / "out.mp4"), str(path.name))
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tokens", "many"], ["tokens", "many", "auto"]),
        (["--tokens", "-3"], ["tokens", "-3"]),
        (["-m", "no-such-model"], ["no-such-model"]),
        (["--backend", "abacus"], ["abacus", "onnxruntime"]),
        (["--device", "cuda"], ["cuda", "pip install 'onedva[gpu]'", "pip install 'onedva[trt]'"]),
        (["--device", "gpu"], ["gpu", "auto, cpu, cuda"]),
    ],
)
def test_options_out_of_range_say_what_is_allowed(
    run: Run, video: Path, tmp_path: Path, arguments: list[str], words: list[str], refused: Refused
) -> None:
    refused(run("encode", video, tmp_path / "out.odva", *arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode"], ["Missing argument 'IN'", "encode --help"]),
        (["encode", "a.mp4", "b.odva", "--tokenz", "3"], ["--tokenz", "--tokens"]),
        (["encode", "a.mp4", "b.odva", "--quantiser", "7"], ["--quantiser", "2"]),
        (["encode", "a.mp4", "b.odva", "c"], ["unexpected extra argument", "c"]),
        (["enc", "a.mp4"], ["No such command 'enc'", "encode"]),
        (["--loud"], ["--loud", "--help"]),
        (["decode", "a.odva", "b.mp4", "--pipe", "raw"], ["--pipe", "give - in place of b.mp4"]),
    ],
)
def test_wrong_usage_is_one_line_too(arguments: list[str], words: list[str], refused: Refused) -> None:
    refused(CliRunner().invoke(app, arguments), *words)


@pytest.mark.parametrize("verb", ["demo", "bench"])
def test_a_failure_leaves_no_empty_folder(run: Run, tmp_path: Path, refused: Refused, verb: str) -> None:
    options = ["-o", tmp_path / "new" / "folder", "-m", "no-such-model"]
    refused(run(verb, *options), "no-such-model")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new" / "folder").mkdir(parents=True)
    refused(run(verb, *options), "no-such-model")
    assert (tmp_path / "new" / "folder").is_dir()  # it was there before


def test_outputs_that_exist_are_refused_before_any_work(
    run: Run, video: Path, tmp_path: Path, refused: Refused
) -> None:
    target = tmp_path / "a.odva"
    target.write_text("precious")
    # The model does not exist either: that the file is named shows that nothing was loaded yet.
    refused(run("encode", video, target, "-m", "no-such-model"), "a.odva", "-f")
    assert target.read_text() == "precious"
    assert run("encode", video, target, "-f").exit_code == 0
    for verb, output in (("decode", "b.mp4"), ("reconstruct", "b.mp4")):
        (tmp_path / output).write_text("precious")
        refused(
            run(verb, target if verb == "decode" else video, tmp_path / output, "-m", "no-such-model"), "b.mp4", "-f"
        )


def test_outputs_that_cannot_be_are_refused(run: Run, video: Path, tmp_path: Path, refused: Refused) -> None:
    refused(run("encode", video, tmp_path / "a.mp4"), ".odva")
    refused(run("encode", video, tmp_path / "nowhere" / "a.odva"), "nowhere")
    refused(run("reconstruct", video, tmp_path / "a.txt"), ".mp4")
    refused(run("reconstruct", video, video, "-f"), "input")
    refused(run("bench", "--lengths", "0,lots"), "lots")
    refused(run("bench", "--steps", "99"), "99")
    refused(run("bench", "--size", "big"), "big")


def test_usage_errors_exit_2(run: Run, video: Path) -> None:
    for arguments in (["encode"], ["nonsense"], ["decode", str(video), "out.mp4", "--steps", "51"]):
        assert CliRunner().invoke(app, arguments).exit_code == 2


def test_missing_extras_are_named() -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "matplotlib", "einops", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
from onedva.cli import main
main()
"""
    for arguments, extra in ((["train", "--clips", "."], "train"), (["export"], "export")):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and f"pip install 'onedva[{extra}]'" in done.stderr
        assert done.stderr.count("\n") == 1


def test_pictures_without_matplotlib_name_the_extra(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setattr("onedva.commands.plots.can_plot", lambda: False)
    refused(run("reconstruct", video, "--picture", tmp_path / "a.png"), "pip install 'onedva[plot]'")
    refused(run("demo", "-o", tmp_path / "demo"), "pip install 'onedva[plot]'")


# Streams and signals


def test_pipes_get_no_escape_codes(fake_bundle: Path, video: Path, tmp_path: Path, console: Console) -> None:
    arguments = ["encode", str(video), str(tmp_path / "a.odva"), "-m", str(fake_bundle)]
    loud, quiet = console(*arguments, NO_COLOR="1"), console(*arguments, "-f", "-q", FORCE_COLOR="1", NO_COLOR="1")
    assert (loud.returncode, quiet.returncode) == (0, 0)
    assert loud.stderr == quiet.stderr == ""  # no bar where stderr is no terminal
    assert "\x1b" not in loud.stdout + loud.stderr
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", quiet.stdout)


def test_a_traceback_is_shown_only_where_asked(tmp_path: Path, console: Console) -> None:
    arguments = ["encode", str(tmp_path / "missing.mp4"), str(tmp_path / "a.odva")]
    plain, debug = console(*arguments), console(*arguments, ONEDVA_DEBUG="1")
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert debug.returncode != 0 and "Traceback" in debug.stderr


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_half_written(
    fake_bundle: Path, video: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    long = tmp_path / "long.mkv"
    with VideoWriter(long, width=256, height=256, fps=Fraction(24)) as writer:
        clip = make_clip(17, 256, 256)
        for _ in range(12):
            writer.write(clip)
    out = tmp_path / "out"
    out.mkdir()
    command = ["reconstruct", str(long), str(out / "a.mp4"), "-m", str(fake_bundle)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from onedva.cli import main; main()", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite that runs in the background inherits an ignored SIGINT, and Python leaves it so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 30
    while not list(out.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(out.iterdir()), "the work had begun"
    process.send_signal(sent)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert stdout == "" and "Traceback" not in stderr
    assert list(out.iterdir()) == []


STALLED = """
import json, sys
from onedva.cli import main
from onedva_runtime import video_sandbox

info = {
    "width": 64, "height": 48, "frames": None, "fps": "25", "time_base": "1/25", "duration_s": None, "codec": "x",
    "colour": {"matrix": "rgb", "full_range": True, "primaries": "x", "transfer": "x", "guessed": False},
    "pixel_format": "x", "rotation": 0, "mirrored": False, "has_audio": False, "truncated": False,
}
text = json.dumps(info).encode()
said = video_sandbox.HEAD.pack(b"I", len(text)) + text
work = "import sys, time; sys.stdout.buffer.write(%r); sys.stdout.flush(); time.sleep(300)" % said
video_sandbox.WORKER = ("-c", work)
main()
"""


@pytest.mark.timeout(60)
def test_an_interrupt_does_not_wait_for_a_sandbox_that_hangs(video: Path, fake_bundle: Path, tmp_path: Path) -> None:
    arguments = ["encode", "-m", str(fake_bundle), "--backend", "onnxruntime", "--sandbox", str(video)]
    with subprocess.Popen(
        [sys.executable, "-c", STALLED, *arguments, str(tmp_path / "a.odva")],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        wait_for(tmp_path)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130 and time.monotonic() - begun < 20  # not the minute that a sandbox may stall
        assert process.stderr is not None and process.stderr.read().splitlines()[-1] == b"onedva: interrupted"
    assert list(tmp_path.iterdir()) == []


def wait_for(folder: Path) -> None:
    """Until something, a temporary file for now, is in the folder: then work has begun."""
    for _ in range(300):
        if any(folder.iterdir()):
            return
        time.sleep(0.1)
    raise AssertionError("it never began")
