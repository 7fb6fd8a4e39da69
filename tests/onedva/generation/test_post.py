"""Stage post: the decoder on latents that a generator predicts."""

import numpy as np
import pytest
import torch

from generators import SIDE, nano_autoencoder, nano_generator
from onedva import losses
from onedva import train as training
from onedva.checkpoint import load_model
from onedva.generation.blockiness import edge_excess
from onedva.generation.model import LatentDiT, Latents
from onedva.generation.partial import predicted_latents
from onedva.generation.sample import generate_clip
from onedva.generation.scenes import make_scene
from onedva.model import to_video
from onedva.sampler import Batch
from onedva.train_config import STAGES, TrainConfig


def post(**changes) -> TrainConfig:
    values = {
        **STAGES["post"],
        "frames": ((5, 1.0),),
        "sizes": ((SIDE, SIDE, 1.0),),
        "short_side": SIDE,
        "positions_per_batch": 36,
        "steps": 2,
        "warmup": 1,
        "evaluate_every": 0.0,
    }
    return TrainConfig(**{**values, **changes})


def batch_of(count=2, frames=5) -> Batch:
    made = np.stack([make_scene("spin", seed=seed, frames=frames, size=SIDE) for seed in range(count)])
    return Batch(to_video(torch.from_numpy(made)), made, torch.full((count,), 24.0))


def predict(seed, network, generator, *, most=0.8, own=0.5, **batch):
    noise, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    return predicted_latents(network, generator, batch_of(**batch), random, noise, most=most, own=own)


def test_a_run_trains_the_decoder_alone_and_stays_a_generator(scenes, checkpoint, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(training, "bf16_is_faster", lambda: False)
    options = {"clips": scenes, "output": tmp_path / "post", "quiet": True, "device": "cpu"}
    scores = training.run(**options, model=nano_autoencoder().config, train=post(), start=checkpoint)
    assert scores and (tmp_path / "post" / "log.jsonl").read_text().count("edges") == 2
    before, after = load_model(checkpoint).state_dict(), load_model(tmp_path / "post").state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    ours, _ = generate_clip(tmp_path / "post", label="spin", num_steps=2)
    theirs, _ = generate_clip(checkpoint, label="spin", num_steps=2)
    assert (ours != theirs).any(), "the same latents, another decoder"
    training.run(**options, model=nano_autoencoder().config, train=post(steps=3), resume=True)
    with pytest.raises(ValueError, match="--init a folder that onedva train-ldm has made"):
        training.run(**{**options, "output": tmp_path / "new"}, model=nano_autoencoder().config, train=post())


def test_predicted_latents_are_what_the_generator_makes_of_the_clip(monkeypatch):
    """With a generator that believes in one point, they are that point; half of the time the encoder's own."""
    network, generator = nano_autoencoder(), nano_generator()

    def believe(self, noisy, t, asked):
        return Latents(torch.full_like(noisy.structural, 0.5), torch.full_like(noisy.sequence, -0.5))

    monkeypatch.setattr(LatentDiT, "forward", believe)
    kept = 0
    for seed in range(24):
        z = predict(seed, network, generator)
        own = network.encode(batch_of().video, anchors=z.anchors).latent_dist.mode()
        if z.structural.equal(own.structural):
            kept += 1
            continue
        structural, latents = generator.normalise(z.structural, z.latents, z.is_key)
        torch.testing.assert_close(structural, torch.full_like(structural, 0.5), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(latents, torch.full_like(latents, -0.5), atol=1e-3, rtol=1e-3)
    assert 6 <= kept <= 18
    for seed in range(6):
        z = predict(seed, network, generator, own=1.0)
        assert z.structural.equal(network.encode(batch_of().video, anchors=z.anchors).latent_dist.mode().structural)
    assert {predict(seed, network, generator).latents.shape[1] for seed in range(24)} == {4, 8, 12, 16}


def test_little_noise_leaves_the_clip():
    network, generator = nano_autoencoder(), nano_generator()
    z = predict(1, network, generator, most=0.01)
    own = network.encode(batch_of().video, anchors=z.anchors).latent_dist.mode()
    assert not z.structural.equal(own.structural)
    assert (z.structural - own.structural).square().mean() < 0.1 * own.structural.square().mean()


def test_generated_anchors_follow_the_clip_and_other_lengths_are_refused():
    network = nano_autoencoder()
    z = predict(3, network, nano_generator(anchors="generated"))
    assert all(len(set(row.tolist())) == z.latents.shape[1] for row in z.anchors)
    with pytest.raises(ValueError, match="clips of 5 frames: train with --frames 5"):
        predict(3, network, nano_generator(), frames=1)


def test_edge_loss_counts_jumps_of_the_error_at_edges_alone():
    video, key = torch.zeros(1, 3, 5, 48, 48), torch.ones(1, dtype=torch.bool)
    smooth = torch.linspace(0, 1, 48).expand(1, 3, 5, 48, 48)
    step = 1 / 47
    assert losses.edge_loss(video + smooth, video, key) == pytest.approx(step**2, rel=1e-4)
    blocks = (torch.arange(48) // 16 % 2).float().expand(1, 3, 5, 48, 48)
    assert losses.edge_loss(video + blocks, video, key) == pytest.approx(1.0)
    assert losses.edge_loss(blocks, blocks, key) == 0
    assert losses.edge_loss(torch.ones(1, 3, 1, 16, 16), torch.zeros(1, 3, 1, 16, 16), key) == 0


def test_blocks_are_seen_and_slopes_are_not():
    random = np.random.default_rng(0)
    noise = random.normal(128, 20, (1, 4, 64, 64, 3))
    assert abs(edge_excess(noise.clip(0, 255).astype(np.uint8))) < 0.1
    blocks = noise + 60 * (np.arange(64) // 16 % 2)[:, None]
    assert edge_excess(blocks.clip(0, 255).astype(np.uint8)) > 0.5
    slope = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 3, (1, 4, 64, 64, 3)) + random.integers(
        0, 9, (1, 4, 64, 64, 3), dtype=np.uint8
    )
    assert abs(edge_excess(slope)) < 0.1
    with pytest.raises(ValueError, match="at least two patches"):
        edge_excess(np.zeros((1, 1, 16, 64, 3), np.uint8))
