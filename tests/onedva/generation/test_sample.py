import numpy as np
import pytest
import torch

from generators import SIDE, nano_generator
from onedva import flow
from onedva.generation.checkpoint import load_generator
from onedva.generation.model import LatentDiT, Latents
from onedva.generation.sample import ask, generate_clip, generate_latents, guided, pack, unpack
from onedva.generation.step import coordinates
from onedva_runtime.latent_noise import latent_noise, snap_anchors


def make(generator, **changes):
    values = {"labels": [0, 1], "tokens": 8, "num_steps": 3, "seeds": [0, 1], "guidance": 2.0}
    return generate_latents(generator, **{**values, **changes})


def test_seeds_classes_lengths_and_guidance_decide():
    generator = nano_generator()
    z = make(generator)
    assert z.structural.shape == (2, 2, 3, 3, 6) and z.latents.shape == (2, 8, 10) and z.is_key.all()
    torch.testing.assert_close(make(generator).structural, z.structural, rtol=0, atol=0)
    for name, change in {
        "seeds": {"seeds": [2, 3]},
        "labels": {"labels": [2, None]},
        "guidance": {"guidance": 1.0},
        "tokens": {"tokens": 16},
        "steps": {"num_steps": 4},
    }.items():
        assert (make(generator, **change).structural - z.structural).abs().max() > 1e-3, name


def test_a_clip_does_not_depend_on_its_batch():
    generator = nano_generator()
    z, alone = make(generator), make(generator, labels=[1], seeds=[1])
    torch.testing.assert_close(z.structural[1:], alone.structural, atol=1e-4, rtol=1e-4)


def test_euler_steps_follow_the_exact_path_of_a_known_field(monkeypatch):
    """Data that is one point: velocity (x − c) / t, whose path is the straight line to c."""
    generator = nano_generator()
    target = Latents(torch.full((2, 2, 3, 3, 6), 0.3), torch.full((2, 8, 10), -0.7))

    def velocity(self, noisy, t, asked):
        at = t[:, None, None]
        return Latents(
            flow.velocity_from_video(noisy.structural, target.structural[:1], at[..., None, None]),
            flow.velocity_from_video(noisy.sequence, target.sequence[:1], at),
        )

    monkeypatch.setattr(LatentDiT, "velocity", velocity)
    z = make(generator, num_steps=5)
    expected = generator.denormalise(*target, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(z.structural, expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z.latents, expected[1], atol=1e-4, rtol=1e-4)


def test_guidance_is_the_line_through_both_predictions():
    generator = nano_generator()
    state = Latents(torch.randn(2, 2, 3, 3, 6), torch.randn(2, 8, 10))
    asked = ask(generator, labels=[0, 1], tokens=8, size=(SIDE, SIDE))
    without, with_class, beyond = (guided(generator, state, 0.5, asked, weight)[0] for weight in (0.0, 1.0, 3.0))
    torch.testing.assert_close(beyond, without + 3 * (with_class - without), atol=1e-4, rtol=1e-4)
    none = ask(generator, labels=[None, None], tokens=8, size=(SIDE, SIDE))
    torch.testing.assert_close(guided(generator, state, 0.5, none, 1.0)[0], without, atol=1e-5, rtol=1e-5)


def test_no_latents_and_a_first_frame():
    generator = nano_generator()
    z = make(generator, tokens=0)
    assert z.latents.shape == (2, 0, 10) and z.anchors.shape == (2, 0)
    first = torch.randn(2, 3, 3, 16)
    z = make(generator, first=first)
    assert not z.structural[:, 0].any() and not z.is_key.any() and z.anchors.min() >= 9
    assert (make(generator, first=-first).structural - z.structural).abs().max() > 1e-3


def test_generated_anchors_lie_on_distinct_positions():
    generator = nano_generator(anchors="generated")
    z = make(generator, tokens=16)
    assert all(len(set(row.tolist())) == 16 for row in z.anchors) and not z.anchors[0].equal(z.anchors[1])
    assert z.anchors.min() >= 0 and z.anchors.max() < 18
    assert make(generator, tokens=8, first=torch.zeros(2, 3, 3, 16)).anchors.min() >= 9


@pytest.mark.parametrize("grid", [(2, 3, 3), (5, 2, 4)])
def test_snapping_gives_back_what_coordinates_were_made_of(grid):
    random = np.random.default_rng(0)
    anchors = random.permutation(np.prod(grid))[:7]
    exact = coordinates(torch.from_numpy(anchors)[None], grid)[0].numpy()
    np.testing.assert_array_equal(snap_anchors(exact, grid), anchors)
    twice = np.concatenate([exact[:1], exact[:1]])
    first, second = snap_anchors(twice, grid)
    assert first == anchors[0] and second != first


def test_noise_of_latents_is_normal_and_knows_no_length():
    structural, sequence = latent_noise(3, (5, 8, 8), 16, 64, 35)
    more = latent_noise(3, (5, 8, 8), 16, 128, 35)
    np.testing.assert_array_equal(more[0], structural)
    np.testing.assert_array_equal(more[1][:64], sequence)
    assert abs(structural.mean()) < 0.05 and abs(structural.std() - 1) < 0.05
    assert abs(np.corrcoef(structural.reshape(-1)[:2000], sequence.reshape(-1)[:2000])[0, 1]) < 0.1
    assert (latent_noise(4, (5, 8, 8), 16, 64, 35)[0] != structural).mean() > 0.99


def test_packing_is_undone_by_unpacking():
    like = Latents(torch.randn(2, 2, 3, 3, 6), torch.randn(2, 8, 10))
    for part, back in zip(like, unpack(pack(like), like), strict=True):
        assert part.equal(back)


def test_what_was_not_trained_is_refused(checkpoint):
    generator = load_generator(checkpoint)
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        make(generator, labels=[0, 7])
    with pytest.raises(ValueError, match="not trained with texts"):
        make(generator, text=torch.randn(2, 1, 4))
    with pytest.raises(ValueError, match="first frame"):
        make(nano_generator(continuation=False), first=torch.zeros(2, 3, 3, 16))
    with pytest.raises(ValueError, match="unknown class 'jump'; this generator knows ring, slide, spin"):
        generate_clip(checkpoint, label="jump")
    with pytest.raises(ValueError, match=r"first_frame must be \(48, 48, 3\), got \(8, 8, 3\)"):
        generate_clip(checkpoint, first_frame=np.zeros((8, 8, 3), np.uint8))


def test_a_clip_begins_with_its_first_frame(checkpoint):
    given = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    frames, fps = generate_clip(checkpoint, label="spin", tokens=8, num_steps=2, first_frame=given)
    assert frames.shape == (5, SIDE, SIDE, 3) and fps == 24
    np.testing.assert_array_equal(frames[0], given)
    assert (frames[1] != given).any()


def test_another_autoencoder_beside_a_generator_is_noticed(checkpoint, tmp_path):
    import shutil

    from onedva.checkpoint import load_model, save_model

    shutil.copytree(checkpoint, tmp_path / "copy")
    model = load_model(tmp_path / "copy")
    model.encoder.patch_in.weight.data.add_(1)
    save_model(model, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"makes other latents than generator\.json was trained with"):
        generate_clip(tmp_path / "copy")
    (tmp_path / "copy" / "generator.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no generator"):
        load_generator(tmp_path / "copy")
