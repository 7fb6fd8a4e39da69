"""`onedva demo` and the parts it is made of: what it leaves, what it says it cut, what its pictures show."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from onedva.cli import app
from onedva.commands.demo import FILES
from onedva.commands.fidelity import PSNR_CAP, Fidelity, pooled_psnr
from onedva.commands.fit import fit_frames, size_within
from onedva.commands.plots import Shown, length_png, side_by_side_png
from onedva.commands.reconstruct import Album
from onedva.commands.sweep import Timing, latency, parse_lengths
from onedva.commands.tables import Table, to_markdown
from onedva_runtime.clips import make_clip
from onedva_runtime.metrics import psnr
from onedva_runtime.video_io import VideoWriter, read_video


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of seconds: one timed run where users get ten."""
    monkeypatch.setattr("onedva.commands.demo.TIMING", Timing(warm_up=0, runs=1, time_box=0))


def demo(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["demo", *(str(argument) for argument in arguments)])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.usefixtures("quick")
def test_demo_fills_its_folder_and_shows_what_it_wrote(fake_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    code, shown, said = demo("-m", fake_bundle, "-o", folder)
    assert code == 0, said
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    report = json.loads((folder / "results.json").read_text())
    assert [row["length"] for row in report["rows"]] == ["0", "16", "64", "256", "full", "auto"]
    for row in report["rows"]:
        assert f"{row['psnr_db']:.2f}" in shown  # what is printed is what is written
        assert f"{row['psnr_db']:.2f}" in (folder / "results.md").read_text()
    source, result = read_video(folder / "source.mp4"), read_video(folder / "reconstruction.mp4")
    assert source.frames.shape == result.frames.shape == (48, report["height"], report["width"], 3)
    assert source.fps == result.fps == 24
    # The mp4s are the frames that were measured, but for their own coding.
    assert abs(psnr(source.frames, result.frames) - report["auto"]["psnr_db"]) < 1.5

    code, _, said = demo("-m", fake_bundle, "-o", folder)
    assert code == 2 and "-f" in said and said.count("\n") == 1
    assert demo("-m", fake_bundle, "-o", folder, "-f")[0] == 0


@pytest.mark.usefixtures("quick")
def test_demo_says_what_it_cut_from_a_video(fake_bundle: Path, tmp_path: Path) -> None:
    video = tmp_path / "big.mp4"
    with VideoWriter(video, width=640, height=360, fps=Fraction(30)) as writer:
        writer.write(make_clip(60, 360, 640))
    code, shown, said = demo("--video", video, "-m", fake_bundle, "-o", tmp_path / "demo", "--json")
    assert code == 0, said
    report = json.loads(shown)
    assert report["frames"] == 48 and report["fps"] == 30
    assert "first 48 frames of 60" in said and "640×360" in said
    assert len(report["notes"]) == 2
    assert abs(report["width"] / report["height"] - 16 / 9) < 0.3


def test_demo_refuses_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    code, shown, said = demo("--video", tmp_path / "a.mp4", "-o", tmp_path / "demo")
    assert code == 2 and shown == "" and said.count("\n") == 1
    assert demo("-o", tmp_path / "a.mp4")[0] == 2


# Parts


def test_pooled_psnr_is_the_psnr_of_everything_together() -> None:
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, (7, 16, 16, 3), np.uint8)
    test = np.clip(reference.astype(int) + random.integers(-9, 9, reference.shape), 0, 255).astype(np.uint8)
    test[5:] = reference[5:]  # a part without any error has an infinite PSNR of its own
    fidelity = Fidelity()
    for part in (slice(0, 5), slice(5, 7)):
        fidelity.add(reference[part], test[part])
    assert fidelity.psnr == pytest.approx(psnr(reference, test), abs=1e-4)
    assert fidelity.psnr_of_clips[1] == PSNR_CAP
    assert pooled_psnr([math.inf], [3]) == PSNR_CAP


def test_fidelity_has_no_ssim_under_its_window() -> None:
    fidelity = Fidelity()
    fidelity.add(*[np.zeros((2, 8, 8, 3), np.uint8)] * 2)
    assert fidelity.ssim is None and fidelity.psnr == PSNR_CAP


