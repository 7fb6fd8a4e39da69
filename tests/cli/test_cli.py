"""The command line from outside: what each verb prints and leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scenery import pan
from typer.testing import Result

from onedva_runtime.video_io import VideoWriter, read_video

REPOSITORY = Path(__file__).resolve().parents[2]
Run = Callable[..., Result]
Console = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., None]


# Help, completion, documentation


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    heavy = "numpy torch onnxruntime av rich matplotlib huggingface_hub onedva_runtime.codec"
    code = f"""
import resource, sys
from onedva.cli import main
sys.argv = ["onedva", "--help"]
try:
    main()
except SystemExit:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print([name for name in {heavy.split()!r} if name in sys.modules], used.ru_utime + used.ru_stime)
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    loaded, seconds = lines[-1].rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 0.4  # CPU time, which a busy machine does not stretch


def test_documentation_is_what_the_app_says() -> None:
    from onedva.commands.reference import reference

    written = (REPOSITORY / "docs" / "cli.md").read_text()
    assert written == reference(), "python -m onedva.commands.reference > docs/cli.md"
    assert "`--tokens`" in written and "## reconstruct" in written


def test_completion_offers_the_verbs(console: Console) -> None:
    environment = {"_ONEDVA_COMPLETE": "complete_bash", "COMP_WORDS": "onedva rec", "COMP_CWORD": "1"}
    assert console(**environment).stdout.split() == ["reconstruct"]


# Encode and decode


def test_encode_then_decode_keeps_size_count_rate_and_time_stamps(run: Run, video: Path, tmp_path: Path) -> None:
    coded, decoded = tmp_path / "a.odva", tmp_path / "a.mp4"
    encoded = run("encode", video, coded, "--tokens", "16", "--json")
    assert encoded.exit_code == 0, encoded.output
    report = json.loads(encoded.stdout)
    assert (report["frames"], report["width"], report["height"]) == (21, 65, 49)
    assert report["tokens"] == [16, 16] and report["bytes"] == coded.stat().st_size

    assert run("decode", coded, decoded).exit_code == 0
    source, result = read_video(video), read_video(decoded)
    assert result.frames.shape == source.frames.shape
    assert [t * result.time_base for t in result.timestamps.tolist()] == [
        t * source.time_base for t in source.timestamps.tolist()
    ]
    assert result.fps == source.fps


def test_a_quality_out_of_reach_is_told(run: Run, video: Path, tmp_path: Path) -> None:
    told = run("encode", video, tmp_path / "a.odva", "--tokens", "90dB")
    assert told.exit_code == 0 and "of 2 clips are predicted to stay below 90dB" in told.stderr
    assert "predicted" not in run("encode", video, tmp_path / "b.odva", "--tokens", "16").stderr


def test_more_latents_than_a_clip_carries_is_told(run: Run, video: Path, tmp_path: Path) -> None:
    told = run("encode", video, tmp_path / "a.odva", "--tokens", "5000", "--json")
    assert "5000 latents were asked for; clips of this size carry up to" in told.stderr
    most = max(json.loads(told.stdout)["tokens"])
    assert f"carry up to {most} with this model" in told.stderr
    assert "asked for" not in run("encode", video, tmp_path / "b.odva", "--tokens", most, "--json").stderr


def test_where_a_camera_was_followed_is_told(run: Run, tmp_path: Path) -> None:
    moving, still = tmp_path / "pan.mp4", tmp_path / "still.mp4"
    for path, frames in ((moving, pan(30, 128, 160)), (still, pan(1, 128, 160).repeat(5, axis=0))):
        with VideoWriter(path, width=160, height=128, fps=Fraction(25)) as writer:
            writer.write(frames)
    for verb, target in (("encode", "a.odva"), ("reconstruct", "a.mp4")):
        report = json.loads(run(verb, moving, tmp_path / target, "--tokens", "16", "--json").stdout)
        assert (report["clips"], report["followed_clips"]) == (2, 2)
        assert "in 2 of 2 clips" in run(verb, moving, tmp_path / target, "--tokens", "16", "--force").stdout
        left = run(verb, moving, tmp_path / target, "--force", "--no-follow-camera", "--json")
        assert json.loads(left.stdout)["followed_clips"] == 0
    assert "camera followed" not in run("encode", still, tmp_path / "still.odva").stdout


