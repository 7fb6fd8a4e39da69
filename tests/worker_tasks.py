"""What tests have worker processes do. A module of its own, since workers import their tasks by name and pytest's
importlib mode gives test modules none. Run as a script it is a parent that can be killed."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, wait
from typing import Any

from onedva.workers import Workers


def scaled(factor: int, number: int) -> int:
    """factor · number; the odd ones take longer."""
    time.sleep(0.02 * (number % 2))
    return factor * number


def fragile(number: int) -> int:
    """The number, but 3 ends its process and 5 raises."""
    if number == 3:
        os.abort()
    if number == 5:
        raise ZeroDivisionError("five")
    return number


def process_id(shared: None, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def nap(shared: None) -> None:
    time.sleep(600)


def heavy(shared: None, size: int) -> bytes:
    """A result that is long on its way."""
    return bytes(size)


class Lethal(list[Any]):
    """Clips that end the process that opens one."""

    def __getitem__(self, index: Any) -> Any:
        os._exit(9)


def main() -> None:
    """Print the workers' process ids, keep them busy, and wait."""
    with Workers(2) as pool:
        ids: set[int] = set()
        while len(ids) < 2:
            ids |= {task.result() for task in [pool.submit(process_id, 0.2) for _ in range(4)]}
        naps: list[Future[None]] = [pool.submit(nap) for _ in range(4)]
        print(*ids, flush=True)
        wait(naps)


if __name__ == "__main__":
    main()
