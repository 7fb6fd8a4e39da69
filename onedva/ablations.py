"""Ablations: one change at a time against what it was changed from, for the same time or steps, from the same seed.

    onedva ablate no-pca stem-depth-0 --clips FOLDER -o ablations --minutes 20
    onedva ablate adamw p-full --clips FOLDER -o ablations --minutes 8 --init tiny   # every run begins from its weights

Each side is a training run in a folder of its own, scored on the dev split at one and at four steps. Sides that are
alike are trained once, sides that begin alike share a least-squares start, and a run that is already in the folder is
used again (or gone on with, if it was interrupted).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from onedva.checkpoint import CONFIG as MODEL_CONFIG
from onedva.checkpoint import TRAINING, load_model, save_model, write_whole
from onedva.config import OneDVAConfig
from onedva.data import Clip, load_clips
from onedva.evaluate import LENGTHS, evaluate, mean_by_length
from onedva.train import first_model, run
from onedva.train_config import TrainConfig

logger = logging.getLogger("onedva")

DECODE_STEPS = (1, 4)
ALIGNMENT_WEIGHT = 0.01  # to compare with where the default is off
CONFIG, SCORES, STARTS = "ablation.json", "ablation_scores.json", "starts"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Fields of the configurations that one side sets."""

    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, model: OneDVAConfig, train: TrainConfig) -> Side:
        return Side(dataclasses.replace(model, **self.model), dataclasses.replace(train, **self.train))

    def __str__(self) -> str:
        changes = {**self.model, **self.train}
        return ", ".join(f"{name}={value}" for name, value in changes.items()) or "the preset as it is"


@dataclass(frozen=True)
class Side:
    """What one training run is made from."""

    model: OneDVAConfig
    train: TrainConfig

    def to_json(self) -> dict[str, Any]:
        """As plain data: lists where the configurations have tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question, and the two runs that answer it."""

    question: str
    """What is compared, in a few words."""
    baseline: Change = Change()
    """Where the comparison starts from, if not from the preset."""
    variant: Change
    """What is changed instead."""
    note: str = ""
    """What a reader of the numbers must know."""

    @property
    def of_training(self) -> bool:
        """Whether both sides can begin from the same weights: what changes is how they are trained."""
        sides = (self.baseline, self.variant)
        return not any(side.model or "linear_start" in side.train for side in sides)


ABLATIONS: dict[str, Ablation] = {
    "no-pca": Ablation(
        question="without the linear start",
        variant=Change(train={"linear_start": False}),
        note="The network is the same; its principal components and directions start at random and are learned.",
    ),
    "one-class": Ablation(
        question="one set of directions for all columns against a choice of four",
        variant=Change(model={"classes": 1}),
    ),
    "no-full-noise": Ablation(question="without the full-noise tail of t", variant=Change(train={"p_full": 0.0})),
    "velocity": Ablation(
        question="velocity against clean-video prediction",
        baseline=Change(model={"pca": False}),
        variant=Change(model={"pca": False, "prediction": "velocity"}),
        note="A velocity has no preview to start from, so both sides are without the linear transform (pca=False): "
        "compare with no-pca, not with the preset.",
    ),
    "no-alignment": Ablation(
        question="without self-alignment",
        baseline=Change(train={"self_alignment_weight": TrainConfig().self_alignment_weight or ALIGNMENT_WEIGHT}),
        variant=Change(train={"self_alignment_weight": 0.0}),
    ),
    "stem-depth-0": Ablation(
        question="without blocks in the condition stem",
        variant=Change(model={"stem_depth": 0}),
        note="Smaller and quicker than the baseline by those blocks, so it takes more steps in the same minutes.",
    ),
    "p-full": Ablation(
        question="full noise in a tenth against half of the steps",
        baseline=Change(train={"p_full": 0.5}),
        variant=Change(train={"p_full": 0.1}),
    ),
    "adamw": Ablation(
        question="AdamW against Muon on the matrices inside blocks",
        baseline=Change(train={"optimizer": "muon"}),
        variant=Change(train={"optimizer": "adamw"}),
        note="Each at its own learning rate of the preset: learning_rate and muon_learning_rate.",
    ),
    "pca-rate": Ablation(
        question="principal components at the full learning rate against a fiftieth",
        baseline=Change(train={"closed_form_learning_rate": 0.02}),
        variant=Change(train={"closed_form_learning_rate": 1.0}),
    ),
    "placement": Ablation(
        question="1D latents on a fixed sequence against where the detail is",
        baseline=Change(model={"anchors": "content"}),
        variant=Change(model={"anchors": "fixed"}),
        note="Without 1D latents and with one at every position, both sides place alike.",
    ),
}


