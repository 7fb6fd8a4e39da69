"""docs/benchmarks.md from what bench/run.py measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["write_page"]

HOLDS = {True: "yes", False: "**no**", None: "not measured"}


def write_page(document: Mapping[str, Any], *, quick: bool) -> str:
    """The page: bars first, then what stands behind them."""
    facts = document["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    parts = [
        "# Benchmarks",
        "Written by `make bench`; all of one run; the JSON beside this page has more. 17 frames of 256×256, "
        "`tiny`, every core. † holds for CPUs with AVX512-BF16 or AMX.",
        *(["**A quick run: it shows that the benchmarks work, its numbers mean little.**"] if quick else []),
        f"{facts['cpu']}, {facts['cores']} cores ({', '.join(facts['cpu_flags'])}), {facts['memory_gb']} GB, "
        f"{facts['system']}, Python {facts['python']}; {versions}; commit {facts['commit']}; {facts['date']}; load "
        f"{facts['load_average'][0]} before the run.",
        "## Bars",
        table(
            ["what", "bar", "measured", "holds", "note"],
            [[r["what"], r["bar"], r["measured"], HOLDS[r["holds"]], r["note"]] for r in document["rows"]],
        ),
    ]
    for name, problem in document["problems"].items():
        parts.append(f"`{name}` failed: {problem}")
    for name, write in (
        ("latency", latency),
        ("quality", quality),
        ("peers", peers),
        ("floor", floor),
        ("nodes", nodes),
    ):
        if name in document:
            parts += write(document[name])
    for name, title in (("stream", "Stream"), ("cold", "Cold start")):
        if name in document:
            rows = document[name]["rows"]
            columns = list(dict.fromkeys(key for row in rows for key in row))
            parts += [f"## {title}", table(columns, [[text(row.get(key)) for key in columns] for row in rows])]
    return "\n\n".join(parts) + "\n"


def latency(part: Mapping[str, Any]) -> list[str]:
    """Milliseconds per clip; the automatic choice was measured first, so it stands first."""
    columns = ["backend", "dtype", "latents", "steps", "encode p50", "decode p50", "p90", "p99", "runs", "fps", "Mpx/s"]
    rows = [
        [
            r["backend"],
            r["dtype"],
            r["length"],
            str(r["steps"]),
            text(r["encode_ms"]["p50"]),
            *(text(r["decode_ms"][p]) for p in ("p50", "p90", "p99")),
            str(r["decode_ms"]["runs"]),
            text(r["decode_fps"]),
            text(r["decode_mpx_s"]),
        ]
        for r in part["rows"]
    ]
    chosen = ", ".join(
        f"{m['backend']} {m['dtype']} {1000 * m['seconds']:.0f} ms, {m['psnr_db']:.1f} dB"
        for m in part["backends_measured"]
    )
    return [
        "## Latency",
        f"Milliseconds per clip. `auto` chose among: {chosen or 'one backend'}.",
        table(columns, rows),
    ]


def quality(part: Mapping[str, Any]) -> list[str]:
    columns = ["backend", "dtype", "latents", "mean dB", "least dB"]
    rows = [[r["backend"], r["dtype"], r["length"], text(r["mean_db"]), text(r["least_db"])] for r in part["rows"]]
    note = "PSNR of whole encodes and decodes against PyTorch fp32 (bars: bf16 45 dB, int8 40 dB)."
    return ["## Quality", note, table(columns, rows)]


def peers(part: Mapping[str, Any]) -> list[str]:
    columns = ["what", "parameters (M)", "compression", "clips per call", "encode s", "decode s", "spread", "PSNR"]
    rows = [
        [
            r["name"],
            text(r["parameters_m"]),
            r["compression"],
            str(r["batch"]),
            text(r["encode"]["median_s"], 3),
            text(r["decode"]["median_s"], 3),
            f"{r['decode']['spread']:.0%} of {r['decode']['runs']}",
            r.get("psnr", ""),
        ]
        for r in part["rows"]
    ]
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in part["matmul"].items())
    note = (
        f"Medians, {part['threads']} threads. onedva before and after the others. 2048³ products in PyTorch: {rates}."
    )
    return ["## Peers", note, table(columns, rows)]


def floor(part: Mapping[str, Any]) -> list[str]:
    columns = ["graph", "GFLOP", "whole ms", "products alone ms", "share", "GFLOP/s"]
    rows = [
        [
            r["graph"],
            text(r["gflop"]),
            text(1000 * r["whole_s"]),
            text(1000 * r["floor_s"]),
            f"{r['share']:.0%}",
            text(r["gflop_per_s"]),
        ]
        for r in part["rows"]
    ]
    note = "Each matrix product of a graph timed alone, OpenVINO fp32; an attention counts as two."
    return ["## Floor", note, table(columns, rows)]


def nodes(part: Mapping[str, Any]) -> list[str]:
    """Milliseconds of each kind of work, a row for each verb and length."""
    kinds = sorted({kind for row in part["rows"] for kind in row["ms"]})
    rows = [
        [row["what"], str(row["latents"]), *(text(row["ms"].get(kind, 0.0)) for kind in kinds)] for row in part["rows"]
    ]
    note = (
        f"Milliseconds of OpenVINO's nodes, {part['dtype']}, by kind of work; the clocks themselves cost a little. "
        "Of an encode, the linear transform stays in fp32."
    )
    return ["## Where the time goes", note, table(["what", "latents", *kinds], rows)]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def text(value: Any, digits: int = 1) -> str:
    if isinstance(value, float):
        return f"{value:.{digits if abs(value) >= 10 or digits > 1 else 2}f}"
    return "" if value is None else str(value)
