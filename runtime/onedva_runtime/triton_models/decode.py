"""Latents to a clip inside Triton: condition once, then the loop of steps, each a model of its own; or all of it in one
graph where one step is asked for and the bundle has that graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from onedva_runtime.clip_coding import Engine, decode_packets
from onedva_runtime.packet import Packet
from onedva_runtime.prepare import check_integer
from onedva_runtime.triton_backend import TritonBackend, answered, read_manifest


class TritonPythonModel:
    """What Triton loads."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Read the manifest beside this file."""
        manifest = read_manifest(Path(args["model_repository"]) / args["model_version"] / "manifest.json")
        self._engine = Engine(manifest, TritonBackend(manifest))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer per request."""
        return [answered(request, self._decode) for request in requests]

    def _decode(
        self,
        structural: np.ndarray,
        latents: np.ndarray,
        anchors: np.ndarray,
        size: np.ndarray,
        num_steps: int = 1,
        seed: int = 0,
        first_frame: int | None = None,
        fps: float = 24.0,
        context_frame: Any = None,
    ) -> dict[str, Any]:
        manifest, is_key = self._engine.manifest, context_frame is None
        frames, height, width = (int(n) for n in size)
        packet = Packet(
            structural=structural,
            latents=latents,
            anchors=anchors,
            is_key=is_key,
            frames=frames,
            height=height,
            width=width,
            fps=fps,
            first_frame=(0 if is_key else 1) if first_frame is None else first_frame,
            model=manifest.model.fingerprint,
        ).validate()
        steps = check_integer("num_steps", num_steps, 0 if manifest.model.preview else 1, manifest.sampler.max_steps)
        (decoded,) = decode_packets(self._engine, [packet], [context_frame], num_steps=steps, seed=seed)
        return {"frames": decoded}
