"""The linear codec: orthogonal for every size and kind, principal where it was fit, the same alone and in a batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nano import random_transform
from odva_files import make_packet
from onedva.config import OneDVAConfig
from onedva.encoder import linear_error
from onedva.model import OneDVA, to_video
from onedva.patches import PatchStatistics, mirror_signs, patchify
from onedva.transform import FIRST_GROUP, PatchTransform
from onedva_runtime.quantiser import LEAST_STEP, MOST_STEP, Quantiser, levels_of

KEY, CONTINUATION = torch.tensor([True]), torch.tensor([False])
SIZES = [(groups, key) for key in (True, False) for groups in range(1, 6) if groups > 1 or key]


@pytest.fixture(params=[False, True], ids=["plain", "mirrored"])
def transform(nano: Callable[..., OneDVAConfig], request: pytest.FixtureRequest) -> PatchTransform:
    """5 groups, 24 components, 6 structural and 10 latent channels, 4 classes of orthonormal random directions."""
    made = PatchTransform(nano(clip_frames=17, mirrored=request.param)).requires_grad_(False)
    random_transform(made)
    return made


def choices(transform: PatchTransform, classes: list[int]) -> Tensor:
    """Numbers of these classes, six, in different poses where there are some."""
    return torch.tensor(classes) * transform.poses + torch.tensor([0, 1, 2, 3, 3, 0]) % transform.poses


def with_class(transform: PatchTransform, structural: Tensor, classes: list[int] | None = None) -> Tensor:
    """Structural latents (1, Tg, 2, 3, Zs) whose six columns tell these classes, or some of each."""
    chosen = choices(transform, [0, 1, 2, 3, 0, 1] if classes is None else classes)
    told = structural.clone()
    told[:, -1, :, :, -1] = transform.class_values(structural)[chosen].reshape(1, 2, 3)
    return told


def grid(groups: int, channels: int, *, batch: int = 1) -> Tensor:
    return torch.randn(batch, groups, 2, 3, channels)


def test_overlapping_patches_join_again(transform: PatchTransform, make_frames) -> None:
    """Planar or packed, and patches differ from plain ones at borders only."""
    frames = torch.from_numpy(make_frames(2, 9, 32, 48))
    video = to_video(frames)
    patches = transform.cut(video)
    first, others = patches[:, :1, ..., :768], patches[:, 1:]
    torch.testing.assert_close(transform.join(first, others), video, atol=1e-5, rtol=0)
    assert torch.equal(transform.join_frames(first, others), frames)
    torch.testing.assert_close(transform.cut_frames(frames), patches, atol=1e-5, rtol=0)
    assert (patches - patchify(video)).abs().max() > 0.1
    corner = (patches - patchify(video)).unflatten(-1, (4, 16, 16, 3))[:, :, 0, 0, :, :8, :8]
    assert corner.abs().max() < 1e-5


@pytest.mark.parametrize(("groups", "key"), SIZES)
def test_latents_come_back_from_what_they_synthesise(transform: PatchTransform, groups: int, key: bool) -> None:
    structural, layers, kind = with_class(transform, grid(groups, 6)), 1e-3 * grid(groups, 10), torch.tensor([key])
    coefficients = transform.synthesise(structural, layers, kind)
    assert coefficients.shape == (1, groups, 2, 3, 24)
    coded = 0 if key else 1  # what stands in group 0 of a continuation clip is ignored, and comes back as zeros
    if groups in (3, 4):  # one table for all classes: the first is as good as any
        structural = with_class(transform, structural, [0] * 6)
    for got, sent in zip(transform.analyse(coefficients, kind), (structural, layers), strict=True):
        torch.testing.assert_close(got[:, coded:], sent[:, coded:], atol=1e-4, rtol=1e-4)
        assert not got[:, :coded].any()
    assert not coefficients[:, :coded].any() and coefficients[:, coded:].any()


@pytest.mark.parametrize(("groups", "key"), SIZES)
def test_as_many_channels_as_components_lose_nothing(nano, groups: int, key: bool) -> None:
    transform = PatchTransform(nano(clip_frames=17, components=16, classes=1, mirrored=False)).requires_grad_(False)
    random_transform(transform)
    coefficients, kind = grid(groups, 16), torch.tensor([key])
    again = transform.synthesise(*transform.analyse(coefficients, kind), kind)
    coded = 0 if key else 1
    torch.testing.assert_close(again[:, coded:], coefficients[:, coded:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("groups", "key"), SIZES)
def test_what_is_lost_is_the_energy_outside(transform: PatchTransform, groups: int, key: bool) -> None:
    """Parseval: with every latent, the error is the patches' energy less the latents'; the error head starts there."""
    kind, anchors = torch.tensor([key]), torch.arange(0 if key else 6, groups * 6)[None]
    patches = torch.randn(1, groups, 2, 3, 3072)
    structural, layers = transform.analyse(transform.coefficients(patches), kind)
    left = patches - transform.patches(transform.synthesise(structural, layers, kind))
    share = torch.ones(groups)
    share[0] = FIRST_GROUP if key else 0.0  # group 0 is one frame, four times
    lost, whole = ((share * part[0].square().sum(dim=(1, 2, 3))).sum() for part in (left, patches - transform.mean))
    std = transform.tables(groups, kind).std[:, :, None, None]
    kept = (std * torch.cat([structural, layers], dim=-1)).square().sum()
    torch.testing.assert_close(lost, whole - kept, atol=0, rtol=1e-4)
    sent = layers.flatten(1, 3)[:, anchors[0]]
    promised = linear_error(patches, structural, sent, anchors, kind, transform)
    torch.testing.assert_close(promised[0, -1].exp(), lost / (share.sum() * 6 * 3072), atol=0, rtol=1e-4)


def test_group_zero_of_a_continuation_clip_changes_nothing(transform: PatchTransform) -> None:
    coefficients = grid(4, 24)
    changed = coefficients.clone()
    changed[:, 0] += 3.0
    for one, other in zip(*(transform.analyse(part, CONTINUATION) for part in (coefficients, changed)), strict=True):
        assert torch.equal(one, other) and one[:, 1:].any()
    one, other = (transform.analyse(part, KEY)[0] for part in (coefficients, changed))
    assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("groups", [2, 5])
def test_clips_of_both_kinds_share_a_batch(transform: PatchTransform, groups: int) -> None:
    coefficients, kinds = grid(groups, 24, batch=3), torch.tensor([False, True, False])
    structural, layers = transform.analyse(coefficients, kinds)
    again = transform.synthesise(structural, layers, kinds)
    for row in range(3):
        here = slice(row, row + 1)
        alone = transform.analyse(coefficients[here], kinds[here])
        torch.testing.assert_close(structural[here], alone[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layers[here], alone[1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again[here], transform.synthesise(*alone, kinds[here]), atol=1e-5, rtol=1e-5)


def test_every_size_has_a_table_of_its_own(transform: PatchTransform) -> None:
    """No two sizes or kinds read the same block or row, and together they read all of them."""
    with torch.no_grad():
        transform.directions.copy_(torch.arange(1.0, len(transform.directions) + 1)[:, None, None])
        transform.latent_std.copy_(torch.arange(1.0, len(transform.latent_std) + 1)[:, None])
    blocks: list[float] = []
    rows: list[float] = []
    for groups, key in SIZES:
        directions, std, _ = transform.tables(groups, torch.tensor([key]))
        first_values = directions.tables[0, 0].reshape(4, groups, 16, groups, -1)[:, :, 0, :, 0]
        adaptive = groups in (1, 2, 5)
        for of_class in range(4):
            if of_class and not adaptive:
                assert torch.equal(first_values[of_class], first_values[0])
                continue
            blocks += first_values[of_class][first_values[of_class] != 0].tolist()
        rows += std[0, 0 if key else 1 :, 0].tolist()
    assert sorted(blocks) == list(range(1, len(transform.directions) + 1))
    assert sorted(rows) == list(range(1, len(transform.latent_std) + 1))


def test_a_batch_of_both_kinds_is_its_clips_one_by_one(transform: PatchTransform) -> None:
    """Where clips differ in kind each has a table, where not they share one."""
    coefficients, kinds = grid(5, 24).repeat(3, 1, 1, 1, 1), torch.tensor([True, False, False])
    coefficients = coefficients * torch.tensor([1.0, 0.5, 2.0]).reshape(3, 1, 1, 1, 1)
    whole = transform.analyse(coefficients, kinds)
    back = transform.synthesise(*whole, kinds)
    alike = transform.analyse(coefficients[1:], kinds[1:])
    for index in range(3):
        one = slice(index, index + 1)
        alone = transform.analyse(coefficients[one], kinds[one])
        for got, wanted in zip(whole, alone, strict=True):
            torch.testing.assert_close(got[one], wanted)
        torch.testing.assert_close(back[one], transform.synthesise(*alone, kinds[one]))
        if index:
            for got, wanted in zip(alike, alone, strict=True):
                torch.testing.assert_close(got[index - 1 : index], wanted)
    assert transform.tables(5, kinds[1:]).directions.shared and not transform.tables(5, kinds).directions.shared


def directions_of(transform: PatchTransform) -> Tensor:
    """Those of full key clips, (4, Tg, C, Tg·R)."""
    tables = transform.tables(5, KEY).directions.tables[:, 0].unflatten(-1, (5, -1))  # (S, K·Tg·C, Tg, R / S)
    return torch.cat(list(tables), dim=-1).reshape(4, 5, 16, 120)


def test_each_column_takes_the_class_that_holds_most_of_it(transform: PatchTransform) -> None:
    """Against every class tried alone: the one whose structural latents leave least."""
    coefficients = grid(5, 24)
    structural, _ = transform.analyse(coefficients, KEY)
    tables = directions_of(transform)
    columns = (coefficients * transform.tables(5, KEY).weight)[0].permute(1, 2, 0, 3).reshape(6, 120)
    tried = []
    for index in range(4):
        only = tables[index, :, :6].reshape(30, 120)[:-1]
        for signs in mirror_signs(transform.poses, 24 // transform.poses).repeat(1, 5):
            tried.append(((columns * signs) @ only.T).square().sum(1))
    best = torch.stack(tried, dim=1).argmax(dim=1)
    assert len(set(best.tolist())) > 1
    assert torch.equal(transform.chosen(structural)[0].argmax(dim=1), best)


@pytest.mark.parametrize("noise", [0.0, 0.45])
def test_a_class_survives_rounding_and_noise(transform: PatchTransform, noise: float) -> None:
    """noise: of what lies between two class values; half of it would be too much."""
    classes = [0, 1, 2, 3, 1, 2]
    structural = with_class(transform, grid(5, 6), classes)
    apart = transform.class_values(structural).diff()[0].item()
    told = structural.half().float() + noise * apart * (2 * torch.rand(structural.shape) - 1)
    assert torch.equal(transform.chosen(told)[0].argmax(dim=1), choices(transform, classes))


def test_the_slot_that_tells_the_class_holds_nothing_else(transform: PatchTransform) -> None:
    """Two values of the slot that mean one class give the same coefficients; class values have unit variance."""
    structural, layers = with_class(transform, grid(5, 6)), grid(5, 10)
    moved = structural.clone()
    moved[:, -1, :, :, -1] += 0.2 * transform.class_values(structural).diff()[0]
    assert torch.equal(*(transform.synthesise(part, layers, KEY) for part in (structural, moved)))
    assert transform.class_values(structural).square().mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("axes", [(4,), (3,), (3, 4)])
def test_a_mirrored_video_has_the_latents_of_the_video_mirrored(nano, make_video, axes: tuple[int, ...]) -> None:
    """All but the slot, which tells the other pose: on components that mirrors turn at most the sign of."""
    transform = PatchTransform(nano(clip_frames=9)).requires_grad_(False)
    random_transform(transform)
    video = make_video(1, 9, 48, 64)
    statistics = PatchStatistics()
    statistics.add(transform.cut(video))
    fitted = statistics.pca(24, poses=4)
    transform.basis.copy_(fitted.components)
    transform.mean.copy_(fitted.mean)
    places = [axis - 1 for axis in axes]  # of the grid
    (structural, layers), (other_structural, other_layers) = (
        transform.analyse(transform.coefficients(transform.cut(one)), KEY) for one in (video, video.flip(axes))
    )
    torch.testing.assert_close(other_layers.flip(places), layers, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(other_structural.flip(places)[..., :-1], structural[..., :-1], atol=1e-3, rtol=1e-3)
    told, other = (
        transform.chosen(part).argmax(dim=-1).reshape(3, 4) for part in (structural, other_structural.flip(places))
    )
    assert set((told ^ other).unique().tolist()) == {sum({4: 1, 3: 2}[axis] for axis in axes)}


def test_more_groups_than_the_tables_have_are_refused(transform: PatchTransform) -> None:
    with pytest.raises(ValueError, match="up to 5 groups of frames, got 6"):
        transform.analyse(grid(6, 24), KEY)


def test_coefficients_and_patches_are_inverse_within_the_basis(transform: PatchTransform) -> None:
    coefficients = grid(2, 24)
    torch.testing.assert_close(transform.coefficients(transform.patches(coefficients)), coefficients, atol=1e-5, rtol=0)
    assert torch.equal(transform.patches(torch.zeros(1, 24))[0], transform.mean)


# Fit to clips


@pytest.fixture
def video(make_video: Callable[..., Tensor]) -> Tensor:
    return make_video(2, 9, 128, 128)  # 128 columns of 3·24 coefficients


def of(model: OneDVA) -> PatchTransform:
    assert model.transform is not None
    return model.transform


@pytest.mark.parametrize("key", [True, False])
def test_latents_have_unit_variance_where_they_were_fit(video: Tensor, pca_model, key: bool) -> None:
    """Every channel of every group, over all columns."""
    transform = of(pca_model(video[:1], classes=1, mirrored=False))
    structural, layers = transform.analyse(transform.coefficients(patchify(video[:1])), torch.tensor([key]))
    power = torch.cat([structural, layers], dim=-1).square().mean(dim=(0, 2, 3))  # (Tg, C)
    torch.testing.assert_close(power[0 if key else 1 :], torch.ones(3 if key else 2, 16), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("tokens", "layers"), [(0, 0), (64, 1), (192, 3)])
def test_previews_are_made_of_the_strongest_directions_of_columns(pca_model, video: Tensor, tokens, layers) -> None:
    """Against NumPy: eigenvectors of the columns' second moments, 3·6 structural and 10 more for each of 3 layers."""
    model = pca_model(video[:1], queries=192, trained_tokens=192, classes=1, mirrored=False)
    transform = of(model)
    z = model.encode(video[:1], anchors=torch.arange(192)[None]).latent_dist.mode().thin(tokens)
    preview = model.decode(z, num_steps=0).sample

    weight = np.sqrt([FIRST_GROUP, 1, 1]).repeat(24)
    coefficients = transform.coefficients(patchify(video[:1]))[0].double().numpy()  # (3, 8, 8, 24)
    columns = coefficients.transpose(1, 2, 0, 3).reshape(64, 72) * weight
    vectors = np.linalg.eigh(columns.T @ columns)[1][:, ::-1][:, : 18 + 10 * layers]
    kept = (columns @ vectors @ vectors.T / weight).reshape(8, 8, 3, 24).transpose(2, 0, 1, 3)
    wanted = torch.from_numpy(kept).float()
    got = transform.coefficients(patchify(preview))[0]
    torch.testing.assert_close(got[1:], wanted[1:], atol=2e-3, rtol=1e-3)  # group 0 is averaged over its four outputs


