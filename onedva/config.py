"""What a model is, in one frozen dataclass, and the presets by name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

PATCH_VALUES = PATCH_FRAMES * PATCH_SIZE * PATCH_SIZE * 3
HEAD_DIM = 64
MAX_VIDEO_POSITIONS = 3600  # of a grid: 17 frames of 16:9 at 320 lines; attention memory grows with the square

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
    mlp_ratio: float = 2.5
    """Hidden width of each MLP over `width`."""
    structural_channels: int = 32
    """Channels of the structural latent at each grid position."""
    latent_channels: int = 64
    """Channels of each 1D latent."""
    queries: int = 1024
    """Learned queries: the most 1D latents the model can emit."""
    trained_tokens: int = 1024
    """Longest 1D sequence seen in training; a longer one is not asked of the model."""
    components: int = 512
    """Principal components of a patch that latents and preview are made of; see `onedva.transform`."""
    classes: int = 4
    """Sets of directions that each grid column chooses from; see `onedva.transform`."""
    mirrored: bool = True
    """Whether each set also serves mirrored: left for right, upside down and both."""
    residual_channels: int = 8
    """Hidden channels of the residual convolution behind the pixelshuffle; 0 leaves it out."""
    prediction: Prediction = "video"
    """What the diffusion transformer emits: the clean video (x̂ = preview + r) or the velocity."""
    conditioning: Conditioning = "stem"
    """`stem`: latents become keys and values once per clip. `in_context`: they evolve through every block."""
    pca: bool = True
    """Whether latents are linear transforms of patches plus what the ViT adds, and x̂ starts from their inverse, the
    preview (which `num_steps=0` returns)."""
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
        if self.pca and not self.structural_channels + self.latent_channels <= self.components <= PATCH_VALUES:
            raise ValueError(f"components must hold both latents and be at most {PATCH_VALUES}, got {self.components}")
        if not 1 <= self.classes <= 16:
            raise ValueError(f"classes must be between 1 and 16, got {self.classes}")
        if self.pca and self.components % self.poses:
            raise ValueError(f"components must be a multiple of {self.poses} where mirrored, got {self.components}")
        if self.prediction == "velocity" and self.pca:
            raise ValueError("prediction='velocity' has no preview to start from: set pca=False")
        if self.conditioning == "in_context" and self.stem_depth:
            raise ValueError("conditioning='in_context' has no stem: set stem_depth=0")

    @property
    def poses(self) -> int:
        """How many mirror images of a set of directions there are, itself among them."""
        return 4 if self.mirrored else 1

    @property
    def choices(self) -> int:
        """What each column chooses from: the poses of each class."""
        return self.classes * self.poses

    @property
    def preview(self) -> bool:
        """Whether x̂ starts from a preview, which `num_steps=0` returns."""
        return self.pca

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
        values.setdefault("mirrored", False)  # of models from before there were mirrors
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"config.json has unknown entries: {', '.join(sorted(unknown))}")
        return cls(**values)


PRESETS: dict[str, OneDVAConfig] = {
    # for small pictures and for experiments: one set of directions, so that nearby latents always mean nearby pictures
    "nano": OneDVAConfig(
        preset="nano",
        width=128,
        encoder_depth=2,
        stem_depth=2,
        diffusion_depth=2,
        structural_channels=16,
        latent_channels=32,
        components=128,
        classes=1,
        mirrored=False,
        queries=256,
        trained_tokens=256,
        residual_channels=0,
    ),
    "tiny": OneDVAConfig(residual_channels=0),  # the convolution gained 0.01 dB for a tenth of the time
    "small": OneDVAConfig(preset="small", width=384, encoder_depth=5, stem_depth=5, diffusion_depth=5, mlp_ratio=3.0),
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
        pca=False,
        anchors="fixed",
    ),
}


def preset(name: str) -> OneDVAConfig:
    """The configuration called `name`; ValueError lists the valid names."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]
