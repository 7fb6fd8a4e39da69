"""What is found in closed form: components from as many crops of every clip, what else there is by least squares."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scenery import pan
from torch import Tensor

from onedva import linear_start
from onedva.data import Clip
from onedva.linear_start import (
    ERROR_SCALE,
    crop_weight,
    fit_context,
    fit_log_variance,
    fit_pca,
    fit_transform,
    floor_error,
    random_crops,
)
from onedva.model import OneDVA, to_video
from onedva.patches import PatchPCA, patchify
from onedva.transform import PatchTransform
from onedva_runtime import placement


@pytest.fixture
def clips(make_frames: Callable[..., np.ndarray]) -> list[Clip]:
    return [Clip(f"clip{i}", frames, 24.0) for i, frames in enumerate(make_frames(2, 7, 80, 64))]


class Recorder:
    """Stands in for PatchStatistics, whose eigenvectors of 3072×3072 take a minute."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, patches: Tensor) -> None:
        self.rows.append(patches.reshape(-1, 3072))

    def pca(self, components: int, *, poses: int) -> PatchPCA:
        assert poses == 1
        rows = torch.cat(self.rows)
        return PatchPCA(rows.mean(dim=0), torch.eye(components, 3072), rows.std(dim=0)[:components])


def test_components_are_fit_on_as_many_crops_of_every_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_start, "PatchStatistics", Recorder)
    shapes = ((17, 256, 256), (40, 256, 300))
    clips = [Clip(str(value), np.full((*shape, 3), value, np.uint8), 24.0) for value, shape in enumerate(shapes)]
    pca = fit_pca(clips, 4, per_clip=2)
    assert pca.components.shape == (4, 3072)
    torch.testing.assert_close(pca.mean, torch.full((3072,), 0.5 / 127.5 - 1))  # half zeros, half ones


def test_crops_are_held_still_where_their_camera_moves() -> None:
    clips = [Clip("pan", pan(17, 96, 112, down=0, right=2), 24.0)]
    (filmed,), (held,) = (
        list(random_crops(clips, frames=17, per_clip=1, seed=0, held=choice)) for choice in (False, True)
    )
    assert filmed.shape == held.shape == (1, 3, 17, 96, 112)
    changes = [video.diff(dim=2).abs().mean().item() for video in (filmed, held)]
    assert changes[1] < 0.3 * changes[0]
    still = [Clip("still", pan(1, 96, 112).repeat(17, axis=0), 24.0)]
    (one,), (other,) = (
        list(random_crops(still, frames=17, per_clip=1, seed=0, held=choice)) for choice in (False, True)
    )
    assert torch.equal(one, other)


def test_directions_are_fit_on_crops_of_many_kinds(make_frames: Callable[..., np.ndarray]) -> None:
    """As many of every clip, of one size, the same for a seed; mirrored, backwards and scaled ones too."""
    clips = [Clip("clip", make_frames(1, 40, 96, 112)[0], 24.0)]
    plain, varied = (
        list(random_crops(clips, frames=5, per_clip=12, seed=1, varied=varied)) for varied in (False, True)
    )
    assert {crop.shape for crop in plain} == {crop.shape for crop in varied} == {(1, 3, 5, 96, 112)}
    windows = to_video(torch.from_numpy(np.asarray(clips[0].frames))[None]).unfold(2, 5, 1)[0]  # (3, 36, H, W, 5)
    kinds = [any(window.permute(0, 3, 1, 2).equal(crop[0]) for window in windows.unbind(1)) for crop in varied]
    assert any(kinds) and not all(kinds)
    again = random_crops(clips, frames=5, per_clip=12, seed=1, varied=True)
    assert all(one.equal(other) for one, other in zip(varied, again, strict=True))


@pytest.fixture
def pca(clips: list[Clip], quick_pca: Callable[[Tensor, int], PatchPCA]) -> PatchPCA:
    return quick_pca(to_video(torch.from_numpy(np.asarray(clips[0].frames))[None, :5]), 24)


def test_the_linear_start_is_the_same_every_time(
    clips: list[Clip], nano, pca: PatchPCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, Tensor]] = []

    def fit(given: list[Clip], components: int, *, overlap: Tensor, poses: int, held: bool) -> PatchPCA:
        assert poses == 4 and held
        asked.append((components, overlap.clone()))
        return pca

    monkeypatch.setattr(linear_start, "fit_pca", fit)
    one = linear_start.linear_start(nano(), clips)
    torch.manual_seed(99)
    two = linear_start.linear_start(nano(), clips)
    assert asked[0][0] == 24 and asked[0][1].equal(transform_of(one).overlap)
    assert not asked[0][1].equal(torch.eye(16)), "clips of 80×64 have lines to fit the overlap to"
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = linear_start.linear_start(nano(), clips, seed=1)
    assert transform_of(other).directions.equal(transform_of(one).directions)
    assert not other.encoder.queries.equal(one.encoder.queries)


