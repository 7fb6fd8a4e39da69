"""Tensors on a GPU, and what the named axes of a graph come to for given inputs: shared by the backends there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends.cuda_memory import Buffer
from onedva_runtime.errors import BackendError
from onedva_runtime.manifest import GraphSpec, TensorSpec
from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

__all__ = ["BYTES", "Feeds", "Tensor", "axes_of", "byte_count", "clip_size", "latent_feeds", "shape_of"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "bool": 1, "uint8": 1}
Size = tuple[int, int, int]


@dataclass(frozen=True)
class Tensor:
    """A tensor on the device."""

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: str = "float32"


Feeds = Mapping[str, "npt.NDArray[Any] | Tensor"]


def byte_count(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor."""
    return BYTES[dtype] * int(np.prod(shape))


def axes_of(graph: str, spec: GraphSpec, feeds: Feeds) -> dict[str, int]:
    """What the symbols of the graph's axes are for these inputs. Raises BackendError for one that does not fit."""
    sizes: dict[str, int] = {}
    for value in spec.inputs:
        shape = feeds[value.name].shape
        fits = len(shape) == len(value.shape)
        for axis, size in zip(value.shape, shape, strict=False):
            known = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
            fits = fits and known == size
        if not fits:
            wanted = tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in value.shape)
            raise BackendError(f"{graph} takes {value.name} of shape {wanted}, got {tuple(shape)}")
    if "K" not in sizes and "K+5" in sizes:
        sizes["K"] = sizes["K+5"] - 5
    if "K" in sizes:
        sizes["K+5"] = sizes["K"] + 5
    if "Tg" in sizes:
        patches = {"T": PATCH_FRAMES * (sizes["Tg"] - 1) + 1}
        patches |= {"H": PATCH_SIZE * sizes["Hg"], "W": PATCH_SIZE * sizes["Wg"]} if "Hg" in sizes else {}
        sizes = {**patches, **sizes}
    elif "T" in sizes:
        sizes |= {"Tg": 1 + (sizes["T"] - 1) // PATCH_FRAMES}
        sizes |= {"Hg": sizes["H"] // PATCH_SIZE, "Wg": sizes["W"] // PATCH_SIZE}
    return sizes


def shape_of(value: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input or output, its symbols replaced."""
    return tuple(axes[axis] if isinstance(axis, str) else axis for axis in value.shape)


def latent_feeds(
    structural: npt.NDArray[Any],
    latents: npt.NDArray[Any],
    anchors: npt.NDArray[Any],
    has_latents: npt.NDArray[Any],
    resolution: npt.NDArray[Any],
    is_key: npt.NDArray[Any],
) -> dict[str, npt.NDArray[Any]]:
    """The condition graph's inputs by name."""
    return {
        "structural": structural,
        "latents": latents,
        "anchors": anchors,
        "has_latents": has_latents,
        "resolution": resolution,
        "is_key": is_key,
    }


def clip_size(structural: npt.NDArray[Any]) -> Size:
    """(frames, height, width) of the clips that structural latents (B, Tg, Hg, Wg, Zs) are of."""
    groups, rows, columns = structural.shape[1:4]
    return PATCH_FRAMES * (groups - 1) + 1, PATCH_SIZE * rows, PATCH_SIZE * columns
