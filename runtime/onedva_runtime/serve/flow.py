"""Between threads, where codecs work, and the event loop, where clients are: both ways bounded, so that whoever is
slower holds up the other and memory stays flat.

    Flow       items from a generator that runs in a thread, awaited on the loop
    BodyPipe   bytes awaited on the loop, read in a thread like a file that cannot be searched
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["BodyPipe", "Cancelled", "Flow"]

Item = TypeVar("Item")
_END = object()


class Cancelled(BaseException):
    """Nobody waits for this work any more: it is left, without being an error."""


class Flow(Generic[Item]):
    """Runs a generator in a thread and hands its items to the loop, at most `ahead` of whoever takes them."""

    def __init__(self, executor: Executor, make: Callable[[Flow[Item]], Iterator[Item]], *, ahead: int = 2) -> None:
        """make: called in the thread with this flow, for `check`. Call on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._room = threading.Semaphore(ahead)
        self._cancelled = threading.Event()
        self._future = self._loop.run_in_executor(executor, self._run, make)

    def check(self) -> None:
        """In the thread: raise Cancelled where nobody waits for the work any more."""
        if self._cancelled.is_set():
            raise Cancelled

    def call(self, work: Callable[[], None]) -> None:
        """In the thread: run `work` on the loop, wait for it, and raise what it raises."""
        self.check()

        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def __aiter__(self) -> Flow[Item]:
        return self

    async def __anext__(self) -> Item:
        """The next item; raises what the generator raised, after all of its items."""
        item = await self._items.get()
        if item is _END:
            self._items.put_nowait(_END)
            await self._future
            raise StopAsyncIteration
        self._room.release()
        return item

    async def close(self) -> None:
        """Leave the generator, in its thread, and wait until it has ended. Never raises what it raised."""
        self._cancelled.set()
        self._room.release()  # the thread looks for a cancel each time that it gets room
        await asyncio.wait([self._future])
        if not self._future.cancelled():
            self._future.exception()  # it was asked for: no warning that nobody did

    def _run(self, make: Callable[[Flow[Item]], Iterator[Item]]) -> None:
        try:
            for item in make(self):
                self._room.acquire()
                self.check()
                self._loop.call_soon_threadsafe(self._items.put_nowait, item)
                del item
        except Cancelled:
            pass
        finally:
            self._loop.call_soon_threadsafe(self._items.put_nowait, _END)


class BodyPipe(io.RawIOBase):
    """A body on its way: `feed` on the loop, `read` in a thread. Not seekable."""

    name = "the upload"

    def __init__(self, *, room: int = 1 << 20) -> None:
        """room: bytes that may wait to be read before `feed` does."""
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._parts: deque[bytes] = deque()
        self._held, self._room = 0, room
        self._error: BaseException | None = None
        self._ended = self._left = False
        self._changed = threading.Condition()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def feed(self, data: bytes) -> None:
        """Hand on bytes, once there is room; what comes after the reader has left is dropped."""
        await self._has_room.wait()
        with self._changed:
            if self._left or not data:
                return
            self._parts.append(data)
            self._held += len(data)
            if self._held >= self._room:
                self._has_room.clear()
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows; `error` is raised where the reader comes to this."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Wait for bytes and take what fits; 0 at the end."""
        view = memoryview(buffer).cast("B")
        with self._changed:
            self._changed.wait_for(lambda: self._parts or self._ended)
            if not self._parts:
                if self._error is not None:
                    raise self._error
                return 0
            part = self._parts.popleft()
            count = min(len(view), len(part))
            view[:count] = part[:count]
            if count < len(part):
                self._parts.appendleft(part[count:])
            self._held -= count
            if self._held < self._room:
                self._loop.call_soon_threadsafe(self._has_room.set)
        return count

    def leave(self) -> None:
        """The reader is done: whoever feeds need not wait."""
        with self._changed:
            self._left = True
            self._parts.clear()
            self._loop.call_soon_threadsafe(self._has_room.set)
