"""What `onedva eval` measures, on a nano model and made-up clips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onedva import report as reporting
from onedva.data import Clip, Split
from onedva.evaluate import evaluate
from onedva.floors import floor_scores
from onedva.fvd import frechet_distance
from onedva.model import OneDVA
from onedva.patches import PatchPCA
from onedva.report import Judges, load_judges, load_splits, mean_rows, report
from onedva.texture import patches_by_level, texture_distance

Splits = dict[Split, list[Clip]]


@pytest.fixture(autouse=True)
def few_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texture of as many patches as a nano clip deserves."""
    monkeypatch.setattr(reporting, "PATCHES", 400)


@pytest.fixture
def splits(make_frames: Callable[..., np.ndarray]) -> Splits:
    clips = [Clip(f"clip{i}", frames, 24.0) for i, frames in enumerate(make_frames(5, 5, 64, 64))]
    return {"train": clips[:3], "dev": clips[3:]}


def test_a_row_per_split_size_length_and_steps(splits: Splits, random_model: Callable[..., OneDVA]) -> None:
    model = random_model()
    found = report(model, splits, tokens=(0, 16), steps=(1, 2), sizes=(32, 64), seed=2, progress=False)
    places = [(row["size"], row["split"], row["tokens"], row["steps"]) for row in found["rows"]]
    # a clip of 32×32 carries 8
    assert places == [
        (size, split, tokens, steps)
        for size, longest in ((32, 8), (64, 16))
        for split in ("train", "dev")
        for tokens in (0, longest)
        for steps in (1, 2)
    ]
    assert len(found["clips"]) == 5 * 2 * 2 * 2
    for row in found["rows"]:
        assert row["code"] == "model" and row["clips"] == len(splits[row["split"]])
        options = {"tokens": (row["tokens"],), "steps": (row["steps"],), "size": row["size"], "with_ssim": True}
        scores = evaluate(model, splits[row["split"]], seed=2, **options)
        assert row["psnr_db"] == pytest.approx(np.mean([score.psnr for score in scores]))
        assert row["ssim"] == pytest.approx(np.mean([score.ssim or 0.0 for score in scores]))
        assert "lpips" not in row and "fvd" not in row


def test_texture_is_pooled_over_clips(splits: Splits, random_model: Callable[..., OneDVA]) -> None:
    model = random_model()
    found = report(model, {"dev": splits["dev"]}, tokens=(16,), sizes=(64,), seed=7, progress=False)
    pairs = list(reporting.reconstructions(model, splits["dev"], tokens=(16,), size=64, seed=7))
    sources, tests = (
        [patches_by_level(getattr(one, name), count=200, seed=7 + one.index) for one in pairs]
        for name in ("frames", "decoded")
    )
    levels = texture_distance(sources, tests, seed=7)
    (row,) = found["rows"]
    assert row["texture_by_level"] == pytest.approx(levels) and len(levels) == 3
    assert row["texture"] == pytest.approx(np.mean(levels)) and row["texture"] > 0
    published = texture_distance(sources, tests, normalise="own", seed=7)
    assert row["texture_as_published_by_level"] == pytest.approx(published)
    assert row["texture_as_published"] == pytest.approx(np.mean(published))


def test_judges_are_asked_about_every_reconstruction(splits: Splits, random_model: Callable[..., OneDVA]) -> None:
    def features(frames: np.ndarray) -> np.ndarray:
        return frames.reshape(-1, 3).mean(axis=0).astype(np.float64)

    judges = Judges(lpips=lambda source, decoded: float(source[0, 0, 0, 0]) + 1, video_features=features)
    model = random_model()
    found = report(model, {"dev": splits["dev"]}, tokens=(0, 16), sizes=(64,), judges=judges, progress=False)
    for row in found["rows"]:
        pairs = list(reporting.reconstructions(model, splits["dev"], tokens=(row["tokens"],), size=64))
        assert row["lpips"] == pytest.approx(np.mean([float(one.frames[0, 0, 0, 0]) + 1 for one in pairs]))
        one, other = (np.stack([features(getattr(p, name)) for p in pairs]) for name in ("frames", "decoded"))
        assert row["fvd"] == pytest.approx(frechet_distance(one, other))
    (row,) = report(model, {"dev": splits["dev"][:1]}, tokens=(0,), sizes=(64,), judges=judges, progress=False)["rows"]
    assert "fvd" not in row  # one video has no covariance


