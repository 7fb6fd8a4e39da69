"""The linear codec inside the model: principal components of patches, then of columns of patches through time.

Patches overlap a little (`onedva.lapped`). A patch (4×16×16×3) becomes its strongest principal components,
*coefficients*. What stands still appears in every group of a clip, so the coefficients of one grid column (all groups
at one y, x) are decorrelated once more, along time: the strongest directions of a column are its structural latents,
spread over the groups, and the next ones its 1D latents, a *layer* of them at a time. So a 1D latent's anchor (t, y, x)
names layer t of column (y, x).

One set of directions cannot serve what stands still, what moves and what is flat alike. So there are a few, *classes*,
and each column takes the one whose structural latents hold most of it. The last structural channel of the last group,
which would hold the weakest direction, says which: `class_values`. (Adaptive transforms by class, as in Dony & Haykin,
"Optimally adaptive transform coding", IEEE Trans. Image Processing 4(10), 1995.)

What moves to the left is what moves to the right in a mirror. So every class also serves mirrored, left for right,
upside down and both: four *poses*, which cost no tables, since each component is even or odd under either mirror. A
pose turns the signs of some, and as components lie sorted by that (*sectors*: the even ones, those odd left to right,
those odd top to bottom, those odd both ways), the products with the parts of one table give all poses of it.

Directions depend on how many groups a clip codes and on its kind, so there is a table of them for each; the sizes that
streams are made of have one per class. Both steps are orthogonal (Karhunen-Loève transforms); the same numbers analyse
in the encoder and synthesise in the decoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.lapped import postfilter, prefilter
from onedva.patches import frames_of, mirror_signs, patchify, patchify_rows, rows_of, rows_of_patches, to_levels
from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

FIRST_GROUP = 0.25  # share of a real group that group 0 has: one frame, repeated four times
ADAPTIVE_GROUPS = (1, 2)  # numbers of groups, beside a full clip's, whose columns choose a class: still and live clips


class Size(NamedTuple):
    """Where the tables of one number of coded groups and kind begin."""

    is_key: bool
    coded: int
    """Groups that are sent: a continuation clip codes one fewer than it has."""
    row: int
    """First of its `coded` rows of `latent_std`, which all classes share."""
    blocks: tuple[int, ...]
    """First of the coded² blocks of `directions` of each class; the same for all where columns do not choose."""

    @property
    def adaptive(self) -> bool:
        """Whether columns choose among several tables."""
        return len(set(self.blocks)) > 1


def table_sizes(max_groups: int, classes: int) -> list[Size]:
    """Every kind and number of groups, with a table of every class where columns choose, else one for all."""
    found, block, row = [], 0, 0
    for is_key in (True, False):
        for groups in range(1 if is_key else 2, max_groups + 1):
            coded = groups if is_key else groups - 1
            tables = classes if groups == max_groups or groups in ADAPTIVE_GROUPS else 1
            blocks = [block + index * coded * coded for index in range(tables)]
            found.append(Size(is_key, coded, row, tuple(blocks + blocks[:1] * (classes - tables))))
            block, row = block + tables * coded * coded, row + coded
    return found


class Directions(NamedTuple):
    """Tables of a batch by sectors, (S, B, K·Tg·C, Tg·R/S), or the one that all clips have, (S, 1, …): 20 MB."""

    tables: Tensor
    shared: bool

    def synthesise(self, latents: Tensor) -> Tensor:
        """(B, P, K·Tg·C) → parts of columns (S, B, P, Tg·R/S)."""
        if not self.shared:
            return latents @ self.tables
        return (latents.flatten(0, 1) @ self.tables[:, 0]).unflatten(1, latents.shape[:2])

    def analyse(self, columns: Tensor) -> Tensor:
        """Parts of columns (S, B, P, Tg·R/S) → what each adds to latents, (S, B, P, K·Tg·C)."""
        if not self.shared:
            return columns @ self.tables.mT
        return (columns.flatten(1, 2) @ self.tables[:, 0].mT).unflatten(1, columns.shape[1:3])


class Tables(NamedTuple):
    """What one batch's columns are transformed with; K classes, C = Zs + Z channels, R components."""

    directions: Directions  # rows and columns of a continuation clip's group 0 are zero
    std: Tensor  # (B, Tg, C), of each latent over all classes; zeros in a group that is not coded and in the class slot
    weight: Tensor  # (B, Tg, 1, 1, 1), of each group


