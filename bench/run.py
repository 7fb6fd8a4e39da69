"""Every row of the speed bars in one run: bar, measured, holds. `make bench` calls this.

    python bench/run.py [--model tiny] [--quick] [--clips FOLDER] [-o docs/benchmarks.md]
    python bench/run.py --again docs/benchmarks.json    # the bars and the page of an earlier run, nothing measured

Writes the page, and beside it a JSON with all that was measured and where. A bar that does not hold says where the time
goes. About 20 minutes on two cores; nothing else
should run meanwhile. `--quick` shows in a few minutes that it works: its numbers mean little. A part that fails leaves
its rows "not measured", with the reason, and the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from page import write_page
from timing import child

BENCH = Path(__file__).resolve().parent
DAGGER = " †"
EAGER_BAR, STREAM_BAR = 5, 2
STREAM_FPS, NEW_FRAMES = 24, 16  # of the video that is streamed; frames that each of its clips adds


@dataclass
class Row:
    """One bar and what came of it."""

    what: str
    bar: str
    measured: str = "not measured"
    holds: bool | None = None
    note: str = ""


@dataclass
class Results:
    """What the parts measured, by their names; those that failed are in `problems`."""

    parts: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def measure(self, name: str, call: Callable[[], Any]) -> None:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            self.parts[name] = call()
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            self.problems[name] = str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--quick", action="store_true", help="few runs, no Wan, no torch.compile, a short stream")
    parser.add_argument("--clips", type=Path, default=BENCH.parents[1] / "shared" / "data" / "clips")
    parser.add_argument(
        "--minutes", type=float, default=60, help="of video for the memory row, coded as fast as it goes"
    )
    parser.add_argument("--box", type=float, default=240, help="seconds that the memory row may take")
    parser.add_argument("-o", "--output", type=Path, default=BENCH.parent / "docs" / "benchmarks.md")
    parser.add_argument("--again", type=Path, help="the JSON of an earlier run, in place of measuring")
    options = parser.parse_args()
    results = read_again(options.again) if options.again else measure_all(options)
    rows = rows_of(results.parts)
    for row in rows:
        print(
            f"{verdict(row):>12}  {row.what}: bar {row.bar}, measured {row.measured}"
            + (f" ({row.note})" if row.note else "")
        )
    document = {"rows": [vars(row) for row in rows], "problems": results.problems, **results.parts}
    options.output.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    options.output.write_text(write_page(document, quick=options.quick))
    for name, problem in results.problems.items():
        print(f"{name} failed: {problem}", file=sys.stderr)
    if results.problems:
        raise SystemExit(1)


def read_again(path: Path) -> Results:
    """What an earlier run measured."""
    document = json.loads(path.read_text())
    document.pop("rows")
    return Results(problems=document.pop("problems"), parts=document)


def measure_all(options: argparse.Namespace) -> Results:
    """Run the parts one after the other, each in processes of its own."""
    from onedva.commands.provenance import provenance
    from onedva_runtime.backends import available, cpu_name

    results, model = Results(), ["-m", options.model]
    flags = set(cpu_name().split())
    results.parts["provenance"] = {
        **provenance(threads=None),
        "cpu_flags": sorted(
            flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "amx_bf16", "amx_int8"}
        ),
    }
    backends = ["auto"] + [f"{s.name}:{kind}" for s in available() if s.usable for kind in s.dtypes]
    cells = ["--lengths", "64,256,full", "--steps", "0,1,2,4", "--runs", "50", "--time-box", "3"]
    if options.quick:
        backends = ["auto"]
        cells = ["--lengths", "64,256,full", "--steps", "1,2,4", "--runs", "1", "--time-box", "0", "--warm-up", "1"]
    results.measure("latency", lambda: bench("latency", *model, "--backend", ",".join(backends), *cells))
    results.measure("cold", lambda: bench("cold", *model))
    results.measure("stream", lambda: bench("stream", *model, "--lengths", "auto"))
    results.measure(
        "quality", lambda: bench("quality", *model, "--lengths", "0,full" if options.quick else "0,64,256,full")
    )
    quick = ["--quick"] if options.quick else []
    results.measure("peers", lambda: child(str(BENCH / "peers.py"), *model, *quick))
    results.measure("floor", lambda: child(str(BENCH / "floor.py"), *model))
    fast = "bf16" if "amx_bf16" in flags else "fp32"
    results.measure("nodes", lambda: child(str(BENCH / "node_times.py"), *model, "--dtype", fast))
    results.measure("memory", lambda: memory(options, results.parts))
    return results


def bench(suite: str, *arguments: str) -> dict[str, Any]:
    return child("-m", "onedva.cli", "bench", "--suite", suite, *arguments, "--json", "--quiet")


def memory(options: argparse.Namespace, parts: dict[str, Any]) -> dict[str, Any]:
    """A long stream's memory: as many minutes of video as fit into the box, an hour at most."""
    faster = next((r["real_time_factor"] for r in parts.get("stream", {}).get("rows", []) if "+" in r["what"]), 1.0)
    minutes = 0.2 if options.quick else min(options.minutes, 0.8 * options.box * faster / 60)
    with tempfile.TemporaryDirectory() as folder:
        clips = made_up_clips(Path(folder)) if not options.clips.is_dir() else options.clips
        script = [str(BENCH / "stream_memory.py"), "--clips", str(clips), "--minutes", f"{minutes:.2f}"]
        # it exits 1 where memory grows, which is a row here
        done = subprocess.run([sys.executable, *script, "--model", options.model], stdout=subprocess.PIPE, text=True)
    return {"minutes": minutes, **json.loads(done.stdout)}


