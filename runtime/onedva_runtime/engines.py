"""TensorRT engines in `ONEDVA_CACHE`: which latent lengths share a profile, what an engine depends on, and how one is
published and found again. Free of TensorRT and CUDA, so that all but the build and the run can be tried anywhere.

    ONEDVA_CACHE/tensorrt/KEY/engine.plan     the plan; read only where its hash is what engine.json says
    ONEDVA_CACHE/tensorrt/KEY/engine.json     facts by name, profiles, hash, when and how long it was built

KEY is a hash of the facts. The folder is this user's alone (0700), because a plan is code: none from elsewhere is ever
opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.manifest import StaticGraphs
from onedva_runtime.placement import grid_of, longest
from onedva_runtime.private_cache import cache_key, private_folder
from onedva_runtime.typed_json import as_mapping, parse_as

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = [
    "EngineOptions",
    "Gpu",
    "StoredEngine",
    "buckets",
    "engine_facts",
    "engine_folder",
    "find_engine",
    "profile_of",
    "publish",
    "read_engine",
    "read_plan",
]

FORMAT = 1  # of engine.json and of how engines are built; another one is another engine
PLAN, FACTS = "engine.plan", "engine.json"
DEFAULT_PROFILES = (64, 256, 1024)


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built; all of it is part of what an engine is."""

    profiles: tuple[int, ...] = DEFAULT_PROFILES
    """Longest latent length of each profile, rising."""
    max_batch: int = 1
    """Most clips of one run."""
    workspace_mib: int = 4096
    """Memory that TensorRT may use to try kernels, in MiB."""
    opt_level: int = 3
    """0 to 5: how long TensorRT looks for fast kernels."""
    hardware_compatible: bool = False
    """Whether the engine must run on every GPU from Ampere on, at some cost in speed."""

    def __post_init__(self) -> None:
        checks = {
            f"profiles must be rising lengths of at least 1, got {self.profiles}": bool(self.profiles)
            and list(self.profiles) == sorted(set(self.profiles))
            and self.profiles[0] >= 1,
            f"max_batch must be in 1..64, got {self.max_batch}": 1 <= self.max_batch <= 64,
            f"workspace must be at least 64 MiB, got {self.workspace_mib}": self.workspace_mib >= 64,
            f"opt_level must be in 0..5, got {self.opt_level}": 0 <= self.opt_level <= 5,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


@dataclass(frozen=True)
class Gpu:
    """What of a machine an engine depends on."""

    name: str
    """As the driver calls the GPU."""
    capability: str
    """Compute capability, such as "9.0"."""
    tensorrt: str
    """Version of TensorRT."""


@dataclass(frozen=True)
class StoredEngine:
    """One engine of the cache: its engine.json, and where it lies."""

    facts: dict[str, object]
    """What the engine depends on, by name."""
    profiles: tuple[tuple[int, ...], ...]
    """Shortest and longest latent length of each profile."""
    sha256: str
    """Hash of the plan."""
    bytes: int
    """Size of the plan."""
    seconds: float
    """How long the build took."""
    built: float
    """When it was built, seconds since 1970."""
    folder: str = ""
    """Where it lies."""


def buckets(profiles: Sequence[int], max_tokens: int) -> tuple[tuple[int, int], ...]:
    """Disjoint ranges of latent lengths (shortest, longest), from 1 to `max_tokens`, one for each profile.

    profiles: their longest lengths, rising. Those over `max_tokens` are cut to it, and one that reaches it is added.
    """
    tops = sorted({min(top, max_tokens) for top in profiles} | {max_tokens})
    return tuple(zip([1, *(top + 1 for top in tops[:-1])], tops, strict=True))


def longest_length(static: StaticGraphs, max_tokens: int) -> int:
    """Longest latent length of clips of this size: a clip has one latent per grid position at most."""
    return longest(grid_of(static.frames, static.height, static.width), max_tokens=max_tokens)


def profile_of(profiles: Sequence[Sequence[int]], tokens: int) -> int:
    """Which profile a latent length is in; BackendError, naming what there is, where it is in none."""
    for index, (low, high) in enumerate(profiles):
        if low <= tokens <= high:
            return index
    raise BackendError(
        f"no profile for {tokens} latents: the engine was built for 1 to {profiles[-1][1]}; encode with fewer, or "
        "build with longer --profiles"
    )


def engine_facts(
    bundle: Bundle, static: StaticGraphs, graph: str, options: EngineOptions, gpu: Gpu
) -> dict[str, object]:
    """Everything an engine depends on, by name; the cache key is a hash of it."""
    spec = static.graphs[graph]
    return {
        "format": FORMAT,
        "graph": graph,
        "size": [static.frames, static.height, static.width],
        "dtype": static.dtype,
        "onnx": bundle.manifest.files[spec.file].sha256,
        "weights": bundle.manifest.model.fingerprint,
        "tensorrt": gpu.tensorrt,
        "gpu": "any from Ampere on" if options.hardware_compatible else gpu.name,
        "capability": "8.0 and up" if options.hardware_compatible else gpu.capability,
        "profiles": buckets(options.profiles, longest_length(static, bundle.manifest.max_tokens)),
        **{name: value for name, value in asdict(options).items() if name != "profiles"},
    }


def engine_folder(facts: Mapping[str, object] | None = None) -> Path:
    """The folder of one engine, or of all; BackendError where the cache cannot be written to."""
    folder = private_folder("tensorrt")
    if folder is None:
        raise BackendError("engines need a cache: point ONEDVA_CACHE at a folder that can be written to")
    return folder / cache_key(facts) if facts is not None else folder


def publish(facts: Mapping[str, object], plan: Path, *, profiles: Sequence[Sequence[int]], seconds: float) -> Path:
    """Give the built `plan`, a file on the same disk, its place in the cache, whole or not at all; returns it."""
    target = engine_folder(facts)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(mode=0o700)
    try:
        sha256 = _sha256(plan)
        stored = StoredEngine(
            facts=dict(facts),
            profiles=tuple(tuple(bounds) for bounds in profiles),
            sha256=sha256,
            bytes=plan.stat().st_size,
            seconds=round(seconds, 3),
            built=time.time(),
        )
        content = {name: value for name, value in asdict(stored).items() if name != "folder"}
        plan.replace(temporary / PLAN)
        (temporary / FACTS).write_text(json.dumps(content, indent=2))
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def read_engine(folder: Path) -> StoredEngine | None:
    """The engine in `folder`; None where there is none, or its engine.json is not what we write."""
    try:
        content = json.loads((folder / FACTS).read_bytes())
        return parse_as(StoredEngine, {**as_mapping(content, FACTS), "folder": str(folder)}, FACTS)  # pyright: ignore[reportReturnType]
    except (OSError, ValueError, BundleError):
        return None


def read_plan(engine: StoredEngine) -> bytes:
    """The plan's bytes. Raises BackendError where they are not those that were built."""
    path = Path(engine.folder) / PLAN
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BackendError(f"{path} cannot be read ({error.strerror}): {REBUILD}") from error
    if len(plan) != engine.bytes or hashlib.sha256(plan).hexdigest() != engine.sha256:
        raise BackendError(f"{path} is damaged: {REBUILD}")
    return plan


REBUILD = "`onedva engines` builds it again"


def find_engine(bundle: Bundle, static: StaticGraphs, graph: str, gpu: Gpu) -> StoredEngine:
    """The engine of one graph for this GPU, whatever flags it was built with; the newest of several.

    Raises BackendError where there is none, saying of the nearest one what is different.
    """
    spec = static.graphs[graph]
    wanted = {
        "format": FORMAT,
        "graph": graph,
        "onnx": bundle.manifest.files[spec.file].sha256,
        "weights": bundle.manifest.model.fingerprint,
    }
    folder = engine_folder()
    stored = [e for e in (read_engine(f) for f in sorted(folder.iterdir()) if not f.name.startswith(".")) if e]
    of_graph = [e for e in stored if wanted.items() <= e.facts.items()]
    fitting = [e for e in of_graph if e.facts.get("tensorrt") == gpu.tensorrt and _runs_on(e, gpu)]
    if fitting:
        return max(fitting, key=lambda engine: engine.built)
    what = f"{bundle.manifest.name}, {graph} at {static.size}, {static.dtype}"
    if of_graph:
        near = max(of_graph, key=lambda engine: engine.built)
        got = f"{near.facts.get('gpu')} with TensorRT {near.facts.get('tensorrt')}"
        raise BackendError(
            f"the engine of {what} was built for {got}, here is {gpu.name} with TensorRT {gpu.tensorrt}: build it here "
            "with `onedva engines`"
        )
    raise BackendError(f"no engine of {what} in {folder}: build it with `onedva engines`")


def _runs_on(engine: StoredEngine, gpu: Gpu) -> bool:
    if engine.facts.get("hardware_compatible"):
        return int(gpu.capability.split(".")[0]) >= 8
    return (engine.facts.get("gpu"), engine.facts.get("capability")) == (gpu.name, gpu.capability)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
