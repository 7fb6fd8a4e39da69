"""Bundle → TensorRT engines of this GPU, in the engine cache. Needs TensorRT and the bundle, no PyTorch.

    onedva export runs/tiny --trt          # graphs and, where there is a GPU, engines
    onedva engines -m ./onedva-tiny        # engines only, on the machine that will run them

Each engine is built in a process of its own (`trt_worker`), which gets a list of arguments, reports progress, and ends
with its parent. Two builders of one engine wait for each other. What is built takes its name at the end, so a failed or
stopped build leaves nothing; what is there already is checked and kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onedva_runtime.backends.gpu import MissingGpu, find_gpu
from onedva_runtime.bundle import Bundle
from onedva_runtime.engines import (
    EngineOptions,
    Gpu,
    StoredEngine,
    buckets,
    engine_facts,
    engine_folder,
    longest_length,
    publish,
    read_engine,
    read_plan,
)
from onedva_runtime.errors import BackendError
from onedva_runtime.manifest import GraphSpec, StaticGraphs

__all__ = ["EngineBuildError", "MissingGpu", "Progress", "build_engines", "input_profiles"]

logger = logging.getLogger("onedva")
TIMEOUT = 3600.0  # seconds for one engine


class EngineBuildError(BackendError):
    """An engine could not be built; the message says which and what TensorRT said."""


@dataclass(frozen=True)
class Progress:
    """How far the builds are."""

    engine: str
    """Which one is being built, in words."""
    done: int
    """Engines that are there."""
    total: int
    """Engines asked for."""
    fraction: float
    """Of the one being built, 0 to 1, as TensorRT counts its phases."""
    seconds_left: float | None
    """Estimate for all that is left; None until there is something to go by."""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Job:
    """One engine to be had."""

    static: StaticGraphs
    graph: str
    facts: dict[str, object]
    profiles: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.graph} {self.static.size} {self.static.dtype}"


def build_engines(
    bundle: Bundle,
    options: EngineOptions | None = None,
    *,
    sizes: Sequence[tuple[int, int, int]] | None = None,
    timeout: float = TIMEOUT,
    on_progress: OnProgress | None = None,
) -> list[StoredEngine]:
    """Build every engine of a bundle that this machine's cache lacks; returns them all.

    sizes: (frames, height, width) of clips, of those the bundle has graphs for; all by default. timeout: seconds for
    one engine. Raises MissingGpu where TensorRT or a GPU is missing, EngineBuildError where a build fails, BackendError
    for a bundle without graphs for TensorRT or of such a size.
    """
    options = options or EngineOptions()
    statics = _chosen(bundle, sizes)
    gpu = find_gpu()
    jobs = [
        Job(
            static,
            graph,
            engine_facts(bundle, static, graph, options, gpu),
            buckets(options.profiles, longest_length(static, bundle.manifest.max_tokens)),
        )
        for static in statics
        for graph in static.graphs
    ]
    pace = _Pace(len(jobs), on_progress)
    return [_ensure(bundle, job, gpu, timeout, pace) for job in jobs]


def _chosen(bundle: Bundle, sizes: Sequence[tuple[int, int, int]] | None) -> tuple[StaticGraphs, ...]:
    """The graphs of the sizes asked for."""
    there = bundle.manifest.tensorrt
    if not there:
        raise BackendError(f"{bundle.manifest.name} has no graphs for TensorRT: `onedva export {bundle.folder} --trt`")
    if sizes is None:
        return there
    missing = set(sizes) - {(s.frames, s.height, s.width) for s in there}
    if missing:
        wanted = ", ".join("×".join(map(str, size)) for size in sorted(missing))
        known = ", ".join(static.size for static in there)
        raise BackendError(f"{bundle.manifest.name} has no graphs for clips of {wanted}; it has {known}")
    return tuple(static for static in there if (static.frames, static.height, static.width) in set(sizes))


def _ensure(bundle: Bundle, job: Job, gpu: Gpu, timeout: float, pace: _Pace) -> StoredEngine:
    """The engine, from the cache or built now. One that is damaged is built once more, in place of it."""
    folder = engine_folder(job.facts)
    with _locked(folder.with_suffix(".lock")):
        engine = read_engine(folder)
        if engine is not None:
            try:
                read_plan(engine)
            except BackendError as problem:
                logger.warning("%s; building it again", problem)
            else:
                pace.finished()
                return engine
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder.parent) as place:
            start = time.monotonic()
            plan = _build(bundle, job, gpu, Path(place), timeout, pace)
            seconds = time.monotonic() - start
            publish(job.facts, plan, profiles=job.profiles, seconds=seconds)
    engine = read_engine(folder)
    if engine is None:
        raise EngineBuildError(f"the engine of {job} is not readable right after it was written to {folder}")
    logger.info("built the engine of %s in %.0f s", job, seconds)
    pace.finished()
    return engine


def _build(bundle: Bundle, job: Job, gpu: Gpu, place: Path, timeout: float, pace: _Pace) -> Path:
    """Run the worker; returns the plan's file in `place`."""
    plan, request = place / "engine.plan", place / "request.json"
    cache = engine_folder() / f"timing-{gpu.tensorrt}-{gpu.capability}.cache"
    request.write_text(json.dumps(_request(bundle, job, plan, cache)))
    command = [sys.executable, "-m", "onedva_export.trt_worker", os.fspath(request)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    overdue, said = threading.Event(), list[str]()
    late = threading.Timer(timeout, lambda: (overdue.set(), worker.kill()))
    reader = threading.Thread(target=lambda: said.extend(worker.stderr or ()), daemon=True)
    try:
        late.start()
        reader.start()
        pace.at(job, 0.0)
        for line in worker.stdout or ():
            with contextlib.suppress(ValueError, TypeError):  # whatever libraries print there
                pace.at(job, float(line))
        code = worker.wait()
        reader.join(timeout=10)
    except BaseException:
        worker.kill()
        worker.wait()
        raise
    finally:
        late.cancel()
        for pipe in (worker.stdin, worker.stdout, worker.stderr):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
    if code == 0 and plan.is_file() and plan.stat().st_size:
        return plan
    if overdue.is_set():
        raise EngineBuildError(
            f"building the engine of {job} took more than {timeout:.0f} s: allow more, or a lower level"
        )
    raise EngineBuildError(f"the engine of {job} cannot be built: {_reason(said, code)}")


def _reason(said: Sequence[str], code: int) -> str:
    """The worker's own last words, or how it ended."""
    lines = [line.strip() for line in said if line.strip()]
    return lines[-1] if lines else f"the worker ended with code {code}"


def _request(bundle: Bundle, job: Job, plan: Path, timing_cache: Path) -> dict[str, Any]:
    """What the worker needs to know, as JSON has it."""
    spec = job.static.graphs[job.graph]
    return {
        "onnx": os.fspath((bundle.folder / spec.file).resolve()),
        "plan": os.fspath(plan),
        "timing_cache": os.fspath(timing_cache),
        "profiles": input_profiles(spec, job.profiles, max_batch=int(str(job.facts["max_batch"]))),
        "workspace_mib": job.facts["workspace_mib"],
        "opt_level": job.facts["opt_level"],
        "hardware_compatible": job.facts["hardware_compatible"],
        # Products in TF32 round as fp16 ones do: right between fp16 products, wrong where fp32 was asked for, and in
        # the encoder, whose columns would choose other classes.
        "tf32": job.static.dtype != "fp32" and job.graph != "encoder",
    }


def input_profiles(
    spec: GraphSpec, profiles: Sequence[tuple[int, int]], *, max_batch: int
) -> list[dict[str, list[list[int]]]]:
    """Shapes (shortest, best, longest) of every input for each profile: batch from 1, best at the profile's longest.

    profiles: (shortest, longest) latent length of each.
    """
    found = []
    for low, high in profiles:
        corners = ({"B": 1, "K": low}, {"B": 1, "K": high}, {"B": max_batch, "K": high})
        found.append({value.name: [_shape(value.shape, corner) for corner in corners] for value in spec.inputs})
    return found


def _shape(axes: Sequence[int | str], sizes: dict[str, int]) -> list[int]:
    known = {**sizes, "K+5": sizes["K"] + 5}
    return [axis if isinstance(axis, int) else known[axis] for axis in axes]


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold a file's lock; the system gives it back when the process ends, however it ends."""
    import fcntl

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Pace:
    """Counts engines and estimates what is left from those that were built in this run."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self._total, self._tell = total, tell
        self._done, self._start, self._spent = 0, time.monotonic(), list[float]()

    def at(self, job: Job, fraction: float) -> None:
        now = time.monotonic()
        if fraction == 0.0:
            self._start = now
        if self._tell is None:
            return
        running = now - self._start
        guess = sum(self._spent) / len(self._spent) if self._spent else running / fraction if fraction > 0.05 else None
        left = None if guess is None else max(guess - running, 0.0) + guess * (self._total - self._done - 1)
        self._tell(Progress(str(job), self._done, self._total, fraction, left))

    def finished(self) -> None:
        self._done += 1
        if self._done and time.monotonic() - self._start > 0.5:
            self._spent.append(time.monotonic() - self._start)
