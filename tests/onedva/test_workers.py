"""Worker processes: results in order, few at a time, crashes survived, and nobody left when the parent is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
import worker_tasks

from onedva.workers import AHEAD, Workers, each, in_order


def test_results_come_in_order_and_few_tasks_are_under_way() -> None:
    begun = 0

    def tasks() -> Iterator[tuple[int]]:
        nonlocal begun
        for number in range(12):
            begun += 1
            yield (number,)

    with Workers(2, shared=10) as pool:
        for number, result in enumerate(in_order(pool, worker_tasks.scaled, tasks())):
            assert result == 10 * number
            assert begun <= number + AHEAD * 2
    assert begun == 12


def test_an_error_in_a_task_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError, match="five"):
        list(each(worker_tasks.fragile, [4, 5, 6], workers=1, crashed=abs))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_keeps_the_order(workers: int) -> None:
    assert list(each(abs, range(-9, 0), workers=workers, crashed=abs)) == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_what_crashes_its_process_is_named_and_the_rest_goes_on() -> None:
    items = [0, 1, 2, 3, 4, 6, 7, 8]
    assert list(each(worker_tasks.fragile, items, workers=2, crashed=lambda item: -item)) == [0, 1, 2, -3, 4, 6, 7, 8]


def test_a_pool_has_workers() -> None:
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        Workers(0)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_leaving_while_results_are_on_their_way_ends() -> None:
    """A worker that ends in the middle of writing one would leave the parent waiting for the rest."""
    for _ in range(3):
        pool = Workers(2)
        tasks = [pool.submit(worker_tasks.heavy, 32 << 20) for _ in range(6)]
        assert len(tasks[0].result()) == 32 << 20
        leaving = Thread(target=pool.close, daemon=True)
        leaving.start()
        leaving.join(timeout=60)
        assert not leaving.is_alive()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(how: signal.Signals) -> None:
    """kill -9 of the parent, or Ctrl-C, which reaches the whole group: busy workers are gone within seconds."""
    command = [sys.executable, "-W", "error", worker_tasks.__file__]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(map(is_running, workers)), parent.stderr.read()
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)
        else:
            parent.kill()
        until = time.monotonic() + 30
        while any(map(is_running, workers)):
            assert time.monotonic() < until, "workers outlive their parent"
            time.sleep(0.05)
        errors = parent.stderr.read()
        assert parent.wait(30) != 0
    assert errors.count("Traceback") == (1 if how == signal.SIGINT else 0), errors  # the parent's own


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
