"""A clip to its latents inside Triton: anchors are placed here, the encoder is a model of its own, which batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onedva_runtime.clip_coding import Engine, encode_clips
from onedva_runtime.clipper import Clip
from onedva_runtime.triton_backend import TritonBackend, answered, read_manifest


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Read the manifest beside this file."""
        manifest = read_manifest(Path(args["model_repository"]) / args["model_version"] / "manifest.json")
        self._engine = Engine(manifest, TritonBackend(manifest))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer per request."""
        return [answered(request, self._encode) for request in requests]

    def _encode(
        self, frames: np.ndarray, tokens: int = -1, fps: float = 24.0, context_frame: Any = None
    ) -> dict[str, Any]:
        first = (
            0 if context_frame is None else 1
        )  # a continuation clip is not the first; which it is matters to decoding
        clip = Clip(frames=frames, first_frame=first, context_frame=context_frame)
        limit = self._engine.manifest.max_tokens
        budget = None if tokens < 0 else tokens
        (packet,) = encode_clips(self._engine, [clip], budget=budget, limit=limit, fps=fps, follow_camera=False)
        return {
            "structural": packet.structural,
            "latents": packet.latents,
            "anchors": packet.anchors,
            "predicted_error": packet.predicted_error,
        }
