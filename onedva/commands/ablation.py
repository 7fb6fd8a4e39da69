"""`onedva ablate`: training runs that differ in one thing, and a table of what that thing is worth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from onedva.commands.console import Terminal, to_json, write_whole
from onedva.commands.failures import needs_extra
from onedva.commands.model_verbs import Clips
from onedva.commands.options import Json, Quiet, Seed
from onedva.commands.tables import Table, to_markdown

__all__ = ["NAMES", "ablate", "ablation_tables"]

# written out: reading them from onedva.ablations would load torch for `onedva --help`
NAMES = "no-pca, one-class, no-full-noise, velocity, no-alignment, stem-depth-0, p-full, adamw, pca-rate, placement"


def ablate(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help=f"{NAMES}; or all.", show_default=False)],
    clips: Clips,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder for the runs, ablations.json and ablations.md.")
    ] = Path("ablations"),
    preset: Annotated[str, typer.Option("--preset", help="nano, tiny, small, base, large or paper.")] = "tiny",
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="A model whose weights all runs begin from, in place of a least-squares start each: a folder or a "
            "shipped name. For what changes training alone.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of each run.")] = 20_000,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="End each run after this much time if that comes first.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure what a part of the recipe is worth.

    Trains with and without it, alike in all else, and compares PSNR on the dev split per latent length at one and four
    steps. Runs that are already in the folder are not repeated.
    """
    with needs_extra("train"):
        from onedva.ablations import ABLATIONS, ablate
        from onedva.checkpoint import load_model
        from onedva.config import preset as preset_named
        from onedva.train_config import TrainConfig

    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    train = TrainConfig(steps=steps, minutes=minutes, evaluate_every=0.0, seed=seed)
    model = preset_named(preset) if init is None else load_model(init).config
    able = [name for name, ablation in ABLATIONS.items() if init is None or ablation.of_training]
    chosen = able if names == ["all"] else names
    result = ablate(chosen, clips=clips, output=output, model=model, train=train, start=init, quiet=quiet)
    document = {
        "preset": preset if init is None else None,
        "init": init,
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        **result,
    }
    tables = ablation_tables(document)
    write_whole(output / "ablations.json", to_json(document), overwrite=True)
    write_whole(output / "ablations.md", "\n".join(to_markdown(table) for table in tables), overwrite=True)
    terminal.show(document, tables)


def ablation_tables(document: Mapping[str, Any]) -> list[Table]:
    """One table per ablation: mean PSNR of both sides and their difference, per decode steps and latent length."""
    tables = []
    for name, ablation in document["ablations"].items():
        labels = (ablation["baseline"], ablation["variant"])
        sides = [document["runs"][label] for label in labels]
        rows = []
        for decode_steps, difference in ablation["difference_db"].items():
            for side in sides:
                values = side["psnr_db"][decode_steps].values()
                trained = str(side["trained_steps"])
                rows.append([side["changed"], trained, decode_steps, *(f"{value:.2f}" for value in values)])
            rows.append(["difference", "", decode_steps, *(f"{value:+.2f}" for value in difference.values())])
        lengths = next(iter(ablation["difference_db"].values()))
        columns = ["mean PSNR in dB", "trained steps", "decode steps", *(f"{count} latents" for count in lengths)]
        about = f"{name}: {ablation['question']}, {document['dev_videos']} dev videos, seed {document['seed']}"
        note = f". {ablation['note']}" if ablation["note"] else ""
        tables.append(Table(title=about + note, columns=columns, rows=rows))
    return tables
