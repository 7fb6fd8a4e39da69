"""The tables of `onedva eval`, for a terminal and for the page it writes; `onedva.report` says what is in the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onedva.commands.plots import steps_text
from onedva.commands.tables import Table, to_markdown

__all__ = ["tables_of", "to_page"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a row, and how it is shown."""

    key: str
    title: str
    form: str


MEASURES = (
    Measure(key="psnr_db", title="PSNR in dB", form=".2f"),
    Measure(key="ssim", title="SSIM", form=".4f"),
    Measure(key="lpips", title="LPIPS, less is better", form=".4f"),
    Measure(key="texture", title="texture: sliced Wasserstein distance × 10³, by the source's contrast", form=".1f"),
    Measure(key="texture_as_published", title="the same, each by its own contrast (Karras et al. 2018)", form=".1f"),
    Measure(key="fvd", title="FVD, less is better", form=".1f"),
)
MODEL, FLOOR = "model", "linear floor"


def tables_of(document: Mapping[str, Any]) -> list[Table]:
    """Every table that a document of `onedva eval` has numbers for."""
    tables = []
    rows = document["rows"]
    for size in sorted({row["size"] for row in rows}):
        here = [row for row in rows if row["size"] == size]
        tables += [measure_table(here, measure) for measure in MEASURES if any(measure.key in row for row in here)]
    tables += generated_tables(document.get("generated", []))
    if "chains" in document:
        tables += chain_tables(document["chains"])
    if "policies" in document:
        tables += policy_tables(document["policies"])
    return tables


def measure_table(rows: Sequence[Mapping[str, Any]], measure: Measure) -> Table:
    """One measure at one size: codes, splits and steps down, lengths across; then what is asked of their difference."""
    lengths = sorted({row["tokens"] for row in rows})
    cells = {
        (row["code"], row["split"], row["steps"], row["tokens"]): row[measure.key] for row in rows if measure.key in row
    }
    groups = list(dict.fromkeys(key[:3] for key in cells))

    def line(name: str, steps: str, values: Sequence[float], form: str) -> list[str]:
        return [name, steps, *(format(value, form) for value in values)]

    def values(code: str, split: str, steps: int) -> list[float]:
        return [cells[code, split, steps, length] for length in lengths]

    body = [
        line(f"{code}, {split}", steps_text(steps) if code == MODEL else "", values(code, split, steps), measure.form)
        for code, split, steps in groups
    ]
    for code, split, steps in groups:
        mine = values(code, split, steps)
        if measure.key == "psnr_db" and (code, split) == (MODEL, "dev"):
            for name, other in (
                ("train − dev", (MODEL, "train", steps)),
                ("over the linear floor, dev", (FLOOR, "dev", 1)),
            ):
                if other in groups:
                    differ = [b - a if other[0] == MODEL else a - b for a, b in zip(mine, values(*other), strict=True)]
                    body.append(line(name, steps_text(steps), differ, "+.2f"))
        if measure.key.startswith("texture") and steps > 1 and (code, split, 1) in groups:
            change = [100 * (a / b - 1) if b else 0.0 for a, b in zip(mine, values(code, split, 1), strict=True)]
            body.append([f"against 1 step, {split}", steps_text(steps), *(f"{value:+.1f} %" for value in change)])
    counts = ", ".join(
        f"{count} {split}" for split, count in dict.fromkeys((row["split"], row["clips"]) for row in rows)
    )
    size = rows[0]["size"]
    title = f"{measure.title}; {size}×{size}, clips: {counts}"
    return Table(title=title, columns=["", "steps", *(f"{count} latents" for count in lengths)], rows=body)


def generated_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """What a generator's clips came to, over latent length and its steps."""
    tables = []
    for key, title, form in (
        ("gfvd", "gFVD, less is better", ".1f"),
        ("blocks", "blocks beyond the real clips': energy at patch edges over inside", "+.3f"),
    ):
        here = [row for row in rows if key in row]
        lengths = sorted({row["tokens"] for row in here})
        lines = list(dict.fromkeys((row["code"], row["steps"]) for row in here))
        cells = {(row["code"], row["steps"], row["tokens"]): row[key] for row in here}
        body = [
            [
                code,
                str(steps),
                *(format(cells[code, steps, n], form) if (code, steps, n) in cells else "" for n in lengths),
            ]
            for code, steps in lines
        ]
        if body:
            title = f"generated: {title}; {here[0]['clips']} clips"
            tables.append(Table(title=title, columns=["", "steps", *(f"{n} latents" for n in lengths)], rows=body))
    return tables


