"""The verb that makes bundles, `onedva export`, and what it shares with those that train and score. Thin, as those in
onedva/cli.py, which registers them; a missing extra is named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onedva.commands.console import Terminal
from onedva.commands.engines import (
    HardwareCompatible,
    MaxBatch,
    OptLevel,
    Profiles,
    Timeout,
    Workspace,
    build_for,
    engine_options,
    parse_numbers,
)
from onedva.commands.failures import needs_extra
from onedva.commands.options import Force, Quiet

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle

__all__ = ["Checkpoint", "Clips", "export"]

Clips = Annotated[
    Path,
    typer.Option("--clips", help="A folder of videos or shards; MANIFEST.csv names splits.", show_default=False),
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint or bundle folder, a shipped name, or a hub id.")
]


def export(
    checkpoint: Checkpoint = "tiny",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle folder.", show_default="./onedva-NAME")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The bundle's own name.", show_default="CHECKPOINT's")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=16, help="The longest latent sequence.")] = 1024,
    resolution: Annotated[
        list[str] | None,
        typer.Option(
            "--resolution", help="WIDTHxHEIGHT to prove parity at; repeatable.", show_default="128x128, 256x256"
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", help="Frames of a full clip, 1 + 4n.", show_default="the model's")
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(
            "--triton",
            metavar="DIR",
            help="Write a model repository for Triton, too; of what is a bundle already, without exporting it again.",
        ),
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", help="A README.md to ship in the bundle.")] = None,
    trt: Annotated[
        bool, typer.Option("--trt", help="Add graphs for TensorRT at each --resolution, and build engines of them.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="What engines compute in: fp32, fp16 or bf16.")] = "fp16",
    engine_frames: Annotated[
        str | None,
        typer.Option(
            "--engine-frames",
            help="Frames of the clips that engines take, by comma.",
            show_default="every length, since videos end and scenes cut anywhere",
        ),
    ] = None,
    profiles: Profiles = "64,256,1024",
    max_batch: MaxBatch = 1,
    workspace: Workspace = 4096,
    opt_level: OptLevel = 3,
    hardware_compatible: HardwareCompatible = False,
    build_timeout: Timeout = 3600,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs.

    Each is verified against PyTorch; below the parity bar nothing is written. With --trt, engines are then built for
    this GPU; where that cannot be, the bundle is there all the same and the exit is 3 (`onedva engines` builds later).
    """
    if triton is not None and output is None and (made := existing_bundle(checkpoint)) is not None:
        from onedva_runtime.triton_repository import write_triton

        typer.echo(str(write_triton(made, triton, overwrite=force)))
        return
    with needs_extra("export"):
        from onedva_export import export_bundle
    with needs_extra("cpu"):
        from onedva_runtime.backends.onnxruntime import load_onnxruntime

        load_onnxruntime()  # what the proof runs on
    from onedva.commands.fit import parse_size

    terminal = Terminal(quiet=quiet)
    terminal.start_logging()
    options = engine_options(profiles, max_batch, workspace, opt_level, hardware_compatible)
    sizes = [parse_size(text) for text in resolution or ["128x128", "256x256"]]
    pixels = [(height, width) for width, height in sizes]
    statics = None
    if trt:
        from onedva_export.static_export import StaticSizes

        counts = parse_numbers(engine_frames, "engine frames") if engine_frames else None
        statics = StaticSizes(tuple(pixels), counts, dtype)
    elif engine_frames or dtype != "fp16":
        raise ValueError("--dtype and --engine-frames are about engines: give --trt too")
    folder = export_bundle(
        checkpoint,
        output,
        name=name,
        max_tokens=max_tokens,
        resolutions=pixels,
        frames=frames,
        card=card,
        tensorrt=statics,
        overwrite=force,
    )
    typer.echo(str(folder))
    if triton is not None:
        from onedva_runtime.bundle import read_bundle
        from onedva_runtime.triton_repository import write_triton

        typer.echo(str(write_triton(read_bundle(folder), triton, overwrite=force)))
    if trt:
        build_for(folder, options, timeout=build_timeout, terminal=terminal)


def existing_bundle(checkpoint: str) -> Bundle | None:
    """The bundle that a checkpoint is already: a shipped name, or a folder with a manifest; None for any other."""
    from onedva_runtime.bundle import find, read_bundle, shipped

    is_folder = (Path(checkpoint) / "manifest.json").is_file()
    names = {name for model in shipped() for name in (model, model.rpartition("-v")[0])}
    return read_bundle(find(checkpoint)) if is_folder or checkpoint in names else None
