"""Tokenised clips on disk: shards of latents beside the plan they follow and the autoencoder that made them.

    FOLDER/plan.json                      what was asked for, and which videos go into which shard
    FOLDER/autoencoder/                   config.json and model.safetensors, as `OneDVA.from_pretrained` takes them
    FOLDER/latents-000000.safetensors     tensors of N clips, one row each:
        structural (N, Tg, Hg, Wg, Zs) f16    latents (N, K, Z) f16    anchors (N, K) i32    label (N,) i32
        and with continuation clips: continuation.structural, .latents, .anchors, and first (N, Hg, Wg, Zs + Z) f16
      and in the metadata a JSON of the clips' names and of what was skipped

A shard appears whole or not at all, so the ones that are there are the ones that are done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onedva.checkpoint import write_whole
from onedva.generation.config import AnchorMode

__all__ = ["PLAN", "LatentBatch", "LatentSet", "Plan", "Row", "read_plan", "shard_path", "write_shard"]

PLAN, AUTOENCODER = "plan.json", "autoencoder"
FORMAT, VERSION = "onedva-latents", 1
CONTINUATION = ("continuation.structural", "continuation.latents", "continuation.anchors", "first")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a folder of latents holds, or will."""

    autoencoder: str
    """`checkpoint.latent_space` of the autoencoder, hex."""
    split: str
    """Of the videos."""
    frames: int
    """Of each clip, 1 + 4n."""
    size: tuple[int, int]
    """(height, width) in pixels, multiples of 16."""
    tokens: int
    """1D latents of each clip."""
    anchors: AnchorMode
    """`fixed`: the same places for all clips. `generated`: where the clip's own detail puts them."""
    continuation: bool
    """Whether each clip is also there as a continuation of its first frame."""
    clips_per_video: int
    """At most so many clips of a video, one after the other; 0: all."""
    classes: tuple[str, ...]
    """Names, by label. A clip without a class has the label len(classes)."""
    videos: tuple[tuple[str, ...], ...]
    """Names of the videos of each shard."""
    labels: tuple[tuple[int, ...], ...]
    """Their labels."""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def read_plan(folder: Path) -> Plan:
    """The plan of a folder of latents. Raises FileNotFoundError, or ValueError for another file of that name."""
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no latents ({PLAN} is missing): make them with onedva tokenize")
    values = json.loads(path.read_text())
    if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
        raise ValueError(f"{path} is not a plan of {FORMAT}, version {VERSION}: tokenize again with this onedva")
    nested = {name: tuple(tuple(part) for part in values[name]) for name in ("videos", "labels")}
    return Plan(**{**values, **nested, "size": tuple(values["size"]), "classes": tuple(values["classes"])})


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"latents-{index:06d}.safetensors"


class Row(NamedTuple):
    """One clip of a shard."""

    name: str
    label: int
    tensors: dict[str, Tensor]


def write_shard(path: Path, rows: list[Row], *, empty: dict[str, Tensor], skipped: list[str]) -> None:
    """Write a shard. empty: tensors without rows, for a shard without clips."""
    tensors = {name: torch.stack([row.tensors[name] for row in rows]) for name in rows[0].tensors} if rows else empty
    tensors["label"] = torch.tensor([row.label for row in rows], dtype=torch.int32)
    facts = json.dumps({"names": [row.name for row in rows], "skipped": skipped}, ensure_ascii=False)
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata={"onedva": facts}))


class LatentBatch(NamedTuple):
    """Rows of one kind of clip."""

    structural: Tensor  # (B, Tg, Hg, Wg, Zs) float32
    latents: Tensor  # (B, K, Z)
    anchors: Tensor  # (B, K) int64
    label: Tensor  # (B,) int64
    first: Tensor | None  # (B, Hg, Wg, Zs + Z) of continuation clips
    names: list[str]


class LatentSet:
    """The clips of one or several folders of latents, by number; rows are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError where the folder holds no latents, or not all of them yet; ValueError for damage."""
        self.folder, self.plan = folder, read_plan(folder)
        shards = [shard_path(folder, index) for index in range(len(self.plan.videos))]
        missing = [path.name for path in shards if not path.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of {len(shards)} shards, such as {missing[0]}: go on with "
                "onedva tokenize --resume"
            )
        self.handles: list[Any] = []
        self.names: list[str] = []
        counts: list[int] = []
        for path in shards:
            try:
                handle = safe_open(path, framework="pt")
                names = json.loads(handle.metadata()["onedva"])["names"]
            except (SafetensorError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged: remove it, then onedva tokenize --resume ({error})") from error
            self.handles.append(handle)
            self.names += names
            counts.append(len(names))
        self.starts: NDArray[np.int64] = np.cumsum([0, *counts])
        if not len(self):
            raise FileNotFoundError(f"{folder} holds no clips: all its videos were skipped")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of every clip."""
        return torch.cat([handle.get_tensor("label") for handle in self.handles]).numpy().astype(np.int64)

    def rows(self, indices: NDArray[np.int64], *, continuation: bool = False) -> LatentBatch:
        """The clips of these numbers, as key clips or as continuations of their first frames."""
        prefix = "continuation." if continuation else ""
        wanted = [f"{prefix}structural", f"{prefix}latents", f"{prefix}anchors", "label"]
        wanted += ["first"] if continuation else []
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for index in indices:
            shard = int(np.searchsorted(self.starts, index, side="right")) - 1
            row = int(index - self.starts[shard])
            for name in wanted:
                found[name].append(self.handles[shard].get_slice(name)[row : row + 1])
        tensors = {name: torch.cat(parts) for name, parts in found.items()}
        return LatentBatch(
            tensors[f"{prefix}structural"].float(),
            tensors[f"{prefix}latents"].float(),
            tensors[f"{prefix}anchors"].long(),
            tensors["label"].long(),
            tensors["first"].float() if continuation else None,
            [self.names[index] for index in indices],
        )
