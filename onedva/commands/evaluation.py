"""`onedva eval`: a model's reconstructions of held-out clips, as tables, JSON, Markdown and plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onedva.commands.console import Terminal, logger, to_json, write_whole
from onedva.commands.failures import needs_extra
from onedva.commands.model_verbs import Checkpoint, Clips
from onedva.commands.options import Force, Json, Quiet, Seed

if TYPE_CHECKING:
    from onedva.commands.tables import Table
    from onedva.model import OneDVA

__all__ = ["evaluate"]

SUITES = ("standard", "paper")
FILES = ("eval.json", "eval.md", "eval.png", "chains.png", "policies.png")


def evaluate(
    clips: Clips,
    checkpoint: Checkpoint = "tiny",
    tokens: Annotated[
        str, typer.Option("--tokens", help="Latent lengths, by comma; more than a clip can carry means all.")
    ] = "0,64,256,1024",
    steps: Annotated[str, typer.Option("--steps", help="Step counts, by comma; 0 is the preview.")] = "1",
    sizes: Annotated[
        str, typer.Option("--sizes", help="Sides of the centre crop in pixels, by comma: multiples of 16 up to 256.")
    ] = "256",
    floor: Annotated[
        bool, typer.Option("--floor", help="Also score linear codes: the linear floor, and PCA of the same total.")
    ] = False,
    chains: Annotated[
        bool, typer.Option("--chains", help="Also score chains of continuation clips: drift and seams.")
    ] = False,
    policies: Annotated[
        bool, typer.Option("--policies", help="Also hold the policies for the latent length against an oracle.")
    ] = False,
    suite: Annotated[
        str,
        typer.Option(
            "--suite", help="standard, or paper: PSNR, SSIM, LPIPS, rFVD, and a generator's gFVD and blocks beside."
        ),
    ] = "standard",
    against: Annotated[
        list[str] | None,
        typer.Option("--against", help="Another model to score the same way, such as an ablation; repeatable."),
    ] = None,
    generator_steps: Annotated[
        str, typer.Option("--generator-steps", help="Suite paper: steps that make latents, by comma.")
    ] = "10,30",
    guidance: Annotated[float, typer.Option("--guidance", min=0, help="Suite paper: of the generator.")] = 2.0,
    short_side: Annotated[
        int, typer.Option("--short-side", min=16, help="Pixels that the short side of videos is scaled to.")
    ] = 256,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="LPIPS weights: a local safetensors file.", show_default="left out")
    ] = None,
    fvd: Annotated[
        Path | None,
        typer.Option("--fvd", help="An I3D for FVD: a local TorchScript file you trust.", show_default="left out"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many clips per split.", show_default="all")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder for JSON, Markdown and plots.", show_default="none written"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda, cuda:1, …")] = "cpu",
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a model on a folder of videos.

    PSNR, SSIM and texture of 17 frames, centre crop, per split, latent length, step count and size. Chains and policies
    look at the dev split at the largest size. Distances need networks, which you give; what is left out is said.
    """
    with needs_extra("train"):
        from onedva import chains as chain
        from onedva.commands.paper_suite import left_out_of_paper, score_paper
        from onedva.evaluate import check_size
        from onedva.lengths import measure_curves, policy_report
        from onedva.model import OneDVA
        from onedva.report import load_judges, load_splits, report
    from onedva.commands.evaluation_tables import tables_of
    from onedva.commands.plots import PLOT_HINT, can_plot

    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    lengths, counts, sides = (
        numbers(text, flag) for text, flag in ((tokens, "tokens"), (steps, "steps"), (sizes, "sizes"))
    )
    for side in sides:
        check_size(side)
    if suite not in SUITES:
        raise ValueError(f"--suite must be one of {', '.join(SUITES)}; got {suite!r}")
    check_folder(output, force=force)
    judges, left_out = load_judges(lpips=lpips, fvd=fvd)
    if output and not can_plot():
        left_out.append(PLOT_HINT)
    if suite == "paper":
        left_out += left_out_of_paper(checkpoint, fvd=fvd, against=against or [])
    for line in left_out:
        logger.info("left out: %s", line)
    model = place(OneDVA.from_pretrained(checkpoint).eval(), device)
    if 0 in counts and not model.config.preview:
        raise ValueError("this model has no preview: --steps must be at least 1")
    splits = load_splits(clips, minimum_frames=model.config.clip_frames, limit=limit, short_side=short_side)
    held_out = "dev" if "dev" in splits else "train"

    document = {"provenance": {}, "model": checkpoint, "parameters": model.parameters_count, "left_out": left_out}
    options: dict[str, Any] = {"tokens": lengths, "steps": counts, "sizes": sides, "judges": judges, "seed": seed}
    document |= report(model, splits, floor=floor, progress=not quiet, **options)
    for name in against or []:
        other = place(OneDVA.from_pretrained(name).eval(), device)
        found = report(other, splits, progress=not quiet, code=Path(name).name, **options)
        document["rows"] += found["rows"]
        document["clips"] += found["clips"]
    if suite == "paper":
        steps_made = numbers(generator_steps, "generator-steps")
        document["generated"] = score_paper(
            [checkpoint, *(against or [])],
            splits[held_out],
            steps=steps_made,
            guidance=guidance,
            judges=judges,
            seed=seed,
            terminal=terminal,
        )
    if chains:
        scores = chain.chain_scores(model, splits[held_out], size=max(sides), seed=seed, progress=not quiet)
        document["chains"] = {"split": held_out, "tokens": chain.TOKENS, **chain.chain_report(scores)}
    if policies:
        curves = measure_curves(model, splits[held_out], size=max(sides), seed=seed, progress=not quiet)
        document["policies"] = {"split": held_out, **policy_report(curves, model.config)}
    document["provenance"] = record()
    tables = tables_of(document)
    if output:
        write_folder(output, document, tables, pictures=can_plot(), force=force)
        logger.info("written to %s", output)
    terminal.show(document, tables)


