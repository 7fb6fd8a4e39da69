"""Worker processes for decoding: results in order, nothing left behind.

Each worker holds the reading end of a pipe, the lifeline, and ends at once when the writing end closes: when the work
is done, at Ctrl-C, and when the parent dies, by `kill -9` too. Workers come from a fork server (a fresh process that
has imported torch once), never from a fork of a parent whose threads may hold locks.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Lock, Thread
from types import TracebackType
from typing import Any, Self, TypeVar

__all__ = ["Workers", "each", "in_order", "is_worker"]

AHEAD = 2  # tasks per worker that are begun or done before their result is taken: enough to keep each one busy
T = TypeVar("T")
R = TypeVar("R")
_shared: Any = None


class Workers:
    """A pool of processes, to be used in `with`; leaving it ends them at once, in the middle of a task too."""

    def __init__(self, count: int, *, shared: Any = None) -> None:
        """count: processes, at least 1. shared: what every task is given first, sent once to each process."""
        if count < 1:
            raise ValueError(f"a pool needs at least 1 worker, got {count}")
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["onedva.data"])
        self.count = count
        # a fork server keeps the environment of whoever started it first
        settings = {name: value for name, value in os.environ.items() if name.startswith("ONEDVA_")}
        self._reader, self._writer = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(self._reader, shared, settings)
        )

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Run function(shared, *arguments) in a worker. Raises BrokenProcessPool when one has died."""
        return self._pool.submit(_call, function, *arguments)

    def close(self) -> None:
        """End the workers; safe to call twice."""
        self._writer.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_order(pool: Workers, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """function(shared, *task) for every task, in their order; no more than `AHEAD` per worker are ever under way.

    Raises what a task raises; BrokenProcessPool when a worker dies.
    """
    pending: deque[Future[Any]] = deque()
    for task in tasks:
        pending.append(pool.submit(function, *task))
        if len(pending) == AHEAD * pool.count:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def each(function: Callable[[T], R], items: Sequence[T], *, workers: int, crashed: Callable[[T], R]) -> Iterator[R]:
    """function(item) for every item, in order, in `workers` processes; in this one where 0.

    A damaged file may crash a decoder and take its process along. Then what was under way is tried again, one by one in
    a process of its own, and crashed(item) stands for what crashes again.
    """
    if not workers:
        yield from map(function, items)
        return
    done = 0
    while done < len(items):
        try:
            with Workers(min(workers, len(items) - done), shared=function) as pool:
                for result in in_order(pool, _apply, ((item,) for item in items[done:])):
                    yield result
                    done += 1
        except BrokenProcessPool:
            for item in items[done : done + AHEAD * workers]:
                yield _alone(function, item, crashed)
                done += 1


def is_worker() -> bool:
    """Whether this process is one of several: then a decoder should keep to one thread."""
    return multiprocessing.parent_process() is not None


def _alone(function: Callable[[T], R], item: T, crashed: Callable[[T], R]) -> R:
    try:
        with Workers(1, shared=function) as pool:
            return pool.submit(_apply, item).result()
    except BrokenProcessPool:
        return crashed(item)


def _apply(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _begin(lifeline: Connection, shared: Any, settings: dict[str, str]) -> None:
    """What a worker does first."""
    global _shared
    os.environ.update(settings)
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent decides, and the lifeline tells us
    Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    logging.getLogger("onedva").addHandler(logging.NullHandler())  # or Python prints warnings as it likes
    import torch

    torch.set_num_threads(1)


def _end_with(lifeline: Connection) -> None:
    """End this process once the lifeline closes: at once in the middle of a task, else where no result is on its way.

    A process that ended while it writes a result would leave half of it in the pipe, and the parent's reader waiting
    for the other half for ever. Between tasks a living parent ends us itself; a dead one no longer reads.
    """
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent: this ends when the other end is closed
    parent = multiprocessing.parent_process()
    _task.ending = True
    while True:
        with _task.gate:
            if _task.under_way or parent is None or not parent.is_alive():
                os._exit(0)
        time.sleep(0.02)


class _Task:
    """Whether this process is in the middle of a task; what a task returns is written after it."""

    def __init__(self) -> None:
        self.gate = Lock()
        self.under_way = self.ending = False

    def __enter__(self) -> None:
        with self.gate:
            if self.ending:
                os._exit(0)
            self.under_way = True

    def __exit__(self, *_: object) -> None:
        with self.gate:
            self.under_way = False


_task = _Task()


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    with _task:
        return function(_shared, *arguments)
