"""Who may work now, who waits, and who is told to come back later. All of it runs on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

from onedva_runtime.serve.metrics import Metrics
from onedva_runtime.serve.refusal import Refusal, busy
from onedva_runtime.serve.settings import Settings

__all__ = ["Admission", "Charge", "Reservation"]


class Charge:
    """The estimated compute of one request: what it still owes, and what it may cost in all."""

    def __init__(self, admission: Admission, most: float) -> None:
        self._admission, self._most = admission, most
        self.total, self._owed = 0.0, 0.0

    def expect(self, seconds: float, *, deadline: float | None = None) -> None:
        """Announce work. Raises Refusal where the request costs more than it may, or would not be done by `deadline`,
        seconds from now."""
        self.total += seconds
        if self.total > self._most:
            raise Refusal(
                413,
                "over_budget",
                f"this takes an estimated {self.total:.1f} s of compute or more, a request may take {self._most:g} s: "
                "send less video, smaller frames, fewer tokens or fewer steps",
            )
        if deadline is not None and self._admission.owed + seconds > deadline:
            late = self._admission.owed + seconds - deadline
            raise busy(
                f"it would be done an estimated {late:.1f} s after the deadline: allow more time, ask for fewer tokens "
                "or steps, or come back later",
                retry_after=late,
            )
        self._owed += seconds
        self._admission.add(seconds)

    def done(self, seconds: float) -> None:
        """Some of it is done."""
        seconds = min(seconds, self._owed)
        self._owed -= seconds
        self._admission.add(-seconds)

    def close(self) -> None:
        """Nothing more will be done."""
        self.done(self._owed)


class Reservation:
    """The share of the machine that one live session holds."""

    def __init__(self, admission: Admission) -> None:
        self._admission, self.share = admission, 0.0

    def change(self, share: float) -> None:
        """Hold `share` from now on. Raises Refusal, and changes nothing, where there is no room for more."""
        if share > self.share:
            self._admission.check_live(share, held=self.share)
        self._admission.reserve(share - self.share)
        self.share = share


class Admission:
    """The queues of one service."""

    def __init__(self, settings: Settings, metrics: Metrics, *, lag: Callable[[], float]) -> None:
        """lag: seconds that live sessions are behind."""
        self._settings, self._metrics, self._lag = settings, metrics, lag
        self._turns = asyncio.Semaphore(settings.jobs)
        self._waiting = self._uploads = self._sessions = 0
        self._reserved = 0.0
        self.owed = 0.0
        """Estimated seconds of compute that were taken on and are not done."""
        self.draining = False
        """Whether the service is stopping: nobody new is taken."""
        self.at_work = 0
        """Requests and sessions in progress."""

    def add(self, seconds: float) -> None:
        """More, or less, is owed."""
        self.owed = max(0.0, self.owed + seconds)
        self._metrics.owed.set(self.owed)

    def reserve(self, share: float) -> None:
        """More, or less, of the machine is reserved."""
        self._reserved = max(0.0, self._reserved + share)
        self._metrics.reserved.set(self._reserved)

    def check_open(self) -> None:
        """Raise Refusal while the service is stopping."""
        if self.draining:
            raise Refusal(503, "stopping", "the service is stopping: ask another, or again soon", retry_after=5)

    def check_live(self, share: float, *, held: float = 0.0) -> None:
        """Raise Refusal where a live session that holds `held` of the machine cannot have `share` of it."""
        most, lag = self._settings.live_load, self._lag()
        if share > most:
            raise Refusal(
                413,
                "over_budget",
                f"a live session like this takes {100 * share:.1f} % of this machine, all of them may take "
                f"{100 * most:g} %: ask for smaller or fewer frames, fewer tokens or fewer steps",
            )
        if self._reserved - held + share > most:
            raise busy(
                f"live sessions hold {100 * (self._reserved - held):.1f} % of this machine, this one would take "
                f"{100 * share:.1f} % and {100 * most:g} % may be taken: ask for smaller frames, fewer tokens or "
                "steps, or come back later",
                retry_after=5,
            )
        if lag > self._settings.live_lag_seconds:
            raise busy(f"live sessions are {lag:.1f} s behind: come back later", retry_after=1 + 2 * lag)

    @contextmanager
    def upload(self) -> Generator[None]:
        """For as long as a request with a body is in progress. Raises Refusal."""
        self.check_open()
        if self._uploads >= self._settings.uploads:
            raise busy(f"{self._uploads} uploads are in progress, as many as may be", retry_after=self._later())
        self._uploads += 1
        self.at_work += 1
        try:
            yield
        finally:
            self._uploads -= 1
            self.at_work -= 1

    @asynccontextmanager
    async def job(self, most: float) -> AsyncGenerator[Charge]:
        """For as long as a video is coded, once it is its turn. most: estimated compute that it may take. Raises
        Refusal."""
        if self._turns.locked() and self._waiting >= self._settings.queue:
            raise busy(
                f"{self._settings.jobs} videos are being coded and {self._waiting} wait, as many as may",
                retry_after=self._later(),
            )
        if self.owed > self._settings.queue_seconds:
            raise busy(f"{self.owed:.0f} s of compute are waiting to be done", retry_after=self._later())
        self._waiting += 1
        self._metrics.queue.set(self._waiting)
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
            self._metrics.queue.set(self._waiting)
        charge = Charge(self, most)
        self._metrics.jobs.inc()
        try:
            yield charge
        finally:
            charge.close()
            self._turns.release()
            self._metrics.jobs.dec()

    @contextmanager
    def live(self, share: float, work: str) -> Generator[Reservation]:
        """For as long as a live session lasts. share: of the machine. Raises Refusal."""
        self.check_open()
        if self._sessions >= self._settings.live_sessions:
            raise busy(f"{self._sessions} live sessions are open, as many as may be", retry_after=5)
        reservation = Reservation(self)
        reservation.change(share)
        self._sessions += 1
        self.at_work += 1
        self._metrics.live.labels(work).inc()
        try:
            yield reservation
        finally:
            reservation.change(0.0)
            self._sessions -= 1
            self.at_work -= 1
            self._metrics.live.labels(work).dec()

    def _later(self) -> float:
        """Seconds after which there may be room."""
        return max(1.0, self.owed / max(1, self._settings.jobs))
