"""Turns are taken in the order of asking, by no more threads at once than there are slots."""

import threading
import time

import pytest

from onedva_runtime.turns import Turns


@pytest.mark.parametrize("slots", [1, 3])
def test_no_more_than_the_slots_are_inside(slots: int) -> None:
    turns, inside, most, lock = Turns(slots), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(30):
            with turns:
                with lock:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.0005)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert inside == 0 and most == slots


def test_an_eager_thread_does_not_overtake() -> None:
    """Threads that ask again as soon as they are out share the turns, instead of one taking all of its own first."""
    turns, order = Turns(1), []

    def work(name: str) -> None:
        for _ in range(20):
            with turns:
                order.append(name)
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    with turns:
        for thread in threads:
            thread.start()
        while len(turns._waiting) < 3:
            time.sleep(0.001)
    for thread in threads:
        thread.join(timeout=30)
    assert len(order) == 60
    for count in range(1, 61):  # a busy machine may keep a thread from asking for a while, hence not 1
        taken = [order[:count].count(name) for name in "abc"]
        assert max(taken) - min(taken) <= 6


def test_an_error_inside_hands_over() -> None:
    turns = Turns(1)
    with pytest.raises(KeyError), turns:
        raise KeyError
    with turns:
        pass
    assert turns._free == 1