def test_the_floor_stands_beside(
    splits: Splits,
    random_model: Callable[..., OneDVA],
    quick_pca: Callable[[Tensor, int], PatchPCA],
    make_video: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pca = quick_pca(make_video(2, 5, 64, 64), 16)
    asked = []
    monkeypatch.setattr(reporting, "fit_pca", lambda clips, components: asked.append((clips, components)) or pca)
    model = random_model()
    found = report(model, splits, tokens=(0, 16), sizes=(64,), floor=True, progress=False)
    assert asked == [(splits["train"], 16)]
    assert [row["code"] for row in found["rows"] if row["split"] == "dev" and row["tokens"] == 16] == [
        "model",
        "linear floor",
        "PCA of the same total",
    ]
    (row,) = (r for r in found["rows"] if (r["code"], r["split"], r["tokens"]) == ("linear floor", "dev", 16))
    scores = floor_scores(splits["dev"], pca, model.config, tokens=(16,), size=64)
    assert row["psnr_db"] == pytest.approx(np.mean([score.psnr for score in scores]))
    assert "ssim" not in row


def test_means_are_over_clips_of_one_cell(splits: Splits, random_model: Callable[..., OneDVA]) -> None:
    scores = evaluate(random_model(), splits["dev"], tokens=(0, 16), steps=(1, 2), size=64)
    rows = mean_rows(scores)
    assert [(row["tokens"], row["steps"], row["clips"]) for row in rows] == [
        (0, 1, 2),
        (0, 2, 2),
        (16, 1, 2),
        (16, 2, 2),
    ]
    assert rows[3]["psnr_db"] == pytest.approx(np.mean([s.psnr for s in scores if (s.tokens, s.steps) == (16, 2)]))


def test_weights_that_are_not_given_are_named(tmp_path: Path) -> None:
    judges, left_out = load_judges(lpips=None, fvd=None)
    assert judges == Judges()
    assert [line.split(":")[0] for line in left_out] == ["LPIPS", "FVD"] and "--lpips" in left_out[0]
    with pytest.raises(FileNotFoundError):
        load_judges(lpips=tmp_path / "none.safetensors", fvd=None)
    with pytest.raises(FileNotFoundError):
        load_judges(lpips=None, fvd=tmp_path / "none.pt")


def test_lpips_comes_from_a_local_file(tmp_path: Path, make_frames: Callable[..., np.ndarray]) -> None:
    """Random AlexNet weights in the names of the lpips package: a distance all the same, over all frames."""
    widths = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    random = torch.Generator().manual_seed(0)
    weights = {}
    for index, (out, into, kernel) in enumerate(widths):
        layer = f"net.slice{index + 1}.{(0, 3, 6, 8, 10)[index]}"
        weights[f"{layer}.weight"] = (
            torch.randn(out, into, kernel, kernel, generator=random) / (into * kernel**2) ** 0.5
        )
        weights[f"{layer}.bias"] = torch.zeros(out)
        weights[f"lin{index}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=random)
    save_file(weights, tmp_path / "alex.safetensors")
    judges, left_out = load_judges(lpips=tmp_path / "alex.safetensors", fvd=None)
    assert judges.lpips is not None and len(left_out) == 1
    frames = make_frames(1, 9, 64, 64)[0]
    assert judges.lpips(frames, frames) == 0.0
    last = frames.copy()
    last[8] = 255 - last[8]
    alone = judges.lpips(frames[8:], last[8:])
    assert alone > 0 and judges.lpips(frames, last) == pytest.approx(alone / 9, rel=1e-3)


def test_splits_that_are_there(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> None:
    """Without a manifest everything is the train split; a limit spreads over it."""
    for index in range(5):
        write_video(tmp_path / f"{index}.mp4", frames=20, height=32, width=32, seed=index)
    found = load_splits(tmp_path)
    assert list(found) == ["train"] and len(found["train"]) == 5
    assert [clip.name for clip in load_splits(tmp_path, limit=2)["train"]] == ["0.mp4", "3.mp4"]
    assert len(load_splits(tmp_path, limit=9)["train"]) == 5
    with pytest.raises(FileNotFoundError):
        load_splits(tmp_path, minimum_frames=21)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        load_splits(tmp_path / "empty")
