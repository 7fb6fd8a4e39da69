"""What whoever runs the service decides: limits, queues, who may ask. A client chooses none of it, and no model."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onedva_runtime.limits import Limits

__all__ = ["Settings", "read_tokens"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of the service. Those of `onedva serve` are the defaults here."""

    max_upload_bytes: int = 256 << 20
    """Size of one request's body."""
    max_video_seconds: float = 120.0
    """Length of one video."""
    max_pixels: int = 1920 * 1088
    """Width x height of one frame of a video."""
    max_compute_seconds: float = 300.0
    """Estimated compute of one request, in seconds of the whole machine."""
    max_request_seconds: float = 600.0
    """Time from a request's first byte to the last of its answer."""
    upload_stall_seconds: float = 10.0
    """Longest wait for a client to send more."""
    min_upload_rate: int = 1024
    """Bytes per second that an upload must keep up, over the time that it was waited for, beside one such stall."""
    send_stall_seconds: float = 20.0
    """Longest wait for a client to take what was sent."""
    uploads: int = 16
    """Requests with a body at a time; each may take `max_upload_bytes` of temporary disk."""
    jobs: int = 2
    """Videos that are coded at a time."""
    queue: int = 8
    """Videos that may wait for that."""
    queue_seconds: float = 60.0
    """Estimated compute that may wait before more is refused."""
    live_sessions: int = 64
    """Live sessions at a time."""
    live_load: float = 0.85
    """Share of the measured compute that live sessions may reserve."""
    live_pixels: int = 512 * 512
    """Width x height of one live frame."""
    live_lag_seconds: float = 1.5
    """How far live sessions may be behind, at the median, before no more are let in. A clip that is being coded holds
    one up by a little."""
    live_behind_seconds: float = 4.0
    """How far one may be behind before the newest is let go, so that the others catch up."""
    live_seconds: float = 3600.0
    """Length of one live session."""
    idle_seconds: float = 30.0
    """Longest silence of a live client."""
    max_batch: int = 4
    """Most clips of several clients in one run; 1: each alone."""
    batch_wait_ms: float = 4.0
    """Longest wait of a clip for others to join it."""
    sandbox_bytes: int = 2 << 30
    """Address space of the process that decodes an upload."""
    grace_seconds: float = 20.0
    """How long a stop waits for work in progress."""
    tokens: frozenset[str] = frozenset()
    """Bearer tokens that may use the service; empty: everybody who reaches it."""
    metrics_tokens: frozenset[str] = frozenset()
    """Bearer tokens that may read /metrics; empty: only this machine, where the service is bound to loopback."""
    allow_origins: frozenset[str] = frozenset()
    """Web origins beside the service's own whose pages may use it, as https://example.com."""
    allow_hosts: frozenset[str] = frozenset()
    """Names by which clients may address it beside localhost, as in the Host header; "*": any."""
    loopback: bool = True
    """Whether it is bound to loopback."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number from 0, got {value!r}")
        for name in ("max_batch", "jobs", "uploads", "live_sessions", "max_upload_bytes", "max_pixels", "live_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        for origin in self.allow_origins:
            page = urlsplit(origin)
            if page.scheme not in ("http", "https") or origin != f"{page.scheme}://{page.netloc}" or not page.hostname:
                raise ValueError(f"an origin is https://NAME or https://NAME:PORT, without a path; got {origin!r}")
        if not 0 < self.live_load <= 4:
            raise ValueError(
                f"live_load must be above 0 and at most 4 (1: all that was measured), got {self.live_load}"
            )

    @property
    def limits(self) -> Limits:
        """Bounds on an uploaded video or `.odva` file; 240 frames a second is the most that its length may hold."""
        return Limits(
            max_pixels=self.max_pixels,
            max_frames=max(1, math.ceil(240 * self.max_video_seconds)),
            max_packet_bytes=min(16 << 20, self.max_upload_bytes),
            max_bytes=self.max_upload_bytes,
        )

    @property
    def live_limits(self) -> Limits:
        """Bounds on the packets of a live session."""
        return Limits(
            max_pixels=self.live_pixels,
            max_frames=max(1, math.ceil(120 * self.live_seconds)),
            max_packet_bytes=4 << 20,
        )


def read_tokens(file: Path | None, variable: str) -> frozenset[str]:
    """Bearer tokens from a file, one a line (# begins a comment), and from an environment variable, by comma.

    Raises ValueError for a token that a header could not carry or that is easily guessed, OSError.
    """
    lines = [] if file is None else file.read_text().splitlines()
    words = [line.partition("#")[0].strip() for line in lines] + os.environ.get(variable, "").split(",")
    tokens = frozenset(word.strip() for word in words if word.strip())
    for token in tokens:
        if len(token) < 16 or not all(
            character.isascii() and (character.isalnum() or character in "-._~") for character in token
        ):
            raise ValueError(
                "a bearer token is at least 16 letters, digits, -, ., _ or ~, so that a header and a subprotocol can "
                f"carry it; got one of {len(token)} characters. To make one: "
                "python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
    if file is not None and not tokens:
        raise ValueError(f"{file}: no tokens in it, so nobody could use the service")
    return tokens
