"""What a latent diffusion model is, and what one training run of it is: two frozen dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onedva.config import HEAD_DIM
from onedva.train_config import OptimizerName

AnchorMode = Literal["fixed", "generated"]
ANCHOR_CHANNELS = 3  # t, y, x of an anchor, where they are generated


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Everything that fixes the shape and meaning of a generator's weights; stored as `generator.json` beside them."""

    width: int = 384
    """Channels of the transformer, a multiple of 64 (the head dimension)."""
    depth: int = 8
    """Blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of each MLP over `width`."""
    structural_channels: int
    """Of the autoencoder's structural latent."""
    latent_channels: int
    """Of each of its 1D latents."""
    clip_frames: int
    """Frames of the clips that are generated, 1 + 4n."""
    max_tokens: int
    """Most 1D latents of a clip."""
    length_multiple: int = 16
    """Lengths are multiples of this."""
    fold: bool = True
    """One token for a column of the grid, all its groups, in place of one for each position. Where latents are
    transforms of columns, a group means nothing by itself."""
    anchors: AnchorMode = "fixed"
    """`fixed`: latent i sits at the i-th place of an order that all clips share. `generated`: where it sits is three
    more channels of it."""
    classes: tuple[str, ...] = ()
    """Names of the classes, by label; empty for a model without."""
    text_channels: int = 0
    """Of precomputed text embeddings; 0 for a model without text."""
    text_tokens: int = 0
    """Embeddings of one text."""
    continuation: bool = False
    """Whether it also goes on from a first frame (image to video)."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(height, width) of the clips it was trained on, in pixels; other sizes of one area are extrapolation."""
    fps: float = 24.0
    """Frames per second of most of its clips."""
    autoencoder: str = ""
    """Which latents it makes: `checkpoint.latent_space` of the autoencoder, hex."""

    def __post_init__(self) -> None:
        if self.width % HEAD_DIM or self.width < HEAD_DIM:
            raise ValueError(f"width must be a positive multiple of {HEAD_DIM}, got {self.width}")
        if not (math.isfinite(self.mlp_ratio) and self.width * self.mlp_ratio >= 1):
            raise ValueError(f"mlp_ratio must be finite and above 0, got {self.mlp_ratio}")
        if self.anchors not in get_args(AnchorMode):
            raise ValueError(f"anchors must be one of {', '.join(get_args(AnchorMode))}; got {self.anchors!r}")
        if min(self.depth, self.structural_channels, self.latent_channels, self.max_tokens, self.length_multiple) < 1:
            raise ValueError("depth, channels, max_tokens and length_multiple must be at least 1")
        if self.clip_frames < 1 or self.clip_frames % 4 != 1:
            raise ValueError(f"clip_frames must be 1 + 4n, got {self.clip_frames}")
        if bool(self.text_channels) != bool(self.text_tokens):
            raise ValueError("text_channels and text_tokens go together: both 0, or both above")

    @property
    def groups(self) -> int:
        """Temporal groups of a clip."""
        return 1 + (self.clip_frames - 1) // 4

    @property
    def groups_per_token(self) -> int:
        """Temporal groups that one token of the grid holds."""
        return self.groups if self.fold else 1

    @property
    def sequence_channels(self) -> int:
        """Channels that are generated for each 1D latent."""
        return self.latent_channels + (ANCHOR_CHANNELS if self.anchors == "generated" else 0)

    def to_json(self) -> str:
        return json.dumps({"model_type": "onedva-generator", **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> GeneratorConfig:
        """Inverse of `to_json`; ValueError names unknown parts instead of guessing."""
        values: Any = json.loads(text)
        if not isinstance(values, dict) or values.pop("model_type", None) != "onedva-generator":
            raise ValueError("not a onedva generator.json: model_type is missing or foreign")
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"generator.json has unknown entries: {', '.join(sorted(unknown))}")
        values["classes"] = tuple(values.get("classes", ()))
        values["sizes"] = tuple((height, width) for height, width in values.get("sizes", ()))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class LatentTrainConfig:
    """One run of `onedva train-ldm`. Every field is a flag or a `--set`."""

    steps: int = 100_000
    """Optimizer steps; the learning rate falls to a twentieth over them (cosine)."""
    minutes: float | None = None
    """End after this much time instead, if that comes first; the learning rate follows whichever is further. None or
    0: no limit."""
    batch: int = 64
    """Clips per step."""
    p_full: float = 0.05
    """How often t is exactly 1."""
    p_unconditional: float = 0.1
    """How often class and text are left out, for classifier-free guidance."""
    p_no_latents: float = 0.05
    """How often a step has structural latents alone."""
    p_continuation: float = 0.25
    """How often a step generates what follows a first frame, where the shards have such clips."""
    sequence_weight: float = 0.5
    """Weight of the 1D latents' loss beside the structural latents' one."""
    optimizer: OptimizerName = "muon"
    """`muon`: Muon on the matrices inside blocks, AdamW on the rest. `adamw`: AdamW on everything."""
    learning_rate: float = 1e-3
    """AdamW."""
    muon_learning_rate: float = 5e-3
    """Muon."""
    warmup: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    ema: float = 0.999
    """Decay of the averaged weights that generation uses."""
    save_every: float = 5.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Of weights, order, noise and dropout."""

    def __post_init__(self) -> None:
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"optimizer must be one of {', '.join(get_args(OptimizerName))}; got {self.optimizer!r}")
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps and batch must be at least 1, got {self.steps} and {self.batch}")
        for name in ("p_full", "p_unconditional", "p_no_latents", "p_continuation", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
