"""`Service`: the codec, what it costs here, its queues and its metrics. Opened before the first request, ready once it
has passed the bundle's golden test and measured itself on this machine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TYPE_CHECKING

from onedva_runtime.backends import Backend
from onedva_runtime.backends.choose import open_fastest
from onedva_runtime.bundle import find, read_bundle
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import BackendError
from onedva_runtime.prepare import parse_tokens
from onedva_runtime.serve.admission import Admission
from onedva_runtime.serve.batching import BatchedBackend, Batcher
from onedva_runtime.serve.cost import Cost, measure, positions_of
from onedva_runtime.serve.metrics import Metrics, length_label
from onedva_runtime.serve.refusal import Refusal, busy
from onedva_runtime.serve.settings import Settings
from onedva_runtime.stream_report import StreamReport

if TYPE_CHECKING:
    from onedva_runtime.serve.live import LiveSocket

__all__ = ["Service"]

logger = logging.getLogger("onedva")


class Service:
    """All that requests share. `warm_up` once, in a thread; `close` at the end."""

    cost: Cost
    """Seconds that work takes here; after warm-up."""

    def __init__(
        self,
        settings: Settings,
        *,
        model: str = "tiny",
        backend: str = "auto",
        dtype: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Open the bundle; the rest as `VideoCodec.from_pretrained`, and raises as it does."""
        bundle = read_bundle(find(model))
        chosen = open_fastest(backend, bundle, device=device, threads=threads, dtype=dtype)
        self.settings, self.metrics = settings, Metrics()
        self._alone = VideoCodec(bundle, chosen.backend, reason=chosen.reason)
        self.batcher = Batcher(
            chosen.backend, max_batch=settings.max_batch, wait_ms=settings.batch_wait_ms, on_run=self._note_run
        )
        self.admission = Admission(settings, self.metrics, lag=self.lag)
        shared: dict[bool, Backend] = {urgent: BatchedBackend(self.batcher, urgent=urgent) for urgent in (False, True)}
        self.codec = VideoCodec(bundle, shared[False], limits=settings.limits)
        """For whole videos."""
        self.live_codec = VideoCodec(bundle, shared[True], limits=settings.live_limits)
        """For live sessions, whose clips go first."""
        self.job_threads = ThreadPoolExecutor(settings.jobs, "onedva job")
        self.live_threads = ThreadPoolExecutor(min(32, settings.live_sessions), "onedva live")
        self.live: dict[LiveSocket, None] = {}
        """Live sessions in progress, the newest last."""
        self._let_go = 0.0  # when the newest was last let go
        self.left_work = False
        """Whether a stop did not wait for all that was in progress: threads may still code a clip."""
        self.problem: str | None = "warming up"
        """Why it is not ready; None where it is."""

    def warm_up(self) -> None:
        """Pass the golden test and measure what work costs, unless that was done. Raises BackendError where the test
        fails."""
        if self.problem is None:
            return
        start = time.monotonic()
        for case in self._alone.selftest():
            if not case["passed"]:
                self.problem = "the golden test failed"
                raise BackendError(f"the bundle's golden test {case['name']!r} failed on {self._alone.backend_name}")
        self.cost = measure(self._alone)
        self.problem = None
        self.metrics.ready.set(1)
        clip = positions_of(self._alone.clip_frames, 256, 256)
        logger.info(
            "ready after %.1f s: %s on %s; a clip of 256x256 takes %.0f ms to encode, %.0f ms to decode",
            time.monotonic() - start,
            self._alone.name,
            self._alone.backend_name,
            1e3 * self.cost.encode(clip, 256),
            1e3 * self.cost.decode(clip, 256, 1),
        )

    def check_ready(self) -> None:
        """Raise Refusal before warm-up is over and while the service is stopping."""
        if self.problem is not None:
            raise Refusal(503, "not_ready", f"not ready: {self.problem}", retry_after=2)
        self.admission.check_open()

    def lag(self) -> float:
        """Seconds that live sessions are behind at the median, or that clips wait for their run lately."""
        behind = [live.behind for live in self.live]
        return max(self.batcher.lag, median(behind) if behind else 0.0)

    def check_behind(self, live: LiveSocket) -> None:
        """Raise Refusal where a session is too far behind and is the newest of several: each second one at most is let
        go, until the others keep up."""
        now = time.monotonic()
        newest = len(self.live) > 1 and live is next(reversed(self.live))
        if newest and live.behind > self.settings.live_behind_seconds and now - self._let_go > 1:
            self._let_go = now
            raise busy(f"the service is {live.behind:.1f} s behind: come back later", retry_after=5)

    async def drain(self, *, hurried: Callable[[], bool]) -> None:
        """Take no more, let live sessions say goodbye, and wait for what is in progress, `grace_seconds` at most, and
        no longer than until `hurried()`. On the event loop."""
        self.admission.draining = True
        end = time.monotonic() + self.settings.grace_seconds
        while self.admission.at_work and time.monotonic() < end and not hurried():
            for live in list(self.live):
                live.interrupt()
            await asyncio.sleep(0.05)
        if self.admission.at_work:
            self.left_work = True
            logger.warning("stopping with %d requests or sessions unfinished", self.admission.at_work)

    def close(self) -> None:
        """End all threads, once what they do is done; where a stop has left work, without waiting for it."""
        for threads in (self.job_threads, self.live_threads):
            threads.shutdown(wait=not self.left_work, cancel_futures=True)
        if not self.left_work:
            self.batcher.close()

    def expected_tokens(self, tokens: str, positions: int) -> int:
        """How many latents to charge a clip of `positions` grid positions for: as many as are asked for, all that it
        can have where its content decides. Raises Refusal for what is not a number of latents."""
        try:
            budget = parse_tokens(tokens)
        except ValueError as error:
            raise Refusal(422, "bad_tokens", str(error)) from None
        most = min(positions, self.live_codec.max_tokens)
        return min(budget, most) if isinstance(budget, int) else most

    def note_clip(self, work: str, report: StreamReport) -> None:
        """Count a clip that was coded, in any thread. work: "encode" or "decode"."""
        if not report.concealed:
            self.metrics.seconds.labels(work, length_label(report.tokens)).observe(report.seconds)

    def _note_run(self, clips: int, waited: float) -> None:
        self.metrics.batch.observe(clips)
        self.metrics.wait.observe(waited)