def test_strong_directions_come_first_and_every_group_gets_some(pca_model, video: Tensor) -> None:
    std = of(pca_model(video, classes=1, mirrored=False)).tables(3, KEY).std[0]  # (3, 16)
    structural, layers = std[:, :6], std[:, 6:]
    assert structural.min() >= layers.max()
    assert layers[0].min() >= layers[1].max() and layers[1].min() >= layers[2].max()
    assert structural[:, 0].min() >= structural[:, 1].max()  # dealt out, one to each group


def error_of(model: OneDVA, video: Tensor) -> Tensor:
    """Mean squared error of previews without 1D latents."""
    return (model.decode(model.encode(video, tokens=0).latent_dist.mode(), num_steps=0).sample - video).square().mean()


def test_what_stands_still_is_sent_once(pca_model, video: Tensor) -> None:
    """Six structural channels a patch hold eighteen components of a still picture; single patches would hold six."""
    still = video[:1, :, :1].expand(-1, -1, 9, -1, -1)
    model = pca_model(still, classes=1, mirrored=False)
    transform = of(model)
    patches = patchify(still)
    coefficients = transform.coefficients(patches)
    single, shared = (transform.patches(coefficients * (torch.arange(24) < count)) for count in (6, 18))
    of_single, of_shared = ((part - patches).square().mean() for part in (single, shared))
    torch.testing.assert_close(error_of(model, still), of_shared, atol=1e-6, rtol=1e-2)
    assert error_of(model, still) < 0.7 * of_single


@pytest.mark.parametrize("classes", range(1, 17))
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_class_survives_any_quantiser(nano: Callable[..., OneDVAConfig], classes: int, mirrored: bool) -> None:
    """Column i is of choice i; rounded as in a file, the nearest class value is still its own."""
    transform = PatchTransform(nano(clip_frames=1, classes=classes, mirrored=mirrored)).requires_grad_(False)
    random_transform(transform)
    told, count = transform.class_values(torch.zeros(1)), transform.choices
    packet = make_packet(frames=1, tokens=0, height=16, width=16 * count, structural=6, latent=10)
    packet.structural[0, 0, :, -1] = told
    for step in np.geomspace(LEAST_STEP, MOST_STEP, 45).tolist():
        levels = levels_of(transform.latent_std.double().numpy(), step)
        quantiser = Quantiser(structural_channels=6, latent_channels=10, step=step, levels={(True, 1): levels})
        stored = torch.from_numpy(quantiser.apply(packet).structural)
        assert transform.chosen(stored[None])[0].argmax(dim=1).tolist() == list(range(count)), step
