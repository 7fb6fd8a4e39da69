"""The model card of a bundle: what it is and what it was checked against."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_card(path: Path, manifest: dict[str, Any]) -> None:
    """Write README.md from a manifest's content."""
    model, worst = manifest["model"], manifest["parity"]["worst_db"]
    lengths = manifest["lengths"]
    path.write_text(f"""---
library_name: onedva
pipeline_tag: video-to-video
---

# {manifest["name"]}

A One-DVA video autoencoder, exported by onedva.

- Preset `{model["preset"]}`, {model["parameters"] / 1e6:.1f} M parameters, 16 bit, in `model.safetensors`.
- Clips of up to {manifest["clip"]["frames"]} frames.
- Structural latent: {model["structural_channels"]} channels per 4×16×16 patch.
- 1D latents: 0 to {lengths["max_tokens"]} of {model["latent_channels"]} channels.
- ONNX opset {manifest["graphs"]["encoder"]["opset"]}.
- Worst case against PyTorch float32: {worst["one_step"]} dB at 1 step, {worst["four_step"]} dB at 4.

```python
from onedva import VideoCodec

codec = VideoCodec.from_pretrained("path/to/this/folder")
```
{generator_lines(manifest["generator"]) if "generator" in manifest else ""}""")


def generator_lines(spec: dict[str, Any]) -> str:
    """What the card says of a generator, by its entry in the manifest."""
    sizes = ", ".join(f"{width}×{height}" for height, width in spec["sizes"])
    label = f'label="{spec["classes"][0]}", ' if spec["classes"] else ""
    given = [f"texts of {spec['text_tokens']}×{spec['text_channels']}"] if spec["text_tokens"] else []
    given += ["a first frame"] if spec["continuation"] else []
    return f"""
## It generates, too

- A latent diffusion model of {spec["parameters"] / 1e6:.1f} M parameters, 16 bit, in `{spec["weights"]}`.
- Classes: {", ".join(spec["classes"]) or "none"}.
- Also takes: {", ".join(given) or "nothing else"}.
- Clips of {spec["frames"]} frames of {sizes}, {spec["fps"]:g} frames a second; 0 to {spec["max_tokens"]} 1D latents.

```python
frames = codec.generate({label}seed=0)  # ({spec["frames"]}, height, width, 3) uint8
```
"""