class PatchTransform(nn.Module):
    """Pixels ↔ patches ↔ coefficients ↔ normalised latents. Set by `onedva.linear_start.fit_transform`."""

    overlap: Tensor
    mean: Tensor
    coefficient_std: Tensor
    remainder_std: Tensor
    latent_std: Tensor
    first_blocks: Tensor
    first_rows: Tensor
    mirrors: Tensor  # (poses, sectors): the sign that a pose gives to components of a sector

    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.structural_channels = config.structural_channels
        self.channels = config.structural_channels + config.latent_channels
        self.components, self.classes, self.poses = config.components, config.classes, config.poses
        self.choices = config.choices
        self.max_groups = 1 + (config.clip_frames - 1) // PATCH_FRAMES
        self.sizes = table_sizes(self.max_groups, self.classes)
        blocks = max(max(size.blocks) + size.coded**2 for size in self.sizes)
        rows = max(size.row + size.coded for size in self.sizes)
        self.basis = nn.Parameter(torch.empty(config.components, PATCH_VALUES))  # orthonormal rows
        self.directions = nn.Parameter(torch.zeros(blocks, self.channels, config.components))
        self.register_buffer("overlap", torch.eye(PATCH_SIZE))  # none
        self.register_buffer("mean", torch.zeros(PATCH_VALUES))
        self.register_buffer("coefficient_std", torch.ones(config.components))
        self.register_buffer("remainder_std", torch.ones(config.components))  # of what latents leave of coefficients
        self.register_buffer("latent_std", torch.ones(rows, self.channels))
        # computed, not stored, so never on the meta device, where weights are still to come
        first_blocks = torch.zeros(2, self.max_groups + 1, self.classes, dtype=torch.int64, device="cpu")
        first_rows = torch.zeros(2, self.max_groups + 1, dtype=torch.int64, device="cpu")
        for size in self.sizes:
            at = int(size.is_key), size.coded + (not size.is_key)
            first_blocks[at], first_rows[at] = torch.tensor(size.blocks, device="cpu"), size.row
        self.register_buffer("mirrors", mirror_signs(self.poses, 1), persistent=False)
        self.register_buffer("first_blocks", first_blocks, persistent=False)
        self.register_buffer("first_rows", first_rows, persistent=False)
        nn.init.orthogonal_(self.basis)

    def start_random(self) -> None:
        """Random directions, for a model that is to learn its transform: zeros would give it no gradient."""
        nn.init.normal_(self.directions, std=(self.max_groups * self.components) ** -0.5)

    def cut(self, video: Tensor) -> Tensor:
        """`patchify` of a video (B, 3, T, H, W), with overlap: (B, Tg, Hg, Wg, 3072)."""
        with torch.autocast(video.device.type, enabled=False):
            return patchify(prefilter(video.float(), self.overlap))

    def cut_frames(self, frames: Tensor) -> Tensor:
        """The same of frames (B, T, H, W, 3) uint8."""
        return patchify_rows(prefilter(rows_of(frames), self.overlap, colours=3))

    def join(self, first: Tensor, others: Tensor) -> Tensor:
        """Inverse of `cut`: patches of frame 0 (B, 1, Hg, Wg, 768) and of the groups after it (B, Tg − 1, Hg, Wg, 3072)
        → video (B, 3, T, H, W)."""
        video = torch.cat([frames_of(first, 1), frames_of(others, PATCH_FRAMES)], dim=2).float()
        with torch.autocast(video.device.type, enabled=False):
            return postfilter(video, self.overlap)

    def join_frames(self, first: Tensor, others: Tensor) -> Tensor:
        """The same as frames (B, T, H, W, 3) uint8."""
        # as floats: runtimes move bytes more slowly
        rows = torch.cat([rows_of_patches(first, 1), rows_of_patches(others, PATCH_FRAMES)], dim=1)
        return to_levels(postfilter(rows, self.overlap, colours=3)).unflatten(3, (-1, 3))

    def coefficients(self, patches: Tensor) -> Tensor:
        """(…, 3072) → (…, R). float32 throughout: what the components leave is a hundredth of what they hold."""
        with torch.autocast(patches.device.type, enabled=False):
            return (patches.float() - self.mean) @ self.basis.T

    def patches(self, coefficients: Tensor) -> Tensor:
        """Inverse of `coefficients` within the span of the basis: (…, R) → (…, 3072)."""
        rows = coefficients.contiguous()  # of a strided tensor, PyTorch would multiply position by position
        return torch.nn.functional.linear(rows, self.basis.T, self.mean.to(rows.dtype))

    def patches_of_groups(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """What `join` takes, of coefficients (B, Tg, Hg, Wg, R)."""
        # split, not slices: the gradient of a slice is a whole video of zeros first
        first, others = coefficients.split([1, coefficients.shape[1] - 1], dim=1)
        return self.first_frame(first), self.patches(others)

    def first_frame(self, coefficients: Tensor) -> Tensor:
        """Frame 0 of `patches` of a first group, its four outputs averaged: (…, R) → (…, 768)."""
        return coefficients @ self.first_basis() + self.first_mean()

    def first_basis(self) -> Tensor:
        """(R, 768): what a component of a first group adds to frame 0."""
        return self.basis.unflatten(1, (PATCH_FRAMES, -1)).mean(dim=1)

    def first_mean(self) -> Tensor:
        return self.mean.unflatten(0, (PATCH_FRAMES, -1)).mean(dim=0)

    def shown(self, patches: Tensor) -> Tensor:
        """Coefficients of patches without the mean: (B, Tg, Hg, Wg, 3072) → (B, Tg, P, R)."""
        return patches.flatten(2, 3) @ self.basis.T

    def of_first_frame(self, values: Tensor) -> Tensor:
        """Coefficients of a group that is one frame four times, without the mean: (…, 768) → (…, R)."""
        return values @ self.basis.unflatten(1, (PATCH_FRAMES, -1)).sum(dim=1).T

    def analyse(self, coefficients: Tensor, is_key: Tensor) -> tuple[Tensor, Tensor]:
        """coefficients (B, Tg, Hg, Wg, R) → structural (B, Tg, Hg, Wg, Zs) and layers of latents (B, Tg, Hg, Wg, Z).

        Unit variance over all columns of the clips the directions were fit on, not of each class: a step of a latent is
        the same step of pixels whatever the class. Zeros in group 0 of a continuation clip.
        """
        groups, height, width = coefficients.shape[1:4]
        with torch.autocast(coefficients.device.type, enabled=False):
            directions, std, weight = self.tables(groups, is_key)
            columns = rearrange(coefficients.float() * weight, "b t h w (s r) -> s b (h w) (t r)", s=self.poses)
            parts = directions.analyse(columns).unflatten(3, (self.classes, groups, -1))  # (S, B, P, K, Tg, C)
            used = (std > 0)[:, None, None, :, : self.structural_channels]  # (B, 1, 1, Tg, Zs)
            strong = (parts[..., : self.structural_channels] * used).flatten(4)
            held = (self.mirrors @ strong.flatten(1)).unflatten(1, strong.shape[1:]).square().sum(dim=4)
            held = rearrange(held, "g b p k -> b p (k g)")
            chosen = self.one_hot(held.argmax(dim=2), held)  # (B, P, K·poses)
            of_class, signs = self.class_and_signs(chosen)
            found = (parts * of_class[..., None, None]).sum(dim=3)  # (S, B, P, Tg, C)
            found = (found * signs[..., None, None]).sum(dim=0)
            normal = torch.where(std > 0, 1 / std.clamp(min=1e-12), 0.0)[:, None]  # (B, 1, Tg, C)
            latents = found * normal  # (B, P, Tg, C)
            latents = (
                latents + self.class_slot(groups, latents) * (chosen @ self.class_values(latents))[..., None, None]
            )
        latents = rearrange(latents, "b (h w) t c -> b t h w c", h=height, w=width)
        return latents[..., : self.structural_channels], latents[..., self.structural_channels :]

    def synthesise(self, structural: Tensor, layers: Tensor, is_key: Tensor) -> Tensor:
        """Inverse of `analyse`: → coefficients (B, Tg, Hg, Wg, R). Latents that were not sent are zeros in `layers`."""
        groups, height, width = structural.shape[1:4]
        with torch.autocast(structural.device.type, enabled=False):
            directions, std, weight = self.tables(groups, is_key)
            of_class, signs = self.class_and_signs(self.chosen(structural))
            normal = torch.cat([structural.float(), layers.float()], dim=-1)
            scaled = rearrange(normal * std[:, :, None, None], "b t h w c -> b (h w) 1 t c")
            scaled = scaled * of_class[..., None, None]  # (B, P, K, Tg, C)
            columns = directions.synthesise(scaled.flatten(2)) * signs[..., None]  # (S, B, P, Tg·R/S)
            shape = {"t": groups, "h": height, "w": width}
            return rearrange(columns, "s b (h w) (t r) -> b t h w (s r)", **shape) / weight

    def chosen(self, structural: Tensor) -> Tensor:
        """Class and pose of each column, one-hot (B, Hg·Wg, K·poses), as its structural latents (B, Tg, Hg, Wg, Zs)
        tell them."""
        told = structural[:, -1, :, :, -1].flatten(1).float()  # (B, P)
        # the nearest value, not an exact one: latents are rounded on their way, and noisy in training
        return self.one_hot((told[..., None] - self.class_values(told)).abs().argmin(dim=-1), told)

    def one_hot(self, index: Tensor, like: Tensor) -> Tensor:
        """Numbers (…) of choices → (…, K·poses), 1 where it is that one; the dtype of `like`."""
        return (index[..., None] == torch.arange(self.choices, device=index.device)).to(like.dtype)

    def class_and_signs(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot choices (B, P, K·poses) → one-hot classes (B, P, K) and the signs of sectors (S, B, P)."""
        chosen = chosen.unflatten(2, (self.classes, self.poses))
        return chosen.sum(dim=3), rearrange(chosen.sum(dim=2) @ self.mirrors, "b p s -> s b p")

    def ranks(self, like: Tensor) -> Tensor:
        """The place (R,) of each component among all, strongest first: of each sector they take turns."""
        size = self.components // self.poses
        at = torch.arange(self.components, device=like.device)
        return (at % size) * self.poses + at // size

    def class_values(self, like: Tensor) -> Tensor:
        """What the class slot holds for each choice, (K·poses,): evenly spaced, unit variance over them."""
        spread = max((self.choices**2 - 1) / 12, 1e-12) ** 0.5
        index = torch.arange(self.choices, device=like.device, dtype=like.dtype)
        return (index - (self.choices - 1) / 2) / spread

    def class_slot(self, groups: int, like: Tensor) -> Tensor:
        """1 where latents (…, Tg, C or Zs) tell the class, else 0: (Tg, channels of `like`). No slot for one choice."""
        last = torch.arange(groups, device=like.device) == groups - 1
        channel = torch.arange(like.shape[-1], device=like.device) == self.structural_channels - 1
        return (last[:, None] & channel & (self.choices > 1)).to(like.dtype)

    def tables(self, groups: int, is_key: Tensor) -> Tables:
        """The tables of each clip, for clips of `groups` groups. Arithmetic on tensors only: exported graphs run it.

        Raises ValueError for more groups than the longest clip has: they would index the tables of another size.
        """
        if groups > self.max_groups:
            raise ValueError(f"there are directions for up to {self.max_groups} groups of frames, got {groups}")
        i = torch.arange(groups, device=is_key.device)
        this = (torch.arange(self.max_groups + 1, device=is_key.device) == groups).long()
        block = (self.first_blocks * this[:, None]).sum(1)[is_key.long()]  # (B, K)
        row = (self.first_rows * this).sum(1)[is_key.long()]  # (B,)
        skipped = (~is_key).long()[:, None]  # groups that are not coded
        at = i - skipped  # (B, Tg)
        coded = (i > 0) | is_key[:, None]  # (B, Tg)
        both = coded[:, :, None] & coded[:, None, :]  # (B, Tg, Tg)
        inside = (at[:, :, None] * (groups - skipped)[..., None] + at[:, None, :]) * both  # (B, Tg, Tg)
        # graphs that are exported choose by clip
        shared = not torch.compiler.is_compiling() and bool((is_key == is_key[0]).all())
        every = slice(1) if shared else slice(None)
        directions = (
            self.directions[block[every, :, None, None] + inside[every, None]] * both[every, None, ..., None, None]
        )
        directions = rearrange(directions, "b k i j c (s r) -> s b (k i c) (j r)", s=self.poses)
        std = self.latent_std[row[:, None] + at * coded] * coded[..., None]  # (B, Tg, C)
        std = std * (1 - self.class_slot(groups, std))
        weight = torch.where((i == 0) & is_key[:, None], FIRST_GROUP**0.5, 1.0)[:, :, None, None, None]
        return Tables(Directions(directions, shared), std, weight)
