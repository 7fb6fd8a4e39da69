"""Ablations: each changes one thing, sides that are alike are trained once, and a finished run is used again."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from onedva import ablations
from onedva import train as training
from onedva.ablations import ABLATIONS, DECODE_STEPS, Ablation, Change, ablate
from onedva.cli import app
from onedva.commands.ablation import NAMES, ablation_tables
from onedva.commands.tables import to_markdown
from onedva.config import OneDVAConfig, preset
from onedva.model import OneDVA
from onedva.train_config import TrainConfig

QUICK = TrainConfig(
    steps=2,
    frames=((5, 1.0),),
    sizes=((32, 32, 1.0),),
    positions_per_batch=8,
    warmup=1,
    evaluate_every=0.0,
)


@pytest.fixture
def folder(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Path:
    """Two videos, one to train on and one to score on."""
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=8, height=64, width=64, seed=seed)
    (tmp_path / "videos" / "MANIFEST.csv").write_text("name,split\n0.mp4,train\n1.mp4,dev\n")
    return tmp_path / "videos"


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, OneDVAConfig, TrainConfig, bool]]:
    """Replaces training and scoring: a run scores 20 dB and what its settings earn. Returns what was run."""
    made: list[tuple[str, OneDVAConfig, TrainConfig, bool]] = []

    def run(
        *,
        clips: Path,
        output: Path,
        model: OneDVAConfig,
        train: TrainConfig,
        start: str | None,
        resume: bool,
        quiet: bool,
    ) -> None:
        (output / "start").write_text(str(start))
        made.append((output.name, model, train, resume))
        (output / "log.jsonl").write_text('{"step": 1}\n{"step": 7}\n')

    def means(found: Any, *, steps: int) -> dict[int, float]:
        _, model, train, _ = made[-1]
        return {0: 20.0 + model.stem_depth, 16: 20.0 + steps * train.p_full}

    def first_model(data: Any, model: OneDVAConfig, train: TrainConfig) -> OneDVA:
        return OneDVA(model)

    monkeypatch.setattr(ablations, "run", run)
    monkeypatch.setattr(ablations, "first_model", first_model)
    monkeypatch.setattr(ablations, "load_model", lambda folder: torch.nn.Identity())
    monkeypatch.setattr(ablations, "load_clips", lambda *args, **options: ["one", "two"])
    monkeypatch.setattr(ablations, "evaluate", lambda *args, **options: [])
    monkeypatch.setattr(ablations, "mean_by_length", means)
    return made


def do(names: list[str], output: Path, model: OneDVAConfig, train: TrainConfig = QUICK, **options: Any) -> Any:
    return ablate(names, clips=Path("clips"), output=output, model=model, train=train, **options)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_one_thing(name: str) -> None:
    baseline = ABLATIONS[name].baseline.applied(preset("tiny"), TrainConfig())
    variant = ABLATIONS[name].variant.applied(preset("tiny"), TrainConfig())
    different = [
        field.name
        for one, other in ((baseline.model, variant.model), (baseline.train, variant.train))
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    ]
    assert len(different) == 1


def test_alike_sides_are_trained_once_and_the_difference_is_variant_less_baseline(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, fake_runs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = dataclasses.replace(QUICK, p_full=0.9)
    result = do(["stem-depth-0", "no-full-noise", "p-full", "stem-depth-0"], tmp_path, nano(), train)
    assert [label for label, *_ in fake_runs] == [
        "baseline",
        "stem-depth-0",
        "no-full-noise",
        "p-full-baseline",
        "p-full",
    ]
    assert all(train.seed == QUICK.seed and train.steps == QUICK.steps for _, _, train, _ in fake_runs)
    assert result["dev_videos"] == 2 and list(result["ablations"]) == ["stem-depth-0", "no-full-noise", "p-full"]
    found = result["ablations"]["stem-depth-0"]
    assert (found["baseline"], found["variant"]) == ("baseline", "stem-depth-0")
    assert found["difference_db"] == {"1": {"0": -1.0, "16": 0.0}, "4": {"0": -1.0, "16": 0.0}}
    found = result["ablations"]["p-full"]
    assert found["difference_db"]["4"]["16"] == pytest.approx(4 * (0.1 - 0.5))
    assert result["runs"]["p-full"]["trained_steps"] == 7


def test_a_run_in_the_folder_is_used_gone_on_with_or_refused(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, fake_runs: list
) -> None:
    first = do(["stem-depth-0"], tmp_path, nano())
    assert do(["stem-depth-0"], tmp_path, nano()) == first
    assert len(fake_runs) == 2
    (tmp_path / "stem-depth-0" / ablations.SCORES).unlink()
    (tmp_path / "stem-depth-0" / "training.safetensors").touch()  # stopped in the middle
    assert do(["stem-depth-0"], tmp_path, nano()) == first
    assert [(label, resume) for label, _, _, resume in fake_runs[2:]] == [("stem-depth-0", True)]
    with pytest.raises(ValueError, match="baseline holds a run with other settings"):
        do(["stem-depth-0"], tmp_path, nano(), dataclasses.replace(QUICK, seed=1))


def test_runs_begin_from_given_weights_where_those_are_of_use(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, fake_runs: list
) -> None:
    do(["adamw", "p-full"], tmp_path, nano(), start="tiny")
    assert len(fake_runs) == 4
    assert {path.read_text() for path in tmp_path.glob("*/start")} == {"tiny"}
    with pytest.raises(ValueError, match="baseline holds a run with other settings"):
        do(["no-full-noise"], tmp_path, nano(), start="other")
    with pytest.raises(ValueError, match="stem-depth-0, no-pca cannot begin from given weights; these can: no-full-no"):
        do(["stem-depth-0", "adamw", "no-pca"], tmp_path, nano(), start="tiny")


def test_runs_that_begin_alike_share_a_least_squares_start(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, fake_runs: list
) -> None:
    do(["adamw", "stem-depth-0", "no-pca"], tmp_path, nano())
    starts = {path.parent.name: path.read_text() for path in tmp_path.glob("*/start")}
    assert starts["baseline"] == starts["adamw"] and Path(starts["baseline"]).parent == tmp_path / "starts"
    assert starts["no-pca"] == "None"
    assert len(set(starts.values())) == 3 and len(list((tmp_path / "starts").iterdir())) == 2
    assert OneDVA.from_pretrained(starts["stem-depth-0"]).config.stem_depth == 0


def test_the_velocity_baseline_has_no_transform(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, fake_runs: list
) -> None:
    result = do(["velocity"], tmp_path, nano())
    (baseline, model, _, _), (_, variant, _, _) = fake_runs
    assert baseline == "velocity-baseline"
    assert (model.pca, model.prediction, variant.pca, variant.prediction) == (False, "video", False, "velocity")
    table = to_markdown(ablation_tables({"seed": 0, **result})[0])
    assert "compare with no-pca" in table and "pca=False, prediction=velocity" in table


def test_unknown_names_list_the_valid_ones(nano: Callable[..., OneDVAConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown ablations: no-pcb; choose from no-pca, one-class, no-full-noise"):
        do(["no-pca", "no-pcb"], tmp_path, nano())
    with pytest.raises(ValueError, match="none named"):
        do([], tmp_path, nano())


def test_a_folder_without_dev_clips_is_refused_before_training(
    nano: Callable[..., OneDVAConfig], tmp_path: Path, folder: Path
) -> None:
    (folder / "MANIFEST.csv").write_text("name,split\n0.mp4,train\n1.mp4,train\n")
    with pytest.raises(FileNotFoundError, match="dev"):
        ablate(["stem-depth-0"], clips=folder, output=tmp_path / "out", model=nano(), train=QUICK)
    assert not (tmp_path / "out").exists()


def test_tables_show_both_sides_and_the_difference() -> None:
    scores = {"1": {"0": 27.0, "64": 28.5}, "4": {"0": 26.5, "64": 28.0}}
    worse = {steps: {count: value - 0.256 for count, value in means.items()} for steps, means in scores.items()}
    document = {
        "dev_videos": 3,
        "seed": 5,
        "runs": {
            "baseline": {"changed": "the preset as it is", "trained_steps": 100, "psnr_db": scores},
            "adamw": {"changed": "optimizer=adamw", "trained_steps": 90, "psnr_db": worse},
        },
        "ablations": {
            "adamw": {
                "question": "AdamW against Muon",
                "note": "",
                "baseline": "baseline",
                "variant": "adamw",
                "difference_db": ablations.difference(scores, worse),
            }
        },
    }
    assert to_markdown(ablation_tables(document)[0]).splitlines() == [
        "**adamw: AdamW against Muon, 3 dev videos, seed 5**",
        "",
        "| mean PSNR in dB | trained steps | decode steps | 0 latents | 64 latents |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| the preset as it is | 100 | 1 | 27.00 | 28.50 |",
        "| optimizer=adamw | 90 | 1 | 26.74 | 28.24 |",
        "| difference |  | 1 | -0.26 | -0.26 |",
        "| the preset as it is | 100 | 4 | 26.50 | 28.00 |",
        "| optimizer=adamw | 90 | 4 | 26.24 | 27.74 |",
        "| difference |  | 4 | -0.26 | -0.26 |",
    ]


def test_the_verb_trains_and_leaves_the_tables(
    nano: Callable[..., OneDVAConfig], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way once, with a nano model and a change that needs no linear start."""
    one = Ablation(
        question="wider against narrow MLPs",
        baseline=Change(model={"pca": False}),
        variant=Change(model={"pca": False, "mlp_ratio": 1.0}, train={"p_full": 0.5}),
    )
    real = ablations.ablate

    def small(names: Any, *, train: TrainConfig, **options: Any) -> Any:
        assert (train.steps, train.minutes, train.seed) == (2, 5.0, 3)
        quick = dataclasses.replace(QUICK, seed=train.seed)
        return real(names, **{**options, "model": nano(pca=False), "size": 32}, train=quick)

    monkeypatch.setitem(ABLATIONS, "mlp", one)
    monkeypatch.setattr(ablations, "ablate", small)
    monkeypatch.setattr(training, "bf16_is_faster", lambda *arguments: False)
    output = tmp_path / "out"
    arguments = ["--clips", str(folder), "-o", str(output), "--steps", "2", "--minutes", "5", "--seed", "3"]
    result = CliRunner().invoke(app, ["ablate", "mlp", *arguments, "--quiet", "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert json.loads((output / "ablations.json").read_text()) == document
    assert document["dev_videos"] == 1 and document["seed"] == 3 and document["preset"] == "tiny"
    # nano(pca=False) is the preset here, so its own run is the baseline
    found = document["ablations"]["mlp"]
    assert (found["baseline"], found["variant"]) == ("baseline", "mlp")
    for steps in ("1", "4"):
        means = {label: document["runs"][label]["psnr_db"][steps] for label in ("baseline", "mlp")}
        assert set(means["mlp"]) == {"0", "8"} and all(3 < value < 45 for value in means["mlp"].values())
        for count, value in found["difference_db"][steps].items():
            assert value == pytest.approx(means["mlp"][count] - means["baseline"][count])
            assert value != 0
    assert document["runs"]["mlp"]["trained_steps"] == 2
    assert (output / "ablations.md").read_text().startswith("**mlp: wider against narrow MLPs, 1 dev videos, seed 3**")
    with_json = [path.name for path in (output / "mlp").iterdir()]
    assert {"config.json", "model.safetensors", ablations.CONFIG, ablations.SCORES} <= set(with_json)


@pytest.mark.slow
def test_every_ablation_trains(
    nano: Callable[..., OneDVAConfig], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of each, one step; a least-squares fit takes a minute, so a random model stands for it."""

    def random_start(config: OneDVAConfig, clips: Any, *, seed: int) -> OneDVA:
        torch.manual_seed(seed)
        model = OneDVA(config)
        assert model.transform is not None
        torch.nn.init.normal_(model.transform.directions, std=0.1)
        return model

    score = training.evaluate
    monkeypatch.setattr(training, "linear_start", random_start)
    monkeypatch.setattr(training, "evaluate", lambda *a, **o: score(*a, **{**o, "tokens": (0,), "size": 32}))
    monkeypatch.setattr(training, "bf16_is_faster", lambda *arguments: False)
    train = dataclasses.replace(QUICK, steps=1)
    out = tmp_path / "out"
    result = ablate(list(ABLATIONS), clips=folder, output=out, model=nano(), train=train, size=32, quiet=True)
    assert set(result["ablations"]) == set(ABLATIONS)
    for label, one in result["runs"].items():
        assert one["trained_steps"] == 1, label
        assert all(2 < value < 45 for means in one["psnr_db"].values() for value in means.values()), label
    table = "".join(to_markdown(table) for table in ablation_tables({"seed": 0, **result}))
    assert table.count("| difference |") == len(DECODE_STEPS) * len(ABLATIONS)


def test_help_names_every_ablation(caplog: pytest.LogCaptureFixture) -> None:
    assert NAMES.split(", ") == list(ABLATIONS)
    with caplog.at_level(logging.ERROR):
        result = CliRunner().invoke(app, ["ablate", "sharper", "--clips", "missing"])
    assert result.exit_code == 2 and "unknown ablations: sharper; choose from no-pca" in result.output
