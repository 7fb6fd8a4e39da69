"""`onedva bench`: one suite (see SUITES), with what the numbers depend on beside them. `latency`: percentiles and PSNR
for each backend × frame size × latent length × step count; the others are in suites.py."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onedva.commands.coding import CodecChoice, codec_facts
from onedva.commands.console import Terminal, check_output, output_folder, to_json, write_whole
from onedva.commands.fit import parse_size
from onedva.commands.plots import PLOT_HINT, can_plot, length_png
from onedva.commands.provenance import memory_mb, provenance
from onedva.commands.suites import SUITES, cold_rows, quality_rows, stream_rows, suite_table
from onedva.commands.sweep import Timing, parse_lengths, sweep, sweep_tables
from onedva.commands.tables import Table, counted, to_markdown

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
    sizes: list[tuple[int, int]]
    """Width and height in pixels, each with a multiple of 16 in the quality suite."""
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
        sizes = [parse_size(part.strip()) for part in size.split(",")]
        return cls(lengths=parse_lengths(lengths), steps=counts, sizes=sizes, timing=timing, seed=seed)


def bench_codec(
    source: Path | None,
    *,
    suite: str,
    plan: Plan,
    choice: CodecChoice,
    output: Path | None,
    force: bool,
    terminal: Terminal,
) -> None:
    """The verb `bench`: measure one suite, show its tables, and fill the output folder that was asked for."""
    if suite not in SUITES:
        raise ValueError(f"--suite takes {', '.join(SUITES)}, got {suite!r}")
    with output_folder(output) if output is not None else nullcontext():
        _bench(source, suite=suite, plan=plan, choice=choice, output=output, force=force, terminal=terminal)


def _bench(
    source: Path | None,
    *,
    suite: str,
    plan: Plan,
    choice: CodecChoice,
    output: Path | None,
    force: bool,
    terminal: Terminal,
) -> None:
    if output is not None:
        for name in FILES:
            check_output(output / name, force=force, source=source)
    terminal.start_logging()
    conditions = provenance(threads=choice.threads)  # before the work, so that the load is the machine's and not ours
    codec = choices_of(choice)[0].open()
    logger.info("suite %s: measuring %s", suite, codec.name)
    measure = {"latency": _latency, "stream": _stream, "cold": _cold, "quality": _quality}[suite]
    rows, tables = measure(source, plan=plan, choice=choice, terminal=terminal)
    document = {
        "schema": "onedva-bench",
        "schema_version": 2,
        "suite": suite,
        **codec_facts(codec),
        "fingerprint": codec.manifest.model.fingerprint,
        "backends_measured": codec.info()["backends_measured"],
        "source": None if source is None else str(source),
        "timing": {
            "warm_up": plan.timing.warm_up,
            "runs": plan.timing.runs,
            "time_box_s": plan.timing.time_box,
        },
        "peak_rss_mb": memory_mb()[1],
        "provenance": conditions,
        "rows": rows,
    }
    tables = [_conditions_table(document), *tables]
    if output is not None:
        write_whole(output / "bench.json", to_json(document), overwrite=force)
        write_whole(output / "bench.md", "\n".join(to_markdown(table) for table in tables), overwrite=force)
        if suite == "latency" and can_plot():
            first = [row for row in rows if all(row[name] == rows[0][name] for name in ("backend", "dtype", "size"))]
            write_whole(output / "bench.png", length_png(first, title=tables[1].title), overwrite=force)
        elif suite == "latency":
            logger.warning("bench.png is not written: %s", PLOT_HINT)
    terminal.show(document, tables)


def choices_of(choice: CodecChoice) -> list[CodecChoice]:
    """One choice per name in `--backend`, which takes several by comma, each with a dtype behind a colon if wanted."""
    chosen = []
    for part in choice.backend.split(","):
        name, _, dtype = part.strip().partition(":")
        chosen.append(replace(choice, backend=name, dtype=dtype or choice.dtype))
    return chosen


Result = tuple[list[dict[str, Any]], list[Table]]


def _latency(source: Path | None, *, plan: Plan, choice: CodecChoice, terminal: Terminal) -> Result:
    rows: list[dict[str, Any]] = []
    tables: list[Table] = []
    choices = choices_of(choice)
    cells = len(plan.lengths) * len(plan.steps) * len(plan.sizes) * len(choices)
    with terminal.progress("bench", total=cells, unit="cells") as advance:
        for one in choices:
            codec = one.open()
            for width, height in plan.sizes:
                count = codec.clip_frames_for(height=height, width=width)
                clip, fps = _clip(source, frames=count, width=width, height=height)
                info = codec.info()
                what = f"{codec.name} on {info['backend']} {info['dtype']}: one clip of {len(clip)}×{height}×{width}"
                logger.info("%s, %s", what, counted(len(plan.lengths) * len(plan.steps), "cell"))
                found = sweep(
                    codec,
                    [clip],
                    lengths=plan.lengths,
                    steps=plan.steps,
                    fps=fps,
                    seed=plan.seed,
                    timing=plan.timing,
                    advance=advance,
                )
                facts = {"backend": info["backend"], "dtype": info["dtype"], "size": f"{width}x{height}"}
                rows += [{**facts, "frames": len(clip), **row} for row in found]
                tables += sweep_tables(found, title=what)
    return rows, tables


def _stream(source: Path | None, *, plan: Plan, choice: CodecChoice, terminal: Terminal) -> Result:
    width, height = plan.sizes[0]
    rows = stream_rows(choices_of(choice)[0], source, width=width, height=height, tokens=str(plan.lengths[0]))
    return rows, [suite_table(rows, title="stream: files in and out, one step")]


def _cold(source: Path | None, *, plan: Plan, choice: CodecChoice, terminal: Terminal) -> Result:
    width, height = plan.sizes[0]
    rows = [row for one in choices_of(choice) for row in cold_rows(one, width=width, height=height)]
    return rows, [suite_table(rows, title="cold: a fresh process up to its first clip, seconds")]


def _quality(source: Path | None, *, plan: Plan, choice: CodecChoice, terminal: Terminal) -> Result:
    width, height = plan.sizes[0]
    if width % 16 or height % 16:
        raise ValueError(f"the quality suite wants a size of multiples of 16, got {width}x{height}")
    codec = choices_of(choice)[0].open()
    clip, _ = _clip(source, frames=codec.clip_frames, width=width, height=height)
    whole = len(clip) - (len(clip) - 1) % 4  # frames that fill their groups
    lengths = [codec.max_tokens if length == "full" else length for length in plan.lengths if length != "auto"]
    rows = quality_rows(choice, [clip[:whole]], lengths=[int(length) for length in lengths], seed=plan.seed)
    return rows, [suite_table(rows, title="quality: each backend against PyTorch fp32, one step")]


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
