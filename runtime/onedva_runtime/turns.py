"""Who may run a graph now: first come, first served, so that streams that share a codec get turns of the same number,
however eager one of them is."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType

__all__ = ["Turns"]


class Turns:
    """A `with` block that at most `slots` threads are in. Whoever leaves hands over to who has waited longest.

    threading.Semaphore lets a thread that comes back at once overtake those that it has just woken.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:  # then nobody waits
                self._free -= 1
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # an interrupt: leave the queue, or pass on the turn that has just come
            with self._lock:
                waited = turn in self._waiting
                if waited:
                    self._waiting.remove(turn)
            if not waited:
                self._hand_over()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1
