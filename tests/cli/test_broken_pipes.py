"""Pipes that are cut off, broken, empty or silent, and programs beside us that have had enough: one clear line."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onedva.cli import app
from onedva_runtime.clips import make_clip
from onedva_runtime.container import load_packets
from pipe_files import as_pipe

Onedva = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.mark.parametrize("kind", ["y4m", "raw", "nut"])
def test_a_pipe_that_is_cut_off_is_told_of(fake_bundle: Path, tmp_path: Path, kind: str) -> None:
    """Whole frames are kept, what is dropped is said even when quiet, and the exit code is that of damage."""
    frames = make_clip(20, 33, 50)
    data = frames.tobytes() if kind == "raw" else as_pipe(frames, kind=kind)
    options = ["-m", str(fake_bundle), "-f", "--tokens", "0", *(["--raw", "50x33@25"] if kind == "raw" else [])]
    for cut, quiet in ((700, []), (700, ["-q"]), (0, [])):
        arguments = ["encode", *options, *quiet, "-", str(tmp_path / "a.odva")]
        result = CliRunner().invoke(app, arguments, input=data[: len(data) - cut])
        assert result.exit_code == (3 if cut else 0), result.stderr
        assert load_packets(tmp_path / "a.odva").frames == (19 if cut else 20)
        if not cut:
            assert "cut off" not in result.stderr
            continue
        *notes, last = result.stderr.splitlines()
        assert last == "onedva: the pipe: damaged or cut off: done with the 19 frames that could be read"
        assert bool(notes) == (not quiet)
        if notes and kind != "nut":
            dropped = 4950 - 700 + (len("FRAME\n") if kind == "y4m" else 0)
            assert "read 19 frames" in notes[-1] and f"dropped {dropped} bytes" in notes[-1]


def test_a_broken_or_empty_pipe_is_one_clear_line(onedva: Onedva) -> None:
    damaged = onedva("decode", "-", "-", data=b"\x89ODVA no")
    assert damaged.returncode == 2 and damaged.stdout == b"" and damaged.stderr.count(b"\n") == 1
    assert damaged.stderr.startswith(b"onedva: the pipe: ")
    nothing = onedva("decode", "-", "-", data=b"")
    assert nothing.returncode == 2 and b"onedva: the pipe: not an .odva file (there is nothing in it)" in nothing.stderr
    nothing = onedva("encode", "-", "-", data=b"")
    assert nothing.returncode == 2 and nothing.stdout == b"" and b"onedva: the pipe: not a video" in nothing.stderr
    for data, message in ((b"", b"no bytes in it"), (bytes(700), b"700 bytes in it, where a frame of 50x33 has 4950")):
        nothing = onedva("encode", "-", "-", "--raw", "50x33@25", data=data)
        assert nothing.returncode == 2 and nothing.stdout == b"" and b"onedva: the pipe: " + message in nothing.stderr


@pytest.mark.parametrize(("verb", "given"), [("encode", ""), ("encode", "YUV4MPEG2 W64"), ("decode", "")])
def test_an_interrupt_while_a_pipe_is_silent(verb: str, given: str, fake_bundle: Path, tmp_path: Path) -> None:
    suffix = "odva" if verb == "encode" else "mp4"
    code = "import sys; from onedva.cli import main; print('begun', file=sys.stderr, flush=True); main()"
    command = [sys.executable, "-c", code, verb, "-m", str(fake_bundle), "-", str(tmp_path / f"a.{suffix}")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        assert process.stderr.readline() == b"begun\n"
        process.stdin.write(given.encode())
        process.stdin.flush()
        time.sleep(2)  # by then it waits for bytes
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read() == b"onedva: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_and_a_reader_that_has_enough_end_it_at_once(fake_bundle: Path, onedva: Onedva) -> None:
    """Ctrl-C while nothing comes, and `| head`: no hang, no traceback."""
    code = "from onedva.cli import main; main()"
    options = ["-m", str(fake_bundle), "-", "-", "--raw", "64x48@25", "--low-latency"]
    command = [sys.executable, "-c", code, "encode", *options]
    frames = make_clip(18, 48, 64, seed=3)[:9]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(frames[:5].tobytes())
        process.stdin.flush()
        process.stdout.read(64)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
        assert process.returncode == 130 and b"Traceback" not in process.stderr.read()
    packets = onedva("encode", "-", "-", "--tokens", "0", data=as_pipe(np.tile(frames, (20, 4, 4, 1)))).stdout
    command = [sys.executable, "-c", code, "decode", "-m", str(fake_bundle), "-", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(packets)
        process.stdin.close()
        process.stdout.read(10)
        process.stdout.close()
        process.wait(timeout=30)
        assert process.returncode in (1, 2) and b"Traceback" not in process.stderr.read()
