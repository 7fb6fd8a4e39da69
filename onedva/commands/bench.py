"""`onedva bench`: latency and PSNR for each latent length × step count, with what the numbers depend on beside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onedva.commands.coding import CodecChoice, codec_facts
from onedva.commands.console import Terminal, check_output, to_json, write_whole
from onedva.commands.fit import parse_size
from onedva.commands.plots import PLOT_HINT, can_plot, length_png
from onedva.commands.provenance import memory_mb, provenance
from onedva.commands.sweep import Timing, parse_lengths, sweep, sweep_tables
from onedva.commands.tables import Table, to_markdown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Plan", "bench_codec"]

logger = logging.getLogger("onedva")
FILES = ("bench.json", "bench.md", "bench.png")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    lengths: list[int | str]
    """Latent lengths: numbers, "auto", "full"."""
    steps: list[int]
    """Diffusion step counts, each 0–50."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    timing: Timing
    """Warm-up, runs and time box of a cell."""
    seed: int
    """Seed of the decoder's noise."""

    @classmethod
    def parse(cls, *, lengths: str, steps: str, size: str, timing: Timing, seed: int) -> Self:
        """From the command line's words. Raises ValueError saying what is allowed."""
        counts = [int(part) if part.strip().isdecimal() else -1 for part in steps.split(",")]
        if any(not 0 <= count <= 50 for count in counts):
            raise ValueError(f"--steps takes numbers from 0 to 50 separated by commas, got {steps!r}")
        width, height = parse_size(size)
        return cls(lengths=parse_lengths(lengths), steps=counts, width=width, height=height, timing=timing, seed=seed)


def bench_codec(
    source: Path | None, *, plan: Plan, choice: CodecChoice, output: Path | None, force: bool, terminal: Terminal
) -> None:
    """The verb `bench`: measure one clip, show the table, and fill the output folder that was asked for."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            check_output(output / name, force=force, source=source)
    terminal.start_logging()
    conditions = provenance(threads=choice.threads)  # before the work, so that the load is the machine's and not ours
    codec = choice.open()
    clip, fps = _clip(source, frames=codec.clip_frames, width=plan.width, height=plan.height)
    with terminal.progress("bench", total=len(plan.lengths) * len(plan.steps), unit="cells") as advance:
        rows = sweep(
            codec,
            [clip],
            lengths=plan.lengths,
            steps=plan.steps,
            fps=fps,
            seed=plan.seed,
            timing=plan.timing,
            advance=advance,
        )
    what = f"{codec.name} on {codec.backend_name}: one clip of {len(clip)}×{plan.height}×{plan.width}"
    document = {
        "schema": "onedva-bench",
        "schema_version": 1,
        **codec_facts(codec),
        "fingerprint": codec.manifest.model.fingerprint,
        "source": None if source is None else str(source),
        "clip": {"frames": len(clip), "height": plan.height, "width": plan.width, "fps": fps},
        "timing": {
            "warm_up": plan.timing.warm_up,
            "runs": plan.timing.runs,
            "time_box_s": plan.timing.time_box,
        },
        "peak_rss_mb": memory_mb()[1],
        "provenance": conditions,
        "rows": rows,
    }
    tables = [_conditions_table(document), *sweep_tables(rows, title=what)]
    if output is not None:
        write_whole(output / "bench.json", to_json(document), overwrite=force)
        write_whole(output / "bench.md", "\n".join(to_markdown(table) for table in tables), overwrite=force)
        if can_plot():
            write_whole(output / "bench.png", length_png(rows, title=what), overwrite=force)
        else:
            logger.warning("bench.png is not written: %s", PLOT_HINT)
    terminal.show(document, tables)


def _conditions_table(document: dict[str, Any]) -> Table:
    """What the numbers depend on, in brief; the JSON has all of it."""
    timing, conditions = document["timing"], document["provenance"]
    rows = [
        ["machine", f"{conditions['cpu']}, {conditions['cores']} cores, load {conditions['load_average'][0]}"],
        ["runs", f"{timing['runs']} after {timing['warm_up']} warm-ups, or what {timing['time_box_s']:g} s allow"],
        ["memory", f"{document['peak_rss_mb']:.0f} MB resident at most"],
    ]
    return Table(title="onedva bench", columns=["", ""], rows=rows, text=True)


def _clip(source: Path | None, *, frames: int, width: int, height: int) -> tuple[npt.NDArray[np.uint8], float]:
    """The first clip of a video, fitted to the size, or a made-up one; with its frame rate."""
    if source is None:
        from onedva_runtime.clips import make_clip

        return make_clip(frames, height, width), 24.0
    from onedva.commands.fit import fit_frames
    from onedva_runtime.video_io import read_video

    video = read_video(source, max_frames=frames)
    return fit_frames(video.frames, width=width, height=height), float(video.fps)
