"""TensorRT on the command line: the options of engines, the verb `engines`, and what `export --trt` does after it has
written a bundle. Where TensorRT or a GPU is missing one line says so, and the exit is 3: what there is stays whole."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onedva.commands.console import Terminal, stderr_console
from onedva.commands.options import Json, Model, Quiet

if TYPE_CHECKING:
    from onedva_export.to_tensorrt import Progress
    from onedva_runtime.engines import EngineOptions, StoredEngine

__all__ = [
    "HardwareCompatible",
    "MaxBatch",
    "OptLevel",
    "Profiles",
    "Timeout",
    "Workspace",
    "build_for",
    "engine_options",
    "engines",
    "parse_numbers",
]

NO_ENGINES = 3  # exit: the bundle is whole, its engines are not there

Profiles = Annotated[str, typer.Option("--profiles", help="Longest latent length of each engine profile, by comma.")]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, max=64, help="Most clips of one run of an engine.")]
Workspace = Annotated[
    int, typer.Option("--workspace", min=64, help="MiB that TensorRT may use to try kernels in a build.")
]
OptLevel = Annotated[int, typer.Option("--opt-level", min=0, max=5, help="How long TensorRT looks for fast kernels.")]
HardwareCompatible = Annotated[
    bool, typer.Option("--hardware-compatible", help="Engines for every GPU from Ampere on, somewhat slower.")
]
Timeout = Annotated[float, typer.Option("--build-timeout", min=1, help="Seconds that one engine may take.")]


def engines(
    model: Model = "tiny",
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="FRAMESxHEIGHTxWIDTH; repeatable.", show_default="all that the bundle has"),
    ] = None,
    profiles: Profiles = "64,256,1024",
    max_batch: MaxBatch = 1,
    workspace: Workspace = 4096,
    opt_level: OptLevel = 3,
    hardware_compatible: HardwareCompatible = False,
    build_timeout: Timeout = 3600,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Build the TensorRT engines of a bundle for this GPU.

    Once per GPU and version of TensorRT, from a bundle that `export --trt` made; no PyTorch is needed. What the cache
    (ONEDVA_CACHE) holds already is checked and kept. Exit 3 where TensorRT or a GPU is missing, or a build fails.
    """
    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    options = engine_options(profiles, max_batch, workspace, opt_level, hardware_compatible)
    sizes = [_parse_clip(text) for text in size] if size else None
    built = build_for(model, options, sizes=sizes, timeout=build_timeout, terminal=terminal)
    _show(built, terminal)


def engine_options(
    profiles: str, max_batch: int, workspace: int, opt_level: int, hardware_compatible: bool
) -> EngineOptions:
    """The options as the builder wants them; ValueError for what it cannot take."""
    from onedva_runtime.engines import EngineOptions

    return EngineOptions(
        profiles=parse_numbers(profiles, "profiles"),
        max_batch=max_batch,
        workspace_mib=workspace,
        opt_level=opt_level,
        hardware_compatible=hardware_compatible,
    )


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers from 1, separated by commas; ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{what} are whole numbers from 1, separated by commas, such as 64,256,1024; got {text!r}")
    return tuple(int(part) for part in parts)


def _parse_clip(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"a clip's size is FRAMESxHEIGHTxWIDTH, such as 17x256x256; got {text!r}")
    return int(parts[0]), int(parts[1]), int(parts[2])


def build_for(
    model: str | Path,
    options: EngineOptions,
    *,
    sizes: list[tuple[int, int, int]] | None = None,
    timeout: float,
    terminal: Terminal,
) -> list[StoredEngine]:
    """Build engines with a progress bar; one line and exit 3 where that cannot be."""
    from onedva_export.to_tensorrt import EngineBuildError, MissingGpu, build_engines
    from onedva_runtime.bundle import find, read_bundle

    bundle = read_bundle(find(model))
    try:
        with _Bar(terminal) as bar:
            return build_engines(bundle, options, sizes=sizes, timeout=timeout, on_progress=bar.show)
    except MissingGpu as problem:
        print(f"onedva: no engines were built: {problem}", file=sys.stderr)
    except EngineBuildError as problem:
        print(f"onedva: {problem}", file=sys.stderr)
    raise typer.Exit(NO_ENGINES)


class _Bar:
    """A bar on stderr: the engine at hand, how many are there, and about how long it will take."""

    def __init__(self, terminal: Terminal) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        console = stderr_console()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
        )
        quiet = terminal.quiet or not console.is_terminal
        self._bar = RichProgress(*columns, console=console, transient=True, disable=quiet)
        self._task = self._bar.add_task("TensorRT", total=1.0, left="")

    def show(self, progress: Progress) -> None:
        left = "" if progress.seconds_left is None else f"about {progress.seconds_left / 60:.0f} min left"
        self._bar.update(
            self._task,
            description=f"{progress.done + 1}/{progress.total} {progress.engine}",
            completed=(progress.done + progress.fraction) / progress.total,
            left=left,
        )

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _show(built: list[StoredEngine], terminal: Terminal) -> None:
    from onedva.commands.tables import Table

    rows = [
        {
            "graph": engine.facts["graph"],
            "size": "×".join(str(side) for side in engine.facts["size"]),  # type: ignore[attr-defined]
            "dtype": engine.facts["dtype"],
            "profiles": ", ".join(f"{low}-{high}" for low, high in engine.profiles),
            "megabytes": round(engine.bytes / 1e6, 1),
            "build_s": engine.seconds,
            "folder": engine.folder,
        }
        for engine in built
    ]
    columns = ["graph", "size", "dtype", "profiles", "megabytes", "build_s", "folder"]
    table = Table(
        title="engines", columns=columns, rows=[[str(row[name]) for name in columns] for row in rows], text=True
    )
    terminal.show({"engines": rows}, [table])
