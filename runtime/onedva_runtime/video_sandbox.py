"""Decoding untrusted video in a process of its own, with limits on memory and time that the system enforces.

    with open_sandboxed("upload.mp4", sandbox=Sandbox(memory_bytes=1 << 30)) as reader:
        for frames, timestamps in reader: ...            # as from open_reader

FFmpeg decodes in C what strangers made. Here a crash or a hog ends that process, never this one, as a `SandboxError`.
The process cannot write files and inherits no handles, but it is not kept from system calls: a limit on accidents and
greed, not a jail. Its words are not trusted: sizes are checked against `Limits` here, too.
"""

from __future__ import annotations

import json
import logging
import math
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import BinaryIO, NoReturn, Self, cast

import numpy as np
from numpy.typing import NDArray

from .errors import OneDVAError, SandboxError, VideoError
from .files import open_regular
from .limits import Limits
from .typed_json import parse_as
from .video_info import VideoInfo

__all__ = ["Sandbox", "SandboxedReader", "open_sandboxed"]

logger = logging.getLogger("onedva")
HEAD = struct.Struct("<cI")  # kind and length of a message: I info, F frames, E error
MOST_TEXT = 1 << 16
WORKER = ("-P", "-m", "onedva_runtime.video_worker")  # -P: what lies in the working folder is not imported
PATIENCE = 5.0  # seconds for a process to end that has closed its output


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """What the process that decodes may use."""

    memory_bytes: int = 2 << 30
    """Address space: libraries take about a quarter of 1 GiB before the first frame."""
    cpu_seconds: int = 3600
    """Processor time in all."""
    stall_seconds: float = 60.0
    """Longest wait for the next frames."""

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "cpu_seconds"):  # the system counts both in whole numbers
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"Sandbox.{name} must be a whole number of at least 1, got {value!r}")
        if not 0 < self.stall_seconds < math.inf:
            raise ValueError(f"Sandbox.stall_seconds must be above 0 and finite, got {self.stall_seconds!r}")


