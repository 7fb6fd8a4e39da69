"""What `-` means for a verb: video and packets from stdin and to stdout, which then carries nothing else."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime.container import Header
    from onedva_runtime.video_pipe import RawReader
    from onedva_runtime.video_read import VideoReader
    from onedva_runtime.video_sandbox import SandboxedReader

__all__ = ["data_out", "is_pipe", "open_source", "opened_data", "owned", "shown", "uneven"]

Item = TypeVar("Item")


def is_pipe(path: Path | None) -> bool:
    """Whether a path on the command line is `-`."""
    return path is not None and str(path) == "-"


def shown(path: Path) -> str:
    """The path as messages name it."""
    return "the pipe" if is_pipe(path) else str(path)


def data_in() -> BinaryIO:
    """stdin as bytes. Raises ValueError where it is a terminal."""
    if sys.stdin.isatty():
        raise ValueError("- reads from stdin, which is a terminal here: pipe a file or program into it")
    try:
        if hasattr(os, "set_blocking"):  # another program may have left it so; "nothing yet" would look like the end
            os.set_blocking(sys.stdin.fileno(), True)
        # Without a buffer: the lock of one, held by a thread that waits for bytes, aborts the interpreter when it ends.
        file = io.FileIO(sys.stdin.fileno(), closefd=False)
        file.name = "the pipe"  # in errors
        return cast(BinaryIO, file)
    except (OSError, ValueError):  # not a real stdin, as in a test's
        return sys.stdin.buffer


@contextmanager
def data_out(*, wanted: bool) -> Generator[BinaryIO | None]:
    """stdout as bytes where that is wanted; inside, whatever else would be printed there goes to stderr.

    Raises ValueError where stdout is a terminal.
    """
    if not wanted:
        yield None
        return
    if sys.stdout.isatty():
        raise ValueError("- writes to stdout, which is a terminal here: pipe it into a file or program")
    file = sys.stdout.buffer
    with redirect_stdout(sys.stderr):
        yield file
    file.flush()


def opened_data(path: Path) -> Path | BinaryIO:
    """The path, or stdin for `-`."""
    return data_in() if is_pipe(path) else path


def open_source(
    source: Path, *, raw: str | None, batch: int, sandbox: bool = False
) -> VideoReader | RawReader | SandboxedReader:
    """Open a video file or pipe for reading in batches of frames. raw: the format of bare frames, where it is such a
    pipe. sandbox: decode a file in a process with limits.

    Raises ValueError, and VideoError as `open_reader` does.
    """
    from onedva_runtime.video_io import open_reader
    from onedva_runtime.video_pipe import RawFormat, RawReader
    from onedva_runtime.video_sandbox import open_sandboxed

    if sandbox:
        if raw is not None or is_pipe(source):
            raise ValueError("--sandbox opens files; what comes through a pipe, its sender can decode in one")
        return open_sandboxed(source, batch=batch)
    if raw is None:
        return open_reader(opened_data(source), batch=batch)
    form = RawFormat.parse(raw)
    if not is_pipe(source):
        raise ValueError(f"--raw is for frames from a pipe: give - in place of {source}")
    return RawReader(data_in(), form, batch=batch)


def owned(items: Iterable[Item], resource: AbstractContextManager[object]) -> Iterator[Item]:
    """Yield the items, then close what they come from, in the thread that took them."""
    with resource:
        yield from items


def uneven(ticks: npt.NDArray[np.int64] | None, header: Header) -> bool:
    """Whether frames with these times, in ticks of the header's time base, are not spaced by its rate, to half a
    frame."""
    if ticks is None or header.time_base is None:
        return False
    step = float(header.time_base * header.fps)
    return any(abs((b - a) * step - 1) > 0.25 for a, b in pairwise(ticks.tolist()))
