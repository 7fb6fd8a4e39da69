"""Does self-alignment pay? Two autoencoders from one start, with and without the loss, and a small generator on each.

    python bench/alignment.py -o /tmp/generation        # after bench/generation.py, whose scenes and `nano` it uses

Writes OUTPUT/alignment.json: the alignment that was reached, statistics of the latents, reconstruction, and the loss of
the generators on held-out latents, all from the same seeds. docs/paper.md tells of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onedva import train as training
from onedva.generation.config import LatentTrainConfig
from onedva.generation.latent_shards import LatentSet
from onedva.generation.step import LatentStep, draw_step
from onedva.generation.tokenise import make_plan, tokenise
from onedva.generation.train import run
from onedva.model import OneDVA
from onedva.train_config import STAGES, TrainConfig

SIZE, TOKENS = 64, 48
WEIGHTS = {"without": 0.0, "with": 0.5}
HELD_OUT_STEPS = 24  # of 32 clips each, at times and with noise that both generators share


def train_autoencoder(root: Path, name: str, steps: int) -> Path:
    folder = root / f"alignment-{name}"
    if (folder / "config.json").exists():
        return folder
    values: dict[str, Any] = {
        **STAGES["joint"],
        "steps": steps,
        "sizes": ((SIZE, SIZE, 1.0),),
        "short_side": SIZE,
        "frames": ((17, 1.0),),
        "positions_per_batch": 1280,
        "p_continuation": 0.0,
        "still_motion": 0.0,
        "head_learning_rate": 1.0,
        "evaluate_every": 0.0,
        "self_alignment_weight": WEIGHTS[name],
    }
    model = OneDVA.from_pretrained(root / "nano").config
    options: dict[str, Any] = {"model": model, "start": root / "nano", "quiet": True, "device": "cpu"}
    training.run(clips=root / "scenes", output=folder, train=TrainConfig(**values), **options)
    return folder


def statistics(data: LatentSet) -> dict[str, float]:
    """What the loss is to change: how 1D latents lie to structural ones and to each other."""
    rows = data.rows(np.arange(0, len(data), 4))
    latents, structural = rows.latents, rows.structural
    grid = structural.shape[1:4]
    flat = structural.flatten(1, 3)
    at = torch.gather(flat, 1, rows.anchors[..., None].expand(-1, -1, flat.shape[-1]))
    values = latents.flatten(0, 1)
    spectrum = torch.linalg.svdvals(values - values.mean(0)).square()
    share = spectrum / spectrum.sum()
    return {
        "latents_std": values.std().item(),
        "effective_rank": float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum())),
        "cosine_of_neighbours": F.cosine_similarity(latents[:, 1:], latents[:, :-1], dim=-1).mean().item(),
        "explained_by_structural_at_anchor": explained(at.flatten(0, 1), values),
        "explained_by_best_of_linear_and_column": explained(column_of(structural, rows.anchors, grid), values),
    }


def column_of(structural: Tensor, anchors: Tensor, grid: torch.Size) -> Tensor:
    """All structural latents of the column of each anchor: (B·K, Tg·Zs)."""
    columns = structural.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # (B, P, Tg·Zs)
    inside = anchors % (grid[1] * grid[2])
    return torch.gather(columns, 1, inside[..., None].expand(-1, -1, columns.shape[-1])).flatten(0, 1)


def explained(given: Tensor, wanted: Tensor) -> float:
    """Share of the variance of `wanted` that a linear map of `given` predicts; fit on one half, seen on the other."""
    given = torch.cat([given, torch.ones(len(given), 1)], dim=1)
    half = len(given) // 2
    products = given[:half].T @ given[:half] + 1e-2 * half * torch.eye(given.shape[1])
    solution = torch.linalg.solve(products, given[:half].T @ wanted[:half])
    left = (wanted[half:] - given[half:] @ solution).square().sum()
    return 1 - (left / (wanted[half:] - wanted[half:].mean(0)).square().sum()).item()


@torch.no_grad()
def held_out_loss(generator: Any, data: LatentSet) -> dict[str, float]:
    train = LatentTrainConfig(batch=32, seed=99, p_unconditional=0.0, p_no_latents=0.0)
    step = LatentStep(generator.eval(), train)
    losses = [step(draw_step(data, generator, train, step=index)) for index in range(HELD_OUT_STEPS)]
    return {name: float(np.mean([loss[name].item() for loss in losses])) for name in losses[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="of each autoencoder, 16 clips each")
    parser.add_argument("--ldm-steps", type=int, default=300, help="of each generator, 32 clips each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = options.output
    found: dict[str, Any] = {"steps": options.steps, "ldm_steps": options.ldm_steps, "weights": WEIGHTS}
    for name in WEIGHTS:
        folder = train_autoencoder(root, name, options.steps)
        sets = []
        for split in ("train", "dev"):
            plan = make_plan(root / "scenes", folder, split=split, size=(SIZE, SIZE), tokens=TOKENS)
            if split == "train":  # an eighth of the shards will do
                plan = dataclasses.replace(plan, videos=plan.videos[::6], labels=plan.labels[::6])
            target = root / f"alignment-{name}-{split}"
            tokenise(root / "scenes", target, plan, model=folder, resume=(target / "plan.json").exists())
            sets.append(LatentSet(target))
        config = LatentTrainConfig(steps=options.ldm_steps, batch=32, muon_learning_rate=3e-3, ema=0.98)
        generator = run(
            latents=root / f"alignment-{name}-train",
            output=root / f"alignment-{name}-ldm",
            train=config,
            shape={"width": 128, "depth": 4, "mlp_ratio": 3.0},
            quiet=True,
        )
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        last = lines[-20:]
        found[name] = {
            "self_alignment": float(np.mean([line.get("self_alignment", 0.0) for line in last])),
            "flow": float(np.mean([line["flow"] for line in last])),
            "dev_psnr_db": json.loads((folder / "eval.jsonl").read_text().splitlines()[-1])["psnr"],
            **statistics(sets[0]),
            "held_out": held_out_loss(generator, sets[1]),
        }
        print(name, json.dumps(found[name]), flush=True)
    (root / "alignment.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