class SandboxedReader:
    """Reads one video file front to back through another process. Made by `open_sandboxed`; use it in `with`."""

    info: VideoInfo
    """As `VideoReader.info`."""

    def __init__(self, source: str | BinaryIO, *, sandbox: Sandbox, limits: Limits, batch: int) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1 frame, got {batch}")
        file = None if isinstance(source, str) else source
        self._path = source if isinstance(source, str) else "the upload"
        if os.name != "posix":
            raise SandboxError(f"{self._path}: limits on a process need a POSIX system, this is {os.name}")
        self._sandbox, self._limits, self._batch = sandbox, limits, batch
        self._count = 0
        opened = f"/dev/fd/{file.fileno()}" if file is not None else self._path
        if file is not None:
            file.seek(0)  # where /dev/fd is the same open file, not the file opened again
        open_regular(opened, limits, error=VideoError).close()  # what is no file at all needs no process
        self._opened = opened
        self._process = self._start(() if file is None else (file.fileno(),))
        try:
            self.info = self._read_info()
        except BaseException:
            self.close()
            raise

    def _start(self, handles: tuple[int, ...]) -> subprocess.Popen[bytes]:
        order = {"sandbox": asdict(self._sandbox), "limits": asdict(self._limits), "batch": self._batch}
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        return subprocess.Popen(
            [sys.executable, *WORKER, json.dumps({**order, "path": self._opened})],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=handles,
            env={**os.environ, **threads},
        )

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield (frames (n, H, W, 3), timestamps (n,)), n = batch but for the last; every yield is a new array.

        Raises VideoError as `VideoReader` does, SandboxError where the process ends before its work.
        """
        shape = self.info.height, self.info.width, 3
        while True:
            kind, length = self._message()
            if kind == b"I":  # what is known once all was read
                known = self._parse_info(self._take(length))
                if replace(known, frames=None, truncated=False) != replace(self.info, frames=None, truncated=False):
                    self._fail("it changed its mind about the video")
                self.info = known
                if known.truncated:
                    logger.warning("%s: damaged or cut off, read %d frames", self._path, self._count)
                return
            each = int(np.prod(shape)) + 8
            if kind != b"F" or length == 0 or length % each or length > self._batch * each:
                self._fail("it answers what was not asked")
            count = length // each
            self._count += count
            if self._count > self._limits.max_frames:
                self._fail(f"more than {self._limits.max_frames} frames (Limits.max_frames)", kind=VideoError)
            timestamps = np.frombuffer(self._take(8 * count), np.int64)
            yield np.frombuffer(self._take(length - 8 * count), np.uint8).reshape(count, *shape), timestamps

    def stop(self) -> None:
        """End the process, from any thread: whoever waits for its frames gets a SandboxError at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """End the process; safe to call twice."""
        self.stop()
        self._process.wait()
        cast(BinaryIO, self._process.stdout).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_info(self) -> VideoInfo:
        kind, length = self._message()
        if kind != b"I":
            self._fail("it answers what was not asked")
        info = self._parse_info(self._take(length))
        pixels, limit = info.width * info.height, self._limits.max_pixels
        if not (info.width > 0 and info.height > 0 and pixels <= limit):
            size = f"frames of {info.width}x{info.height}"
            self._fail(f"{size}, over the limit of {limit} pixels (Limits.max_pixels)", kind=VideoError)
        return info

    def _message(self) -> tuple[bytes, int]:
        kind, length = HEAD.unpack(self._take(HEAD.size))
        if kind != b"F" and length > MOST_TEXT:
            self._fail("it answers too much")
        if kind == b"E":
            self._raise(self._take(length))
        return kind, length

    def _raise(self, text: bytearray) -> NoReturn:
        """Raise what the process says went wrong: our reader's own words, or those of whoever took it over."""
        try:
            name, said = cast("list[object]", json.loads(text))
            if not isinstance(said, str):
                raise TypeError("not text")
        except (ValueError, TypeError, RecursionError) as error:
            self._fail(f"it answers nonsense ({str(error)[:200]})")
        said = said.replace(self._opened, self._path)
        problem = "".join(letter if letter.isprintable() else "?" for letter in said[:1000])
        if name == "SandboxError":
            raise SandboxError(f"{self._path}: {problem}")
        raise VideoError(problem if problem.startswith(self._path) else f"{self._path}: {problem}")

    def _take(self, count: int) -> bytearray:
        """The next `count` bytes that the process writes, each wait no longer than the sandbox allows."""
        out, got = bytearray(count), 0
        pipe = cast(BinaryIO, self._process.stdout)
        end = time.monotonic() + self._sandbox.stall_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while got < count:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._fail(f"nothing came for {self._sandbox.stall_seconds:g} seconds (Sandbox.stall_seconds)")
                data = os.read(pipe.fileno(), min(count - got, 1 << 20))
                if not data:
                    self._explain()
                out[got : got + len(data)] = data
                got += len(data)
        return out

    def _explain(self) -> NoReturn:
        """Raise for a process that ended early."""
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._fail("it closed its output before its work was done")
        if status == -signal.SIGXCPU or status == -signal.SIGKILL:
            self._fail(f"it took more than {self._sandbox.cpu_seconds} seconds (Sandbox.cpu_seconds), or was killed")
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._fail(f"it ended with {name}")

    def _parse_info(self, text: bytearray) -> VideoInfo:
        try:
            info = cast(VideoInfo, parse_as(VideoInfo, json.loads(text), "info"))
            words = [info.codec, info.pixel_format, info.colour.matrix, info.colour.primaries, info.colour.transfer]
            if not all(word.isprintable() for word in words):
                raise ValueError("words that cannot be printed")
            if not (math.isfinite(info.duration_s or 0) and (info.frames or 0) >= 0):
                raise ValueError(f"{info.frames} frames in {info.duration_s} s")
        except (ValueError, OneDVAError, RecursionError) as error:
            self._fail(f"it answers nonsense ({str(error)[:200]})")
        return info

    def _fail(self, problem: str, *, kind: type[VideoError] = SandboxError) -> NoReturn:
        self.close()
        if kind is SandboxError:
            problem = f"the process that decodes it was stopped: {problem}"
        raise kind(f"{self._path}: {problem}")


def open_sandboxed(
    source: str | os.PathLike[str] | BinaryIO,
    *,
    sandbox: Sandbox | None = None,
    limits: Limits | None = None,
    batch: int = 17,
) -> SandboxedReader:
    """As `open_reader`, in a process with limits. source: a path, or a regular file that is open for reading, which
    need not have a name; it is not closed. Raises VideoError as it does, SandboxError where the process ends
    before its work: by a crash, or over a limit of `sandbox`."""
    opened = os.fspath(source) if isinstance(source, str | os.PathLike) else source
    return SandboxedReader(opened, sandbox=sandbox or Sandbox(), limits=limits or Limits(), batch=batch)
