"""The verb that makes bundles, `onedva export`, and what it shares with those that train and score. Thin, as those in
onedva/cli.py, which registers them; a missing extra is named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.options import Force, Quiet

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
    card: Annotated[Path | None, typer.Option("--card", help="A README.md to ship in the bundle.")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Export a checkpoint to a bundle of ONNX graphs.

    Each is verified against PyTorch; below the parity bar nothing is written.
    """
    with needs_extra("export"):
        from onedva_export import export_bundle
    with needs_extra("cpu"):
        from onedva_runtime.backends.onnxruntime import load_onnxruntime

        load_onnxruntime()  # what the proof runs on
    from onedva.commands.fit import parse_size

    Terminal(quiet=quiet).start_logging()
    sizes = [parse_size(text) for text in resolution or ["128x128", "256x256"]]
    folder = export_bundle(
        checkpoint,
        output,
        name=name,
        max_tokens=max_tokens,
        resolutions=[(height, width) for width, height in sizes],
        frames=frames,
        card=card,
        overwrite=force,
    )
    typer.echo(str(folder))
