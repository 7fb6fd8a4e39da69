"""Measured curves against separate decodes, and the report over them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from onedva.data import Clip
from onedva.evaluate import reconstructions
from onedva.lengths import at_fixed, head_accuracy, measure_curves, motion_score, policy_report, target_accuracy
from onedva.model import OneDVA, to_video
from onedva.policies import Curve, Frontier
from onedva_runtime import placement


@pytest.fixture
def clips(make_frames: Callable[..., np.ndarray]) -> list[Clip]:
    return [Clip(f"clip{i}", frames, 24.0) for i, frames in enumerate(make_frames(3, 5, 64, 64))]


def made_up(predicted: float, errors: list[float]) -> Curve:
    """Errors at 0, 32 and 64 latents; the head is off by a factor everywhere."""
    lengths = np.array([0, 32, 64])
    line = np.exp(np.interp(np.arange(1, 65), lengths, np.log(errors)))
    detail = np.ones((2, 4, 8), np.int64)
    return Curve(
        clip="a", lengths=lengths, errors=np.array(errors), predicted=predicted * line, detail=detail, motion=1.0
    )


def test_curves_are_those_of_reconstructions(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    model = random_model()
    (curve,) = measure_curves(model, clips[1:2], spacing=16, steps=2, size=64, seed=4)
    assert curve.lengths.tolist() == [0, 16, 32]
    found = reconstructions(model, clips[1:2], tokens=(0, 16, 32), steps=(2,), size=64, seed=4)
    errors = [np.square((one.decoded.astype(float) - one.frames) / 255).mean() for one in found]
    assert curve.errors == pytest.approx(errors)
    video = to_video(torch.from_numpy(np.asarray(clips[1].frames))[None])
    head = model.encode(video, tokens=16).latent_dist.output.predicted_error[0]
    assert curve.predicted.shape == (32,)
    assert 10 * np.log10(1 / curve.predicted[:16]) == pytest.approx(
        10 * np.log10(4 / head.double().exp().numpy()), abs=1e-3
    )
    assert np.array_equal(curve.detail, placement.detail_map(np.asarray(clips[1].frames)))


def test_a_spacing_must_give_prefixes(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    for spacing in (0, 8):
        with pytest.raises(ValueError, match=f"multiple of 16, got {spacing}"):
            measure_curves(random_model(), clips, spacing=spacing)


def test_motion_is_the_mean_difference_of_neighbours() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1] = 255
    assert motion_score(frames) == 255.0
    frames[2] = 249
    assert motion_score(frames) == (255 + 6) / 2


def test_the_report_of_a_model_holds_together(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    model = random_model(policy_density=30.0)
    curves = measure_curves(model, clips, spacing=16, size=64)
    found = policy_report(curves, model.config)
    assert found["full"] == 32 and found["clips"] == 3
    assert [row["fixed"] for row in found["at_fixed"]] == [8.0, 16.0]
    for row in found["at_fixed"]:
        assert row["tokens"]["oracle"] <= row["fixed"] + 1e-6
    expected = [placement.choose_tokens(curve.detail, density=30.0, max_tokens=32) for curve in curves]
    assert list(found["auto"]["tokens_by_clip"].values()) == expected
    assert found["auto"]["tokens"] == pytest.approx(np.mean(expected))
    assert set(found["frontiers"]) == {"fixed", "auto", "error head, equal slopes", "error head, one target", "oracle"}
    with pytest.raises(ValueError, match="no clips"):
        policy_report([], model.config)


def test_shares_are_tokens_over_the_fixed_length() -> None:
    curves = [made_up(1.0, [0.1, 0.01, 0.001])]
    half = Frontier(np.array([0.0, 16.0]), np.array([0.1, 0.01]))  # reaches in 16 what the fixed length needs 32 for
    never = Frontier(np.array([0.0]), np.array([0.1]))
    row = at_fixed(curves, {"fixed": half, "good": half, "bad": never}, 32)
    assert row["psnr_db"] == pytest.approx(20)
    assert row["tokens"] == {"good": pytest.approx(16), "bad": None}
    assert row["share"] == {"good": pytest.approx(0.5), "bad": None}


def test_the_head_is_measured_in_decibels(nano: Callable[..., object]) -> None:
    pessimist, optimist = made_up(10**0.1, [0.1, 0.01, 0.001]), made_up(10**-0.3, [0.1, 0.01, 0.001])
    assert head_accuracy([pessimist]) == {"bias_db": pytest.approx(-1), "rms_db": pytest.approx(1)}
    assert head_accuracy([pessimist, optimist])["bias_db"] == pytest.approx(1)
    assert head_accuracy([pessimist, optimist])["rms_db"] == pytest.approx(np.sqrt((1 + 9) / 2))


def test_targets_count_the_clips_they_decide(random_model: Callable[..., OneDVA]) -> None:
    config = random_model().config
    # the curve gains 10 dB per 32 latents, from 10 dB on; the pessimist sees a decibel less than is there
    pessimist, dull = made_up(10**0.1, [0.1, 0.01, 0.001]), made_up(1.0, [0.5, 0.5, 0.5])
    found = target_accuracy([pessimist, dull], config, 18.9)
    assert found is not None and (found["clips"], found["tokens"]) == (1, 32.0)
    assert found["bias_db"] == pytest.approx(1.1) and found["rms_db"] == pytest.approx(1.1)
    assert target_accuracy([dull], config, 18.9) is None  # never reached
    assert target_accuracy([pessimist], config, 5.0) is None  # reached by all
