"""A nano model, made-up clips and a quick linear start for the tests of the PyTorch side; torch runs on one thread."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nano import random_transform
from onedva.config import OneDVAConfig
from onedva.data import Clip
from onedva.linear_start import fit_transform
from onedva.model import OneDVA, to_frames, to_video
from onedva.patches import PatchPCA, patchify
from onedva_runtime.clips import make_clip
from onedva_runtime.video_io import VideoWriter

NANO: dict[str, Any] = {
    "preset": "nano",
    "width": 64,
    "encoder_depth": 1,
    "stem_depth": 1,
    "diffusion_depth": 1,
    "structural_channels": 6,
    "latent_channels": 10,
    "components": 24,
    "queries": 64,
    "trained_tokens": 64,
    "residual_channels": 2,
    "clip_frames": 5,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that bits can be compared, and the same weights for every run of a test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nano() -> Callable[..., OneDVAConfig]:
    """nano(**changes): a configuration small enough for a training step in a blink."""
    return lambda **changes: OneDVAConfig(**{**NANO, **changes})


@pytest.fixture
def random_model(nano: Callable[..., OneDVAConfig]) -> Callable[..., OneDVA]:
    """random_model(**changes): a nano model whose zero starts are random too, as training leaves none at zero."""

    def make(**changes: Any) -> OneDVA:
        torch.manual_seed(1)
        model = OneDVA(nano(**changes)).eval()
        if model.transform is not None:
            random_transform(model.transform)
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
        return model.requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., np.ndarray]:
    """make_frames(batch, frames, height, width): made-up clips (B, T, H, W, 3) uint8, each another scene."""

    def make(batch: int = 1, frames: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
        return np.stack([make_clip(frames, height, width, seed=seed) for seed in range(batch)])

    return make


@pytest.fixture(scope="session")
def make_video(make_frames: Callable[..., np.ndarray]) -> Callable[..., Tensor]:
    """make_video(batch, frames, height, width): the same as video (B, 3, T, H, W) in [-1, 1]."""
    return lambda *shape: to_video(torch.from_numpy(make_frames(*shape)))


@pytest.fixture(scope="session")
def quick_pca() -> Callable[[Tensor, int], PatchPCA]:
    """quick_pca(video, components): by an SVD of the video's few patches, where `PatchStatistics` takes a minute.

    Beyond as many components as there are patches, any other orthonormal ones.
    """

    def fit(video: Tensor, components: int) -> PatchPCA:
        rows = patchify(video).reshape(-1, 3072).double().numpy()
        mean = rows.mean(axis=0)
        _, values, vectors = np.linalg.svd(rows - mean, full_matrices=False)
        more = np.random.default_rng(0).normal(size=(components, 3072))
        more -= more @ vectors.T @ vectors
        vectors = np.concatenate([vectors, np.linalg.qr(more.T)[0].T])[:components]
        std = np.maximum(np.pad(values, (0, components))[:components] / np.sqrt(len(rows)), 1e-4)
        kept = (mean, vectors, std)
        return PatchPCA(*(torch.from_numpy(np.ascontiguousarray(part)).float() for part in kept))

    return fit


@pytest.fixture
def pca_model(nano: Callable[..., OneDVAConfig], quick_pca: Callable[[Tensor, int], PatchPCA]) -> Callable[..., OneDVA]:
    """pca_model(video, **changes): a nano model whose transform is fit to `video` as it is, one full clip a row."""

    def make(video: Tensor, **changes: Any) -> OneDVA:
        torch.manual_seed(1)
        model = OneDVA(nano(**{"clip_frames": video.shape[2], **changes})).eval()
        clips = [Clip(str(row), frames, 24.0) for row, frames in enumerate(to_frames(video))]
        fit_transform(model, clips, quick_pca(video, model.config.components), per_clip=1, varied=False, held=False)
        return model.requires_grad_(False)

    return make


@pytest.fixture
def write_video() -> Callable[..., np.ndarray]:
    """write_video(path, frames=, height=, width=, seed=, fps=): a made-up video file; returns what was written."""

    def write(
        path: Path, *, frames: int = 20, height: int = 96, width: int = 128, seed: int = 0, fps: int = 24
    ) -> np.ndarray:
        clip = make_clip(frames, height, width, seed=seed)
        with VideoWriter(path, width=width, height=height, fps=Fraction(fps)) as writer:
            writer.write(clip)
        return clip

    return write


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONEDVA_CACHE in a folder of this test's own."""
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
