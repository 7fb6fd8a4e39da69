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
""")
