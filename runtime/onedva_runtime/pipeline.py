"""Stages that work at the same time: each iterates in a thread of its own and hands its items on through a small queue.

    with Pipeline() as pipeline:
        batches = pipeline.stage("read", reader)             # an iterable, run ahead by at most two items
        packets = pipeline.stage("encode", encode(batches))  # a generator over the stage before
        for packet in packets:                               # the last stage runs here
            write(packet)

Graphs, PyAV and NumPy's larger calls release the GIL, so reading, coding and writing overlap. Memory stays that of the
queues. An error in a stage is raised where its items are taken; leaving the block, by an error or before the end, stops
every stage and joins its thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar, cast

__all__ = ["Pipeline"]

Item = TypeVar("Item")


class _Stopped(BaseException):
    """The pipeline is being left: whoever waits for a queue goes home."""


class _Queue(Generic[Item]):
    """A bounded queue with an end, which may be an error, and a stop that wakes both sides."""

    def __init__(self, ahead: int) -> None:
        self._items: deque[Item] = deque()
        self._ahead = ahead
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def put(self, item: Item) -> None:
        """Append, once there is room. Raises _Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._ahead)
            if self._stopped:
                raise _Stopped
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Item:
        """The next item. Raises StopIteration at the end, the stage's error after its last item, _Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._items or self._ended)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopIteration
            raise _Stopped

    def end(self, error: BaseException | None = None) -> None:
        """Nothing comes after what is there."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Forget what is there and wake everybody."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()


class _Items(Generic[Item]):
    """Iterates over a queue and counts the time that it waited."""

    def __init__(self, queue: _Queue[Item]) -> None:
        self._queue = queue
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            return self._queue.get()
        finally:
            self.waited_s += time.perf_counter() - start


class Pipeline:
    """Owns the threads and queues of its stages."""

    def __init__(self, *, ahead: int = 2) -> None:
        """ahead: items that a stage may be ahead of the next one, at least 1."""
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1 item, got {ahead}")
        self._ahead = ahead
        self._queues: list[_Queue[object]] = []
        self._outputs: list[_Items[object]] = []
        self._threads: list[tuple[threading.Thread, bool]] = []  # and whether it may stall
        self.busy_s: dict[str, float] = {}
        """Seconds that each stage that has ended worked, without waiting for the stages beside it."""

    def stage(self, name: str, source: Iterable[Item], *, may_stall: bool = False) -> Iterator[Item]:
        """Iterate over `source` in a thread of its own from now on; the items come out here, in order.

        `source` belongs to that thread: a generator over the stage before, or anything that no other stage touches. A
        generator is closed in that thread, so its `finally` and `with` blocks run there. may_stall: it may wait for
        something that never comes, such as the next byte of a pipe: leaving by an error does not wait for it then.
        """
        before = self._outputs[-1] if self._outputs else None
        queue: _Queue[Item] = _Queue(self._ahead)
        thread = threading.Thread(
            target=self._run, args=(name, source, queue, before), name=f"onedva {name}", daemon=True
        )
        items = _Items(queue)
        self._queues.append(cast("_Queue[object]", queue))
        self._outputs.append(cast("_Items[object]", items))
        self._threads.append((thread, may_stall))
        thread.start()
        return items

    def _run(self, name: str, source: Iterable[Item], queue: _Queue[Item], before: _Items[object] | None) -> None:
        start, blocked = time.perf_counter(), 0.0
        error: BaseException | None = None
        iterator: Iterator[Item] | None = None
        try:
            iterator = iter(source)
            for item in iterator:
                asked = time.perf_counter()
                queue.put(item)
                blocked += time.perf_counter() - asked
                del item  # what was handed on belongs to the next stage
        except _Stopped:
            pass
        except BaseException as problem:
            error = problem
        try:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()
        except _Stopped:
            pass
        except BaseException as problem:
            error = error or problem
        waited = before.waited_s if before is not None else 0.0
        self.busy_s[name] = time.perf_counter() - start - blocked - waited
        queue.end(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for queue in self._queues:
            queue.stop()
        for thread, may_stall in self._threads:
            # As a daemon, a stalled thread does not keep the process. Half a second is for one that is about to end.
            thread.join(timeout=0.5 if kind is not None and may_stall else None)
