"""The generation experiment: scenes, an autoencoder, latents, a latent diffusion model, and a judge of its clips.

    python bench/generation.py -o /tmp/generation --minutes 75        # all of it, post-training too
    python bench/generation.py -o /tmp/generation --only judge        # the last part again
    python bench/generation.py -o /tmp/generation --only control      # post-training without the generator's latents

Writes OUTPUT/generation.json and pictures: how often a classifier trained on real scenes assigns generated clips
to the class that was asked for, at three latent lengths; how far they are from the nearest training clip; the Fréchet
distance of the classifier's features; patch-edge energy. docs/paper.md tells of one run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scene_judge import Judge, judged, train_judge

from onedva import train as training
from onedva.checkpoint import save_model
from onedva.config import preset
from onedva.data import Clip
from onedva.fvd import frechet_distance
from onedva.generation.blockiness import edge_excess
from onedva.generation.checkpoint import load_generator
from onedva.generation.config import LatentTrainConfig
from onedva.generation.model import LatentDiT
from onedva.generation.sample import generate_latents
from onedva.generation.scenes import CLASSES, make_scene, write_scenes
from onedva.generation.tokenise import make_plan, tokenise
from onedva.generation.train import run
from onedva.linear_start import fit_log_variance, fit_pca, fit_transform
from onedva.model import HybridLatents, OneDVA, to_frames, to_video
from onedva.train_config import STAGES, TrainConfig

SIZE, TOKENS, PER_CLASS = 64, 48, 500
LENGTHS = (16, 32, 48)
HELD_OUT = 10_000_000  # seeds of scenes that nothing was trained on begin here


def prepare(root: Path) -> None:
    """Scenes, an autoencoder fit to them in closed form, and their latents."""
    if not (root / "scenes" / "MANIFEST.csv").exists():
        write_scenes(root / "scenes", per_class=PER_CLASS, dev_per_class=25, size=SIZE)
    if not (root / "nano" / "config.json").exists():
        clips = [Clip(f"{kind}{index}", make_scene(kind, seed=index), 24.0) for index in range(40) for kind in CLASSES]
        torch.manual_seed(0)
        model = OneDVA(preset("nano"))
        fit_transform(model, clips, fit_pca(clips, model.config.components, per_clip=1), per_clip=2)
        fit_log_variance(model, clips[:96], per_clip=1)
        save_model(model, root / "nano")
    plan = make_plan(root / "scenes", root / "nano", size=(SIZE, SIZE), tokens=TOKENS)
    resume = (root / "latents" / "plan.json").exists()
    done = tokenise(root / "scenes", root / "latents", plan, model=root / "nano", resume=resume)
    print(f"latents: {done.clips} clips now, {done.present} shards before", flush=True)


def train(root: Path, minutes: float, resume: bool) -> None:
    config = LatentTrainConfig(minutes=minutes, batch=32, muon_learning_rate=3e-3, ema=0.998, p_no_latents=0.03)
    begun = time.process_time()
    run(
        latents=root / "latents",
        output=root / "ldm",
        train=config,
        shape={"width": 192, "depth": 6, "mlp_ratio": 3.0},
        resume=resume,
        quiet=True,
    )
    took = (time.process_time() - begun) / 60
    print(f"trained: {took:.1f} CPU minutes", flush=True)
    (root / "ldm" / "cpu_minutes.json").write_text(json.dumps({"cpu_minutes": took, "resumed": resume}))


def post_train(root: Path, minutes: float, *, name: str = "post", **changes: Any) -> None:
    """Stage post: the decoder on the generator's latents, into the folder `name`."""
    values: dict[str, Any] = {
        **STAGES["post"],
        "minutes": minutes,
        "sizes": ((SIZE, SIZE, 1.0),),
        "short_side": SIZE,
        "frames": ((17, 1.0),),
        "positions_per_batch": 1280,
        "still_motion": 0.0,
        "evaluate_every": 0.0,
        **changes,
    }
    options: dict[str, Any] = {"model": preset("nano"), "start": root / "ldm", "quiet": True, "device": "cpu"}
    training.run(clips=root / "scenes", output=root / name, train=TrainConfig(**values), **options)


