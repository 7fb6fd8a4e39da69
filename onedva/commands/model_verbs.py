"""The verbs that need PyTorch: `onedva train`, `export` and `eval`. Thin, as those in onedva/cli.py, which registers
them; a missing extra is named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.options import Force, Json, Quiet, Seed

__all__ = ["evaluate", "export", "train"]

Clips = Annotated[
    Path, typer.Option("--clips", help="A folder of videos; MANIFEST.csv names the splits.", show_default=False)
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint or bundle folder, a shipped name, or a hub id.")
]


def train(
    clips: Clips,
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder.")] = Path("checkpoint"),
    preset: Annotated[str, typer.Option("--preset", help="tiny, small, base, large or paper.")] = "tiny",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 20_000,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="End after this much time if that comes first.")
    ] = None,
    evaluate_every: Annotated[
        float, typer.Option("--evaluate-every", min=0, help="Minutes between evaluations; 0: only at the end.")
    ] = 15,
    seed: Seed = 0,
    start: Annotated[
        Path | None,
        typer.Option("--init", help="A model folder whose weights to begin from.", show_default="a linear start"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on a folder of videos.

    Starts from principal components; leaves averaged weights, a log and scores on the dev split in the folder.
    """
    with needs_extra("train"):
        from onedva.config import TrainConfig
        from onedva.config import preset as preset_named
        from onedva.train import run
    Terminal(quiet=quiet).start_logging()
    config = TrainConfig(steps=steps, minutes=minutes, evaluate_every=evaluate_every, seed=seed)
    model = preset_named(preset)
    run(clips=clips, output=output, model=model, train=config, start=start, resume=resume, quiet=quiet)


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
        import onnxruntime  # noqa: F401 - what the proof runs on
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


def evaluate(
    clips: Clips,
    checkpoint: Checkpoint = "tiny",
    lengths: Annotated[str, typer.Option("--lengths", help="Latent lengths, by comma.")] = "0,64,256,1024",
    steps: Annotated[str, typer.Option("--steps", help="Step counts, by comma.")] = "1",
    floor: Annotated[
        bool, typer.Option("--floor", help="Also score the linear start: principal components of the train split.")
    ] = False,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure PSNR on a folder of videos.

    17 frames at 256×256, centre crop, per split, latent length and step count.
    """
    with needs_extra("train"):
        from onedva.evaluate import report
    from onedva.commands.tables import Table

    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    counts, numbers = ([int(part) for part in text.split(",")] for text in (lengths, steps))
    document = report(checkpoint, clips, tokens=counts, steps=numbers, floor=floor, seed=seed, progress=not quiet)
    rows = [
        [
            f"{name}, {split}",
            str(number),
            *(f"{document[name][split]['mean'][number][count]:.2f}" for count in sorted(counts)),
        ]
        for name in document
        for split in document[name]
        for number in numbers
    ]
    heads = ["PSNR in dB", "steps", *(f"{count} latents" for count in sorted(counts))]
    terminal.show(document, [Table(title=f"{checkpoint} on {clips}", columns=heads, rows=rows)])
