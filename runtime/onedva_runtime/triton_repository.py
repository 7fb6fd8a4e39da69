"""A bundle as a model repository of NVIDIA's Triton Inference Server, as `onedva export --triton DIR` writes it:

    onedva_encoder, onedva_condition, onedva_velocity, onedva_one_step
                    the graphs, on Triton's ONNX Runtime, with dynamic batching
    onedva_encode   a clip to latents: placement, then the encoder
    onedva_decode   latents to a clip: condition, then the loop of steps

The last two are Python models that call the others (BLS). They need `pip install onedva` in Triton's Python, and never
meet PyTorch.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from onedva_runtime.bundle import Bundle
from onedva_runtime.errors import BundleError
from onedva_runtime.manifest import Manifest, TensorSpec

__all__ = ["TYPES", "write_triton"]

TYPES = {"uint8": "TYPE_UINT8", "int64": "TYPE_INT64", "float32": "TYPE_FP32", "bool": "TYPE_BOOL"}
MAX_BATCH = 8
QUEUE_DELAY_US = 2000
INSTANCES = 4  # Python models that wait for graphs at a time: without several of them nothing could be batched

_GRAPH = """\
# {what}
name: "onedva_{name}"
backend: "onnxruntime"
default_model_filename: "{file}"
max_batch_size: {max_batch}
dynamic_batching {{
  max_queue_delay_microseconds: {delay}
}}
"""
_CALLER = """\
# {what}
name: "onedva_{name}"
backend: "python"
max_batch_size: 0
instance_group [
  {{
    count: {instances}
    kind: KIND_CPU
  }}
]
"""
_WHAT = {
    "encoder": "Frames to latents at given anchors; onedva_encode chooses these.",
    "condition": "What decoding knows of a clip's latents, once per clip.",
    "velocity": "One diffusion step.",
    "one_step": "Latents to frames in one step, in one graph.",
}


def write_triton(bundle: Bundle, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the repository for a bundle into `folder`, whole or not at all, and return it.

    Raises BundleError where the folder exists and `overwrite` is False, or holds something else.
    """
    target = Path(folder)
    if target.exists() and not (overwrite and _is_ours(target)):
        how = "holds something else: give another folder" if overwrite else "exists already (-f replaces it)"
        raise BundleError(f"{target}: {how}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, text in configurations(bundle.manifest).items():
            version = temporary / f"onedva_{name}" / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(text)
            if name in bundle.manifest.graphs:
                shutil.copy(bundle.graph_path(name), version)
                shutil.copy(
                    bundle.folder / "model.safetensors", version
                )  # where its weights are; no links: Triton copies
            else:
                source = resources.files("onedva_runtime.triton_models") / f"{name}.py"
                (version / "model.py").write_text(source.read_text())
                shutil.copy(bundle.folder / "manifest.json", version)
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def configurations(manifest: Manifest) -> dict[str, str]:
    """config.pbtxt of each model, by its name without `onedva_`."""
    texts: dict[str, str] = {}
    for name, what in _WHAT.items():
        if name not in manifest.graphs:
            continue
        graph = manifest.graphs[name]
        head = _GRAPH.format(what=what, name=name, file=graph.file, max_batch=MAX_BATCH, delay=QUEUE_DELAY_US)
        texts[name] = head + "".join(_graph_tensor("input", one) for one in graph.inputs)
        texts[name] += "".join(_graph_tensor("output", one) for one in graph.outputs)
    structural, latents = manifest.model.structural_channels, manifest.model.latent_channels
    clip = {
        "structural": ("TYPE_FP32", (-1, -1, -1, structural)),
        "latents": ("TYPE_FP32", (-1, latents)),
        "anchors": ("TYPE_INT64", (-1,)),
    }
    frames = {"frames": ("TYPE_UINT8", (-1, -1, -1, 3))}
    context = {"context_frame": ("TYPE_UINT8", (-1, -1, 3))}
    what = (
        "A clip (T, H, W, 3) to its latents. tokens: -1 is as many as it needs. context_frame: of a continuation clip."
    )
    texts["encode"] = _CALLER.format(what=what, name="encode", instances=INSTANCES)
    texts["encode"] += _tensors("input", frames)
    texts["encode"] += _tensors("input", {"tokens": ("TYPE_INT32", (1,)), "fps": ("TYPE_FP32", (1,)), **context}, True)
    texts["encode"] += _tensors("output", {**clip, "predicted_error": ("TYPE_FP32", (-1,))})
    what = "Latents to a clip of size (frames, height, width). context_frame: decoded before a continuation clip."
    texts["decode"] = _CALLER.format(what=what, name="decode", instances=INSTANCES)
    texts["decode"] += _tensors("input", {**clip, "size": ("TYPE_INT32", (3,))})
    options = {
        "num_steps": ("TYPE_INT32", (1,)),
        "seed": ("TYPE_UINT64", (1,)),
        "first_frame": ("TYPE_INT64", (1,)),
        "fps": ("TYPE_FP32", (1,)),
        **context,
    }
    texts["decode"] += _tensors("input", options, True)
    texts["decode"] += _tensors("output", frames)
    return texts


def _graph_tensor(role: str, spec: TensorSpec) -> str:
    """A graph's input or output without its batch axis, which Triton adds; one number per clip is a vector to it."""
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
    return _tensor(role, spec.name, TYPES[spec.dtype], tuple(sizes) or (1,), scalar=not sizes)


def _tensors(role: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]], optional: bool = False) -> str:
    return "".join(_tensor(role, name, kind, sizes, optional=optional) for name, (kind, sizes) in tensors.items())


def _tensor(
    role: str, name: str, kind: str, sizes: tuple[int, ...], *, scalar: bool = False, optional: bool = False
) -> str:
    lines = [f'name: "{name}"', f"data_type: {kind}", f"dims: [ {', '.join(map(str, sizes))} ]"]
    lines += ["reshape: { shape: [ ] }"] * scalar + ["optional: true"] * optional
    return f"{role} [\n  {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n]\n"


def _is_ours(folder: Path) -> bool:
    """Whether it holds nothing but a repository that was written here."""
    return folder.is_dir() and all(entry.name.startswith("onedva_") for entry in folder.iterdir())
