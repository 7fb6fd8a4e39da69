"""Micro-batching: clips of several clients that have the same shapes go through a graph in one run.

`Batcher` owns the threads that run graphs, as many as the backend has room for. Whoever has waited longest goes first,
live before whole videos, and takes along what waits and fits. A clip waits for others to come only while others could:
`batch_wait_ms` at most, and not at all where a single client is at work. `BatchedBackend` is the backend as a codec
sees it; with more than one step, its graphs go alone, since their state stays in the backend's own memory.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend, Condition, Float32, StepsInCoefficients, usable_cores

__all__ = ["BatchedBackend", "Batcher"]

Array = npt.NDArray[Any]
Run = Callable[..., Any]


@dataclass(eq=False)
class _Call:
    run: Run
    arrays: tuple[Any, ...]
    key: tuple[Any, ...] | None  # what may share a run; None: alone
    rows: int
    done: Future[Any] = field(default_factory=Future[Any])
    at: float = field(default_factory=time.monotonic)


class Batcher:
    """Takes calls of any thread and runs them, several in one where they fit. `close` ends its threads."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch: int,
        wait_ms: float,
        on_run: Callable[[int, float], None] = lambda clips, waited: None,
    ) -> None:
        """max_batch: most clips per run. wait_ms: longest wait for others to join. on_run: called with the clips of
        every run and the seconds that the first of them waited, in a thread of the batcher."""
        self.backend, self._max, self._wait_s, self._on_run = backend, max_batch, wait_ms / 1e3, on_run
        self.clients = 0
        """How many clients are at work now: nobody waits for company that cannot come."""
        self._urgent: deque[_Call] = deque()
        self._patient: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._lag, self._lag_at = 0.0, time.monotonic()
        slots = max(1, usable_cores() // backend.threads)
        self._threads = [threading.Thread(target=self._work, name="onedva run", daemon=True) for _ in range(slots)]
        for thread in self._threads:
            thread.start()

    @property
    def slots(self) -> int:
        """Runs at a time."""
        return len(self._threads)

    @property
    def lag(self) -> float:
        """Mean seconds that clips waited for their run lately; halves every two seconds without any."""
        return self._lag * 0.5 ** ((time.monotonic() - self._lag_at) / 2)

    def call(self, run: Run, *arrays: Any, key: tuple[Any, ...] | None, urgent: bool) -> Any:
        """What `run(*arrays)` gives, once it is this call's turn. key: calls with equal keys may share a run; their
        arrays are joined, and their results cut, along axis 0."""
        call = _Call(run, arrays, key, 1 if key is None else len(arrays[0]))
        with self._changed:
            if self._closed:
                raise RuntimeError("the service is stopping")
            (self._urgent if urgent else self._patient).append(call)
            self._changed.notify_all()
        return call.done.result()

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            started = time.monotonic()
            self._note(started - batch[0].at)
            self._on_run(sum(call.rows for call in batch), started - batch[0].at)
            try:
                for call, result in zip(batch, _run(batch), strict=True):
                    call.done.set_result(result)
            except Exception:  # whose fault it was shows when each goes alone
                for call in batch:
                    _run_alone(call)
            del batch  # nothing of a clip is held while waiting for the next

    def _note(self, waited: float) -> None:
        self._lag, self._lag_at = self.lag + 0.2 * (waited - self.lag), time.monotonic()

    def _next(self) -> list[_Call] | None:
        """The calls of the next run; None at the end."""
        with self._changed:
            while not (self._urgent or self._patient):
                if self._closed:
                    return None
                self._changed.wait()
            first = (self._urgent or self._patient).popleft()
            batch = [first]
            self._join(batch)
            end = first.at + self._wait_s
            while first.key is not None and len(batch) < min(self._max, self.clients) and not self._closed:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
                self._join(batch)
            return batch

    def _join(self, batch: list[_Call]) -> None:
        """Move what waits and fits into the batch, oldest first."""
        rows = sum(call.rows for call in batch)
        if batch[0].key is None:
            return
        for waiting in (self._urgent, self._patient):
            for call in list(waiting):
                if call.key == batch[0].key and rows + call.rows <= self._max:
                    waiting.remove(call)
                    batch.append(call)
                    rows += call.rows


def _run(batch: Sequence[_Call]) -> list[Any]:
    """The results of calls that share a run."""
    if len(batch) == 1:
        return [batch[0].run(*batch[0].arrays)]
    joined = [np.concatenate(parts) for parts in zip(*(call.arrays for call in batch), strict=True)]
    outputs: Any = batch[0].run(*joined)
    cuts = np.cumsum([call.rows for call in batch])[:-1]
    if not isinstance(outputs, tuple):
        return list(np.split(outputs, cuts))
    return list(zip(*(np.split(output, cuts) for output in outputs), strict=True))


def _run_alone(call: _Call) -> None:
    try:
        call.done.set_result(call.run(*call.arrays))
    except BaseException as error:
        call.done.set_exception(error)


class BatchedBackend:
    """A backend whose runs go through a batcher. See `Backend`."""

    def __init__(self, batcher: Batcher, *, urgent: bool) -> None:
        """urgent: before those of others that are not, as live sessions are before whole videos."""
        backend = self._backend = batcher.backend
        self._batcher, self._urgent = batcher, urgent
        self.name, self.threads, self.dtype = backend.name, backend.threads, backend.dtype
        self.has_one_step, self.has_few_steps = backend.has_one_step, backend.has_few_steps
        self.samples_on_device = False  # clips of several clients share one step's graph, not a loop of steps

    def encode(
        self, frames: npt.NDArray[np.uint8], resolution: Float32, is_key: npt.NDArray[np.bool_], anchors: Array
    ) -> tuple[Float32, Float32, Float32]:
        return self._call("encode", self._backend.encode, frames, resolution, is_key, anchors)

    def one_step(
        self,
        structural: Float32,
        latents: Float32,
        anchors: Array,
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        arrays = (structural, latents, anchors, has_latents, resolution, is_key, context_frame)
        return self._call("one_step", self._backend.one_step, *arrays)

    def condition(
        self,
        structural: Float32,
        latents: Float32,
        anchors: Array,
        has_latents: npt.NDArray[np.bool_],
        resolution: Float32,
        is_key: npt.NDArray[np.bool_],
    ) -> Condition:
        arrays = (structural, latents, anchors, has_latents, resolution, is_key)
        return self._alone(self._backend.condition, *arrays)

    def velocity(self, noisy_video: Float32, t: Float32, condition: Condition) -> Float32:
        return self._alone(self._backend.velocity, noisy_video, t, condition)

    def begin(
        self, given: Sequence[npt.NDArray[Any]], context_frame: npt.NDArray[np.uint8], noise: Float32
    ) -> tuple[Float32, Condition]:
        return self._alone(cast(StepsInCoefficients, self._backend).begin, given, context_frame, noise)

    def step(self, state: Float32, t: Float32, condition: Condition) -> Float32:
        return self._alone(cast(StepsInCoefficients, self._backend).step, state, t, condition)

    def finish(
        self,
        state: Float32,
        t: Float32,
        condition: Condition,
        is_key: npt.NDArray[np.bool_],
        context_frame: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        given = (state, t, condition, is_key, context_frame)
        return self._alone(cast(StepsInCoefficients, self._backend).finish, *given)

    def _alone(self, run: Run, *given: Any) -> Any:
        return self._batcher.call(run, *given, key=None, urgent=self._urgent)

    def _call(self, name: str, run: Run, *arrays: Array) -> Any:
        shapes = tuple((array.shape[1:], array.dtype.str) for array in arrays)
        return self._batcher.call(run, *arrays, key=(name, shapes), urgent=self._urgent)
