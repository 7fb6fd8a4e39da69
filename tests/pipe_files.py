"""Frames as the bytes of a pipe, for tests."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import numpy as np

from onedva_runtime.video_pipe import PipeWriter


def as_pipe(frames: np.ndarray, *, kind: Any = "y4m", ticks: np.ndarray | None = None) -> bytes:
    """Frames at 25 per second, or at times in milliseconds, as the bytes of a pipe."""
    out = io.BytesIO()
    base = None if ticks is None else Fraction(1, 1000)
    size = {"width": frames.shape[2], "height": frames.shape[1]}
    with PipeWriter(out, **size, fps=Fraction(25), time_base=base, kind=kind) as writer:
        writer.write(frames, ticks)
    return out.getvalue()
