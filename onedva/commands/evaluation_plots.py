"""The plots of `onedva eval`: quality over length, chains, policies. Drawn as those of `onedva.commands.plots` are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onedva.commands.plots import COLOURS, figure_png, steps_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["chains_png", "policies_png", "quality_png"]

MEASURES = {
    "psnr_db": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "texture": "texture distance × 10³",
    "texture_as_published": "texture, own contrast × 10³",
    "fvd": "FVD",
}
MODEL = "model"


def quality_png(rows: Sequence[Mapping[str, Any]], *, title: str) -> bytes:
    """One panel per measure and size, over the latent length: dev as full lines, train as dashed, as PNG bytes.

    rows: as `onedva.report.report` returns them.
    """
    from matplotlib.figure import Figure

    sizes = sorted({row["size"] for row in rows})
    shown = [key for key in MEASURES if any(key in row for row in rows)]
    figure = Figure(figsize=(6.0 * len(sizes), 3.4 * len(shown)), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(len(shown), len(sizes), squeeze=False)
    lines = list(dict.fromkeys((row["code"], row["steps"]) for row in rows))
    colours = {line: COLOURS[index % len(COLOURS)] for index, line in enumerate(lines)}
    for key, across in zip(shown, panels, strict=True):
        for size, axis in zip(sizes, across, strict=True):
            here = [row for row in rows if row["size"] == size and key in row]
            for code, steps, split in dict.fromkeys((row["code"], row["steps"], row["split"]) for row in here):
                chosen = [row for row in here if (row["code"], row["steps"], row["split"]) == (code, steps, split)]
                name = steps_text(steps) if code == MODEL else code
                axis.plot(
                    [row["tokens"] for row in chosen],
                    [row[key] for row in chosen],
                    "-o" if split == "dev" else "--o",
                    color=colours[code, steps],
                    label=f"{name}, {split}",
                    markersize=4,
                )
            axis.set_title(f"{size}×{size}", fontsize=10)
            axis.set_ylabel(MEASURES[key])
            _lengths(axis, sorted({row["tokens"] for row in here}))
            _finish(axis)
    return figure_png(figure)


def chains_png(chains: Mapping[str, Any], *, title: str) -> bytes:
    """What every clip of a chain loses by its own context, one line per video, as PNG bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    figure.suptitle(f"{title}: own context against the true one", fontsize=11)
    axis = figure.subplots()
    for index, video in enumerate(chains["videos"]):
        lost = [own - true for own, true in zip(video["own_db"], video["true_db"], strict=True)]
        colour, style = COLOURS[index % len(COLOURS)], "-o" if index < len(COLOURS) else "--o"
        axis.plot(range(1, 1 + len(lost)), lost, style, color=colour, label=video["clip"], markersize=3)
    axis.axhline(0, color="#777777", linewidth=0.7)
    axis.set_xlabel("clip of the chain")
    axis.set_ylabel("PSNR, own − true context (dB)")
    _finish(axis, size=7)
    return figure_png(figure)


def policies_png(found: Mapping[str, Any], *, title: str) -> bytes:
    """Pooled PSNR over mean latents, one line per policy, as PNG bytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=110, layout="constrained")
    figure.suptitle(f"{title}: how the latent length is chosen", fontsize=11)
    axis = figure.subplots()
    for index, (name, line) in enumerate(found["frontiers"].items()):
        axis.plot(line["tokens"], line["psnr_db"], "-", color=COLOURS[index % len(COLOURS)], label=name)
    auto = found["auto"]
    axis.plot([auto["tokens"]], [auto["psnr_db"]], "*", color="#222222", markersize=12, label="auto as calibrated")
    axis.set_xlabel("latents per clip, mean")
    axis.set_ylabel("PSNR of the pooled error (dB)")
    _finish(axis)
    return figure_png(figure)


def _lengths(axis: Axes, ticks: list[int]) -> None:
    axis.set_xscale("symlog", base=2, linthresh=16)  # so that zero latents have a place beside powers of two
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("latents per clip")


def _finish(axis: Axes, *, size: int = 9) -> None:
    axis.grid(True, color="#dddddd", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=size, frameon=False)
