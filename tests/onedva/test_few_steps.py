"""Steps in coefficients: the path that pixels would take, without the pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onedva import flow
from onedva.model import OneDVA


def by_velocity(model: OneDVA, z, steps: int, noise: Tensor, context: Tensor) -> Tensor:
    """`decode` on pixels, step by step."""
    condition, generated = model.condition(z), torch.ones(noise.shape[0], z.structural.shape[1])
    generated[~z.is_key, 0] = 0.0
    given = torch.where(z.is_key[:, None, None, None, None], noise[:, :, :1], context[:, :, None])
    return flow.euler(
        lambda x, t: model.decoder.velocity(x, generated * t, condition, model.transform),
        torch.cat([given, noise[:, :, 1:]], dim=2),
        flow.schedule(steps),
    )


@pytest.mark.parametrize("steps", [2, 3, 50])
@torch.no_grad()
def test_the_path_is_that_of_pixels(steps: int, random_model: Callable[..., OneDVA], make_video) -> None:
    """Key and continuation clips; but for what touches pixels outside the basis, which waits for the end."""
    model, video = random_model(residual_channels=0, clip_frames=9), make_video(2, 9, 32, 48)
    z = model.encode(video, tokens=8, is_key=torch.tensor([True, False])).latent_dist.mode()
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(1))
    got = model.decode(z, num_steps=steps, noise=noise, context_frame=video[:, :, 0]).sample
    wanted = by_velocity(model, z, steps, noise, video[:, :, 0])
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=0)
    assert torch.equal(got[1, :, 0], video[1, :, 0]) and not torch.equal(got[0, :, 0], video[0, :, 0])
    other = model.decode(z, num_steps=steps, noise=-noise, context_frame=video[:, :, 0]).sample
    assert (other - got).abs().max() > 1e-3, "the noise must matter, or nothing was compared"


@torch.no_grad()
def test_pixels_come_once_at_the_end(random_model: Callable[..., OneDVA], make_video, monkeypatch) -> None:
    model, video = random_model(residual_channels=4, clip_frames=9), make_video(1, 9, 32, 48)
    z = model.encode(video, tokens=8).latent_dist.mode()
    calls = {"residual": 0, "remainder_of": 0, "clean_patches": 0}
    for name in calls:
        whole = getattr(model.decoder, name)

        def counted(*arguments, name=name, whole=whole):
            calls[name] += 1
            return whole(*arguments)

        monkeypatch.setattr(model.decoder, name, counted)
    model.decode(z, num_steps=4)
    assert calls == {"residual": 1, "remainder_of": 4, "clean_patches": 1}
