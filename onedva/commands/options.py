"""The options that several verbs share, one type each, so that a flag means and says the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Backend",
    "Batch",
    "Device",
    "Dtype",
    "FollowCamera",
    "Force",
    "Json",
    "KeyframeInterval",
    "Lengths",
    "LowLatency",
    "Model",
    "Quantiser",
    "Quiet",
    "Seed",
    "Source",
    "Steps",
    "Threads",
    "Tokens",
]

Source = Annotated[Path, typer.Argument(metavar="IN", help="A video file.", show_default=False)]
KeyframeInterval = Annotated[
    int,
    typer.Option(
        "--keyframe-interval",
        min=0,
        help="Clips from one key clip, where a reader may start, to the next; 1: all, 0: only the first and at cuts.",
    ),
]
FollowCamera = Annotated[
    bool,
    typer.Option(
        "--follow-camera/--no-follow-camera",
        help="Hold the scene still while it is encoded where the camera moves and that pays.",
    ),
]
LowLatency = Annotated[
    bool, typer.Option("--low-latency", help="Clips of 5 frames: a third of the delay, more bits for the quality.")
]
Model = Annotated[
    str, typer.Option("--model", "-m", help="A shipped name, a bundle folder, or a hub id OWNER/NAME@REVISION.")
]
Backend = Annotated[str, typer.Option("--backend", help="auto, or a name that `onedva info` lists.")]
Dtype = Annotated[
    str,
    typer.Option("--dtype", help="auto, or what the backend computes in: fp32, fp16, bf16, int8; see `onedva info`."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or cuda:NUMBER.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of the backend; all cores if not given.")
]
Tokens = Annotated[str, typer.Option("--tokens", help="1D latents per clip: auto, a number, or a quality as in 35dB.")]
Quantiser = Annotated[
    float,
    typer.Option(
        "--quantiser",
        min=2**-10,
        max=2,
        help="Quantisation step, 1/1024 to 2: 0.125 costs 0.1 dB at 256 latents; doubled, files are a quarter smaller.",
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=0, max=50, help="Diffusion steps; 0 shows the preview.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**64 - 1, help="Seed of the noise.")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=64, help="Clips per call of the backend.")]
Lengths = Annotated[str, typer.Option("--lengths", help="Latent lengths, by comma: numbers, full, auto.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of tables.")]
