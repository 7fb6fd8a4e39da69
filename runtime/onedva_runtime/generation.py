"""Generating in the runtime: noise → latents, by Euler steps through a bundle's `generator` graph.

The sampler is the decoder's own, and so is the noise; what latents, times and guidance mean, the graph knows. Its state
is normalised: `Statistics`, from the generator's weights file, turn it into the autoencoder's latents at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onedva_runtime import placement
from onedva_runtime.backends import Backend, Float32, LatentBackend
from onedva_runtime.bundle import Bundle
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.graphs import encode_batch
from onedva_runtime.latent_noise import latent_noise, snap_anchors
from onedva_runtime.manifest import GeneratorSpec
from onedva_runtime.packet import Packet
from onedva_runtime.prepare import check_integer
from onedva_runtime.sampler import euler, linear_timesteps

__all__ = ["Asked", "Statistics", "check_asked", "generate_latents", "label_of", "read_statistics"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What one clip is to be, checked."""

    label: int
    """Of a class; the number of classes means none."""
    tokens: int
    """1D latents, 0 for none."""
    num_steps: int
    guidance: float
    """1 follows class and text, more exaggerates them, 0 ignores them."""
    seed: int
    height: int
    width: int
    """In pixels, multiples of 16."""
    first: Float32 | None = None
    """Latents (Hg, Wg, Zs + Z) of the frame to go on from, as a clip of its own."""
    text: Float32 | None = None
    """Embeddings (L, C)."""


@dataclass(frozen=True)
class Statistics:
    """Means and deviations of the latents that a generator was trained on, by kind of clip (continuation, key)."""

    structural_mean: Float32  # (2, Tg, Zs)
    structural_std: Float32
    sequence_mean: Float32  # (2, Z)
    sequence_std: Float32
    first_mean: Float32  # (Zs + Z,)
    first_std: Float32


def read_statistics(bundle: Bundle) -> Statistics:
    """The statistics of a bundle's generator. Raises BundleError where its weights lack them."""
    from safetensors import SafetensorError, safe_open

    assert bundle.manifest.generator is not None
    path = bundle.folder / bundle.manifest.generator.weights
    names = list(Statistics.__dataclass_fields__)
    try:
        with safe_open(path, framework="np") as file:
            return Statistics(*(file.get_tensor(name).astype(np.float32) for name in names))
    except SafetensorError as error:
        raise BundleError(f"{path.name} lacks statistics of latents: {error}") from None


