"""The service as a process of its own: killed, stopped, and with the process that decodes an upload killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from onedva_runtime.video_io import VideoWriter


def until(true: Callable[[], Any]) -> Any:
    """What is asked for, as soon as it is something; fails where it never is."""
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


@pytest.fixture
def process(fake_bundle: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """`onedva serve`, its address, and the folder for its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    verb = ["serve", "-m", str(fake_bundle), "--backend", "onnxruntime", "--threads", "1", "--port", "0"]
    command = [sys.executable, "-c", "from onedva.cli import main; main()", *verb]
    environment = {**os.environ, "TMPDIR": str(folder)}
    one = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert one.stdout is not None and one.stderr is not None
    address = one.stdout.readline().strip()
    until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
    yield one, address, folder
    one.kill()
    one.wait()
    one.stdout.close()
    one.stderr.close()


@pytest.fixture(scope="module")
def long_upload(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A minute of small noise, which takes a while to decode."""
    path = tmp_path_factory.mktemp("long") / "noise.mkv"
    noise = np.random.default_rng(0).integers(0, 256, (48, 128, 160, 3), np.uint8)
    with VideoWriter(path, width=160, height=128, fps=Fraction(24), crf=30) as writer:
        for _ in range(30):
            writer.write(noise)
    return path.read_bytes()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def in_background(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start work in a thread; what it returns, or raises, comes into the list."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except httpx.HTTPError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_kill_9_of_the_service_leaves_nothing(process: Any, long_upload: bytes) -> None:
    one, address, folder = process

    def upload() -> Iterator[bytes]:
        yield long_upload[:200_000]
        until(lambda: one.poll() is not None)
        yield long_upload[200_000:]

    waiting, results = in_background(lambda: httpx.post(f"{address}/v1/encode", content=long_upload, timeout=60))
    decoder = until(lambda: children(one.pid))[0]
    half, half_results = in_background(lambda: httpx.post(f"{address}/v1/encode", content=upload(), timeout=60))
    until(lambda: any(str(folder) in os.readlink(link) for link in Path(f"/proc/{one.pid}/fd").iterdir()))
    one.kill()
    for thread in (waiting, half):
        thread.join(30)
    assert isinstance(results[0], httpx.TransportError) and isinstance(half_results[0], httpx.TransportError)
    assert list(folder.iterdir()) == []
    until(lambda: not Path(f"/proc/{decoder}").exists() or "Z" in Path(f"/proc/{decoder}/stat").read_text().split()[2])


def test_kill_9_of_the_decoding_process_is_an_error(process: Any, long_upload: bytes) -> None:
    one, address, folder = process
    waiting, results = in_background(lambda: httpx.post(f"{address}/v1/encode", content=long_upload, timeout=60))
    os.kill(until(lambda: children(one.pid))[0], signal.SIGKILL)
    waiting.join(60)
    (result,) = results
    if isinstance(result, httpx.Response):  # before the first bytes of the answer
        assert (result.status_code, result.json()["error"]["code"]) == (422, "media_crashed")
    else:  # after them
        assert isinstance(result, httpx.RemoteProtocolError)
    assert httpx.get(f"{address}/readyz").status_code == 200 and list(folder.iterdir()) == []


def test_a_stop_answers_what_is_in_progress(process: Any, long_upload: bytes) -> None:
    one, address, folder = process
    waiting, results = in_background(
        lambda: httpx.post(f"{address}/v1/encode?tokens=0", content=long_upload, timeout=60)
    )
    until(lambda: children(one.pid))
    one.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
    refused = httpx.post(f"{address}/v1/encode", content=long_upload[:100])
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
    waiting.join(60)
    assert isinstance(results[0], httpx.Response) and results[0].status_code == 200
    assert one.wait(30) == 128 + signal.SIGTERM and list(folder.iterdir()) == []


def test_a_stop_waits_no_longer_than_it_was_given(fake_bundle: Path, long_upload: bytes, tmp_path: Path) -> None:
    """What is not done by then is left, without a traceback: a client that never ends its upload holds up nobody."""

    parts: list[int] = []

    def upload() -> Iterator[bytes]:
        for start in range(0, len(long_upload), 4000):
            parts.append(start)
            yield long_upload[start : start + 4000]
            time.sleep(0.3)

    command = [sys.executable, "-c", "from onedva.cli import main; main()", "serve", "-m", str(fake_bundle)]
    command += ["--backend", "onnxruntime", "--threads", "1", "--port", "0", "--grace", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None and one.stderr is not None
        address = one.stdout.readline().strip()
        until(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        waiting, results = in_background(lambda: httpx.post(f"{address}/v1/encode", content=upload(), timeout=60))
        until(lambda: len(parts) > 2)
        begun = time.monotonic()
        one.send_signal(signal.SIGTERM)
        assert one.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 8
        waiting.join(30)
        told = one.stderr.read()
    assert "stopping with 1 requests or sessions unfinished" in told and "Traceback" not in told, told
    assert isinstance(results[0], httpx.TransportError) or results[0].status_code == 503, results[0]
