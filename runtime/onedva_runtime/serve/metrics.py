"""What Prometheus reads of one service. Names end in their unit; lengths are rounded up to a power of two, so that the
number of series is bounded whatever clients ask for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["Metrics", "length_label"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)


class Metrics:
    """The series of one service, in a registry of its own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("onedva_requests", "Requests answered.", ["route", "status"], registry=own)
        self.refused = Counter("onedva_refused", "Requests and sessions refused, by code.", ["code"], registry=own)
        self.seconds = Histogram(
            "onedva_clip_seconds",
            "From a clip being ready until it was coded, queue included.",
            ["work", "tokens"],
            buckets=_SECONDS,
            registry=own,
        )
        self.wait = Histogram(
            "onedva_turn_wait_seconds", "Wait of a clip for its run.", buckets=(0.001, 0.004, *_SECONDS), registry=own
        )
        self.batch = Histogram("onedva_batch_clips", "Clips in one run.", buckets=(1, 2, 4, 8, 16), registry=own)
        self.queue = Gauge("onedva_queue_jobs", "Videos that wait to be coded.", registry=own)
        self.jobs = Gauge("onedva_jobs", "Videos that are being coded.", registry=own)
        self.owed = Gauge("onedva_owed_seconds", "Estimated compute that was taken on and is not done.", registry=own)
        self.live = Gauge("onedva_live_sessions", "Live sessions.", ["work"], registry=own)
        self.reserved = Gauge(
            "onedva_live_reserved_ratio", "Share of measured compute that live sessions reserve.", registry=own
        )
        self.bytes = Counter("onedva_bytes", "Bytes of bodies and live messages.", ["direction"], registry=own)
        self.dropped = Counter(
            "onedva_dropped_segments", "Tail segments left out for a client's bandwidth.", registry=own
        )
        self.ready = Gauge("onedva_ready", "Whether warm-up and golden test have passed.", registry=own)

    def text(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


def length_label(tokens: int) -> str:
    """A number of latents for a label: the next power of two from 16, or 0."""
    return "0" if tokens <= 0 else str(max(16, 1 << (tokens - 1).bit_length()))
