"""Chains against values worked out by hand, and against decoding clip by clip."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva.chains import ChainScore, chain_report, chain_scores, decode_chain, score_chain
from onedva.data import Clip
from onedva.model import DecodeOutput, HybridLatents, OneDVA, to_frames, to_video
from onedva_runtime.seams import soften


@pytest.fixture
def clip(make_frames: Callable[..., np.ndarray]) -> Clip:
    return Clip("a", make_frames(1, 30, 48, 64)[0], 24.0)


def chained(own: list[float], true: list[float]) -> ChainScore:
    return ChainScore(clip="a", clips=len(own), own=tuple(own), true=tuple(true), clip_edge=3.0, group_edge=2.0)


def test_each_clip_goes_on_from_the_one_before(clip: Clip, random_model: Callable[..., OneDVA]) -> None:
    model = random_model(clip_frames=9)
    source = np.asarray(clip.frames[:25, :48, :48])
    own, true = decode_chain(model, source, tokens=16, steps=2, fps=24.0, seed=5)
    assert own.shape == true.shape == source.shape
    assert np.array_equal(own[:9], true[:9])
    assert not np.array_equal(own[9:], true[9:])
    for decoded, given in ((own, own), (true, source)):
        for index, start in ((1, 8), (2, 16)):
            video = to_video(torch.from_numpy(source[start : start + 9])[None])
            z = model.encode(video, tokens=16, is_key=torch.tensor([False]), fps=24.0).latent_dist.mode()
            noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(5 + index))
            context = to_video(torch.from_numpy(given[start])[None, None])[:, :, 0]
            again = to_frames(model.decode(z, num_steps=2, noise=noise, context_frame=context).sample)[0]
            shown = soften(own[start], again[1:]) if decoded is own else again[1:]
            assert np.array_equal(decoded[start + 1 : start + 9], shown)


def test_scores_by_hand() -> None:
    """Three clips of 8 new frames: a flat source, errors that jump by 1 between groups and by 5 between clips."""
    source = np.full((25, 2, 2, 3), 100, np.uint8)
    own = source.copy()
    level = 0
    for t in range(1, 25):
        if (t - 1) % 8 == 0 and t > 1:
            level += 5
        elif (t - 1) % 4 == 0 and t > 1:
            level += 1
        own[t] += level
    score = score_chain("a", source, own, source, new=8)
    assert (score.clip_edge, score.group_edge, score.seam) == (5.0, 1.0, 5.0)
    assert score.clips == 3
    assert score.true == (45.0, 45.0, 45.0)  # equal, so the cap
    squares = [(0 * 5 + 1 * 4) / 9, (6**2 * 4 + 7**2 * 4) / 8, (12**2 * 4 + 13**2 * 4) / 8]
    assert score.own == pytest.approx([min(45.0, 10 * np.log10(255**2 / square)) for square in squares])


def test_the_edge_behind_the_first_frame_is_none_of_the_groups() -> None:
    source = np.zeros((17, 2, 2, 3), np.uint8)
    own = source.copy()
    own[1:] = 50
    score = score_chain("a", source, own, own, new=8)
    assert (score.clip_edge, score.group_edge) == (0.0, 0.0)
    assert score.seam == 0.0


def test_loss_and_trend_leave_the_key_clip_out() -> None:
    score = chained([40.0, 30.0, 29.5, 29.0], [20.0, 30.5, 30.5, 30.5])
    assert score.loss == pytest.approx(1.0)
    assert score.trend == pytest.approx(-0.5)
    assert score.seam == pytest.approx(1.5)
    assert chained([40.0, 30.0], [40.0, 31.0]).trend == 0.0


def test_the_report_is_the_mean_of_videos() -> None:
    found = chain_report([chained([40.0, 30.0], [40.0, 31.0]), chained([40.0, 30.0, 29.5], [40.0, 32.75, 32.75])])
    means = [found[name] for name in ("loss_db", "trend_db_per_clip", "seam")]
    assert means == pytest.approx([2.0, -0.25, 1.5])
    assert [video["clips"] for video in found["videos"]] == [2, 3]
    with pytest.raises(ValueError, match="long enough"):
        chain_report([])


def test_short_videos_make_shorter_chains_or_none(clip: Clip, random_model: Callable[..., OneDVA]) -> None:
    model = random_model(clip_frames=9)
    short, shorter = (Clip(name, clip.frames[:count], 24.0) for name, count in (("b", 17), ("c", 16)))
    scores = chain_scores(model, [clip, short, shorter], links=10, tokens=16, size=48)
    assert [(score.clip, score.clips) for score in scores] == [("a", 3), ("b", 2)]
    (two,) = chain_scores(model, [clip], links=2, tokens=16, size=48)
    assert two.clips == 2


def test_options_reach_the_decoder(
    clip: Clip, random_model: Callable[..., OneDVA], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(clip_frames=9)
    seen: list[tuple[int, int]] = []
    decode = model.decode

    def watch(z: HybridLatents, *, num_steps: int, noise: Tensor, context_frame: Tensor | None) -> DecodeOutput:
        seen.append((z.latents.shape[1], num_steps))
        return decode(z, num_steps=num_steps, noise=noise, context_frame=context_frame)

    monkeypatch.setattr(model, "decode", watch)
    chain_scores(model, [clip], links=2, tokens=0, steps=3, size=48)
    assert seen == [(0, 3)] * 3
    for links, steps in ((1, 1), (2, 0)):
        with pytest.raises(ValueError, match="at least 2 clips and 1 step"):
            chain_scores(model, [clip], links=links, steps=steps)
    with pytest.raises(ValueError, match="at least 9 frames, the model has 5"):
        chain_scores(random_model(), [clip])