def ablate(
    names: Sequence[str],
    *,
    clips: Path,
    output: Path,
    model: OneDVAConfig,
    train: TrainConfig,
    start: str | Path | None = None,
    size: int = 256,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train and score both sides of each named ablation; returns the comparison as plain data.

    clips: a folder of videos with a train and a dev split. output: folder of the runs. model, train: what the changes
    are made to. start: a model of that configuration whose weights every run begins from, instead of a least-squares
    start each; then only for changes that leave those weights of use. size: side of the centre crop scored, in pixels.
    Returns {"dev_videos", "runs": {label: {"changed", "trained_steps", "psnr_db": {decode steps: {latents: dB}}}},
    "ablations": {name: {"question", "note", "baseline" and "variant": labels, "difference_db": variant − baseline}}}.
    Raises ValueError for unknown names, changes that `start` cannot serve, or a folder with other runs;
    FileNotFoundError without clips of both splits.
    """
    unknown = [name for name in names if name not in ABLATIONS]
    if unknown or not names:
        raise ValueError(f"unknown ablations: {', '.join(unknown) or 'none named'}; choose from {', '.join(ABLATIONS)}")
    if start is not None:
        able = [name for name, ablation in ABLATIONS.items() if ablation.of_training]
        if others := [name for name in names if name not in able]:
            raise ValueError(
                f"{', '.join(others)} cannot begin from given weights; these can: {', '.join(able)}. "
                "Run the others without --init"
            )
    dev = load_clips(clips, split="dev", minimum_frames=model.clip_frames)
    labels: dict[Side, str] = {Change().applied(model, train): "baseline"}
    changed = {"baseline": str(Change())}
    pairs = {}
    for name in names:
        pair = []
        for change, label in ((ABLATIONS[name].baseline, f"{name}-baseline"), (ABLATIONS[name].variant, name)):
            label = labels.setdefault(change.applied(model, train), label)
            changed.setdefault(label, str(change))
            pair.append(label)
        pairs[name] = tuple(pair)
    sides = {label: side for side, label in labels.items() if any(label in pair for pair in pairs.values())}
    runs = {}
    for number, (label, side) in enumerate(sides.items(), 1):
        logger.info("run %d of %d, %s: %s", number, len(sides), label, changed[label])
        scores = train_and_score(side, output / label, start=start, clips=clips, dev=dev, size=size, quiet=quiet)
        runs[label] = {"changed": changed[label], **scores}
    return {
        "dev_videos": len(dev),
        "runs": runs,
        "ablations": {
            name: {
                "question": ABLATIONS[name].question,
                "note": ABLATIONS[name].note,
                "baseline": baseline,
                "variant": variant,
                "difference_db": difference(runs[baseline]["psnr_db"], runs[variant]["psnr_db"]),
            }
            for name, (baseline, variant) in pairs.items()
        },
    }


def train_and_score(
    side: Side,
    folder: Path,
    *,
    start: str | Path | None,
    clips: Path,
    dev: Sequence[Clip],
    size: int,
    quiet: bool,
) -> dict[str, Any]:
    """{"trained_steps", "psnr_db"} of one run, read from `folder` if finished there. ValueError if it holds another."""
    config, scores = folder / CONFIG, folder / SCORES
    settings = {**side.to_json(), **({} if start is None else {"start": str(start)})}
    if config.exists() and json.loads(config.read_text()) != settings:
        raise ValueError(f"{folder} holds a run with other settings; choose another output folder")
    if scores.exists():
        return json.loads(scores.read_text())
    write_whole(config, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
    resume = (folder / TRAINING).exists()
    if start is None and not resume:
        start = shared_start(side, folder.parent / STARTS, clips=clips)
    run(clips=clips, output=folder, model=side.model, train=side.train, start=start, resume=resume, quiet=quiet)
    network = load_model(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    found = evaluate(network, dev, tokens=LENGTHS, steps=DECODE_STEPS, size=size)
    result = {
        "trained_steps": json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"],
        "psnr_db": {
            str(steps): {str(count): value for count, value in mean_by_length(found, steps=steps).items()}
            for steps in DECODE_STEPS
        },
    }
    write_whole(scores, lambda path: path.write_text(json.dumps(result, indent=2) + "\n"))
    return result


def shared_start(side: Side, folder: Path, *, clips: Path) -> Path | None:
    """A model folder in `folder` with the least-squares start of `side`, fit where it is not there yet; None for a side
    that begins with random weights."""
    if not (side.model.pca and side.train.linear_start):
        return None
    facts = {"model": dataclasses.asdict(side.model), "seed": side.train.seed, "short_side": side.train.short_side}
    found = folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    if not (found / MODEL_CONFIG).exists():
        logger.info("fitting the start that runs of this model share")
        longest = max(frames for frames, _ in side.train.frames)
        data = load_clips(clips, split="train", minimum_frames=longest, short_side=side.train.short_side)
        save_model(first_model(data, side.model, side.train), found)
    return found


def difference(
    baseline: dict[str, dict[str, float]], variant: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """variant − baseline in dB, {decode steps: {latents: dB}}."""
    return {
        steps: {count: variant[steps][count] - value for count, value in means.items()}
        for steps, means in baseline.items()
    }
