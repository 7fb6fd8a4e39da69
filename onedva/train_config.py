"""`TrainConfig`, one training run, and what each stage changes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from onedva.config import OneDVAConfig
from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

Stage = Literal["encoder", "joint", "distill", "post"]
OptimizerName = Literal["muon", "adamw"]
SHARES = ("p_full", "p_no_latents", "p_all_latents", "p_policy_latents", "p_continuation", "still_motion", "ema")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Every field is a flag of `onedva train` or keeps its default."""

    stage: Stage = "joint"
    """`encoder`: preview alone. `joint`: everything. `distill`: few steps follow many. `post`: the decoder on generated
    latents. See `onedva.steps`."""
    steps: int = 20_000
    """Optimizer steps; the learning rate falls to a twentieth over them (cosine)."""
    minutes: float | None = None
    """End after this much wall time instead, if that comes first; the learning rate follows whichever is further."""
    positions_per_batch: int = 2560
    """Grid positions per batch over all processes: 8 clips of 17×128×128, or 2 of 17×256×256."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    sizes: tuple[tuple[int, int, float], ...] = (
        (128, 128, 0.55),
        (192, 192, 0.15),
        (144, 240, 0.1),
        (256, 256, 0.2),
    )
    """Crops: height, width, share of the batches."""
    frames: tuple[tuple[int, float], ...] = ((17, 0.84), (9, 0.08), (5, 0.08))
    """Frames per clip, 1 + 4n, each with its share of the batches."""
    short_side: int = 256
    """Pixels that the short side of every video is scaled to before it is cropped; a multiple of 16."""
    still_motion: float = 0.05
    """Share of the crops that are pans and zooms over a single frame."""
    workers: int = 0
    """Processes that prepare batches ahead; 0 prepares them in the loop."""
    linear_start: bool = True
    """Begin from least-squares fits (`onedva.linear_start`); without, transforms are random and train like the rest."""
    optimizer: OptimizerName = "muon"
    """`muon`: Muon on the matrices inside blocks, AdamW on the rest. `adamw`: AdamW on everything."""
    learning_rate: float = 3e-4
    """AdamW, for everything that is not a matrix inside a block."""
    muon_learning_rate: float = 3e-3
    """Muon, for the matrices inside blocks."""
    head_learning_rate: float = 0.15
    """Of layers whose output is small or normalised by what they correct, as a fraction of `learning_rate`."""
    closed_form_learning_rate: float = 0.0
    """Of the linear transform, as a fraction of `learning_rate`; 0 freezes it."""
    warmup: int = 50
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; none on the transform, norms and embeddings."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.998
    """Decay of the averaged weights that evaluation and release use."""
    only: tuple[str, ...] = ()
    """Train only parameters whose name begins with one of these, such as "decoder."; empty: all."""
    p_full: float = 0.7
    """How often t is exactly 1, the only time a one-step decode sees (the paper: 0.1)."""
    p_no_latents: float = 0.1
    """How often a step decodes from the structural latent alone."""
    p_all_latents: float = 0.15
    """How often a step keeps every 1D latent."""
    p_policy_latents: float = 0.4
    """How often a step keeps as many as `tokens="auto"` would, times 2^±1; otherwise their number is log-uniform."""
    p_continuation: float = 0.12
    """How often a step trains continuation clips."""
    preview_weight: float = 0.5
    """Weight of the preview loss beside the flow loss."""
    kl_weight: float = 1e-4
    """Weight of the KL term (mean over dimensions)."""
    frame_difference_weight: float = 0.0
    """Weight of the frame difference loss."""
    error_weight: float = 0.05
    """Weight of the error head's loss; nothing else sees its gradient."""
    edge_weight: float = 0.0
    """Weight of errors that jump across the edges of patches; what stage `post` adds against blocks."""
    post_noise: float = 0.6
    """Stage `post`: the most noise on latents, as a time in (0, 1], that the generator then takes off again."""
    post_own: float = 0.5
    """Stage `post`: share of the batches that keep the encoder's own latents, so that the decoder does not unlearn
    them; 1: all, which tells what the generator's add."""
    self_alignment_weight: float = 0.0
    """Weight of the self-alignment loss (each 1D latent with its best structural latent)."""
    repa_weight: float = 0.5
    """Weight of the alignment of middle features with SigLIP's; without `siglip` it is off."""
    siglip: str | None = None
    """A local folder with a SigLIP model; without one REPA is off."""
    lpips_weight: float = 0.1
    """Weight of LPIPS between decode and source; without `lpips` it is off."""
    lpips: str | None = None
    """A local file with LPIPS weights; without one LPIPS is off."""
    checkpointing: bool = False
    """Recompute the inside of blocks in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Compile the blocks with torch.compile: minutes at the start, faster steps after."""
    sharded: bool = False
    """With several processes: shard parameters and optimizer (FSDP2, AdamW) instead of replicating them (DDP)."""
    evaluate_every: float = 15.0
    """Minutes between evaluations on the dev split; 0 only at the end."""
    save_every: float = 5.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Of weights, data, noise and dropout."""

    def __post_init__(self) -> None:
        if self.compile and self.siglip and self.repa_weight:
            raise ValueError("compile and siglip exclude each other: REPA looks inside a block")
        if self.sharded and self.optimizer == "muon":
            raise ValueError('sharded=True needs optimizer="adamw": Muon works on whole matrices')
        for name, kind in (("stage", Stage), ("optimizer", OptimizerName)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if min(self.steps, self.accumulate, self.positions_per_batch) < 1 or self.workers < 0:
            raise ValueError("steps, accumulate and positions_per_batch must be at least 1, workers at least 0")
        if self.short_side < PATCH_SIZE or self.short_side % PATCH_SIZE:
            raise ValueError(f"short_side is a multiple of {PATCH_SIZE}, got {self.short_side}")
        if not 0 < self.post_noise <= 1:
            raise ValueError(f"post_noise is above 0 and at most 1, got {self.post_noise}")
        if not 0 <= self.post_own <= 1:
            raise ValueError(f"post_own is a share from 0 to 1, got {self.post_own}")
        if not self.frames or any(length < 1 or length % PATCH_FRAMES != 1 for length, _ in self.frames):
            raise ValueError(f"frames are 1 + {PATCH_FRAMES}n each, got {self.frames}")
        if not self.sizes or any(side < PATCH_SIZE or side % PATCH_SIZE for *sides, _ in self.sizes for side in sides):
            raise ValueError(f"sizes are multiples of {PATCH_SIZE}, got {self.sizes}")
        if any(share <= 0 for *_, share in (*self.frames, *self.sizes)):
            raise ValueError("every share of frames and sizes must be above 0")
        latents = round(self.p_no_latents + self.p_all_latents + self.p_policy_latents, 9)
        shares = [getattr(self, name) for name in SHARES]
        if not all(0 <= share <= 1 for share in (*shares, latents)):
            raise ValueError(
                f"{', '.join(SHARES)} are shares from 0 to 1, those of latents together at most 1; got {shares}"
            )

    @property
    def evaluation_size(self) -> int:
        """Side in pixels of the crops that a run is scored on."""
        return min(self.short_side, 256)

    def check(self, model: OneDVAConfig) -> None:
        """ValueError where such a model cannot be trained like this."""
        longest = max(length for length, _ in self.frames)
        if longest > model.clip_frames:
            raise ValueError(f"this model's clips have up to {model.clip_frames} frames, training asks for {longest}")
        if self.stage == "encoder" and not model.preview:
            raise ValueError("stage encoder trains the preview, which a model with pca=False lacks")


STAGES: dict[str, dict[str, Any]] = {
    "encoder": {"stage": "encoder"},
    "joint": {"stage": "joint"},
    "distill": {
        "stage": "distill",
        "only": (
            "decoder.blocks",
            "decoder.time",
            "decoder.patch_",
            "decoder.norm",
            "decoder.latents_out",
            "decoder.log_",
        ),
        "p_continuation": 0.0,
        "learning_rate": 1e-4,
        "muon_learning_rate": 5e-4,
    },
    "post": {
        "stage": "post",
        "only": ("decoder.",),
        "p_continuation": 0.0,
        "p_full": 1.0,
        "edge_weight": 0.05,
        "muon_learning_rate": 1e-3,
    },
}
"""What each stage changes of the defaults."""
