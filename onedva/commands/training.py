"""`onedva train`: flags for what users change, `--set NAME=VALUE` for every other field of TrainConfig."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.model_verbs import Clips
from onedva.commands.options import Quiet
from onedva_runtime.errors import OneDVAError

if TYPE_CHECKING:
    from onedva.train_config import TrainConfig

__all__ = ["settings", "train"]


def flag(name: str, text: str, default: str | bool = False, **limits: Any) -> Any:
    """An option of TrainConfig that is None where not given. `default` is only shown, and written out: reading it from
    onedva.config would load NumPy for `onedva --help`."""
    return typer.Option(name, help=text, show_default=default, **limits)


def train(
    context: typer.Context,
    clips: Clips,
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder.")] = Path("checkpoint"),
    preset: Annotated[str | None, flag("--preset", "nano, tiny, small, base, large or paper.", "tiny")] = None,
    start: Annotated[
        str | None,
        typer.Option("--init", help="A model to begin from: a folder or a shipped name.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the checkpoint folder with its settings but those given here, or in another --stage.",
        ),
    ] = False,
    stage: Annotated[
        str | None,
        flag(
            "--stage",
            "encoder: the preview alone; joint: everything; distill: few steps, of --init; post: the decoder, on the "
            "latents of the generator in --init.",
            "joint",
        ),
    ] = None,
    steps: Annotated[int | None, flag("--steps", "Optimizer steps.", "20000", min=1)] = None,
    minutes: Annotated[
        float | None, flag("--minutes", "End after this much time if that comes first; 0: never.", min=0)
    ] = None,
    seed: Annotated[int | None, flag("--seed", "Of weights, data and noise.", "0", min=0, max=2**63 - 1)] = None,
    frames: Annotated[
        str | None, flag("--frames", "Frames per clip, 1 + 4n, each with its share.", "17:0.84,9:0.08,5:0.08")
    ] = None,
    sizes: Annotated[
        str | None,
        flag(
            "--sizes",
            "WIDTHxHEIGHT of the crops, each with its share.",
            "128x128:0.55,192x192:0.15,240x144:0.1,256x256:0.2",
        ),
    ] = None,
    positions_per_batch: Annotated[
        int | None,
        flag("--positions-per-batch", "Grid positions per batch: 2560 are 8 clips of 17×128×128.", "2560", min=1),
    ] = None,
    accumulate: Annotated[int | None, flag("--accumulate", "Batches per optimizer step.", "1", min=1)] = None,
    short_side: Annotated[
        int | None, flag("--short-side", "Pixels that the short side of videos is scaled to first.", "256", min=16)
    ] = None,
    workers: Annotated[
        int | None, flag("--workers", "Processes that decode and prepare batches; 0: none besides this.", "0", min=0)
    ] = None,
    optimizer: Annotated[
        str | None, flag("--optimizer", "muon: Muon on matrices inside blocks, AdamW on the rest; adamw.", "muon")
    ] = None,
    learning_rate: Annotated[float | None, flag("--learning-rate", "Of AdamW, at its peak.", "0.0003", min=0)] = None,
    muon_learning_rate: Annotated[
        float | None, flag("--muon-learning-rate", "Of Muon, at its peak.", "0.003", min=0)
    ] = None,
    p_full: Annotated[
        float | None, flag("--p-full", "How often t is 1: all that one-step decodes see.", "0.7", min=0, max=1)
    ] = None,
    p_continuation: Annotated[
        float | None, flag("--p-continuation", "Share of continuation clips.", "0.12", min=0, max=1)
    ] = None,
    preview_weight: Annotated[float | None, flag("--preview-weight", "Of the preview loss.", "0.5", min=0)] = None,
    kl_weight: Annotated[float | None, flag("--kl-weight", "Of the KL term.", "0.0001", min=0)] = None,
    frame_difference_weight: Annotated[
        float | None, flag("--frame-difference-weight", "Of the frame difference loss.", "0.0", min=0)
    ] = None,
    error_weight: Annotated[float | None, flag("--error-weight", "Of the error head's loss.", "0.05", min=0)] = None,
    self_alignment_weight: Annotated[
        float | None, flag("--self-alignment-weight", "Of the self-alignment loss.", "0.0", min=0)
    ] = None,
    siglip: Annotated[str | None, flag("--siglip", "A local SigLIP folder: turns REPA on.")] = None,
    repa_weight: Annotated[float | None, flag("--repa-weight", "Of REPA, with --siglip.", "0.5", min=0)] = None,
    lpips: Annotated[str | None, flag("--lpips", "A local file of LPIPS weights: turns LPIPS on.")] = None,
    lpips_weight: Annotated[float | None, flag("--lpips-weight", "Of LPIPS, with --lpips.", "0.1", min=0)] = None,
    checkpointing: Annotated[
        bool | None,
        flag("--checkpointing/--no-checkpointing", "Recompute blocks in the backward pass: less memory, slower."),
    ] = None,
    compile: Annotated[
        bool | None, flag("--compile/--no-compile", "Compile the blocks: minutes at the start, faster steps after.")
    ] = None,
    sharded: Annotated[
        bool | None, flag("--sharded/--no-sharded", "Shard a large model over torchrun's processes; needs adamw.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda.", show_default="cuda where there is one")
    ] = None,
    evaluate_every: Annotated[
        float | None,
        flag("--evaluate-every", "Minutes between evaluations on the dev split; 0: only at the end.", "15.0", min=0),
    ] = None,
    save_every: Annotated[float | None, flag("--save-every", "Minutes between checkpoints.", "5.0", min=0)] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other field of onedva.train_config.TrainConfig; repeatable."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on videos.

    Begins with a least-squares fit; leaves averaged weights, a log and scores on the dev split in the folder. Several
    processes: torchrun --nproc-per-node 8 -m onedva.cli train …
    """
    with needs_extra("train"):
        from onedva.config import preset as preset_named
        from onedva.train import run
    if preset is not None and (resume or start is not None):
        raise ValueError("--preset does not go with --init or --resume: the weights bring their configuration")
    if start is not None and resume:
        raise ValueError("--init does not go with --resume: a run goes on from its own weights")
    main = int(os.environ.get("RANK", "0")) == 0  # of torchrun's processes only the first speaks
    Terminal(quiet=quiet or not main).start_logging()
    config = settings(context.params, more or [], output=output if resume else None)
    model = preset_named(preset or "tiny")
    try:
        run(
            clips=clips,
            output=output,
            model=model,
            train=config,
            start=start,
            resume=resume,
            quiet=quiet,
            device=device,
        )
    except FloatingPointError as error:
        raise OneDVAError(str(error)) from error
    if main:
        typer.echo(str(output))


