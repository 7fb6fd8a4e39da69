"""The heads beside the model: what they learn from, and that the model does not know of them."""

from collections.abc import Callable

import pytest
import torch

from onedva import flow
from onedva.alignment import AlignmentHeads, middle_features
from onedva.encoder import EncoderOutput
from onedva.model import OneDVA, TrainingOutput


def training_pass(model: OneDVA, video: torch.Tensor) -> TrainingOutput:
    """One key clip at t = 0.5 with 16 latents."""
    is_key = torch.ones(1, dtype=torch.bool)
    anchors = model.anchors_of(video, tokens=16, is_key=is_key)
    resolution = torch.tensor([[*video.shape[2:], 24.0]])
    t = torch.full((1, 2), 0.5)
    noisy = flow.add_noise(video, torch.randn(video.shape), flow.per_frame(t, video.shape[2]))
    return model(video, anchors=anchors, is_key=is_key, resolution=resolution, noisy=noisy, t=t)


def test_a_few_steps_on_the_projection_find_the_direction(nano) -> None:
    torch.manual_seed(0)
    heads = AlignmentHeads(nano())
    latents, true = torch.randn(2, 24, 10), torch.randn(10, 6)
    structural = (latents @ true)[:, :, None, None].transpose(1, 3).reshape(2, 2, 3, 4, 6)
    unused = torch.zeros(0)
    posterior = EncoderOutput(structural, unused, latents, unused, unused)
    is_key = torch.ones(2, dtype=torch.bool)
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = heads.self_alignment(posterior, is_key)
        loss.backward()
        optimizer.step()
    assert loss.item() < -0.9


@pytest.mark.parametrize(
    "changes",
    [{"diffusion_depth": 3}, {"conditioning": "in_context", "stem_depth": 0, "diffusion_depth": 3}],
    ids=["stem", "in_context"],
)
def test_middle_features_are_the_middle_blocks_input(changes, random_model, make_video) -> None:
    model = random_model(**changes)
    model.requires_grad_(True)
    video = make_video(1, 5, 48, 64)
    torch.manual_seed(3)
    plain = training_pass(model, video).video
    torch.manual_seed(3)
    with middle_features(model.decoder) as kept:
        output = training_pass(model, video)
    assert torch.equal(output.video, plain)
    assert len(kept) == 1 and kept[0].shape == (1, 24, 64)

    heads = AlignmentHeads(model.config, repa_channels=5)
    heads.repa(kept[0], torch.randn(1, 2, 3, 4, 5), torch.ones(1, dtype=torch.bool)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("decoder.blocks.0.mlp") for name in trained)
    assert not any(name.startswith(("decoder.blocks.1", "decoder.blocks.2")) for name in trained)

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_heads_without_repa_say_so(nano: Callable) -> None:
    heads = AlignmentHeads(nano())
    assert [name for name, _ in heads.named_parameters()] == ["latents.weight"]
    with pytest.raises(ValueError, match="without repa_channels"):
        heads.repa(torch.zeros(1, 1, 64), torch.zeros(1, 1, 1, 1, 5), torch.ones(1, dtype=torch.bool))
