"""`onedva scenes`, `tokenize`, `train-ldm`, `generate` and `eval --suite paper` in turn, as a user would."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from generators import nano_autoencoder
from onedva.checkpoint import save_model
from onedva.cli import app
from onedva_runtime.video_io import open_reader


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes, an autoencoder, latents and a generator, each made by its verb."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("generation")
    save_model(nano_autoencoder(), folder / "auto")
    steps = (
        ("scenes", "-o", folder / "scenes", "--per-class", 1, "--dev-per-class", 1, "--size", 48, "--frames", 5, "-q"),
        ("tokenize", folder / "scenes", "-o", folder / "latents", "-m", folder / "auto", "--size", "48x48", "-q"),
        ("train-ldm", "--latents", folder / "latents", "-o", folder / "ldm", "--width", 64, "--depth", 1, "--steps", 2,
         "--batch", 4, "--set", "warmup=1", "-q"),
    )  # fmt: skip
    for step in steps:
        done = invoke(*step)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def quiet_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDVA_DEBUG", raising=False)


def frames_of(path: Path) -> np.ndarray:
    with open_reader(path) as reader:
        return np.concatenate([frames for frames, _ in reader])


def test_generate_writes_a_video_of_a_class(root: Path, tmp_path: Path) -> None:
    done = invoke("generate", root / "ldm", "--class", "spin", "--steps", 2, "-o", tmp_path / "a.mp4", "--json", "-q")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["frames"] == 5 and (document["tokens"], document["steps"], document["guidance"]) == (18, 2, 2.0)
    assert frames_of(tmp_path / "a.mp4").shape == (5, 48, 48, 3)
    for change in (("--seed", 1), ("--tokens", 0), ("--size", "64x32")):
        done = invoke(
            "generate", root / "ldm", "--class", "spin", "--steps", 2, "-o", tmp_path / "b.mp4", "-f", *change
        )
        assert done.exit_code == 0, done.output
        other = frames_of(tmp_path / "b.mp4")
        assert other.shape != (5, 48, 48, 3) or (other != frames_of(tmp_path / "a.mp4")).any()


def test_resuming_does_nothing_twice(root: Path) -> None:
    arguments = ("tokenize", root / "scenes", "-o", root / "latents", "-m", root / "auto", "--size", "48x48", "-q")
    done = invoke(*arguments, "--resume", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) | {"skipped": 0} == {
        "output": str(root / "latents"), "shards": 0, "present": 1, "clips": 0, "tokens": 18, "skipped": 0,
        "classes": ["cross", "orbit", "pulse", "ring", "rise", "scroll", "slide", "spin"],
    }  # fmt: skip
    done = invoke("train-ldm", "--latents", root / "latents", "-o", root / "ldm", "--resume", "--steps", 3, "-q")
    assert done.exit_code == 0, done.output
    assert json.loads((root / "ldm" / "train-ldm.json").read_text())["batch"] == 4, "what the run began with"
    assert (root / "ldm" / "log.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "{root}/ldm", "--class", "jump"), "unknown class 'jump'; this generator knows cross, orbit"),
        (("generate", "{root}/auto"), "has no generator: onedva train-ldm makes one"),
        (("generate", "tiny"), "has no generator"),
        (("generate", "{root}/ldm", "-o", "a.txt"), "must end in .mp4"),
        (("generate", "{root}/ldm", "--tokens", "400"), "tokens must be at most 18 for such a clip, got 400"),
        (("generate", "{root}/ldm", "--size", "50x48"), "multiples of 16"),
        (("generate", "{root}/ldm", "--text", "{root}/scenes/MANIFEST.csv"), "is no safetensors file"),
        (("generate", "{root}/ldm", "--first-frame", "{root}/scenes/spin/00000.mp4"), "--continuation"),
        (("tokenize", "{root}/scenes", "-o", "{root}/latents", "-m", "{root}/auto", "--size", "48x48"), "--resume"),
        (("tokenize", "{root}/scenes", "-m", "{root}/auto", "--anchors", "free"), "--anchors must be one of fixed"),
        (("tokenize", "{root}/scenes", "-m", "{root}/auto", "--size", "2048x2048"), "positions; generate takes 3600"),
        (("tokenize", "{root}/scenes", "-m", "{root}/auto", "--size", "48x48", "--device", "foo"), "cpu or cuda"),
        (
            (
                "tokenize",
                "{root}/scenes",
                "-o",
                "{root}/latents",
                "-m",
                "{root}/auto",
                "--size",
                "48x48",
                "--resume",
                "--videos-per-shard",
                "3",
            ),
            "(videos_per_shard)",
        ),
        (("train-ldm", "--latents", "{root}/latents", "--device", "cuda:7"), "cpu or cuda"),
        (("train-ldm", "--latents", "{root}/latents", "--mlp-ratio", "nan"), "mlp_ratio must be finite and above 0"),
        (("train-ldm", "--latents", "{root}/latents", "--mlp-ratio", "0"), "mlp_ratio must be finite and above 0"),
        (("train-ldm", "--latents", "{root}/latents", "--text", "{root}/scenes/MANIFEST.csv"), "no safetensors file"),
        (("train-ldm", "--latents", "{root}/scenes"), "holds no latents"),
        (("train-ldm", "--latents", "{root}/latents", "-o", "{root}/ldm"), "--resume"),
        (("train-ldm", "--latents", "{root}/latents", "--set", "speed=3"), "--set wants NAME=VALUE with a name of"),
        (("train-ldm", "--latents", "{root}/latents", "--resume", "--width", "64"), "--width does not go with"),
        (("scenes", "-o", "{root}/scenes"), "holds a set already"),
        (("eval", "{root}/auto", "--clips", "{root}/scenes", "--suite", "all"), "--suite must be one of standard"),
    ],
)
def test_what_goes_wrong_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet_debug: None, arguments: tuple, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*(argument.replace("{root}", str(root)) for argument in arguments))
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output
    assert not list(tmp_path.iterdir()), "nothing is begun that cannot go on"


def test_the_papers_suite_says_what_it_leaves_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Callable[..., Result]
) -> None:
    done = evaluation("--generator-steps", "1,2", "-o", tmp_path / "out", "--json")
    document = json.loads(done.stdout)
    assert [line.partition(":")[0] for line in document["left_out"]] == [
        "LPIPS", "FVD", "gFVD", "ablations (alignment, post-training)",
    ]  # fmt: skip
    cells = [(row["code"], row["tokens"], row["steps"], row["clips"]) for row in document["generated"]]
    assert cells == [("ldm", tokens, steps, 8) for tokens in (0, 16, 18) for steps in (1, 2)]
    page = (tmp_path / "out" / "eval.md").read_text()
    assert "generated: blocks beyond the real clips'" in page and "Left out: gFVD" in page


def test_the_papers_suite_with_features_and_another_model(
    root: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Callable[..., Result]
) -> None:
    def features(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([frames.mean(axis=(0, 1, 2)), frames.std(axis=(0, 1, 2))]).astype(np.float64)

    monkeypatch.setattr("onedva.report.load_video_features", lambda path: features)
    done = evaluation("--generator-steps", "1", "--fvd", root / "any", "--against", root / "auto", "--json")
    document = json.loads(done.stdout)
    assert [line.partition(":")[0] for line in document["left_out"]] == ["LPIPS"]
    assert all(row["gfvd"] > 0 for row in document["generated"]) and "fvd" in document["rows"][0]
    by_code = {row["code"]: row["psnr_db"] for row in document["rows"] if row["split"] == "dev" and row["tokens"] == 0}
    assert set(by_code) == {"model", "auto"} and by_code["auto"] == pytest.approx(by_code["model"], abs=1e-6)


@pytest.fixture
def evaluation(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """evaluation("--json", …): `onedva eval --suite paper` of the generator's folder on the scenes."""
    monkeypatch.setattr("onedva.report.PATCHES", 400)
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> Result:
        view = ("--short-side", 48, "--sizes", 48, "--tokens", "0,16", "-q")
        done = invoke("eval", root / "ldm", "--clips", root / "scenes", "--suite", "paper", *view, *arguments)
        assert done.exit_code == 0, done.output
        return done

    return run