def settings(flags: Mapping[str, Any], assignments: Sequence[str], *, output: Path | None = None) -> TrainConfig:
    """The configuration of a run: what its stage sets, then flags (None: not given), then `NAME=VALUE` assignments.

    output: a run to go on with; in the same stage, its settings take the place of the stage's. Raises ValueError.
    """
    from onedva.train_config import STAGES, TrainConfig

    kinds = get_type_hints(TrainConfig)
    before: dict[str, Any] = {}
    if output is not None and (output / "train.json").is_file():
        stored = json.loads((output / "train.json").read_text())
        before = {name: as_tuples(value) for name, value in stored.items() if name in kinds}
    stage = flags.get("stage") or before.get("stage", "joint")
    if stage not in STAGES:
        raise ValueError(f"unknown stage {stage!r}; choose from {', '.join(STAGES)}")
    values = before if before.get("stage") == stage else dict(STAGES[stage])
    for name, value in flags.items():
        if name in kinds and value is not None:
            values[name] = parse(name, value, kinds[name]) if isinstance(value, str) else value
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set wants NAME=VALUE, got {assignment!r}")
        if name not in kinds or name == "stage":
            allowed = sorted(set(kinds) - {"stage"})
            raise ValueError(f"--set {name}: no such setting; choose from {', '.join(allowed)}")
        values[name] = parse(name, text, kinds[name])
    return TrainConfig(**values)


def parse(name: str, text: str, kind: Any) -> Any:
    """Text to a value of a field's type. ValueError says what the field wants and what it got."""
    options = get_args(kind)
    if get_origin(kind) in (types.UnionType, Union) and type(None) in options:
        kind = next(option for option in options if option is not type(None))
        if text.lower() == "none":
            return None
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if name in ("frames", "sizes"):
            return tuple(shared(part, numbers=1 if name == "frames" else 2) for part in text.split(","))
    except (KeyError, ValueError):
        wants = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
        }.get(kind, "17:0.9,5:0.1" if name == "frames" else "WIDTHxHEIGHT:SHARE, as in 128x128:0.8,256x256:0.2")
        raise ValueError(f"{name} wants {wants}, got {text!r}") from None
    return tuple(part for part in text.split(",") if part) if get_origin(kind) is tuple else text


def shared(text: str, *, numbers: int) -> tuple[float, ...]:
    """ "17:0.9" → (17, 0.9) and "240x144:0.1" → (144, 240, 0.1), height first; a share left out is 1."""
    size, _, share = text.partition(":")
    sides = [int(side) for side in size.split("x")]
    if len(sides) != numbers:
        raise ValueError(f"got {len(sides)} numbers")
    return (*reversed(sides), float(share or 1))


def as_tuples(value: Any) -> Any:
    """JSON's lists to tuples, at any depth."""
    return tuple(as_tuples(part) for part in value) if isinstance(value, list) else value
