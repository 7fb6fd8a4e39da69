"""Checkpoint → bundle: weights to 16 bit, ONNX graphs that point into them, proof of parity, manifest.

    onedva export runs/tiny -o ./onedva-tiny --max-tokens 1024

Everything is made in a temporary folder beside the target and renamed at the end; on any failure nothing is written.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from safetensors.numpy import save_file

from onedva.checkpoint import WEIGHTS, load_model, save_model
from onedva.config import MAX_VIDEO_POSITIONS
from onedva.flow import MIN_SCHEDULE_TIME
from onedva.generation.checkpoint import GENERATOR_WEIGHTS
from onedva.model import OneDVA, to_video
from onedva_export.card import write_card
from onedva_export.generator import copy_generator, generator_entry, plan_generator, verify_generator
from onedva_export.graphs import IR_VERSION, OPSET, GraphPlan, export_graph, plan_graphs
from onedva_export.static_export import GOLDEN_SIZE, StaticSizes, write_static_graphs
from onedva_export.verify import Parity, as_json, default_cases, verify
from onedva_export.weights import point_into, strip_metadata
from onedva_runtime import placement
from onedva_runtime.bundle import find, write_manifest
from onedva_runtime.clips import make_clip
from onedva_runtime.manifest import SCHEMA_VERSION
from onedva_runtime.noise import gaussian

logger = logging.getLogger("onedva")

TOLERANCES = {"structural": 5e-3, "latents": 5e-3, "predicted_error": 5e-3}


def export_bundle(
    checkpoint: str | Path,
    output: Path | None = None,
    *,
    name: str | None = None,
    max_tokens: int = 1024,
    resolutions: Sequence[tuple[int, int]] = ((128, 128), (256, 256)),
    frames: int | None = None,
    card: Path | None = None,
    tensorrt: StaticSizes | None = None,
    overwrite: bool = False,
) -> Path:
    """Export a checkpoint and return the bundle's folder.

    checkpoint: a folder, a shipped name or a hub id. output: default `./onedva-NAME`. max_tokens: longest latent length
    to promise, at most what the model was trained for. resolutions: (height, width) pairs that parity is shown at,
    beside a few small ones; the graphs take any multiple of 16. frames: of a full clip, default and at most what the
    model has. card: a README.md to ship instead of the generated one. tensorrt: clip sizes to add graphs for, which
    `build_engines` builds engines from; their frames are at most `frames`.
    Raises ParityError when graphs and model disagree, FileExistsError when `output` is there, ValueError for bad
    options.
    """
    source = find(checkpoint)
    model = load_model(source)
    config = model.config
    name = name or (source.name if source.name != "." else config.preset)
    output = output or Path(f"onedva-{name}")
    frames = frames or config.clip_frames
    if not config.length_multiple <= max_tokens:
        raise ValueError(f"max_tokens must be at least {config.length_multiple}, got {max_tokens}")
    if frames < 1 or (frames - 1) % 4:
        raise ValueError(f"frames must be 1 + 4n, got {frames}")
    if frames > config.clip_frames:
        raise ValueError(f"frames must be at most the model's {config.clip_frames}, got {frames}")
    static_sizes = tensorrt.sizes(frames) if tensorrt is not None else []
    if max_tokens > config.trained_tokens:
        logger.warning("max_tokens %d is more than the model was trained for: %d", max_tokens, config.trained_tokens)
        max_tokens = config.trained_tokens
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} is there already: choose another name, or overwrite it with -f")
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        save_model(model, folder, dtype=torch.float16)
        model = load_model(folder)  # what was rounded is what is compared
        graphs = {}
        for plan in plan_graphs(model):
            logger.info("exporting the %s graph", plan.name)
            graphs[plan.name] = write_graph(plan, folder)
        of_codec = dict(graphs)
        generated = add_generator(source, folder, graphs, layered=model.config.pca)
        logger.info("comparing with PyTorch")
        report = verify(model, folder, default_cases(max_tokens=max_tokens, frames=frames, resolutions=resolutions))
        write_golden(model, folder)
        content = manifest(model, folder, name=name, max_tokens=max_tokens, frames=frames, graphs=graphs, report=report)
        if tensorrt is not None:
            content["tensorrt"] = write_static_graphs(
                model, folder, of_codec, static_sizes, dtype=tensorrt.dtype, max_tokens=max_tokens
            )
        if generated is not None:
            content["generator"], content["parity"]["generator"] = generated
        if card:
            shutil.copyfile(card, folder / "README.md")
        else:
            write_card(folder / "README.md", content)
        write_manifest(folder, content)
        folder.chmod(0o755)  # temporary folders and safetensors files are private; a bundle is for everyone
        for path in folder.iterdir():
            path.chmod(0o644)
        if output.exists():
            shutil.rmtree(output)
        folder.replace(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return output


def add_generator(
    source: Path, folder: Path, graphs: dict[str, Any], *, layered: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Put a checkpoint's generator, where it has one, into a bundle's folder and its entry into `graphs`.

    layered: whether anchors name layers. Returns the manifest's entry and the parity report. Raises ParityError.
    """
    generator = copy_generator(source, folder)
    if generator is None:
        return None
    logger.info("exporting the generator graph")
    graphs["generator"] = write_graph(plan_generator(generator), folder, weights=GENERATOR_WEIGHTS)
    logger.info("comparing what it generates with PyTorch")
    return generator_entry(generator, layered=layered), verify_generator(generator, folder, layered=layered)