def test_album_keeps_a_few_evenly_spread_frames_of_any_length() -> None:
    for frames in (1, 2, 17, 500):
        album = Album(pages=3)
        for start in range(0, frames, 17):
            clip = np.full((min(17, frames - start), 16, 16, 3), 9, np.uint8)
            album.add(start, clip, clip)
            assert len(album.held) <= 6
        numbers = [int(page.label.split()[1]) for page in album.shown(fps=25)]
        assert len(numbers) == min(3, frames) and numbers == sorted(set(numbers))
        if frames == 500:
            assert numbers[0] < 167 <= numbers[1] < 334 <= numbers[2]


def test_latency_reports_runs_that_happened() -> None:
    calls: list[int] = []
    stats = latency(calls.append, timing=Timing(warm_up=2, runs=10, time_box=60))
    assert calls == [0, 1, *range(10)] and stats["runs"] == 10
    assert 0 <= stats["p50"] <= stats["p90"] <= stats["p99"]
    assert latency(calls.append, timing=Timing(warm_up=0, runs=10, time_box=0))["runs"] == 3


def test_lengths_parse_or_say_what_is_allowed() -> None:
    assert parse_lengths("0, 64,full,auto") == [0, 64, "full", "auto"]
    for text in ("", "64,", "-1", "35dB", "half"):
        with pytest.raises(ValueError, match="numbers, auto and full"):
            parse_lengths(text)


def test_sizes_fit_the_limits_and_keep_the_aspect() -> None:
    assert size_within(161, 121, pixels=98304, positions=1000) == (161, 121)
    for width, height in ((1920, 1080), (1080, 1920), (4000, 16)):
        wide, high = size_within(width, height, pixels=98304, positions=384)
        assert wide * high <= 98304 and math.ceil(wide / 16) * math.ceil(high / 16) <= 384
        assert wide % 16 == high % 16 == 0
    assert size_within(1920, 1080, pixels=98304, positions=384) == (416, 224)


def test_fitting_averages_and_crops_the_middle() -> None:
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 200  # the middle half
    fitted = fit_frames(frames, width=20, height=20)
    assert fitted.shape == (2, 20, 20, 3)
    assert fitted[:, :, 2:-2].min() > 190
    assert fit_frames(frames, width=80, height=40) is frames


def pixels(png: bytes) -> np.ndarray:
    """A PNG as (H, W, 3)."""
    import io

    from matplotlib.image import imread

    return (imread(io.BytesIO(png))[..., :3] * 255).astype(np.uint8)


def test_the_side_by_side_picture_shows_error_where_it_is() -> None:
    source = np.full((64, 96, 3), 128, np.uint8)
    worse = source.copy()
    worse[:, 48:] += 40  # the right half is off
    same, different = (
        pixels(side_by_side_png([Shown(label="frame 0", source=source, reconstruction=other)], title="t"))
        for other in (source, worse)
    )
    assert same.shape == different.shape
    changed = np.argwhere((same != different).any(axis=-1))
    thirds = np.histogram(changed[:, 1], bins=3, range=(0, same.shape[1]))[0]
    assert thirds[0] == 0 and thirds[1] > 1000 and thirds[2] > 1000  # source untouched, the other two panels not


def test_the_length_plot_marks_auto_and_each_step_count() -> None:
    rows = [
        {
            "length": length,
            "tokens": tokens,
            "steps": steps,
            "psnr_db": 27 + tokens / 300 + steps,
            "encode_ms": {"p50": 100.0},
            "decode_ms": {"p50": 100.0 + 50 * steps},
        }
        for steps in (1, 4)
        for length, tokens in (("0", 0), ("64", 64), ("full", 1024), ("auto", 180))
    ]
    whole = pixels(length_png(rows, title="t"))
    without = pixels(length_png([row for row in rows if row["length"] != "auto"], title="t"))
    one = pixels(length_png([row for row in rows if row["steps"] == 1], title="t"))
    assert whole.shape == without.shape == one.shape and whole.shape[0] > 500
    assert (whole != without).any() and (whole != one).any()


def test_tables_are_the_same_in_markdown() -> None:
    table = Table(title="t", columns=["a", "b dB"], rows=[["x|y", "1.0"]])
    assert to_markdown(table) == "**t**\n\n| a | b dB |\n| --- | ---: |\n| x\\|y | 1.0 |\n"