def test_a_configuration_without_a_linear_start_says_so(clips: list[Clip], nano, pca: PatchPCA) -> None:
    model = OneDVA(nano(pca=False))
    for fit in (lambda: fit_transform(model, clips, pca), lambda: fit_log_variance(model, clips)):
        with pytest.raises(ValueError, match="needs pca=True"):
            fit()


def transform_of(model: OneDVA) -> PatchTransform:
    assert model.transform is not None
    return model.transform


@pytest.fixture
def start(clips: list[Clip], nano, pca: PatchPCA) -> OneDVA:
    """A transform fit to made-up clips, in eval mode."""
    torch.manual_seed(0)
    model = OneDVA(nano())
    fit_transform(model, clips, pca)
    return model.eval()


def preview_error(model: OneDVA, clips: list[Clip], tokens: int) -> float:
    """Mean squared error of previews over random crops."""
    with torch.inference_mode():
        errors = [
            (model.condition(model.encode(video, tokens=tokens).latent_dist.mode()).preview - video).square().mean()
            for video in random_crops(clips, frames=5, per_clip=12, seed=1)
        ]
    return float(torch.stack(errors).mean())


def test_more_latents_leave_less(start: OneDVA, clips: list[Clip]) -> None:
    errors = [preview_error(start, clips, tokens) for tokens in (0, 16, 32)]
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.9 * errors[1], errors


def test_the_variance_of_what_is_left_is_told_from_the_context(
    start: OneDVA, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearer to the log-energy of what the preview leaves than any constant is, over the crops it was fit on."""
    monkeypatch.setattr(linear_start, "random_length", lambda *args: 0)
    fit_log_variance(start, clips, per_clip=6)
    transform, true, told = transform_of(start), [], []
    with torch.inference_mode():
        for video in random_crops(clips, frames=5, per_clip=6, seed=3):
            condition = start.condition(start.encode(video, tokens=0).latent_dist.mode())
            left = (patchify(video - condition.preview) @ transform.basis.T) / transform.remainder_std
            true.append(left.square().mean(-1).clamp(min=1e-3).log().flatten())
            told.append(start.decoder.context_parts(condition)[2].flatten())
    wanted, got = torch.cat(true), torch.cat(told)
    assert (got - wanted).square().mean() < 0.6 * wanted.var()


def test_a_context_frame_helps_where_nothing_moves(make_frames: Callable[..., np.ndarray], pca_model) -> None:
    still = np.repeat(make_frames(1, 1, 64, 64), 13, axis=1)  # a key clip, one behind it, and one behind that
    video = to_video(torch.from_numpy(still))[:, :, :5]
    model = pca_model(video, structural_channels=1, latent_channels=2)
    clips = [Clip("still", still[0], 24.0)]
    fit_log_variance(model, clips, per_clip=4)  # what is missing, against which a frame is believed
    fit_context(model, clips, per_clip=2)
    assert model.decoder.context_gain[0].eq(0).all() and model.decoder.context_gain[1].max() > 0.1

    def error(context: Tensor) -> float:
        z = model.encode(video, tokens=0, is_key=torch.zeros(1, dtype=torch.bool)).latent_dist.mode()
        decoded = model.decode(z, context_frame=context, noise=torch.zeros_like(video)).sample
        return (decoded - video)[:, :, 1:].square().mean().item()

    given = error(video[:, :, 0])
    # a clip that never moved teaches no caution
    for value in (model.decoder.log_variance.weight, model.decoder.log_variance.bias):
        value.zero_()
    model.decoder.context_scale.fill_(0.1)
    other = error(-video[:, :, 0])
    model.decoder.context_gain.zero_()
    without = error(video[:, :, 0])
    assert given < 0.8 * without
    assert other == pytest.approx(without, rel=0.3)  # what differs too much is not believed


def test_a_crop_with_little_error_weighs_more() -> None:
    weights = crop_weight(torch.tensor([0.0, ERROR_SCALE, 100 * ERROR_SCALE]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5, 1 / 101]))


def test_the_floor_is_patches_by_their_components(make_frames: Callable[..., np.ndarray], quick_pca) -> None:
    """Against the definition: every patch from its first 6 components, the 16 patches with most detail from all 24."""
    frames = make_frames(1, 9, 64, 64)[0]
    video = to_video(torch.from_numpy(frames)[None])
    pca = quick_pca(video, 24)
    rows = patchify(video).reshape(48, 3072) - pca.mean
    gradients, motion = placement.texture_and_motion(frames)
    motion[0] = 0
    many = torch.from_numpy(gradients + motion).flatten().argsort(descending=True, stable=True)[:16]
    kept = rows @ pca.components[:6].T @ pca.components[:6]
    kept[many] = rows[many] @ pca.components.T @ pca.components
    left = (rows - kept).square().sum(-1)
    left[:16] /= 4  # group 0: one frame, four times
    error = floor_error(frames, pca, tokens=16, structural_channels=6)
    assert error == pytest.approx(left.sum().item() / frames.size, rel=1e-4)