def made_up_clips(folder: Path) -> Path:
    """A folder with one video, for a machine without clips."""
    from fractions import Fraction

    from onedva_runtime.clips import make_clip
    from onedva_runtime.video_io import VideoWriter

    with VideoWriter(folder / "made_up.mp4", width=256, height=256, fps=Fraction(24)) as writer:
        writer.write(make_clip(120, 256, 256))
    return folder


Measure = Callable[[], tuple[float, str, str]]  # the number, the number in words, what it came from


def verdict(row: Row) -> str:
    return {True: "holds", False: "DOES NOT", None: "not measured"}[row.holds]


def cell(parts: dict[str, Any], length: str, steps: int) -> dict[str, Any]:
    """The latency row of the automatic choice (measured first) at a length and step count."""
    return next(r for r in parts["latency"]["rows"] if (r["length"], r["steps"]) == (length, steps))


def rows_of(parts: dict[str, Any]) -> list[Row]:
    """The bars, each filled in from the parts that it needs, where they are there."""
    bf16 = bool({"avx512_bf16", "amx_bf16"} & set(parts["provenance"]["cpu_flags"]))
    amx = "amx_bf16" in parts["provenance"]["cpu_flags"]
    rows: list[Row] = []

    def add(what: str, bar: str, need: tuple[str, ...], measure: Measure, test: Callable[[float], bool]) -> None:
        row = Row(what, bar)
        if all(name in parts for name in need):
            try:
                value, row.measured, row.note = measure()
            except StopIteration:  # the quick run leaves some out
                pass
            else:
                row.holds = test(value)
        if what.endswith(DAGGER) and not amx:
            row.note = "; ".join(part for part in (row.note, f"† {without_amx()}") if part)
        rows.append(row)

    def without_amx() -> str:
        if not bf16:
            return "this CPU has no bf16"
        rates = parts.get("peers", {}).get("matmul")
        shown = f": {rates['bfloat16']:.0f} against {rates['float32']:.0f} GFLOP/s" if rates else ""
        return f"by its flags this CPU has bf16, but no AMX{shown}"

    def peer(part: str) -> float:
        return next(r["decode"]["median_s"] for r in parts["peers"]["rows"] if part in r["name"])

    def ours() -> float:
        runs = [r["decode"] for r in parts["peers"]["rows"] if r["name"].startswith("onedva") and r["batch"] == 1]
        return sum(run["median_s"] for run in runs) / len(runs)

    def ratio(part: str) -> tuple[float, str, str]:
        value = peer(part) / ours()
        return value, f"{value:.1f}×", f"{peer(part):.2f} s against {ours():.3f} s"

    def further() -> tuple[float, str, str]:
        one, two, four = (cell(parts, "256", steps)["decode_ms"]["p50"] for steps in (1, 2, 4))
        value = (four - two) / 2 / one
        return value, f"{value:.2f}×", f"decode with 1, 2, 4 steps: {one:.0f}, {two:.0f}, {four:.0f} ms"

    def spent(verb: str, latents: int) -> str:
        """Where the time of a call goes, where that was measured."""
        rows = parts.get("nodes", {}).get("rows", [])
        found = next((r["ms"] for r in rows if (r["what"], r["latents"]) == (verb, latents)), None)
        if found is None:
            return ""
        shares = ", ".join(f"{kind} {ms:.0f}" for kind, ms in sorted(found.items(), key=lambda pair: -pair[1]))
        return f"; of {sum(found.values()):.0f} ms at {latents} latents go to {shares}"

    def over(verb: str, a: str, b: str, bar: float) -> tuple[float, str, str]:
        first, second = (cell(parts, length, 1)[f"{verb}_ms"]["p50"] for length in (a, b))
        note = f"{first:.0f} ms against {second:.0f} ms"
        if first / second > bar:
            note += spent(verb, 64) + spent(verb, 1024)
        return first / second, f"{first / second:.2f}×", note

    def equivalent() -> tuple[float, str, str]:
        rates = parts["peers"]["matmul"]
        value = ours() * rates["bfloat16"]
        other = f"fp32: {ours() * rates['float32']:.0f} GFLOP at {rates['float32']:.0f} GFLOP/s"
        return value, f"{value:.0f} GFLOP", f"bf16 products run at {rates['bfloat16']:.0f} GFLOP/s; {other}"

    def efficiency() -> tuple[float, str, str]:
        graphs = {r["graph"]: r for r in parts["floor"]["rows"]}
        names = ("encoder", "one_step" if "one_step" in graphs else "velocity")
        shares = ", ".join(
            f"{name} {graphs[name]['share']:.0%} at {graphs[name]['gflop_per_s']:.0f} GFLOP/s" for name in names
        )
        value = min(graphs[name]["share"] for name in names)
        return value, f"{value:.0%}", f"OpenVINO fp32: {shares}"

    def streaming() -> tuple[float, str, str]:
        both = next(r for r in parts["stream"]["rows"] if "+" in r["what"])
        note = f"{both['cpu_s']:.1f} CPU s for {both['video_s']:.0f} s"
        if both["real_time_factor"] < STREAM_BAR and "latency" in parts:
            row, clips = cell(parts, "256", 1), both["video_s"] * STREAM_FPS / NEW_FRAMES
            each = row["encode_ms"]["p50"] + row["decode_ms"]["p50"]
            note += f"; {clips:.0f} clips at {each:.0f} ms, as timed alone, are {clips * each / 1000:.1f} of the "
            note += f"{both['work_s']:.1f} s, the rest is start-up, entropy coding, video files and other work"
        return both["real_time_factor"], f"{both['real_time_factor']:.2f}×", note

    def grown() -> tuple[float, str, str]:
        part = parts["memory"]
        return part["growth_mb"], f"{part['growth_mb']:.1f} MB", f"over {part['minutes']:.1f} minutes of video"

    def cold() -> tuple[float, str, str]:
        row = next(r for r in parts["cold"]["rows"] if r["what"] == "cold start")
        stages = ", ".join(f"{name[:-2]} {row[name]:.2f}" for name in ("import_s", "load_s", "encode_s", "decode_s"))
        return row["total_s"], f"{row['total_s']:.2f} s", stages

    peers, latency = ("peers",), ("latency",)

    def against_eager() -> tuple[float, str, str]:
        value, shown, note = ratio("eager")
        if value < EAGER_BAR:
            note += f"; {1000 * peer('eager') / EAGER_BAR:.0f} ms are wanted" + spent("decode", 256)
        return value, shown, note

    add(
        "decode, 1 step, against PyTorch eager fp32" + DAGGER,
        f"≥ {EAGER_BAR}×",
        peers,
        against_eager,
        lambda v: v >= EAGER_BAR,
    )
    for name, bar in (("AutoencoderKLWan", 200), ("AutoencoderKLLTXVideo", 15), ("AutoencoderKLCosmos", 12)):
        add(f"the same against {name}" + DAGGER, f"≥ {bar}×", peers, lambda n=name: ratio(n), lambda v, b=bar: v >= b)
    add("decode time × bf16 2048³ matmul rate", "≤ 140 GFLOP", peers, equivalent, lambda v: v <= 140)
    add(
        "matrix products of its own shapes alone, over whole graph",
        "≥ 60 %",
        ("floor",),
        efficiency,
        lambda v: v >= 0.6,
    )
    add(
        "encode + decode with video files, real time" + DAGGER,
        "≥ 2×",
        ("stream",),
        streaming,
        lambda v: v >= STREAM_BAR,
    )
    add("each further step, over the 1-step decode", "≤ 0.6×", latency, further, lambda v: v <= 0.6)
    for what, verb, a, b, bar in (
        ("decode at 1024 latents over 64", "decode", "full", "64", 1.6),
        ("encode at 64 latents over 1024", "encode", "64", "full", 0.65),
    ):
        add(
            what,
            f"≤ {bar}×",
            latency,
            lambda verb=verb, a=a, b=b, bar=bar: over(verb, a, b, bar),
            lambda v, bar=bar: v <= bar,
        )
    add("memory of a long stream, last quarter less second", "≤ 10 MB", ("memory",), grown, lambda v: v <= 10)
    add("cold start: import, load, first clip", "≤ 2 s", ("cold",), cold, lambda v: v <= 2)
    return rows


if __name__ == "__main__":
    main()