def chain_tables(chains: Mapping[str, Any]) -> list[Table]:
    """Drift and seam of each video, and of all."""
    columns = ["video", "clips", "loss dB", "trend dB/clip", "clip edge", "group edge", "seam"]
    body = [
        [
            video["clip"],
            str(video["clips"]),
            f"{video['loss_db']:.2f}",
            f"{video['trend_db_per_clip']:+.3f}",
            f"{video['clip_edge']:.2f}",
            f"{video['group_edge']:.2f}",
            f"{video['seam']:.2f}",
        ]
        for video in chains["videos"]
    ]
    total = f"{chains['loss_db']:.2f}", f"{chains['trend_db_per_clip']:+.3f}", f"{chains['seam']:.2f}"
    body.append(["all", "", *total[:2], "", "", total[2]])
    title = (
        f"chains of continuation clips, {chains['split']}, {chains['tokens']} latents: what own context loses against "
        "the true one; edges are mean |e(t+1) − e(t)| in levels of 255"
    )
    return [Table(title=title, columns=columns, rows=body)]


def policy_tables(found: Mapping[str, Any]) -> list[Table]:
    """Tokens at equal pooled error, then how near the error head comes to a target."""
    names = list(found["at_fixed"][0]["tokens"])
    columns = ["fixed length", "pooled PSNR dB", *names]
    body = [
        [f"{row['fixed']:.0f}", f"{row['psnr_db']:.2f}", *(spent(row, name) for name in names)]
        for row in found["at_fixed"]
    ]
    auto, head = found["auto"], found["error_head"]
    same = auto["fixed_tokens_for_as_much"]
    policies = Table(
        title=f"latents at equal pooled error, {found['clips']} {found['split']} clips, full length {found['full']}",
        columns=columns,
        rows=body,
    )
    calibrated = Table(
        title="auto as calibrated",
        columns=["latents", "pooled PSNR dB", "fixed length for as much", "rank correlation with motion"],
        rows=[
            [
                f"{auto['tokens']:.0f}",
                f"{auto['psnr_db']:.2f}",
                "none" if same is None else f"{same:.0f}",
                f"{auto['rank_correlation_with_motion']:.2f}",
            ]
        ],
    )
    predicted = f"predicted less measured {head['bias_db']:+.2f} dB, rms {head['rms_db']:.2f}"
    targets = Table(
        title=f"error head ({predicted}): reached less asked",
        columns=["asked dB", "clips", "latents", "mean dB", "rms dB"],
        rows=[
            [
                f"{row['asked_db']:.0f}",
                str(row["clips"]),
                f"{row['tokens']:.0f}",
                f"{row['bias_db']:+.2f}",
                f"{row['rms_db']:.2f}",
            ]
            for row in found["targets"]
        ],
    )
    return [policies, calibrated, targets]


def spent(row: Mapping[str, Any], name: str) -> str:
    """Tokens and their share of the fixed length: "141 (55 %)"."""
    count, share = row["tokens"][name], row["share"][name]
    return "not reached" if count is None else f"{count:.0f} ({100 * share:.0f} %)"


def to_page(document: Mapping[str, Any], tables: Sequence[Table], *, pictures: Sequence[str]) -> str:
    """The Markdown page: where the numbers come from, what was left out, tables, plots."""
    source = document["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in source["versions"].items())
    parts = [
        f"# {document['model']}",
        f"{document['parameters'] / 1e6:.1f} M parameters. {source['date']}, commit {source['commit'] or 'unknown'}, "
        f"{source['cpu']}, {source['threads']} threads, {versions}.\n\n`{source['command']}`",
        *(f"Left out: {line}" for line in document["left_out"]),
        *(to_markdown(table).rstrip() for table in tables),
        *(f"![{name}]({name})" for name in pictures),
    ]
    return "\n\n".join(parts) + "\n"
