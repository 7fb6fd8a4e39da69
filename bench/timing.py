"""What the scripts here share: medians of repeated calls, and a child process that answers in JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def timed(call: Callable[[], object], *, warm_up: int = 2, runs: int = 10, time_box: float = 5.0) -> dict[str, Any]:
    """Median, least and spread (least to most, over the median) of the wall seconds of `call`; one run at least."""
    for _ in range(warm_up):
        call()
    seconds: list[float] = []
    begun = time.perf_counter()
    while not seconds or (len(seconds) < runs and time.perf_counter() - begun < time_box):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "median_s": median,
        "least_s": min(seconds),
        "spread": (max(seconds) - min(seconds)) / median,
        "runs": len(seconds),
    }


def child(*arguments: str) -> dict[str, Any]:
    """The JSON document that a Python process prints last on stdout. Its stderr goes to ours; its failure is ours."""
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)
