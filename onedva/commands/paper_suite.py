"""The paper's suite of `onedva eval`: what a generator beside a model makes, and what could not be measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.generation.evaluate import generated_rows, has_generator
from onedva_runtime.hub import find

if TYPE_CHECKING:
    from onedva.commands.console import Terminal
    from onedva.data import Clip
    from onedva.report import Judges

__all__ = ["left_out_of_paper", "score_paper"]


def left_out_of_paper(checkpoint: str, *, fvd: Path | None, against: Sequence[str]) -> list[str]:
    """A line for each part of the paper's evaluation that these arguments leave out."""
    lines = []
    if not has_generator(find(checkpoint)):
        lines.append("gFVD and blocks of generated clips: the model has no generator (onedva train-ldm makes one)")
    elif fvd is None:
        lines.append("gFVD: no weights were given (--fvd FILE)")
    if not against:
        lines.append("ablations (alignment, post-training): no other models were given (--against MODEL)")
    return lines


def score_paper(
    models: Sequence[str],
    clips: Sequence[Clip],
    *,
    steps: Sequence[int],
    guidance: float,
    judges: Judges,
    seed: int,
    terminal: Terminal,
) -> list[dict[str, Any]]:
    """Rows of every model that has a generator, with its name as `code`."""
    rows = []
    for name in models:
        folder = find(name)
        if not has_generator(folder):
            continue
        with terminal.progress(f"generate, {folder.name}", total=None, unit="clips") as advance:
            found = generated_rows(
                folder,
                clips,
                steps=steps,
                guidance=guidance,
                video_features=judges.video_features,
                seed=seed,
                advance=advance,
            )
        rows += [{"code": folder.name, **row} for row in found]
    return rows
