"""Servers on the fake bundle, with real sockets: what clients see is what is tested."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from onedva_runtime.clips import make_clip
from onedva_runtime.serve.server import make_server
from onedva_runtime.serve.service import Service
from onedva_runtime.serve.settings import Settings
from onedva_runtime.video_io import VideoWriter


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    service: Service
    address: str
    stop: Callable[[], None]

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of it."""
        return httpx.Client(base_url=self.address, timeout=30, **options)

    def live(self, work: str, query: str, **options: Any) -> ClientConnection:
        """A live session of it: work is encode or decode."""
        return connect(
            self.address.replace("http", "ws", 1) + f"/v1/live/{work}?{query}",
            max_size=None,
            **{"open_timeout": 60, **options},
        )


@contextmanager
def running(bundle: Path, *, tls: tuple[Path, Path] | None = None, **settings: Any) -> Iterator[Running]:
    """A service with settings of its own, ready; whatever is in progress at the end is waited for."""
    service = Service(Settings(**settings), model=str(bundle), backend="onnxruntime", threads=1)
    certificate, key = tls or (None, None)
    server, bound, address = make_server(service, host="127.0.0.1", port=0, certificate=certificate, key=key)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the service does not stop"

    try:
        wait_for(lambda: service.problem is None)
        yield Running(service, address, stop)
    finally:
        stop()


def wait_for(true: Callable[[], bool], *, seconds: float = 20) -> None:
    """Return as soon as something is the case; fail where it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def serve(fake_bundle: Path) -> Callable[..., Any]:
    """`with serve(jobs=1) as server`: a service with settings of its own."""
    return lambda **settings: running(fake_bundle, **settings)


@pytest.fixture(scope="session")
def server(fake_bundle: Path) -> Iterator[Running]:
    """A service with the settings that it has by itself, for all who only ask."""
    with running(fake_bundle) as one:
        yield one


@pytest.fixture(scope="session")
def clip() -> np.ndarray:
    """40 frames (40, 48, 64, 3)."""
    return make_clip(40, 48, 64)


@pytest.fixture(scope="session")
def upload(tmp_path_factory: pytest.TempPathFactory, clip: np.ndarray) -> bytes:
    """The clip as an mp4 file."""
    path = tmp_path_factory.mktemp("upload") / "clip.mp4"
    with VideoWriter(path, width=64, height=48, fps=Fraction(24)) as writer:
        writer.write(clip)
    return path.read_bytes()


@pytest.fixture(scope="session")
def coded(server: Running, upload: bytes) -> bytes:
    """The upload's `.odva` file."""
    with server.client() as client:
        answer = client.post("/v1/encode", params={"tokens": 16}, content=upload)
    assert answer.status_code == 200, answer.text
    return answer.content
