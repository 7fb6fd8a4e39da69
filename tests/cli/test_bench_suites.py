"""The suites of `onedva bench` beside latency, several backends at once, and the comparison of two runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Run = Callable[..., Result]
Refused = Callable[..., None]
SMALL = ["--size", "32x32", "--runs", "3", "--warm-up", "0", "--time-box", "0", "--threads", "1"]


def test_latency_of_several_backends_and_sizes(run: Run) -> None:
    options = ["--backend", "onnxruntime,openvino:fp32", "--size", "32x32,48x32", "--lengths", "16", "--steps", "1"]
    result = run("bench", *options, *SMALL[2:], "--json")
    assert result.exit_code == 0, result.output
    begun, *cells = result.stderr.splitlines()  # no terminal: one line for each part, no bar
    assert begun == "suite latency: measuring fake-v1" and len(cells) == 4
    assert all(line.endswith(", 1 cell") for line in cells) and "openvino fp32: one clip of 17×32×48" in cells[3]
    rows = json.loads(result.stdout)["rows"]
    assert [(row["backend"], row["dtype"], row["size"]) for row in rows] == [
        (backend, "fp32", size) for backend in ("onnxruntime", "openvino") for size in ("32x32", "48x32")
    ]
    assert all(row["decode_ms"]["p50"] > 0 and row["frames"] == 17 for row in rows)


def test_stream_times_each_verb_in_a_process_of_its_own(run: Run) -> None:
    from onedva.commands import suites

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites.stream_rows, "__kwdefaults__", {"seconds": 1.0})
        result = run("bench", "--suite", "stream", "--lengths", "16", "--backend", "onnxruntime", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row for row in json.loads(result.stdout)["rows"]}
    assert list(rows) == ["encode", "decode", "encode + decode"]
    both = rows["encode + decode"]
    assert both["work_s"] == pytest.approx(rows["encode"]["work_s"] + rows["decode"]["work_s"])
    assert both["real_time_factor"] == pytest.approx(1.0 / both["work_s"]) and both["video_s"] == 1
    assert 0 < both["first_frame_s"] < both["wall_s"] and both["cpu_s"] > 0 and both["peak_rss_mb"] > 30


def test_cold_adds_up(run: Run) -> None:
    result = run("bench", "--suite", "cold", "--backend", "onnxruntime", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    first, cold = json.loads(result.stdout)["rows"]
    parts = ("import_s", "load_s", "encode_s", "decode_s")
    for row in (first, cold):
        assert row["total_s"] == pytest.approx(sum(row[part] for part in parts))
    assert cold["least_s"] <= cold["total_s"]


def test_quality_is_against_pytorch(run: Run, shipped_bundle: Path) -> None:
    options = ["--suite", "quality", "--lengths", "0,16,auto", "-m", shipped_bundle, "--size", "64x64"]
    result = run("bench", *options, *SMALL[2:], "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    exact = [row for row in rows if row["dtype"] == "fp32"]
    assert {row["backend"] for row in exact} == {"onnxruntime", "openvino"}
    assert {row["length"] for row in rows} == {"0", "16"}
    assert all(row["least_db"] > 60 for row in exact)
    coarse = [row for row in rows if row["dtype"] == "bf16"]
    assert all(row["mean_db"] < min(other["mean_db"] for other in exact) for row in coarse)


def test_compare_gives_ratios_of_rows_in_both(run: Run, tmp_path: Path, refused: Refused) -> None:
    options = ["--lengths", "16", "--steps", "1", "--backend", "onnxruntime", *SMALL]
    assert run("bench", *options, "-o", tmp_path / "a").exit_code == 0
    document = json.loads((tmp_path / "a" / "bench.json").read_text())
    document["rows"][0]["decode_ms"]["p50"] *= 2
    document["provenance"]["cores"] = 77
    (tmp_path / "b.json").write_text(json.dumps(document))
    result = run("bench", "--compare", tmp_path / "a" / "bench.json", tmp_path / "b.json", "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)
    ratios = {row["number"]: row["ratio"] for row in compared["rows"]}
    assert ratios["decode_ms.p50"] == pytest.approx(2) and ratios["encode_ms.p50"] == pytest.approx(1)
    assert [
        "cores",
        str(json.loads((tmp_path / "a" / "bench.json").read_text())["provenance"]["cores"]),
        "77",
    ] in compared["differs"]
    (tmp_path / "c.json").write_text("{}")
    refused(run("bench", "--compare", tmp_path / "b.json", tmp_path / "c.json"), "not written by `onedva bench`")
    refused(run("bench", "--suite", "speed"), "latency, stream, cold, quality", "speed")
