"""`backend="auto"`: which backend, at which precision, is fastest on this machine with this bundle.

Every candidate runs the bundle's golden test and then encodes and decodes one made-up clip. The answer is kept in
`ONEDVA_CACHE`, by machine, bundle, versions and threads, so this happens once. With one candidate nothing is measured.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva_runtime.backends import (
    DTYPES,
    Backend,
    BackendStatus,
    available,
    cpu_name,
    device_number,
    installed,
    open_backend,
    usable_cores,
)
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.files import AtomicFile
from onedva_runtime.placement import PATCH_SIZE
from onedva_runtime.prepare import clip_frames_for
from onedva_runtime.private_cache import cache_key, private_folder

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["Chosen", "Measured", "open_fastest"]

logger = logging.getLogger("onedva")
FRAMES, SIDE, TOKENS = 17, 128, 64  # of the clip that is timed: small, so that measuring takes seconds
RUNS = 8  # the fastest of each counts: other work on the machine only ever adds time
COARSE_GAIN = 0.1  # of fp32's time: what a dtype with fewer bits must save to be worth them


@dataclass(frozen=True)
class Measured:
    """What came of one candidate."""

    backend: str
    """Its name."""
    dtype: str
    """What it computed in."""
    passed: bool
    """Whether it passed the golden test."""
    psnr_db: float
    """Decode of the first golden case against the stored one."""
    seconds: float
    """Encode and 1-step decode of a clip of 17×128×128 with 64 latents, the fastest of eight; 0 where not passed."""
    problem: str = ""
    """Why it could not be measured."""


@dataclass(frozen=True)
class Chosen:
    """An open backend and why it is this one."""

    backend: Backend
    reason: str
    measured: tuple[Measured, ...] = ()
    """Every candidate, the fastest first; empty where there was no choice."""


def open_fastest(
    name: str,
    bundle: Bundle,
    *,
    device: str = "auto",
    threads: int | None = None,
    dtype: str = "auto",
    streams: int = 1,
) -> Chosen:
    """Open a backend by name, or the fastest; at a dtype, or at the fastest that passes the golden test.

    name: "auto" or a backend's name. device: "auto" takes those of every device. dtype: "auto" or one of DTYPES. The
    rest as `open_backend`, which also says what is raised; BackendError too where nothing passes.
    """
    if dtype not in ("auto", *DTYPES):
        raise BackendError(f"unknown dtype {dtype!r}; valid: auto, {', '.join(DTYPES)}")
    kind, _ = device_number(device)

    def open_pair(pair: tuple[str, str]) -> Backend:
        return open_backend(pair[0], bundle, device=device, threads=threads, dtype=pair[1], streams=streams)

    if name == "onnxruntime" and kind == "cuda":
        name = "onnxruntime-cuda"
    if name != "auto" and dtype != "auto":
        return Chosen(open_pair((name, dtype)), "asked for")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    statuses = [status for status in available() if name in ("auto", status.name) and kind in ("", status.device)]
    pairs = [
        (status.name, kind)
        for status in statuses
        if status.usable
        for kind in status.dtypes
        if dtype in ("auto", kind) and _has_graphs(bundle, status, kind, named=name != "auto")
    ]
    if not pairs:
        raise _nothing(name, bundle, device=device, dtype=dtype, statuses=statuses)
    if len(pairs) == 1:
        backend = open_pair(pairs[0])
        if name != "auto":
            return Chosen(backend, f"asked for; the only dtype it has is {backend.dtype}")
        case = _golden(bundle, backend)
        if not case["passed"]:
            raise BackendError(f"backend {backend.name} fails the golden test of {bundle.manifest.name}: {case}")
        return Chosen(backend, f"the only usable backend; golden test passed at {case['psnr_db']:.1f} dB")
    folder = private_folder("choices")
    path = folder / f"{cache_key(_facts(bundle, pairs, threads))}.json" if folder else None
    measured = _read(path) if path else None
    if measured is None:
        logger.info("measuring once which of %s is fastest here", ", ".join("/".join(pair) for pair in pairs))
        measured = _ranked(_measure(bundle, pairs, open_pair))
        if path:
            _write(path, measured)
    best = measured[0]
    if not best.passed:
        failed = "; ".join(f"{m.backend} {m.dtype}: {m.problem or f'{m.psnr_db:.1f} dB'}" for m in measured)
        raise BackendError(f"no backend passes the golden test of {bundle.manifest.name}: {failed}")
    return Chosen(open_pair((best.backend, best.dtype)), _reason(measured), tuple(measured))


def _has_graphs(bundle: Bundle, status: BackendStatus, dtype: str, *, named: bool) -> bool:
    """Whether the bundle has what a backend runs. For TensorRT: graphs of a dtype, and engines of them here; where it
    was asked for by name, missing engines are for `open_backend` to tell."""
    if status.name != "tensorrt":
        return True
    statics = [static for static in bundle.manifest.tensorrt if static.dtype == dtype]
    if not statics or named:
        return bool(statics)
    from onedva_runtime.backends.gpu import find_gpu
    from onedva_runtime.engines import find_engine

    try:
        for static in statics:
            for graph in static.graphs:
                find_engine(bundle, static, graph, find_gpu())
    except BackendError as problem:
        logger.info("TensorRT is left out: %s", problem)
        return False
    return True


def _nothing(name: str, bundle: Bundle, *, device: str, dtype: str, statuses: list[BackendStatus]) -> BackendError:
    """Why no backend is left to choose from."""
    none = bool(statuses) and not any(status.usable for status in statuses) and not device.startswith("cuda")
    asked = name if name != "auto" else statuses[0].name if none else None
    if asked is not None:
        try:  # let it say what is wrong
            open_backend(asked, bundle, device=device, dtype=None if dtype == "auto" else dtype)
        except BackendError as problem:
            return problem
    found = "; ".join(f"{s.name} in {', '.join(s.dtypes)}" if s.usable else f"{s.name}: {s.reason}" for s in statuses)
    return BackendError(f"no usable backend on device {device!r} computes in {dtype}; there are: {found}")


def _ranked(measured: list[Measured]) -> list[Measured]:
    """What to take first: the fastest that passed, but a coarser dtype only where it gains COARSE_GAIN over fp32."""
    exact = min((m.seconds for m in measured if m.passed and m.dtype == "fp32"), default=float("inf"))

    def place(m: Measured) -> tuple[bool, bool, float]:
        return not m.passed, m.dtype != "fp32" and m.seconds > (1 - COARSE_GAIN) * exact, m.seconds

    return sorted(measured, key=place)


def _facts(bundle: Bundle, pairs: list[tuple[str, str]], threads: int | None) -> list[Any]:
    """Everything the answer depends on; the manifest holds the hash of every file."""
    packages = ("onedva", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
    versions = {package: installed(package) for package in packages}
    return [bundle.manifest.raw, versions, cpu_name(), usable_cores(), threads, platform.machine(), sorted(pairs)]


def _golden(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    from onedva_runtime.selftest import run_golden

    return run_golden(bundle, backend, bundle.manifest.golden.cases[:1])[0]


def _measure(
    bundle: Bundle, pairs: list[tuple[str, str]], opener: Callable[[tuple[str, str]], Backend]
) -> list[Measured]:
    """Golden test and speed of all candidates; what one raises is part of the answer.

    They are timed in turns, so that a machine that is busy for a while slows them all.
    """
    results: list[Measured] = []
    size = _timed_size(bundle, pairs)
    running: list[tuple[Measured, Callable[[], float]]] = []
    for pair in pairs:
        try:
            backend = opener(pair)
            case = _golden(bundle, backend)
        except (BackendError, BundleError) as error:  # what one backend refuses, another may run
            results.append(Measured(*pair, passed=False, psnr_db=0.0, seconds=0.0, problem=str(error)))
            continue
        result = Measured(*pair, passed=case["passed"], psnr_db=round(case["psnr_db"], 1), seconds=0.0)
        if result.passed:
            running.append((result, _round_trip(bundle, backend, size)))
        else:
            results.append(result)
    seconds = [[timer() for _, timer in running] for _ in range(1 + RUNS)][1:]  # the first round compiles
    return results + [replace(result, seconds=min(row[i] for row in seconds)) for i, (result, _) in enumerate(running)]


def _timed_size(bundle: Bundle, pairs: list[tuple[str, str]]) -> tuple[int, int, int]:
    """(frames, height, width) of the clip that is timed: small, or of the largest engine where there are engines."""
    if any(name == "tensorrt" for name, _ in pairs):
        static = max(bundle.manifest.tensorrt, key=lambda s: s.frames * s.height * s.width)
        return static.frames, static.height, static.width
    side = min(SIDE, PATCH_SIZE * math.isqrt(bundle.manifest.clip.max_video_positions))
    return min(FRAMES, clip_frames_for(side, side, bundle.manifest)), side, side


def _round_trip(bundle: Bundle, backend: Backend, size: tuple[int, int, int]) -> Callable[[], float]:
    """A function that encodes and decodes one made-up clip and returns the seconds that took."""
    from onedva_runtime.clips import make_clip
    from onedva_runtime.codec import VideoCodec

    codec = VideoCodec(bundle, backend)
    frames = make_clip(*size)

    def timer() -> float:
        start = time.perf_counter()
        codec.decode_clip(codec.encode_clip(frames, tokens=TOKENS))
        return time.perf_counter() - start

    return timer


def _reason(measured: list[Measured]) -> str:
    """In words: what was fastest, by how much, and how close it is to the stored decode."""
    best, *others = measured
    rest = ", ".join(
        f"{m.backend} {m.dtype} {1000 * m.seconds:.0f} ms" if m.passed else f"{m.backend} {m.dtype} fails"
        for m in others
    )
    return (
        f"fastest here: {best.backend} {best.dtype} {1000 * best.seconds:.0f} ms for a small clip ({rest}); "
        f"a dtype of fewer bits must save {COARSE_GAIN:.0%} of what fp32 takes; "
        f"golden test passed at {best.psnr_db:.1f} dB"
    )


def _read(path: Path) -> list[Measured] | None:
    """What was measured before; None where nothing was, or the file is not what we write."""
    try:
        return [Measured(**entry) for entry in json.loads(path.read_bytes())] or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s is not readable, measuring again: %s", path, error)
        return None


def _write(path: Path, measured: list[Measured]) -> None:
    try:
        with AtomicFile(os.fspath(path), overwrite=True, error=BackendError) as whole:
            whole.file.write(json.dumps([asdict(entry) for entry in measured], indent=2).encode())
            whole.commit()
    except (OSError, BackendError) as error:
        logger.warning("the choice cannot be kept, so it will be measured again: %s", error)
