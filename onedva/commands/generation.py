"""The verbs of latent diffusion: `onedva scenes`, `tokenize`, `train-ldm`. Thin, as those in onedva/cli.py; `generate`
stands in generate_verb.py."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.fit import parse_size
from onedva.commands.options import Json, Quiet
from onedva.commands.training import parse
from onedva_runtime.errors import OneDVAError

if TYPE_CHECKING:
    from onedva.generation.config import LatentTrainConfig

__all__ = ["scenes", "tokenize", "train_ldm"]


def scenes(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the videos.")] = Path("scenes"),
    per_class: Annotated[int, typer.Option("--per-class", min=1, help="Training videos of each class.")] = 100,
    dev_per_class: Annotated[int, typer.Option("--dev-per-class", min=0, help="Held-out videos of each class.")] = 10,
    size: Annotated[int, typer.Option("--size", min=16, help="Side in pixels, even.")] = 64,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Frames of each video.")] = 17,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31, help="Of everything that is drawn.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Make a small class-conditional set of moving scenes.

    Eight classes that share palettes and textures and differ in motion or shape, as videos with a MANIFEST.csv: to try
    tokenize, train-ldm and generate on, on a CPU.
    """
    from onedva.generation.scenes import CLASSES, write_scenes

    terminal = Terminal(quiet=quiet)
    total = len(CLASSES) * (per_class + dev_per_class)
    with terminal.progress("scenes", total=total, unit="videos") as advance:
        write_scenes(
            output,
            per_class=per_class,
            dev_per_class=dev_per_class,
            frames=frames,
            size=size,
            seed=seed,
            advance=advance,
        )
    typer.echo(str(output))


def tokenize(
    videos: Annotated[
        Path, typer.Argument(metavar="VIDEOS", help="A folder of videos, or shards of them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the latents.")] = Path("latents"),
    model: Annotated[str, typer.Option("--model", "-m", help="The autoencoder: a shipped name or a folder.")] = "tiny",
    split: Annotated[str, typer.Option("--split", help="train or dev.")] = "train",
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the clips, multiples of 16.")] = "256x256",
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Frames of a clip, 1 + 4n.", show_default="the model's")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="1D latents of a clip: the longest to generate.", show_default="256"),
    ] = None,
    anchors: Annotated[
        str,
        typer.Option("--anchors", help="fixed: all clips share their places; generated: placed by what a clip shows."),
    ] = "fixed",
    continuation: Annotated[
        bool, typer.Option("--continuation", help="Also store each clip as what follows its first frame.")
    ] = False,
    clips_per_video: Annotated[
        int, typer.Option("--clips-per-video", min=0, help="At most so many clips of a video; 0: all.")
    ] = 0,
    videos_per_shard: Annotated[int, typer.Option("--videos-per-shard", min=1, help="Videos of one shard.")] = 64,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: only this one.")] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Run as a Ray Data job: local, auto or an address.", show_default="not"
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the shards that are missing; all other options as at first.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Encode videos into shards of latents, to train a generator on.

    A video's class is the column `class` of MANIFEST.csv, or the folder it is in. A run that was killed goes on with
    --resume; what is there is not made again.
    """
    with needs_extra("train"):
        from onedva.generation.tokenise import make_plan, tokenise
    from onedva.commands.tables import Table

    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    width, height = parse_size(size)
    plan = make_plan(
        videos,
        model,
        split=one_of("--split", split, ("train", "dev")),
        size=(height, width),
        frames=frames,
        tokens=tokens,
        anchors=one_of("--anchors", anchors, ("fixed", "generated")),
        continuation=continuation,
        clips_per_video=clips_per_video,
        videos_per_shard=videos_per_shard,
    )
    options: dict[str, Any] = {"model": model, "resume": resume, "device": device}
    with terminal.progress("tokenize", total=len(plan.videos), unit="shards") as advance:
        if ray is None:
            done = tokenise(videos, output, plan, workers=workers, advance=advance, **options)
        else:
            with needs_extra("ray"):
                from onedva.generation.ray_job import tokenise_on_ray
            done = tokenise_on_ray(videos, output, plan, address=ray, workers=workers, advance=advance, **options)
    document = {
        "output": str(output),
        "shards": done.shards,
        "present": done.present,
        "clips": done.clips,
        "classes": list(plan.classes),
        "tokens": plan.tokens,
        "skipped": list(done.skipped),
    }
    names = {"shards": "shards made", "present": "shards that were there", "clips": "clips in the shards made"}
    rows = [
        [names.get(name, name), str(len(value) if isinstance(value, list) else value)]
        for name, value in document.items()
    ]
    terminal.show(document, [Table(title=f"{videos} in {output}", columns=["", ""], rows=rows, text=True)])


def train_ldm(
    context: typer.Context,
    latents: Annotated[
        Path, typer.Option("--latents", help="A folder that onedva tokenize has filled.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder.")] = Path("generator"),
    width: Annotated[
        int | None, typer.Option("--width", help="Channels, a multiple of 64.", show_default="384")
    ] = None,
    depth: Annotated[int | None, typer.Option("--depth", help="Blocks.", show_default="8")] = None,
    mlp_ratio: Annotated[
        float | None, typer.Option("--mlp-ratio", help="Hidden width of MLPs over width.", show_default="4.0")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", help="Text embeddings: safetensors, one tensor (L, C) by video name.", show_default="none"
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps.", show_default="100000")] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, help="End after this much time if that comes first; 0: no limit."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Clips per step.", show_default="64")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**31, help="Of all randomness.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other field of LatentTrainConfig; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint folder with its settings but those given here.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda.", show_default="cuda where there is one")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a latent diffusion model on latents.

    Leaves averaged weights, the autoencoder and a log in the folder: all that onedva generate and onedva export need.
    """
    with needs_extra("train"):
        from onedva.generation.train import run
    shape = {
        name: value
        for name, value in (("width", width), ("depth", depth), ("mlp_ratio", mlp_ratio))
        if value is not None
    }
    if resume and shape:
        raise ValueError(f"--{next(iter(shape)).replace('_', '-')} does not go with --resume: the weights are there")
    Terminal(quiet=quiet).start_logging()
    config = latent_settings(context.params, more or [], output=output if resume else None)
    try:
        run(
            latents=latents,
            output=output,
            train=config,
            shape=shape,
            text=text,
            resume=resume,
            quiet=quiet,
            device=device,
        )
    except FloatingPointError as error:
        raise OneDVAError(str(error)) from error
    typer.echo(str(output))


def latent_settings(flags: Mapping[str, Any], assignments: Sequence[str], *, output: Path | None) -> LatentTrainConfig:
    """A run's settings: those of the run in `output`, then flags (None: not given), then `NAME=VALUE`. Raises
    ValueError."""
    from onedva.generation.config import LatentTrainConfig

    kinds = get_type_hints(LatentTrainConfig)
    values: dict[str, Any] = {}
    if output is not None and (output / "train-ldm.json").is_file():
        stored = json_module.loads((output / "train-ldm.json").read_text())
        values = {name: value for name, value in stored.items() if name in kinds}
    values |= {name: value for name, value in flags.items() if name in kinds and value is not None}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in kinds:
            raise ValueError(f"--set wants NAME=VALUE with a name of {', '.join(sorted(kinds))}; got {assignment!r}")
        values[name] = parse(name, value, kinds[name])
    return LatentTrainConfig(**values)


def one_of(flag: str, value: str, allowed: tuple[str, ...]) -> Any:
    """The value; ValueError where it is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{flag} must be one of {', '.join(allowed)}; got {value!r}")
    return value
