"""`onedva eval` from the command line: what it prints, what it leaves, what it refuses."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from nano import nano_model
from onedva.cli import app
from onedva.commands.evaluation_tables import tables_of
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A nano checkpoint, and a folder with one video per split, long enough for a chain of two clips."""
    root = tmp_path_factory.mktemp("evaluation")
    nano_model().save_pretrained(root / "nano")
    (root / "clips").mkdir()
    lines = ["name,split"]
    for seed, split in enumerate(("train", "dev")):
        with VideoWriter(root / "clips" / f"{split}.mp4", width=32, height=32, fps=Fraction(24)) as writer:
            writer.write(make_clip(34, 32, 32, seed=seed))
        lines.append(f"{split}.mp4,{split}")
    (root / "clips" / "MANIFEST.csv").write_text("\n".join(lines) + "\n")
    return root / "nano", root / "clips"


@pytest.fixture
def evaluate(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """evaluate("--floor", …): `onedva eval` of the nano model at 32×32."""
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path_factory.getbasetemp() / "evaluation-cache"))
    monkeypatch.delenv("ONEDVA_DEBUG", raising=False)
    monkeypatch.setattr("onedva.report.PATCHES", 400)
    model, clips = folders

    def invoke(*arguments: str | Path) -> Result:
        size = [] if "--sizes" in arguments else ["--sizes", "32"]
        return CliRunner().invoke(
            app, ["eval", str(model), "--clips", str(clips), *size, "-q", *(str(argument) for argument in arguments)]
        )

    return invoke


def test_a_folder_with_everything(evaluate: Callable[..., Result], tmp_path: Path) -> None:
    done = evaluate("--tokens", "0,16", "--steps", "1,2", "--chains", "--policies", "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "eval.json").read_text())
    assert [(row["split"], row["tokens"], row["steps"]) for row in document["rows"]] == [
        (split, tokens, steps) for split in ("train", "dev") for tokens in (0, 16) for steps in (1, 2)
    ]
    assert document["provenance"]["versions"]["torch"] and document["provenance"]["command"].startswith("onedva")
    assert [line.split(":")[0] for line in document["left_out"]] == ["LPIPS", "FVD"]
    assert document["chains"]["split"] == document["policies"]["split"] == "dev"
    assert document["chains"]["videos"][0]["clips"] == 2
    assert document["policies"]["full"] == 20  # 5×2×2 positions
    page = (tmp_path / "out" / "eval.md").read_text()
    for word in ("Left out: LPIPS", "model, dev", "train − dev", "against 1 step", "seam", "oracle", "![eval.png]"):
        assert word in page
    for name in ("eval.png", "chains.png", "policies.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_tables_on_the_terminal(evaluate: Callable[..., Result]) -> None:
    done = evaluate("--tokens", "16", "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "PSNR in dB; 32×32, clips: 1 train, 1 dev" in done.stdout and "SSIM" in done.stdout
    assert "16 latents" in done.stdout and "texture" in done.stdout


def test_what_was_left_out_is_said(evaluate: Callable[..., Result], folders: tuple[Path, Path]) -> None:
    model, clips = folders
    loud = CliRunner().invoke(app, ["eval", str(model), "--clips", str(clips), "--sizes", "32", "--tokens", "0"])
    assert "left out: LPIPS: no weights were given" in loud.stderr and "left out: FVD" in loud.stderr


def test_an_evaluation_is_not_overwritten(
    evaluate: Callable[..., Result], refused: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "chains.png").write_bytes(b"of a run before")
    refused(evaluate("--tokens", "0", "-o", tmp_path), "holds chains.png", "-f")
    assert [path.name for path in tmp_path.iterdir()] == ["chains.png"]
    assert evaluate("--tokens", "0", "-o", tmp_path, "-f").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval.json", "eval.md", "eval.png"]


def test_what_is_refused(evaluate: Callable[..., Result], refused: Callable[..., None], tmp_path: Path) -> None:
    refused(evaluate("--tokens", "0,many"), "--tokens", "'0,many'")
    refused(evaluate("--steps", "-1"), "--steps")
    refused(evaluate("--sizes", "20"), "multiple of 16", "20")
    refused(evaluate("--lpips", tmp_path / "none.safetensors"), "none.safetensors")
    refused(evaluate("--fvd", tmp_path / "none.pt"), "none.pt")
    (tmp_path / "file").write_text("")
    refused(evaluate("-o", tmp_path / "file"), "is a file")
    refused(evaluate("--clips", tmp_path / "nowhere"), "nowhere")
    refused(evaluate("--device", "nowhere"), "--device nowhere")


def row(**parts: Any) -> dict[str, Any]:
    plain = {"code": "model", "split": "dev", "size": 256, "steps": 1, "clips": 12, "tokens": 0}
    return {**plain, **parts}


def test_differences_in_the_tables() -> None:
    rows = [
        row(psnr_db=30.0, texture=50.0, texture_as_published=10.0),
        row(psnr_db=29.0, texture=40.0, texture_as_published=11.0, steps=4),
        row(psnr_db=30.5, texture=50.0, split="train", clips=72),
        row(psnr_db=28.25, code="linear floor"),
    ]
    quality, texture, published = tables_of({"rows": rows})
    assert quality.title == "PSNR in dB; 256×256, clips: 12 dev, 72 train"
    assert list(quality.rows) == [
        ["model, dev", "1 step", "30.00"],
        ["model, dev", "4 steps", "29.00"],
        ["model, train", "1 step", "30.50"],
        ["linear floor, dev", "", "28.25"],
        ["train − dev", "1 step", "+0.50"],
        ["over the linear floor, dev", "1 step", "+1.75"],
        ["over the linear floor, dev", "4 steps", "+0.75"],
    ]
    assert ["against 1 step, dev", "4 steps", "-20.0 %"] in list(texture.rows)
    assert ["against 1 step, dev", "4 steps", "+10.0 %"] in list(published.rows)


def test_a_policy_that_reaches_nothing_says_so() -> None:
    found = {
        "split": "dev",
        "clips": 12,
        "full": 1024,
        "at_fixed": [
            {
                "fixed": 256.0,
                "psnr_db": 30.0,
                "tokens": {"auto": 128.0, "oracle": None},
                "share": {"auto": 0.5, "oracle": None},
            }
        ],
        "auto": {
            "tokens": 200.0,
            "psnr_db": 31.0,
            "fixed_tokens_for_as_much": None,
            "rank_correlation_with_motion": 0.5,
        },
        "error_head": {"bias_db": 0.1, "rms_db": 0.4},
        "targets": [],
    }
    policies, calibrated, _ = tables_of({"rows": [], "policies": found})
    assert list(policies.rows) == [["256", "30.00", "128 (50 %)", "not reached"]]
    assert list(calibrated.rows) == [["200", "31.00", "none", "0.50"]]
