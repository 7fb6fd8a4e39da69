"""What a model is, in one frozen dataclass, and the presets by name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

PATCH_VALUES = PATCH_FRAMES * PATCH_SIZE * PATCH_SIZE * 3
HEAD_DIM = 64

Prediction = Literal["video", "velocity"]
Conditioning = Literal["stem", "in_context"]
Anchors = Literal["content", "fixed"]


@dataclass(frozen=True, kw_only=True)
class OneDVAConfig:
    """Everything that fixes the shape and meaning of the weights; stored as `config.json` beside them."""

    preset: str = "tiny"
    """The preset this came from; only a label."""
    width: int = 256
    """Channels of every transformer, a multiple of 64 (the head dimension)."""
    encoder_depth: int = 4
    """Blocks of the encoder ViT."""
    stem_depth: int = 3
    """Blocks of the condition stem, run once per clip."""
    diffusion_depth: int = 3
    """Blocks of the diffusion transformer, run once per step."""
    mlp_ratio: float = 3.0
    """Hidden width of each MLP over `width`."""
    structural_channels: int = 32
    """Channels of the structural latent at each grid position."""
    latent_channels: int = 64
    """Channels of each 1D latent."""
    queries: int = 1024
    """Learned queries: the most 1D latents the model can emit."""
    trained_tokens: int = 1024
    """Longest 1D sequence seen in training; a longer one is not asked of the model."""
    preview_rank: int = 256
    """Dimensions beyond the principal components in which neighbours and the stem correct the preview of a patch."""
    residual_channels: int = 8
    """Hidden channels of the residual convolution behind the pixelshuffle; 0 leaves it out."""
    prediction: Prediction = "video"
    """What the diffusion transformer emits: the clean video (x̂ = preview + r) or the velocity."""
    conditioning: Conditioning = "stem"
    """`stem`: latents become keys and values once per clip. `in_context`: they evolve through every block."""
    preview: bool = True
    """Whether the stem has a linear head to pixels that x̂ starts from (and `num_steps=0` returns)."""
    pca: bool = True
    """Whether latents and preview start from principal components of the patches."""
    anchors: Anchors = "content"
    """`content`: 1D latents sit where the detail map puts them. `fixed`: on a fixed sequence, nothing is sent."""
    length_multiple: int = 16
    """1D lengths are rounded up to this."""
    clip_frames: int = 17
    """Frames of a full clip, 1 + 4n."""
    policy_density: float = 100.0
    """`tokens="auto"`: detail per pixel above which a position earns a latent; calibrated on training clips."""

    def __post_init__(self) -> None:
        if self.width % HEAD_DIM or self.width < HEAD_DIM:
            raise ValueError(f"width must be a positive multiple of {HEAD_DIM}, got {self.width}")
        for name, kind in (("prediction", Prediction), ("conditioning", Conditioning), ("anchors", Anchors)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}; got {getattr(self, name)!r}")
        if (self.clip_frames - 1) % PATCH_FRAMES:
            raise ValueError(f"clip_frames must be 1 + {PATCH_FRAMES}n, got {self.clip_frames}")
        if self.pca and self.structural_channels + self.latent_channels > PATCH_VALUES:
            raise ValueError(f"a patch has only {PATCH_VALUES} principal components")
        if self.prediction == "velocity" and self.preview:
            raise ValueError("prediction='velocity' has no preview to start from: set preview=False")
        if self.conditioning == "in_context" and self.stem_depth:
            raise ValueError("conditioning='in_context' has no stem: set stem_depth=0")

    @property
    def heads(self) -> int:
        return self.width // HEAD_DIM

    def to_json(self) -> str:
        return json.dumps({"model_type": "onedva", **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> OneDVAConfig:
        """Inverse of `to_json`; ValueError names unknown or missing parts instead of guessing."""
        values: Any = json.loads(text)
        if not isinstance(values, dict) or values.pop("model_type", None) != "onedva":
            raise ValueError("not a onedva config.json: model_type is missing or foreign")
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"config.json has unknown entries: {', '.join(sorted(unknown))}")
        return cls(**values)


PRESETS: dict[str, OneDVAConfig] = {
    "tiny": OneDVAConfig(),
    "small": OneDVAConfig(preset="small", width=384, encoder_depth=5, stem_depth=5, diffusion_depth=5),
    "base": OneDVAConfig(
        preset="base",
        width=1024,
        encoder_depth=6,
        stem_depth=4,
        diffusion_depth=4,
        structural_channels=48,
        mlp_ratio=3.5,
    ),
    "large": OneDVAConfig(
        preset="large",
        width=1792,
        encoder_depth=8,
        stem_depth=7,
        diffusion_depth=8,
        structural_channels=48,
        mlp_ratio=4.0,
    ),
    "paper": OneDVAConfig(
        preset="paper",
        width=768,
        encoder_depth=12,
        stem_depth=0,
        diffusion_depth=12,
        mlp_ratio=4.0,
        prediction="velocity",
        conditioning="in_context",
        preview=False,
        pca=False,
        anchors="fixed",
    ),
}


def preset(name: str) -> OneDVAConfig:
    """The configuration called `name`; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Every field is a flag of `onedva train` or keeps its default."""

    steps: int = 20_000
    """Optimizer steps; the learning rate falls to a tenth over them (cosine)."""
    minutes: float | None = None
    """End after this much wall time instead, if that comes first; the learning rate follows whichever is further."""
    positions_per_batch: int = 2560
    """Grid positions per step over the whole batch: 8 clips of 17×128×128, or 2 of 17×256×256."""
    sizes: tuple[tuple[int, int, float], ...] = (
        (128, 128, 0.35),
        (192, 192, 0.2),
        (144, 240, 0.1),
        (256, 256, 0.35),
    )
    """Crops: height, width, share of the steps."""
    frames: int = 17
    """Frames per clip, 1 + 4n."""
    learning_rate: float = 3e-4
    """AdamW, for everything that is not a matrix inside a block."""
    muon_learning_rate: float = 3e-3
    """Muon, for the matrices inside blocks."""
    head_learning_rate: float = 0.15
    """Of the layers that put out pixels and latents, as a fraction of `learning_rate`: their weights end near 0.002."""
    closed_form_learning_rate: float = 0.02
    """Of what starts from a least-squares fit (principal components, neighbours), as a fraction of `learning_rate`."""
    warmup: int = 50
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; none on the principal components, norms and embeddings."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.998
    """Decay of the averaged weights that evaluation and release use."""
    only: tuple[str, ...] = ()
    """Train only parameters whose name begins with one of these, such as "decoder."; empty: all."""
    p_full: float = 0.9
    """How often t is exactly 1, the only time a one-step decode sees (the paper: 0.1)."""
    p_no_latents: float = 0.1
    """How often a step decodes from the structural latent alone."""
    p_all_latents: float = 0.15
    """How often a step keeps every 1D latent; otherwise their number is log-uniform."""
    p_continuation: float = 0.0
    """How often a step trains continuation clips."""
    preview_weight: float = 0.5
    """Weight of the preview loss beside the flow loss."""
    kl_weight: float = 1e-5
    """Weight of the KL term (mean over dimensions)."""
    frame_difference_weight: float = 0.0
    """Weight of the frame difference loss."""
    error_weight: float = 1e-3
    """Weight of the error head's loss; nothing else sees its gradient."""
    evaluate_every: float = 15.0
    """Minutes between evaluations on the dev split; 0 only at the end."""
    save_every: float = 5.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Of weights, data, noise and dropout."""