def scenes(first_seed: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`count` scenes of each class, and their labels."""
    made = [make_scene(kind, seed=first_seed + index, size=SIZE) for index in range(count) for kind in CLASSES]
    return np.stack(made), np.tile(np.arange(len(CLASSES)), count)


def training_set(root: Path) -> tuple[Judge, NDArray[np.float32], NDArray[np.float64]]:
    """The classifier of the training scenes, those at a quarter of the side, and its features of them; made once."""
    network, kept = Judge(len(CLASSES)), root / "training-set.npz"
    if not kept.exists():
        real, labels = scenes(0, PER_CLASS)
        network = train_judge(real, labels, classes=len(CLASSES))
        save_file(network.state_dict(), root / "judge.safetensors")
        np.savez(kept, small=small(real), features=judged(network, real)[1])
    network.load_state_dict(load_file(root / "judge.safetensors"))
    with np.load(kept) as arrays:
        return network.eval(), arrays["small"], arrays["features"]


def judge(
    root: Path, *, per_class: int, steps: int, guidance: float, ldm: str, decoders: list[str]
) -> dict[str, dict[str, Any]]:
    """Rows of every decoder by name, and of the held-out scenes; latents are generated once for all decoders."""
    network, training_small, features = training_set(root)
    held_out, held_labels = scenes(HELD_OUT, 40)
    found, held_features = judged(network, held_out)
    real_excess = edge_excess(held_out)
    rows: dict[str, dict[str, Any]] = {
        "held-out scenes": {
            "accuracy": float((found == held_labels).mean()),
            "nearest_db": nearest(held_out, training_small),
            "frechet": frechet_distance(features, held_features),
            "excess": real_excess,
        }
    }
    generator = load_generator(root / ldm)
    models = {name: OneDVA.from_pretrained(root / name) for name in decoders}
    strips: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in decoders}
    for tokens in LENGTHS:
        latents, asked = generate(generator, tokens, per_class=per_class, steps=steps, guidance=guidance)
        for name, model in models.items():
            decoded = reconstruct(model, held_out[:160], tokens)
            error = np.square((decoded.astype(np.float32) - held_out[:160]) / 255).mean(axis=(1, 2, 3, 4))
            rows[f"{name}, reconstructed, {tokens} latents"] = {
                "accuracy": float((judged(network, decoded)[0] == held_labels[:160]).mean()),
                "psnr_db": float((-10 * np.log10(error)).mean()),
                "excess": edge_excess(decoded) - real_excess,
            }
            with torch.inference_mode():
                made = np.concatenate([to_frames(model.decode(z, num_steps=1).sample) for z in latents])
            found, made_features = judged(network, made)
            rows[f"{name}, generated, {tokens} latents"] = row = {
                "accuracy": float((found == asked).mean()),
                "by_class": {kind: float((found[asked == at] == at).mean()) for at, kind in enumerate(CLASSES)},
                "nearest_db": nearest(made, training_small),
                "frechet": frechet_distance(features, made_features),
                "excess": edge_excess(made) - real_excess,
            }
            strips[name].append(
                np.concatenate([np.concatenate(list(clip[::4]), axis=1) for clip in made[: len(CLASSES)]])
            )
            print(name, tokens, json.dumps(row), flush=True)
    for name, parts in strips.items():
        write_png(root / f"generation-{name}.png", np.concatenate(parts, axis=1))
    return rows


def generate(
    generator: LatentDiT, tokens: int, *, per_class: int, steps: int, guidance: float
) -> tuple[list[HybridLatents], NDArray[np.int64]]:
    """Latents of `per_class` clips of every class, a batch of each class once, and what was asked for."""
    made, labels = [], list(range(len(CLASSES)))
    for index in range(per_class):
        seeds = [1000 * tokens + index * len(labels) + label for label in labels]
        made.append(
            generate_latents(generator, labels=labels, tokens=tokens, num_steps=steps, seeds=seeds, guidance=guidance)
        )
    return made, np.tile(labels, per_class)


@torch.inference_mode()
def reconstruct(decoder: OneDVA, frames: NDArray[np.uint8], tokens: int) -> NDArray[np.uint8]:
    """Clips through the autoencoder, latents in the places that generation uses."""
    from onedva_runtime.placement import grid_of, shared_anchors

    parts = []
    for part in np.array_split(frames, max(1, len(frames) // 16)):
        video = to_video(torch.from_numpy(part))
        anchors = torch.from_numpy(shared_anchors(grid_of(*video.shape[2:]), tokens)).expand(len(video), -1)
        parts.append(to_frames(decoder.decode(decoder.encode(video, anchors=anchors).latent_dist.mode()).sample))
    return np.concatenate(parts)


def small(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Clips at a quarter of the side, as rows of values in [0, 1]."""
    parts = []
    for part in np.array_split(clips, max(1, len(clips) // 64)):
        count, length, height, width, _ = part.shape
        blocks = part.reshape(count, length, height // 4, 4, width // 4, 4, 3)
        parts.append(blocks.mean(axis=(3, 5), dtype=np.float32).reshape(count, -1) / 255)
    return np.concatenate(parts)


def nearest(frames: NDArray[np.uint8], training: NDArray[np.float32]) -> float:
    """Mean over clips of the PSNR to the training clip that is nearest, in dB, both at a quarter of the side."""
    ours = small(frames)
    squares = np.square(ours).sum(1)[:, None] + np.square(training).sum(1)[None] - 2 * ours @ training.T
    return float((-10 * np.log10(squares.min(axis=1).clip(1e-9) / ours.shape[1])).mean())


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    from matplotlib.image import imsave

    imsave(path, image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--only", choices=["prepare", "train", "post", "control", "judge"])
    parser.add_argument("--per-class", type=int, default=16, help="clips of each class and length to judge")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--ldm", default="ldm", help="folder of the generator inside OUTPUT")
    parser.add_argument("--decoders", default="ldm,post", help="folders of decoders to judge with, inside OUTPUT")
    parser.add_argument("--post-minutes", type=float, default=12)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    root = options.output
    root.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "prepare"):
        prepare(root)
    if options.only in (None, "train"):
        train(root, options.minutes, options.resume)
    if options.only in (None, "post"):
        post_train(root, options.post_minutes)
    if options.only == "control":  # the same on the encoder's own latents; judge with --decoders ldm,post,control
        post_train(root, options.post_minutes, name="control", post_own=1.0)
    if options.only in (None, "judge"):
        choices = {"per_class": options.per_class, "steps": options.steps, "guidance": options.guidance}
        rows = judge(root, ldm=options.ldm, decoders=options.decoders.split(","), **choices)
        (root / "generation.json").write_text(json.dumps({**choices, "rows": rows}, indent=1))
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