def write_graph(plan: GraphPlan, folder: Path, *, weights: str = WEIGHTS) -> dict[str, Any]:
    """Export one graph into `folder`, pointing into the file `weights` there; returns its entry in the manifest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations, and its notes on packages it could use
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        graph = export_graph(plan)
    strip_metadata(graph)
    pointers = point_into(graph, folder / weights)
    logger.info("%s: %d nodes, %d tensors in %s", plan.name, len(graph.graph.node), pointers, weights)
    if graph.ir_version > IR_VERSION or [(o.domain, o.version) for o in graph.opset_import] != [("", OPSET)]:
        raise ValueError(f"the exporter made IR {graph.ir_version}, opsets {list(graph.opset_import)}")
    path = folder / f"{plan.name}.onnx"
    path.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(path)
    dtypes = {torch.uint8: "uint8", torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
    return {
        "file": path.name,
        "opset": OPSET,
        "ir_version": graph.ir_version,
        "inputs": [
            {"name": name, "dtype": dtypes[tensor.dtype], "shape": list(plan.symbols[name])}
            for name, tensor in plan.inputs.items()
            if name in {value.name for value in graph.graph.input}
        ],
        "outputs": [
            {"name": name, "dtype": "uint8" if name == "frames" else "float32", "shape": list(shape)}
            for name, shape in plan.outputs.items()
        ],
    }


@torch.inference_mode()
def write_golden(model: OneDVA, folder: Path) -> None:
    """One small clip with its latents and decode by PyTorch: what `codec.selftest()` compares a backend with."""
    count, height, width = GOLDEN_SIZE
    frames = make_clip(count, height, width, seed=7)
    anchors = placement.place(placement.detail_map(frames), 32)
    video = to_video(torch.from_numpy(frames)[None])
    dist = model.encode(video, anchors=torch.from_numpy(anchors)[None]).latent_dist
    noise = torch.from_numpy(gaussian(0, first_frame=0, frames=count, height=height, width=width))[None]
    decoded = model.decode(dist.mode(), num_steps=1, noise=noise).sample[0]
    pixels = ((decoded + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    tensors = {
        "frames": frames,
        "anchors": anchors,
        "structural": dist.output.structural_mean[0].numpy(),
        "latents": dist.output.latents_mean[0].numpy(),
        "predicted_error": dist.output.predicted_error[0].numpy(),
        "decoded": pixels.numpy(),
    }
    # safetensors writes the memory behind an array, whatever its strides say
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "golden.safetensors")


def manifest(
    model: OneDVA,
    folder: Path,
    *,
    name: str,
    max_tokens: int,
    frames: int,
    graphs: dict[str, Any],
    report: Sequence[Parity],
) -> dict[str, Any]:
    """manifest.json but for the list of files, which is taken when it is written."""
    config = model.config
    roles = ("frames", "anchors", "structural", "latents", "predicted_error", "decoded")
    return {
        "schema": "onedva-bundle",
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "model": {
            "fingerprint": hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest(),
            "preset": config.preset,
            "parameters": model.parameters_count,
            "prediction": config.prediction,
            "conditioning": config.conditioning,
            "preview": config.preview,
            "anchors": config.anchors,
            "structural_channels": config.structural_channels,
            "latent_channels": config.latent_channels,
            "patch": [4, 16, 16],
        },
        "preprocessing": {
            "layout": "THWC", "dtype": "uint8", "range": [0, 255], "colour": "RGB", "multiple": 16, "padding": "edge",
        },
        "clip": {"frames": frames, "frame_rule": "1+4n", "max_video_positions": MAX_VIDEO_POSITIONS},
        "lengths": {
            "max_tokens": max_tokens,
            "trained_tokens": config.trained_tokens,
            "length_multiple": config.length_multiple,
        },
        "placement": "columns",
        "policy": {"kind": "detail", "density": config.policy_density},
        "sampler": {
            "kind": "euler",
            "schedule": {"kind": "linear", "min_t": MIN_SCHEDULE_TIME},
            "default_steps": 1,
            "max_steps": 50,
        },
        "noise": {"algorithm": "philox4x32-10/table65536", "version": 1},
        "graphs": graphs,
        "tools": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": onnx.__version__,
            "numpy": np.__version__,
        },
        "tolerances": TOLERANCES,
        "golden": {
            "file": "golden.safetensors",
            "cases": [{"name": "nine frames", "seed": 0, "tensors": {role: role for role in roles}}],
            "min_psnr_db": 60,
        },
        "parity": as_json(report),
    }  # fmt: skip