def place(model: OneDVA, device: str) -> OneDVA:
    """The model on a device; ValueError for one that PyTorch does not know or this machine does not have."""
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None


def numbers(text: str, flag: str) -> list[int]:
    """ "0,64" → [0, 64]; ValueError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"--{flag} takes whole numbers separated by commas, got {text!r}")
    return sorted({int(part) for part in parts})


def check_folder(folder: Path | None, *, force: bool) -> None:
    """Refuse an output folder that holds an evaluation, before any work. Raises FileExistsError, NotADirectoryError."""
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; name a folder")
    found = [name for name in FILES if (folder / name).exists()]
    if found and not force:
        raise FileExistsError(f"{folder} holds {', '.join(found)}; -f overwrites")


def record() -> dict[str, Any]:
    """Provenance, taken at the end so that its load average is that of the run."""
    import torch

    from onedva.commands.provenance import provenance

    return provenance(threads=torch.get_num_threads())


def write_folder(folder: Path, document: dict[str, Any], tables: list[Table], *, pictures: bool, force: bool) -> None:
    """Leave the evaluation in a folder: eval.json, eval.md, and the plots there is something to draw for."""
    from onedva.commands.evaluation_tables import to_page

    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES if force else ():  # a plot of the run before must not stand beside this one
        (folder / name).unlink(missing_ok=True)
    drawn: dict[str, bytes] = {}
    if pictures:
        from onedva.commands.evaluation_plots import chains_png, policies_png, quality_png

        drawn["eval.png"] = quality_png(document["rows"], title=document["model"])
        if "chains" in document:
            drawn["chains.png"] = chains_png(document["chains"], title=document["model"])
        if "policies" in document:
            drawn["policies.png"] = policies_png(document["policies"], title=document["model"])
    for name, picture in drawn.items():
        write_whole(folder / name, picture, overwrite=force)
    write_whole(folder / "eval.md", to_page(document, tables, pictures=list(drawn)), overwrite=force)
    write_whole(folder / "eval.json", to_json(document), overwrite=force)