def test_times_before_zero_start_at_zero(
    run: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onedva_runtime.video_read import VideoReader

    own = VideoReader.__iter__
    monkeypatch.setattr(VideoReader, "__iter__", lambda self: ((f, t - 80) for f, t in own(self)))
    assert run("reconstruct", video, tmp_path / "a.mp4").exit_code == 0
    result = read_video(tmp_path / "a.mp4")
    assert [float(tick * result.time_base) for tick in result.timestamps[:3].tolist()] == [0, 0.02, 0.08]


def test_batches_give_the_same_latents(run: Run, video: Path, tmp_path: Path) -> None:
    from onedva_runtime.container import load_packets

    for batch in ("1", "2"):
        assert run("encode", video, tmp_path / f"{batch}.odva", "--batch", batch).exit_code == 0
    one, two = (load_packets(tmp_path / f"{batch}.odva").packets for batch in ("1", "2"))
    assert [packet.first_frame for packet in two] == [0, 10]  # the made-up scene ends there
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a.latents, b.latents, atol=2e-3)
        np.testing.assert_array_equal(a.timestamps, b.timestamps)


def test_the_seed_decides_the_noise(run: Run, video: Path, tmp_path: Path) -> None:
    run("encode", video, tmp_path / "a.odva")
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run("decode", tmp_path / "a.odva", tmp_path / f"{name}.mp4", "--seed", seed).exit_code == 0
    # libx264 gives slightly other bytes for the same pictures from run to run; the codec's own bits are test_codec's
    a, b, c = (read_video(tmp_path / f"{name}.mp4").frames.astype(int) for name in "abc")
    assert np.abs(a - b).mean() < 0.2 * np.abs(a - c).mean()


def test_reconstruct_measures_before_encoding_and_draws(run: Run, video: Path, tmp_path: Path) -> None:
    result = run("reconstruct", video, tmp_path / "out.mp4", "--picture", tmp_path / "out.png", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["frames"] == 21 and len(report["psnr_db_of_clips"]) == report["clips"] == 2
    assert min(report["psnr_db_of_clips"]) <= report["psnr_db"] <= max(report["psnr_db_of_clips"])
    assert 0 < report["ssim"] <= 1
    assert read_video(tmp_path / "out.mp4").frames.shape == (21, 49, 65, 3)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


# What else is shown


def test_info_tells_of_install_bundle_and_files(run: Run, video: Path, fake_bundle: Path, tmp_path: Path) -> None:
    report = json.loads(run("info", "--json").stdout)
    assert report["versions"]["numpy"] and "onnxruntime-gpu" in report["versions"]
    usable = {status["name"]: status["usable"] for status in report["backends"]}
    assert usable["onnxruntime"] and not usable["tensorrt"]
    assert report["bundle"]["fingerprint"] and all(case["passed"] for case in report["selftest"])

    run("encode", video, tmp_path / "a.odva")
    kinds = {
        path: json.loads(run("info", path, "--json").stdout)["kind"]
        for path in (video, tmp_path / "a.odva", fake_bundle)
    }
    assert list(kinds.values()) == ["video", "odva", "bundle"]
    assert "65" in run("info", video).stdout


def test_info_shows_the_rest_where_the_bundle_is_missing(run: Run) -> None:
    result = run("info", "-m", "no-such-model", "--json")
    assert result.exit_code == 2 and "no-such-model" in result.stderr
    assert "no-such-model" in json.loads(result.stdout)["problem"]


def test_bench_measures_each_cell_and_leaves_files(run: Run, tmp_path: Path, refused: Refused) -> None:
    options = ["--lengths", "0,16,auto", "--steps", "0,1", "--size", "64x48", "--runs", "3", "--time-box", "1"]
    result = run("bench", *options, "-o", tmp_path / "bench", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["length"], row["steps"]) for row in report["rows"]] == [
        (length, steps) for length in ("0", "16", "auto") for steps in (0, 1)
    ]
    for row in report["rows"]:
        timing = row["decode_ms"]
        assert 0 < timing["p50"] <= timing["p90"] <= timing["p99"] and timing["runs"] == 3
    assert report["provenance"]["cores"] >= 1 and report["provenance"]["versions"]["numpy"]
    assert json.loads((tmp_path / "bench" / "bench.json").read_text()) == report
    assert (tmp_path / "bench" / "bench.png").stat().st_size > 10_000
    assert "PSNR dB" in (tmp_path / "bench" / "bench.md").read_text()
    refused(run("bench", *options, "-o", tmp_path / "bench"), "exists", "-f")
