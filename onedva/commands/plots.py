"""Pictures that the verbs leave: frames beside each other, and quality and latency over the latent length.

Figures are drawn with matplotlib's Agg canvas and no pyplot, so there is no display, no global state, and threads may
draw."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onedva_runtime.errors import OneDVAError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "PLOT_HINT",
    "Shown",
    "can_plot",
    "figure_png",
    "length_png",
    "require_plot",
    "side_by_side_png",
    "steps_text",
]

PLOT_HINT = "pictures need matplotlib: pip install 'onedva[plot]'"
ERROR_TOP = 48  # levels of 255 at which the error scale ends: errors of a good reconstruction stay visible below it
COLOURS = ("#0b6e99", "#d1495b", "#3a7d44", "#8d6a9f", "#b5651d", "#444444")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One frame of a side-by-side picture."""

    label: str
    """What stands to its left."""
    source: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    reconstruction: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""


def can_plot() -> bool:
    """True where matplotlib is installed; it is not imported."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def require_plot() -> None:
    """Raise OneDVAError naming the extra where matplotlib is missing: asked before any work."""
    if not can_plot():
        raise OneDVAError(PLOT_HINT)


def steps_text(steps: int) -> str:
    """A step count in words: "1 step"."""
    return "preview (0 steps)" if steps == 0 else f"{steps} step{'s' * (steps > 1)}"


def side_by_side_png(shown: Sequence[Shown], *, title: str) -> bytes:
    """Source | reconstruction | error, one row per frame, as PNG bytes.

    The error is the mean absolute difference of the three channels, in levels of 255, on one colour scale for all rows.
    """
    import numpy as np
    from matplotlib.figure import Figure

    height, width = shown[0].source.shape[:2]
    panel = 3.6 * (width / height) ** 0.5  # inches; every frame gets the same area, wide or tall
    row = panel * height / width
    figure = Figure(figsize=(3 * panel + 1.6, len(shown) * (row + 0.12) + 0.9), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(shown), 3, squeeze=False)
    for line, frame in zip(axes, shown, strict=True):
        difference = np.abs(frame.source.astype(np.int16) - frame.reconstruction.astype(np.int16)).mean(axis=-1)
        line[0].imshow(frame.source)
        line[1].imshow(frame.reconstruction)
        line[2].imshow(difference, cmap="magma", vmin=0, vmax=ERROR_TOP)
        line[0].set_ylabel(frame.label, fontsize=10)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, name in zip(axes[0], ("source", "reconstruction", "error"), strict=True):
        axis.set_title(name, fontsize=11)
    bar = figure.colorbar(axes[0, 2].images[0], ax=axes[:, 2], shrink=0.9, pad=0.02, extend="max")
    bar.set_label("mean absolute error (levels of 255)", fontsize=9)
    return figure_png(figure)


def length_png(rows: Sequence[dict[str, Any]], *, title: str) -> bytes:
    """PSNR, and latency per clip, over the latent length: one line per step count, `auto` as a star, as PNG bytes.

    rows: as `sweep` returns them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 7.0), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    quality, speed = figure.subplots(2, 1, sharex=True)
    for colour, steps in zip(COLOURS * len(rows), sorted({row["steps"] for row in rows}), strict=False):
        chosen = [row for row in rows if row["steps"] == steps]
        name = steps_text(steps)
        _line(quality, chosen, lambda row: row["psnr_db"], label=name, colour=colour)
        _line(speed, chosen, lambda row: row["decode_ms"]["p50"], label=f"decode, {name}", colour=colour)
    first = [row for row in rows if row["steps"] == rows[0]["steps"]]
    _line(speed, first, lambda row: row["encode_ms"]["p50"], label="encode", colour="#222222", style="--o")
    quality.set_ylabel("PSNR (dB)")
    speed.set_ylabel("latency per clip, p50 (ms)")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("latents per clip")
    ticks = sorted({round(row["tokens"]) for row in rows if row["length"] != "auto"})
    speed.set_xscale("symlog", base=2, linthresh=16)  # so that zero latents have a place beside powers of two
    speed.set_xticks(ticks, [str(tick) for tick in ticks])
    speed.minorticks_off()
    speed.set_xlim(-3, 1.15 * max(row["tokens"] for row in rows) + 3)
    for axis in (quality, speed):
        if any(row["length"] == "auto" for row in rows):
            axis.plot([], [], "*", color="#777777", markersize=11, markeredgecolor="white", label="auto length")
        axis.grid(True, color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=9, frameon=False)
    return figure_png(figure)


def _line(
    axis: Axes,
    rows: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float],
    *,
    label: str,
    colour: str,
    style: str = "-o",
) -> None:
    """Fixed lengths as a line with points, `auto` as a star of the same colour."""
    fixed = sorted((row for row in rows if row["length"] != "auto"), key=lambda row: row["tokens"])
    axis.plot(
        [row["tokens"] for row in fixed], [value(row) for row in fixed], style, color=colour, label=label, markersize=4
    )
    for row in rows:
        if row["length"] == "auto":
            axis.plot([row["tokens"]], [value(row)], "*", color=colour, markersize=13, markeredgecolor="white")


def figure_png(figure: Figure) -> bytes:
    """A drawn figure as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
