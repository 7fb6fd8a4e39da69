"""Training runs: one overfits a clip, stages follow one another, and what stops a run says why."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from onedva import losses
from onedva import train as training
from onedva.checkpoint import load_model
from onedva.config import OneDVAConfig
from onedva.data import Batch, Clip
from onedva.distributed import ALONE
from onedva.evaluate import evaluate, mean_by_length
from onedva.model import OneDVA, to_video
from onedva.sampler import ClipSampler
from onedva.steps import TrainingStep
from training_runs import log_of, quick_config, quick_start


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "linear_start", quick_start)
    monkeypatch.setattr(training, "bf16_is_faster", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Path:
    (tmp_path / "videos").mkdir()
    for seed in range(2):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=12, height=64, width=80, seed=seed)
    return tmp_path / "videos"


def start(
    folder: Path, output: Path, model: OneDVAConfig, *, resume: bool = False, init: Path | None = None, **changes: Any
) -> dict[int, float]:
    config = quick_config(**changes)
    return training.run(
        clips=folder, output=output, model=model, train=config, start=init, resume=resume, quiet=True, device="cpu"
    )


def test_a_run_overfits_one_clip(
    tmp_path: Path, nano, make_frames, pca_model: Callable[..., OneDVA], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = Clip("only", make_frames(1, 5, 64, 64)[0], 24.0)

    def only(folder: Path, *, split: str, minimum_frames: int, workers: int = 0, short_side: int = 0) -> list[Clip]:
        if split == "dev":
            raise FileNotFoundError
        return [clip]

    config = nano(structural_channels=2, latent_channels=4)
    begun = pca_model(to_video(torch.from_numpy(clip.frames)[None]), structural_channels=2, latent_channels=4)
    begun.requires_grad_(True)
    floor = mean_by_length(evaluate(begun, [clip], tokens=(0, 16), size=64))
    monkeypatch.setattr(training, "load_clips", only)
    monkeypatch.setattr(training, "linear_start", lambda *a, **k: begun)
    rates: dict[str, Any] = {"learning_rate": 3e-3, "muon_learning_rate": 1e-2, "ema": 0.9, "p_full": 1.0}
    sizes = ((64, 64, 1.0),)
    start(tmp_path, tmp_path / "run", config, steps=60, sizes=sizes, save_every=60.0, still_motion=0.0, **rates)
    reached = mean_by_length(evaluate(load_model(tmp_path / "run"), [clip], tokens=(0, 16), size=64))
    assert reached[0] > floor[0] + 0.3  # two channels a patch: little to go by
    assert reached[16] > floor[16] + 0.3
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 61))


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_and_keeps_batch_and_checkpoint(
    wrong: str, tmp_path: Path, folder: Path, nano, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = losses.flow_loss, iter(range(100))

    def broken(*args: Any) -> torch.Tensor:
        loss = original(*args)
        if next(calls) == 2:
            if wrong == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(losses, "flow_loss", broken)
    with pytest.raises(FloatingPointError, match=r"batch 2 is not finite; it is in .*bad-batch-0\.npz"):
        start(folder, tmp_path / "run", nano())
    assert len(log_of(tmp_path / "run")) == 2
    kept = np.load(tmp_path / "run" / "bad-batch-0.npz")
    assert kept["frames"].dtype == np.uint8 and kept["frames"].shape[1::3] == (5, 3) and kept["step"] == 2
    assert kept["fps"].shape == kept["frames"].shape[:1]
    saved = load_file(tmp_path / "run" / "training.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    load_model(tmp_path / "run")


def test_an_output_already_begun_is_refused_and_left_alone(tmp_path: Path, folder: Path, nano) -> None:
    start(folder, tmp_path / "run", nano(), steps=1)
    files = [path for path in (tmp_path / "run").iterdir() if path.is_file()]
    before = {path.name: path.read_bytes() for path in files}
    assert set(before) == {"config.json", "model.safetensors", "training.safetensors", "train.json", "log.jsonl"}
    with pytest.raises(
        FileExistsError, match="already holds a run: resume it \\(--resume\\), or choose another folder"
    ):
        start(folder, tmp_path / "run", nano(), steps=2)
    assert {path.name: path.read_bytes() for path in files} == before


def test_what_cannot_be_trained_is_an_error_before_any_work(tmp_path: Path, nano) -> None:
    nowhere = tmp_path / "missing"
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: .*training\.safetensors is missing"):
        start(nowhere, tmp_path / "run", nano(), resume=True)
    with pytest.raises(ValueError, match="distill follows a trained model"):
        start(nowhere, tmp_path / "run", nano(), stage="distill")
    with pytest.raises(ValueError, match="stage encoder trains the preview"):
        start(nowhere, tmp_path / "run", nano(pca=False), stage="encoder")
    with pytest.raises(ValueError, match="up to 5 frames, training asks for 9"):
        start(nowhere, tmp_path / "run", nano(), frames=((9, 1.0),))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        start(nowhere, tmp_path / "run", nano())
    assert not (tmp_path / "run").exists()


def test_dev_scores_are_returned_and_kept(tmp_path: Path, folder: Path, nano, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "MANIFEST.csv").write_text("name,split\n0.mp4,train\n1.mp4,dev\n")
    monkeypatch.setattr(training, "evaluate", lambda *a, **o: evaluate(a[0], a[1], tokens=(0, 8), size=32))
    monkeypatch.setattr(training, "reconstructions", lambda *a, **o: [])
    means = start(folder, tmp_path / "run", nano(), steps=2)
    assert set(means) == {0, 8} and all(5 < value < 45 for value in means.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "eval.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2]
    assert {clip["clip"] for line in lines for clip in line["clips"]} == {"1.mp4"}
    assert lines[-1]["psnr"] == {str(length): value for length, value in means.items()}
    assert lines[0]["psnr"] != lines[1]["psnr"]


PARTS = {  # of the weights that only one stage trains, and what another leaves alone
    "encoder": ("encoder.blocks", "decoder.blocks"),
    "joint": ("decoder.blocks", "transform"),
    "distill": ("decoder.blocks", "encoder"),
}


@pytest.mark.parametrize("first", PARTS)
def test_each_stage_goes_on_from_any_other(first: str, tmp_path: Path, folder: Path, nano, random_model) -> None:
    random_model().save_pretrained(tmp_path / "init")
    start(folder, tmp_path / "first", nano(), init=tmp_path / "init", stage=first, steps=2)
    for second in PARTS.keys() - {first}:
        shutil.copytree(tmp_path / "first", tmp_path / second)
        before = load_file(tmp_path / second / "model.safetensors")
        start(folder, tmp_path / second, nano(), resume=True, **{**training_stage(second), "steps": 3})
        assert [(line["stage"], line["step"]) for line in log_of(tmp_path / second)] == [
            *((first, step) for step in (1, 2)),
            *((second, step) for step in (1, 2, 3)),
        ]
        after = load_file(tmp_path / second / "model.safetensors")
        moved = [name for name in after if not torch.equal(after[name], before[name])]
        trained, left = PARTS[second]
        assert any(name.startswith(trained) for name in moved), moved
        assert not any(name.startswith(left) for name in moved), moved
    shutil.rmtree(tmp_path / "first")


def training_stage(name: str) -> dict[str, Any]:
    from onedva.train_config import STAGES

    return STAGES[name]


@pytest.fixture
def batch(folder: Path) -> Iterator[Batch]:
    clips = training.load_clips(folder, split="train", minimum_frames=5)
    yield ClipSampler(clips, frames=5, sizes=((48, 64, 1.0),), positions_per_batch=96, seed=0)(0)


def test_two_halves_accumulated_are_one_whole(batch: Batch, tmp_path: Path, random_model) -> None:
    half = len(batch.frames) // 2
    parts = [Batch(batch.video[rows], batch.frames[rows], batch.fps[rows]) for rows in (slice(half), slice(half, None))]
    assert half * 2 == len(batch.frames) > 2
    made = []
    for micro in ([batch], parts):
        # without noise, and without latents whose number is drawn
        config = quick_config(stage="encoder", p_no_latents=1.0, p_all_latents=0.0, p_policy_latents=0.0)
        network = random_model().requires_grad_(True)
        loop = training.Loop(network, config, ALONE, tmp_path, resume=False)
        loop.optimizers.set_rate(10, 0.0)
        values = loop.update(micro)
        made.append((values, {name: tensor.clone() for name, tensor in network.named_parameters()}))
    (one, weights), (two, others) = made
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
    before = dict(random_model().named_parameters())
    moved = sum((weights[name] - before[name]).square().sum() for name in weights)
    apart = sum((weights[name] - others[name]).square().sum() for name in weights)
    assert moved > 1e-4 and apart < 1e-3 * moved  # a second whole step would be as far again


def gradients(network: OneDVA, batch: Batch, **changes: Any) -> dict[str, torch.Tensor]:
    config = quick_config(**changes)
    training.prepare_blocks(network, config)
    TrainingStep(network, config)(batch, step=4)["loss"].backward()
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


IN_CONTEXT = {"conditioning": "in_context", "stem_depth": 0, "pca": False}


@pytest.mark.parametrize("changes", [{}, IN_CONTEXT])
def test_checkpointing_recomputes_blocks_and_changes_no_gradient(
    changes: dict[str, Any], batch: Batch, random_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gradients(random_model(**changes).requires_grad_(True), batch)
    calls = []
    original = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda *a, **o: (calls.append(1), original(*a, **o))[1])
    again = gradients(random_model(**changes).requires_grad_(True), batch)
    once = len(calls)
    calls.clear()
    checkpointed = gradients(random_model(**changes).requires_grad_(True), batch, checkpointing=True)
    assert len(calls) > once + 1
    for found in (again, checkpointed):
        assert set(found) == set(plain)
        for name in plain:
            torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own parts
def test_a_compiled_step_has_the_same_gradients(batch: Batch, random_model, monkeypatch: pytest.MonkeyPatch) -> None:
    original, compiled_blocks = nn.Module.compile, []

    def traced(module: nn.Module, **options: Any) -> None:
        compiled_blocks.append(module)
        original(module, **options, backend="eager")  # the graphs, without minutes of a C++ compiler

    monkeypatch.setattr(nn.Module, "compile", traced)
    plain = gradients(random_model().requires_grad_(True), batch, stage="encoder")
    compiled = gradients(random_model().requires_grad_(True), batch, stage="encoder", compile=True)
    assert len(compiled_blocks) == 3
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-5)


def test_the_average_lags_behind_the_weights_and_without_decay_is_them(tmp_path: Path, folder: Path, nano) -> None:
    for decay, same in ((0.0, True), (0.9, False)):
        output = tmp_path / str(decay)
        start(folder, output, nano(), steps=3, ema=decay, save_every=60.0)
        tensors, average = load_file(output / "training.safetensors"), load_file(output / "model.safetensors")
        equal = [torch.equal(tensors[f"module.network.{name}"], average[name]) for name in average]
        assert all(equal) if same else sum(equal) < 0.5 * len(equal)
        assert all(torch.equal(tensors[f"average.{name}"], average[name]) for name in average)
