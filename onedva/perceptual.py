"""Frozen networks that judge pictures: SigLIP features to align the decoder with (REPA), and LPIPS distances.

Their weights are the user's: local safetensors, nothing is downloaded. Without them the losses that need them are off.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from onedva_runtime.errors import OneDVAError
from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

logger = logging.getLogger("onedva")

SIGLIP_TYPES = ("siglip", "siglip_vision_model")


def load_siglip(folder: str | Path | None) -> Siglip | None:
    """SigLIP's vision tower from a folder with `config.json` and `model.safetensors`; without one None and a log line.

    Needs `transformers` (the extra `repa`): OneDVAError without. Raises FileNotFoundError or ValueError for a folder
    that holds something else.
    """
    if folder is None:
        logger.info("REPA is off: no folder with SigLIP weights was given")
        return None
    folder = Path(folder)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} is no SigLIP folder: config.json and safetensors weights are needed")
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in SIGLIP_TYPES:
        raise ValueError(f"{folder} holds a model of type {kind!r}; allowed: {', '.join(SIGLIP_TYPES)}")
    try:
        from transformers import SiglipVisionModel
        from transformers.utils import logging as transformers_logging
    except ModuleNotFoundError as error:
        raise OneDVAError(f"REPA needs {error.name}: pip install 'onedva[repa]'") from None
    shown = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it lists the text tower's weights, which nobody asked for
    try:
        loaded: Any = SiglipVisionModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    finally:
        transformers_logging.set_verbosity(shown)
    network, report = loaded
    if report["missing_keys"]:  # transformers would go on with random ones
        raise ValueError(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}")
    return Siglip(network)


class Siglip(nn.Module):
    """Patch features of the source frames on the model's grid; frozen."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        config = network.config
        self.size: int = config.image_size  # type: ignore[union-attr]
        self.patches: int = self.size // config.patch_size  # type: ignore[union-attr]
        self.channels: int = config.hidden_size  # type: ignore[union-attr]

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """video (B, 3, T, H, W) in [-1, 1], T = 1 + 4n, H and W multiples of 16 → (B, Tg, H/16, W/16, F) float32.

        Frames are scaled to the square SigLIP was trained on, which keeps its position embeddings; its patch features
        are resampled to the grid and averaged over each group's frames.
        """
        batch, height, width = video.shape[0], video.shape[3] // PATCH_SIZE, video.shape[4] // PATCH_SIZE
        images = rearrange(video.float(), "b c t h w -> (b t) c h w")
        images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        features = self.network(images).last_hidden_state.float()  # (B·T, patches², F)
        features = rearrange(features, "n (y x) f -> n f y x", y=self.patches)
        features = F.interpolate(features, size=(height, width), mode="bilinear", antialias=True)
        features = rearrange(features, "(b t) f h w -> b t h w f", b=batch)
        groups = reduce(features[:, 1:], "b (g p) h w f -> b g h w f", "mean", p=PATCH_FRAMES)
        return torch.cat([features[:, :1], groups], dim=1)


def load_lpips(path: str | Path | None) -> LPIPS | None:
    """LPIPS from a safetensors file; without one None and a log line.

    The file is what `safetensors.torch.save_model(lpips.LPIPS(net="vgg"), path)` writes ("alex" too), with the names of
    the `lpips` package (Zhang et al. 2018, version 0.1). Raises FileNotFoundError, or ValueError for other contents.
    """
    if path is None:
        logger.info("LPIPS is off: no file with its weights was given")
        return None
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return LPIPS(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} holds no LPIPS of VGG16 or AlexNet: {error}") from error


class LPIPS(nn.Module):
    """Learned perceptual distance of pictures: 0 for equal ones, about 1 for unrelated; frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """weights: the state of `lpips.LPIPS` with AlexNet or VGG16; KeyError or RuntimeError for others."""
        super().__init__()
        large_kernel = weights["net.slice1.0.weight"].shape[-1] == 11
        self.stages = nn.ModuleList(alexnet_stages() if large_kernel else vgg_stages())
        found = {}
        for name, tensor in weights.items():  # the package keeps torchvision's numbering of layers inside each slice
            if match := re.fullmatch(r"net\.slice(\d)\.(\d+)\.(weight|bias)", name):
                found[int(match[1]) - 1, match[3], int(match[2])] = tensor
        state = {}
        for index, stage in enumerate(self.stages):
            for kind in ("weight", "bias"):
                tensors = [found[key] for key in sorted(found) if key[:2] == (index, kind)]
                names = [name for name in stage.state_dict() if name.endswith(kind)]
                state |= {f"{index}.{name}": tensor for name, tensor in zip(names, tensors, strict=False)}
            linear = next(
                (weights[name] for name in weights if re.fullmatch(rf"lins?\.?{index}\.model\.\d\.weight", name)), None
            )
            if linear is None:
                raise KeyError(f"lin{index}.model.1.weight")
            self.register_buffer(f"weight_{index}", linear.float())  # (1, C, 1, 1)
        self.stages.load_state_dict(state)
        # how the backbones' training data was normalised, in terms of [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """images, others (N, 3, H, W) in [-1, 1], H and W at least 64 → (N,) float32."""
        hidden = (torch.cat([images, others]) - self.shift) / self.scale
        distance = hidden.new_zeros(images.shape[0], dtype=torch.float32)
        for index, stage in enumerate(self.stages):
            hidden = stage(hidden)
            features = hidden.float()
            # the floor keeps pixels where every channel is 0 at 0
            features = features * (features.square().sum(dim=1, keepdim=True) + 1e-20).rsqrt()
            one, other = features.chunk(2)
            difference = (one - other).square() * self.get_buffer(f"weight_{index}")
            distance = distance + difference.sum(dim=1).mean(dim=(1, 2))
        return distance


def vgg_stages() -> list[nn.Module]:
    """VGG16's convolutions, cut behind the last ReLU before each pooling."""
    stages: list[nn.Module] = []
    channels = 3
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        layers: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        stages.append(nn.Sequential(*layers))
    return stages


def alexnet_stages() -> list[nn.Module]:
    """AlexNet's five convolutions (torchvision's), each with its ReLU and what pools before it."""
    return [
        nn.Sequential(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    ]
