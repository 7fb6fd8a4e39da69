"""OneDVA as its users call it: every kind of configuration, batches, sizes, posteriors, arguments."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scenery import scenery
from torch import Tensor

from onedva.config import PRESETS, preset
from onedva.model import OneDVA, draw, to_frames, to_video
from onedva_runtime import placement
from onedva_runtime.metrics import psnr
from onedva_runtime.warp import PARTS, Camera, follow

KINDS = [
    pytest.param({"prediction": prediction, "conditioning": conditioning, "pca": prediction == "video"}
                 | ({"stem_depth": 0} if conditioning == "in_context" else {}), id=f"{prediction}-{conditioning}")
    for prediction in ("video", "velocity")
    for conditioning in ("stem", "in_context")
]  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("changes", KINDS)
def test_every_kind_decodes_and_trains(changes, nano, random_model, make_video) -> None:
    model, video = random_model(**changes), make_video(2, 5, 32, 48)
    z = model.encode(video, tokens=16).latent_dist.mode()
    first, second = (model.decode(z, num_steps=2, generator=seeded(s)).sample for s in (0, 1))
    assert first.shape == video.shape and first.isfinite().all()
    assert (first - second).abs().max() > 1e-4  # the noise is seen
    model.requires_grad_(True).train()
    output = model(
        video, anchors=z.anchors, is_key=z.is_key, resolution=z.resolution, noisy=video + 0.1, t=torch.full((2, 2), 0.5)
    )
    (output.video.square().mean() + output.preview.square().mean()).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    error_head = {"encoder.error_head.weight", "encoder.error_head.bias"}  # has a loss of its own
    absent = {"decoder.absent_latents", "decoder.absent_structural"}  # here nothing is
    absent |= {"decoder.context_gain", "decoder.context_scale"} if model.config.pca else set()  # no context frame
    no_stem = {"decoder.stem_norm.weight"} if model.config.conditioning == "in_context" else set()
    assert idle == error_head | absent | no_stem


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tiny", 18, 22), ("small", 34, 40), ("base", 170, 230), ("large", 850, 1150), ("paper", 150, 220)],
)
def test_presets_have_the_stated_size(name: str, low: float, high: float) -> None:
    with torch.device("meta"):
        millions = OneDVA(preset(name)).parameters_count / 1e6
    assert low <= millions <= high


def test_presets_are_found_by_name() -> None:
    assert all(config.preset == name for name, config in PRESETS.items())
    with pytest.raises(ValueError, match="unknown preset 'huge'; choose from nano, tiny, small, base, large, paper"):
        preset("huge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "multiple of 64, got 100"),
        ({"prediction": "noise"}, "prediction must be one of video, velocity; got 'noise'"),
        ({"conditioning": "cross"}, "stem, in_context"),
        ({"anchors": "random"}, "content, fixed"),
        ({"clip_frames": 16}, "1 \\+ 4n, got 16"),
        ({"latent_channels": 24}, "components must hold both latents and be at most 3072, got 24"),
        ({"components": 3073}, "at most 3072, got 3073"),
        ({"prediction": "velocity"}, "set pca=False"),
        ({"conditioning": "in_context"}, "set stem_depth=0"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message: str, nano) -> None:
    with pytest.raises(ValueError, match=message):
        nano(**changes)


def test_a_batch_is_its_clips(random_model: Callable[..., OneDVA], make_video: Callable[..., Tensor]) -> None:
    model, video, noise = random_model(), make_video(2, 5, 48, 64), torch.randn(2, 3, 5, 48, 64)
    both = model.encode(video).latent_dist.mode()
    decoded = model.decode(both, num_steps=2, noise=noise).sample
    assert not torch.equal(both.anchors[0], both.anchors[1])
    for row in range(2):
        alone = model.encode(video[row : row + 1]).latent_dist.mode()
        assert torch.equal(alone.anchors[0], both.anchors[row])
        torch.testing.assert_close(alone.latents[0], both.latents[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.structural[0], both.structural[row], atol=1e-5, rtol=1e-5)
        again = model.decode(alone, num_steps=2, noise=noise[row : row + 1]).sample
        torch.testing.assert_close(again[0], decoded[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(50, 77), (16, 16), (31, 16)])
def test_odd_sizes_are_padded_by_their_edge_and_cropped_back(size: tuple[int, int], random_model, make_video) -> None:
    model, video = random_model(), make_video(1, 5, *size)
    height, width = (-(-side // 16) * 16 for side in size)
    rows, columns = torch.arange(height).clamp(max=size[0] - 1), torch.arange(width).clamp(max=size[1] - 1)
    padded = video[:, :, :, rows][..., columns]
    z, whole = model.encode(video).latent_dist.mode(), model.encode(padded).latent_dist.mode()
    assert z.structural.shape == (1, 2, height // 16, width // 16, 6)
    assert torch.equal(z.latents, whole.latents) and torch.equal(z.anchors, whole.anchors)
    noise = torch.randn(1, 3, 5, height, width)
    for steps in (0, 1):
        small, large = (model.decode(part, num_steps=steps, noise=noise).sample for part in (z, whole))
        assert small.shape == video.shape
        assert torch.equal(small, large[..., : size[0], : size[1]])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_context_frame_comes_back_unchanged(steps: int, random_model, make_video) -> None:
    model, video = random_model(), make_video(2, 5, 50, 77)
    is_key = torch.tensor([True, False])
    z = model.encode(video, tokens=16, is_key=is_key).latent_dist.mode()
    frame = torch.rand(2, 3, 50, 77)
    decoded = model.decode(z, num_steps=steps, generator=seeded(), context_frame=frame).sample
    assert torch.equal(decoded[1, :, 0], frame[1])
    assert (decoded[0, :, 0] - frame[0]).abs().max() > 1e-2  # a key clip has none
    with pytest.raises(ValueError, match="needs context_frame"):
        model.decode(z, generator=seeded())


def test_anchors_come_from_the_detail_map(random_model, make_video) -> None:
    video = make_video(1, 9, 48, 64)
    detail = placement.detail_map(to_frames(video)[0])
    for key, longest in ((True, 36), (False, 24)):
        z = random_model(clip_frames=9).encode(video, is_key=torch.tensor([key])).latent_dist.mode()
        assert z.anchors[0].tolist() == placement.place(detail, longest, is_key=key).tolist()
    fixed = random_model(anchors="fixed", clip_frames=9).encode(video, tokens=20).latent_dist.mode()
    assert fixed.anchors[0].tolist() == placement.fixed_anchors((3, 3, 4), 32).tolist()


def test_a_moving_camera_is_followed(random_model) -> None:
    model, picture = random_model(), torch.rand(3, 96, 96, generator=seeded()) * 2 - 1
    picture = torch.nn.functional.avg_pool2d(picture[None], 5, stride=1, padding=2)[0]
    panned = torch.stack([picture[:, : 64 + 1, 3 * t : 3 * t + 72] for t in range(5)], dim=1)  # the scene goes left
    still = picture[:, None, : 64 + 1, :72].expand(-1, 5, -1, -1)
    z = model.encode(torch.stack([panned, still]), tokens=16, follow_camera=True).latent_dist.mode()
    assert z.cameras is not None
    camera, none = z.cameras
    assert camera is not None and none is None
    for t, numbers in enumerate(camera.path[:, :2].tolist()):
        assert numbers == pytest.approx([0, PARTS * (6 - 3 * t)], abs=PARTS // 4)
    assert z.thin(0).cameras is z.cameras
    held = model.encode(torch.stack([still, still]), tokens=16, follow_camera=True).latent_dist.mode()
    assert held.cameras == (None, None)
    noise = torch.randn(2, 3, 5, 80, 80, generator=seeded())
    moving = model.decode(z, noise=noise).sample
    assert moving.shape == (2, 3, 5, 65, 72)
    plain = model.decode(dataclasses.replace(z, cameras=None, size=(80, 80)), noise=noise).sample
    expected = follow(to_frames(plain)[0], camera)
    assert np.array_equal(to_frames(moving)[0], expected[:, :65, :72])
    torch.testing.assert_close(moving[1], plain[1, ..., :65, :72])


def test_a_context_frame_is_drawn_with_its_clip(random_model) -> None:
    model, video = random_model(), to_video(torch.from_numpy(scenery(32, 48)).expand(1, 5, -1, -1, -1))
    z = model.encode(video, tokens=16, is_key=torch.zeros(1, dtype=torch.bool)).latent_dist.mode()
    way = [[2, -7, 0, 90, -90, 0], [1, -3, 200, 0, 0, 100], [0] * 6, [0, 4, 0, 0, 0, 0], [0, 9, 0, 0, 0, 0]]
    z = dataclasses.replace(z, cameras=(Camera(np.array(way, np.int16)),))
    noise = torch.randn(video.shape, generator=seeded())
    decoded = model.decode(z, num_steps=2, noise=noise, context_frame=video[:, :, 0]).sample
    assert psnr(to_frames(video)[0, :1], to_frames(decoded)[0, :1]) > 40


def test_lengths_are_rounded_up_and_capped(random_model, make_video) -> None:
    model, video = random_model(queries=40, trained_tokens=32, clip_frames=9), make_video(1, 9, 48, 64)
    lengths = [model.encode(video, tokens=k).latent_dist.mode().latents.shape[1] for k in (0, 1, 16, 17, 900)]
    assert lengths == [0, 16, 16, 32, 32]
    assert model.encode(video).latent_dist.mode().latents.shape[1] == 32


def test_no_latents_decode_like_thinned_ones(random_model, make_video) -> None:
    model, video = random_model(), make_video(1, 5, 32, 48)
    none, thinned = model.encode(video, tokens=0), model.encode(video)
    decoded = [model.decode(out.latent_dist.mode().thin(0), generator=seeded()).sample for out in (none, thinned)]
    torch.testing.assert_close(decoded[0], decoded[1], atol=1e-5, rtol=1e-5)
    assert (decoded[0] - model.decode(thinned.latent_dist.mode(), generator=seeded()).sample).abs().max() > 1e-2


def test_posterior_samples_come_from_the_generator_and_the_mode_is_the_mean(random_model, make_video) -> None:
    posterior = random_model().encode(make_video(1, 5, 32, 48)).latent_dist
    assert posterior.mode().latents is posterior.output.latents_mean
    assert posterior.mode().structural is posterior.output.structural_mean
    one, two, other = (posterior.sample(seeded(s)) for s in (3, 3, 4))
    assert torch.equal(one.latents, two.latents) and torch.equal(one.structural, two.structural)
    assert not torch.equal(one.latents, other.latents)
    assert not torch.equal(one.latents, posterior.mode().latents)


def test_drawn_samples_have_the_posteriors_moments() -> None:
    sample = draw(torch.full((50_000,), 2.0), torch.full((50_000,), 2 * math.log(0.5)), seeded())
    assert sample.mean().item() == pytest.approx(2.0, abs=0.01)
    assert sample.std().item() == pytest.approx(0.5, abs=0.01)


def test_frames_and_video_are_inverse() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16, 1).repeat(1, 1, 1, 1, 3)
    video = to_video(frames)
    assert video.shape == (1, 3, 1, 16, 16) and video.min() == -1 and video.max() == 1
    assert (to_frames(video) == frames.numpy()).all()
    assert to_frames(video * 3).max() == 255


WRONG_VIDEOS = [
    (torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8), "must be float .* got torch.uint8"),
    (torch.zeros(3, 5, 32, 32), "got torch.float32 \\(3, 5, 32, 32\\)"),
    (torch.zeros(1, 5, 32, 32, 3), "\\(B, 3, T, H, W\\)"),
    (torch.zeros(1, 3, 4, 32, 32), "1 \\+ 4n frames"),
]


@pytest.mark.parametrize(("video", "message"), WRONG_VIDEOS)
def test_wrong_videos_are_refused(video: Tensor, message: str, random_model) -> None:
    with pytest.raises(ValueError, match=message):
        random_model().encode(video)


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        (torch.tensor([[0, 0]]), "distinct grid indices between 0 and 7"),
        (torch.tensor([[0, 8]]), "distinct grid indices between 0 and 7"),
        (torch.tensor([[-1, 2]]), "distinct grid indices between 0 and 7"),
        (torch.tensor([[1.0, 2.0]]), "int64 \\(B, K ≤ 64\\), got torch.float32"),
        (torch.tensor([1, 2]), "got torch.int64 \\(2,\\)"),
        (torch.arange(65)[None], "got torch.int64 \\(1, 65\\)"),
    ],
)
def test_wrong_anchors_are_refused(anchors: Tensor, message: str, random_model, make_video) -> None:
    with pytest.raises(ValueError, match=message):
        random_model().encode(make_video(1, 5, 32, 32), anchors=anchors)


def test_wrong_decode_arguments_are_refused(random_model, nano, make_video) -> None:
    model, video = random_model(), make_video(1, 5, 32, 32)
    z = model.encode(video).latent_dist.mode()
    with pytest.raises(ValueError, match="noise must be \\(1, 3, 5, 32, 32\\), got \\(1, 3, 5, 32, 31\\)"):
        model.decode(z, noise=torch.zeros(1, 3, 5, 32, 31))
    with pytest.raises(ValueError, match="between 1 and 50, got 51"):
        model.decode(z, num_steps=51)
    with pytest.raises(ValueError, match="tokens must be ≥ 0, got -1"):
        model.encode(video, tokens=-1)
    velocity = random_model(prediction="velocity", pca=False)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        velocity.decode(velocity.encode(video).latent_dist.mode(), num_steps=0)


@pytest.mark.parametrize("pca", [True, False])
def test_clips_longer_than_the_model_takes_are_refused(pca: bool, random_model, make_video) -> None:
    model, video = random_model(pca=pca), make_video(1, 9, 32, 32)
    with pytest.raises(ValueError, match="up to 5 frames in this model, got 9"):
        model.encode(video)
    assert model.encode(video[:, :, :5]).latent_dist.mode().structural.shape[1] == 2


def test_latents_of_a_longer_clip_are_refused_too(random_model, make_video) -> None:
    """Another size's directions would decode them to something."""
    z = random_model(clip_frames=9).encode(make_video(1, 9, 32, 32)).latent_dist.mode()
    with pytest.raises(ValueError, match="up to 2 groups of frames, got 3"):
        random_model().decode(z, num_steps=0)
