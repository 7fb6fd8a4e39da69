"""Stages in threads: order, bounded run-ahead, real overlap, errors from every place, nothing left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from onedva_runtime.pipeline import Pipeline


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("onedva ")]


def test_items_come_in_order_through_all_stages() -> None:
    with Pipeline() as pipeline:
        numbers = pipeline.stage("count", range(100))
        squares = pipeline.stage("square", (number**2 for number in numbers))
        assert list(squares) == [number**2 for number in range(100)]
        assert threads() == [] or set(threads()) <= {"onedva count", "onedva square"}
    assert threads() == []
    assert set(pipeline.busy_s) == {"count", "square"}


def test_a_stage_runs_ahead_by_so_many_items_and_no_more() -> None:
    made: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with Pipeline(ahead=3) as pipeline:
        numbers = pipeline.stage("count", count())
        assert next(numbers) == 0
        time.sleep(0.1)
        assert len(made) <= 1 + 3 + 1  # taken, waiting, in hand
        assert len(made) >= 4
    with pytest.raises(ValueError, match="ahead must be at least 1"):
        Pipeline(ahead=0)


def test_stages_work_at_the_same_time() -> None:
    """Two stages can only pass this barrier together."""
    barrier = threading.Barrier(2, timeout=10)

    def first() -> Iterator[int]:
        yield 0
        barrier.wait()
        yield 1

    def second(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item == 0:
                barrier.wait()
            yield item

    with Pipeline() as pipeline:
        assert list(pipeline.stage("second", second(pipeline.stage("first", first())))) == [0, 1]


def test_busy_time_leaves_waiting_out() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    with Pipeline() as pipeline:
        list(pipeline.stage("fast", (n for n in pipeline.stage("slow", slow()))))
    assert pipeline.busy_s["slow"] > 0.14 > 0.07 > pipeline.busy_s["fast"]


@pytest.mark.parametrize("failing", ["read", "work", "end"])
def test_an_error_comes_out_after_what_was_before_it(failing: str) -> None:
    def read() -> Iterator[int]:
        for number in range(5):
            if failing == "read" and number == 3:
                raise KeyError("broken")
            yield number
        if failing == "end":
            raise KeyError("broken")

    def work(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if failing == "work" and item == 3:
                raise KeyError("broken")
            yield item

    seen: list[int] = []
    with pytest.raises(KeyError, match="broken"), Pipeline() as pipeline:
        for item in pipeline.stage("work", work(pipeline.stage("read", read()))):
            seen.append(item)
    assert seen == list(range(5 if failing == "end" else 3))
    assert threads() == []


def test_leaving_early_stops_every_stage_and_closes_what_it_holds() -> None:
    closed: list[str] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    def onwards(items: Iterator[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            closed.append(threading.current_thread().name)

    with pytest.raises(RuntimeError, match="enough"), Pipeline() as pipeline:
        items = pipeline.stage("onwards", onwards(pipeline.stage("endless", endless())))
        assert next(items) == 1
        raise RuntimeError("enough")
    assert sorted(closed) == ["onedva endless", "onedva onwards"] and threads() == []


def test_an_interrupt_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(items: Iterator[int]) -> None:
        for item in items:
            if item == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Pipeline() as pipeline:
        interrupted(pipeline.stage("count", iter(range(10**9))))
    assert threads() == []


def test_a_stage_that_waits_for_ever_keeps_nobody() -> None:
    never = threading.Event()

    def silent() -> Iterator[int]:
        yield 1
        never.wait()
        yield 2

    start = time.perf_counter()
    with pytest.raises(RuntimeError), Pipeline() as pipeline:
        items = pipeline.stage("onwards", (item for item in pipeline.stage("silent", silent(), may_stall=True)))
        assert next(items) == 1
        raise RuntimeError
    assert time.perf_counter() - start < 5
    assert threads() == ["onedva silent"]
    never.set()
    for thread in threading.enumerate():
        if thread.name == "onedva silent":
            thread.join()


@pytest.mark.timeout(30)
def test_a_source_that_cannot_even_begin_is_an_error_too() -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise OSError("no camera")

    with pytest.raises(OSError, match="no camera"), Pipeline() as pipeline:
        list(pipeline.stage("read", Broken()))
    assert threads() == []