def check_asked(
    bundle: Bundle,
    backend: Backend,
    *,
    label: str | None,
    tokens: int | None,
    num_steps: int,
    guidance: float,
    seed: int,
    size: tuple[int, int] | None,
    first_frame: npt.NDArray[np.uint8] | None,
    text: npt.NDArray[np.float32] | None,
) -> Asked:
    """What `VideoCodec.generate` is asked for, checked, and the first frame encoded. Raises what it raises."""
    spec = bundle.manifest.generator
    if spec is None:
        raise BundleError(
            f"{bundle.manifest.name} has no generator: export what onedva train-ldm left, or choose another bundle"
        )
    if not isinstance(backend, LatentBackend):
        raise BackendError(
            f"backend {backend.name} runs no generator in this version of onedva; use onnxruntime or openvino"
        )
    height, width = size or (spec.sizes[0][0], spec.sizes[0][1])
    grid = placement.grid_of(spec.frames, height, width)
    most = bundle.manifest.clip.max_video_positions
    if grid[0] * grid[1] * grid[2] > most:
        raise ValueError(f"{width}x{height} makes {grid[0] * grid[1] * grid[2]} positions; the model takes {most}")
    if not (np.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance must be finite and at least 0, got {guidance}")
    count = placement.asked_tokens(
        None if tokens is None else check_integer("tokens", tokens, 0, 2**31),
        grid,
        max_tokens=spec.max_tokens,
        is_key=first_frame is None,
        length_multiple=spec.length_multiple,
    )
    first = None
    if first_frame is not None:
        if not spec.continuation:
            raise ValueError(f"{bundle.manifest.name} was not trained to go on from a first frame")
        frame = check_first(first_frame, height, width)
        first = encode_first(backend, frame, max_tokens=bundle.manifest.max_tokens, fps=spec.fps)
    shape = (spec.text_tokens, spec.text_channels)
    if text is not None and text.shape != shape:
        wanted = f"({shape[0]}, {shape[1]})" if spec.text_tokens else "none: it was trained without"
        raise ValueError(f"text must be of shape {wanted}; got {text.shape}")
    return Asked(
        label=label_of(spec.classes, label),
        tokens=count,
        num_steps=check_integer("num_steps", num_steps, 1, bundle.manifest.sampler.max_steps),
        guidance=float(guidance),
        seed=check_integer("seed", seed, 0, 2**64 - 1),
        height=height,
        width=width,
        first=first,
        text=None if text is None else text.astype(np.float32),
    )


def check_first(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """The first frame itself; ValueError for another size or type than the clip's."""
    if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
        raise ValueError(f"first_frame must be uint8 ({height}, {width}, 3), got {frame.dtype} {frame.shape}")
    return frame


def encode_first(backend: Backend, frame: npt.NDArray[np.uint8], *, max_tokens: int, fps: float) -> Float32:
    """All latents of a frame as a clip of its own, a 1D latent for each position as far as the model has them, zeros
    for the rest: (Hg, Wg, Zs + Z)."""
    grid = placement.grid_of(1, frame.shape[0], frame.shape[1])
    count = placement.longest(grid, max_tokens=max_tokens)
    structural, latents, _ = encode_batch(backend, frame[None, None], np.arange(count, dtype=np.int64)[None], [fps])
    layer = np.zeros((grid[1] * grid[2], latents.shape[2]), np.float32)
    layer[:count] = latents[0]
    return np.concatenate([structural[0, 0], layer.reshape(*grid[1:], -1)], axis=-1)


def label_of(classes: tuple[str, ...], name: str | None) -> int:
    """The label of a class by its name, None for any of them. Raises ValueError with the names there are."""
    if name is None:
        return len(classes)
    if name not in classes:
        raise ValueError(f"unknown class {name!r}; this generator knows {', '.join(classes) or 'none'}")
    return classes.index(name)


def generate_latents(bundle: Bundle, backend: LatentBackend, statistics: Statistics, asked: Asked) -> Packet:
    """The latents of a new clip, as a packet that decodes like any other.

    A clip that goes on from `asked.first` is a continuation clip, its first frame number 1.
    """
    spec = bundle.manifest.generator
    assert spec is not None
    model = bundle.manifest.model
    grid = placement.grid_of(spec.frames, asked.height, asked.width)
    is_key, count = asked.first is None, max(asked.tokens, 1)
    places = 3 if spec.anchors == "generated" else 0
    structural, sequence = latent_noise(
        asked.seed, grid, model.structural_channels, count, model.latent_channels + places
    )
    anchors = placement.shared_anchors(grid, count, is_key=is_key, layered=spec.layered)
    if not is_key:
        structural[0] = 0
    fixed = _fixed_inputs(spec, statistics, asked, grid, anchors)
    wanted = {value.name for value in bundle.manifest.graphs["generator"].inputs}
    rows = 1 if asked.guidance == 1 else 2  # with what was asked for, and without
    fixed = {name: np.ascontiguousarray(value[:rows]) for name, value in fixed.items() if name in wanted}
    size = structural.size

    def velocity(state: Float32, t: float) -> Float32:
        flat = state.reshape(-1)
        feeds = {
            "structural": np.stack([flat[:size].reshape(structural.shape)] * rows),
            "sequence": np.stack([flat[size:].reshape(sequence.shape)] * rows),
            "t": np.full(rows, t, np.float32),
            **fixed,
        }
        parts = backend.latent_velocity(feeds)
        if rows == 2:
            weight = np.float32(asked.guidance)
            parts = tuple(part[1] + weight * (part[0] - part[1]) for part in parts)
        return np.concatenate([part.reshape(-1) for part in parts]).reshape(state.shape)

    times = linear_timesteps(asked.num_steps, min_t=bundle.manifest.sampler.schedule.min_t)
    start = np.concatenate([structural.reshape(-1), sequence.reshape(-1)]).reshape(1, 1, 1, 1, -1)
    end = euler(velocity, start, times).reshape(-1)
    structural, sequence = end[:size].reshape(structural.shape), end[size:].reshape(sequence.shape)
    kind = int(is_key)
    mean, std = statistics.structural_mean[kind][:, None, None], statistics.structural_std[kind][:, None, None]
    structural = structural * std + mean
    if not is_key:
        structural[0] = 0  # it is not sent
    latents = sequence[:, : model.latent_channels] * statistics.sequence_std[kind] + statistics.sequence_mean[kind]
    if places:
        anchors = snap_anchors(sequence[:, model.latent_channels :], grid, is_key=is_key)
    return Packet(
        structural=structural,
        latents=latents[: asked.tokens],
        anchors=anchors[: asked.tokens],
        is_key=is_key,
        frames=spec.frames if is_key else spec.frames - 1,
        height=asked.height,
        width=asked.width,
        fps=spec.fps,
        first_frame=0 if is_key else 1,
        model=model.fingerprint,
    )


def _fixed_inputs(
    spec: GeneratorSpec,
    statistics: Statistics,
    asked: Asked,
    grid: tuple[int, int, int],
    anchors: npt.NDArray[np.int64],
) -> Mapping[str, npt.NDArray[Any]]:
    """Inputs that no step changes, two rows each: as asked for, then without class and text."""
    first = np.zeros((*grid[1:], statistics.first_mean.shape[0]), np.float32)
    if asked.first is not None:
        first = (asked.first - statistics.first_mean) / statistics.first_std
    none = np.zeros((spec.text_tokens, spec.text_channels), np.float32)
    return {
        "anchors": np.stack([anchors] * 2),
        "has_latents": np.full(2, asked.tokens > 0),
        "label": np.array([asked.label, len(spec.classes)], np.int64),
        "resolution": np.array([(spec.frames, asked.height, asked.width, spec.fps)] * 2, np.float32),
        "is_key": np.full(2, asked.first is None),
        "first": np.stack([first] * 2),
        "text": np.stack([none if asked.text is None else asked.text, none]),
    }
