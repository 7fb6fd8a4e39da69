"""A bundle small enough to check by hand, with the names, types and files of a real one. Its encoder sends the mean
colour of every 4x16x16 patch: rounded to quarters as the structural latent, the rest of it at the anchors as 1D
latents. Its decode is that mean plus a tenth of the noise, and a tenth of the context frame in a continuation clip. So
every promise of the runtime (padding, order, grouping, seeds, prefixes, contexts, tiles) shows in the pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from onedva_runtime.bundle import write_manifest
from onedva_runtime.noise import gaussian

OPSET, IR_VERSION = 23, 10
ABSENT = 0.125  # added to the preview of a clip without 1D latents
WEIGHTS = {"gain": np.ones(1, np.float16), "absent": np.full(1, ABSENT, np.float16)}
HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n'
CONSTANTS = """
    one = Constant<value_floats=[1.0]>()
    zeroth = Constant<value_ints=[0]>()
    first = Constant<value_ints=[1]>()
    last = Constant<value_ints=[2]>()
    three = Constant<value_ints=[3]>()
    four = Constant<value_ints=[4]>()
    sixteen = Constant<value_ints=[16]>()
    rest = Constant<value_ints=[-1]>()
    spread = Constant<value_ints=[1, 1, 3]>()
    flat = Concat<axis=0>(zeroth, rest, three)
"""
ENCODER = """
encoder (uint8[B,T,H,W,3] frames, float[B,4] resolution, bool[B] is_key, int64[B,K] anchors)
    => (float[B,Tg,Hg,Wg,3] structural, float[B,K,3] latents, float[B,K] predicted_error) {
    half = Constant<value_floats=[127.5]>()
    quarters = Constant<value_floats=[4.0]>()
    float_frames = Cast<to=1>(frames)
    scaled = Div(float_frames, half)
    video = Sub(scaled, one)
    frame0 = Slice(video, zeroth, first, first)
    groups = Concat<axis=1>(frame0, frame0, frame0, video)
    batch = Shape<start=0, end=1>(frames)
    time4 = Shape<start=1, end=2>(groups)
    height = Shape<start=2, end=3>(frames)
    width = Shape<start=3, end=4>(frames)
    time = Div(time4, four)
    rows = Div(height, sixteen)
    columns = Div(width, sixteen)
    blocks = Concat<axis=0>(batch, time, four, rows, sixteen, columns, sixteen, three)
    patches = Reshape(groups, blocks)
    inner = Constant<value_ints=[2, 4, 6]>()
    mean = ReduceMean<keepdims=0>(patches, inner)
    larger = Mul(mean, quarters)
    rounded = Round(larger)
    coarse = Div(rounded, quarters)
    gain32 = Cast<to=1>(gain)
    structural = Mul(coarse, gain32)
    fine = Sub(mean, structural)
    flat_fine = Reshape(fine, flat)
    places = Unsqueeze(anchors, last)
    indices = Expand(places, spread)
    latents = GatherElements<axis=1>(flat_fine, indices)
    float_anchors = Cast<to=1>(anchors)
    zeros = Sub(float_anchors, float_anchors)
    ones = Add(zeros, one)
    count = CumSum(ones, first)
    slope = Constant<value_floats=[-0.05]>()
    falling = Mul(count, slope)
    fps = Slice(resolution, three, four, first)
    key = Cast<to=1>(is_key)
    key_column = Unsqueeze(key, first)
    with_fps = Add(falling, fps)
    predicted_error = Sub(with_fps, key_column)
}
"""
CONDITION = """
condition (float[B,Tg,Hg,Wg,3] structural, float[B,K,3] latents, int64[B,K] anchors, bool[B] has_latents,
           float[B,4] resolution, bool[B] is_key)
    => (float[B,Tg,Hg,Wg,3] context, float[B,K,3] keys_values, float[B,3,T,H,W] preview) {
    has = Cast<to=1>(has_latents)
    both = Constant<value_ints=[1, 2]>()
    present = Unsqueeze(has, both)
    keys_values = Mul(latents, present)
    places = Unsqueeze(anchors, last)
    indices = Expand(places, spread)
    flat_structural = Reshape(structural, flat)
    mean = ScatterElements<axis=1, reduction="add">(flat_structural, indices, keys_values)
    missing = Sub(one, present)
    absent32 = Cast<to=1>(absent)
    offset = Mul(missing, absent32)
    shifted = Add(mean, offset)
    shape = Shape(structural)
    context = Reshape(shifted, shape)
    inner = Constant<value_ints=[2, 4, 6]>()
    pixels = Unsqueeze(context, inner)
    block = Constant<value_ints=[1, 1, 4, 1, 16, 1, 16, 1]>()
    repeated = Expand(pixels, block)
    batch = Shape<start=0, end=1>(structural)
    grid = Shape<start=1, end=4>(structural)
    patch = Constant<value_ints=[4, 16, 16]>()
    size = Mul(grid, patch)
    whole = Concat<axis=0>(batch, size, three)
    frames = Reshape(repeated, whole)
    end = Shape<start=1, end=2>(frames)
    real = Slice(frames, three, end, first)
    preview = Transpose<perm=[0, 4, 1, 2, 3]>(real)
}
"""
VELOCITY = """
velocity (float[B,3,T,H,W] noisy_video, float[B,Tg] t, float[B,Tg,Hg,Wg,3] context, float[B,K,3] keys_values,
          float[B,3,T,H,W] preview) => (float[B,3,T,H,W] velocity) {
    tenth = Constant<value_floats=[0.1]>()
    least = Constant<value_floats=[0.02]>()
    part = Mul(noisy_video, tenth)
    nothing = Constant<value_floats=[0.0]>()
    frame0 = Slice(part, zeroth, first, last)
    time0 = Slice(t, zeroth, first, first)
    is_given = Equal(time0, nothing)
    given = Cast<to=1>(is_given)
    to_video = Constant<value_ints=[2, 3, 4]>()
    given_video = Unsqueeze(given, to_video)
    from_context = Mul(frame0, given_video)
    seen = Add(part, from_context)
    video = Add(preview, seen)
    difference = Sub(noisy_video, video)
    time = Unsqueeze(t, last)
    block = Constant<value_ints=[1, 1, 4]>()
    repeated = Expand(time, block)
    line = Concat<axis=0>(zeroth, rest)
    per_frame = Reshape(repeated, line)
    end = Shape<start=1, end=2>(per_frame)
    real = Slice(per_frame, three, end, first)
    axes = Constant<value_ints=[1, 3, 4]>()
    column = Unsqueeze(real, axes)
    divisor = Max(column, least)
    moving = Div(difference, divisor)
    still = Equal(column, nothing)
    velocity = Where(still, nothing, moving)
}
"""
GRAPHS = {"encoder": (ENCODER, ("gain",)), "condition": (CONDITION, ("absent",)), "velocity": (VELOCITY, ())}


def make_fake_bundle(
    folder: Path,
    *,
    edit: Callable[[dict[str, Any]], None] | None = None,
    static: Sequence[tuple[int, int, int]] = (),
) -> Path:
    """Write the bundle into the new `folder`. edit: changes the manifest's content before it is written. static:
    (frames, height, width) of clips that it gets graphs for TensorRT of."""
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / "model.safetensors")
    for name, (text, weights) in GRAPHS.items():
        model = parse(text)
        for weight in weights:
            model.graph.initializer.append(external(weight, folder / "model.safetensors"))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# fake\n")
    frames = np.random.default_rng(7).integers(0, 256, (5, 32, 48, 3), np.uint8)
    anchors = np.array([1, 4, 11], np.int64)
    structural, latents = encode_reference(frames, anchors)
    golden = {
        "frames": frames,
        "anchors": anchors,
        "structural": structural,
        "latents": latents,
        "decoded": decode_reference(
            structural, latents, anchors, noise=gaussian(3, first_frame=0, frames=5, height=32, width=48)
        ),
    }
    save_file(golden, folder / "golden.safetensors")
    content = manifest_content(folder)
    if static:
        content["tensorrt"] = [static_entry(folder, content["graphs"], size) for size in static]
    if edit is not None:
        edit(content)
    write_manifest(folder, content)
    return folder


def static_entry(folder: Path, graphs: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    """Graphs of one clip size as the export makes them, and their entry in the manifest."""
    from onedva_export.static_export import as_spec, write_static_graph

    found = {name: write_static_graph(folder, name, as_spec(entry), size, "fp32") for name, entry in graphs.items()}
    return {"frames": size[0], "height": size[1], "width": size[2], "dtype": "fp32", "graphs": found}


def parse(text: str) -> onnx.ModelProto:
    """A graph's text, with the constants that all share, as a model."""
    head, body = text.strip().split("{\n", 1)
    return onnx.parser.parse_model(HEADER + head + "{" + CONSTANTS + body)


def external(name: str, weights: Path) -> onnx.TensorProto:
    """The weight `name` as an initializer that points into the safetensors file."""
    data = weights.read_bytes()
    payload = WEIGHTS[name].tobytes()
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT16, dims=WEIGHTS[name].shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": weights.name, "offset": data.index(payload), "length": len(payload)}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def patch_means(frames: np.ndarray) -> np.ndarray:
    """The mean colour in [-1, 1] of each patch of padded frames (T, H, W, 3): (Tg, Hg, Wg, 3)."""
    video = frames.astype(np.float32) / np.float32(127.5) - np.float32(1)
    video = np.concatenate([video[:1]] * 3 + [video])
    groups, height, width = len(video) // 4, video.shape[1] // 16, video.shape[2] // 16
    return video.reshape(groups, 4, height, 16, width, 16, 3).mean((1, 3, 5), dtype=np.float64).astype(np.float32)


def encode_reference(frames: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the encoder computes from padded frames (T, H, W, 3): structural (Tg, Hg, Wg, 3), latents (K, 3)."""
    mean = patch_means(frames)
    structural = np.round(mean * 4) / np.float32(4)
    return structural, (mean - structural).reshape(-1, 3)[anchors]


def preview_reference(structural: np.ndarray, latents: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """The preview, (3, T, H, W) float32."""
    mean = structural.reshape(-1, 3).copy()
    mean[anchors] += latents
    mean += 0 if len(anchors) else ABSENT
    video = mean.reshape(structural.shape).repeat(4, 0).repeat(16, 1).repeat(16, 2)[3:]
    return video.transpose(3, 0, 1, 2)


def decode_reference(
    structural: np.ndarray,
    latents: np.ndarray,
    anchors: np.ndarray,
    *,
    noise: np.ndarray | None,
    context: np.ndarray | None = None,
) -> np.ndarray:
    """What one step decodes to, (T, H, W, 3) uint8; the preview without noise. context: (H, W, 3) uint8, frame 0 of a
    continuation clip."""
    video = preview_reference(structural, latents, anchors)
    video = video if noise is None else video + np.float32(0.1) * noise
    if context is not None:
        given = context.transpose(2, 0, 1)[:, None] / np.float32(127.5) - np.float32(1)
        video = np.concatenate([given, video[:, 1:] + np.float32(0.1) * given], axis=1)
    frames = np.clip(np.rint((video + 1) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(frames.transpose(1, 2, 3, 0))  # safetensors writes memory order, whatever the strides


def manifest_content(folder: Path) -> dict[str, Any]:
    """manifest.json of the files in `folder`, but for "files"."""
    return {
        "schema": "onedva-bundle",
        "schema_version": 3,
        "name": "fake-v1",
        "model": {
            "fingerprint": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
            "preset": "fake",
            "parameters": 2,
            "prediction": "video",
            "conditioning": "stem",
            "preview": True,
            "anchors": "content",
            "structural_channels": 3,
            "latent_channels": 3,
            "patch": [4, 16, 16],
        },
        "preprocessing": {
            "layout": "THWC",
            "dtype": "uint8",
            "range": [0, 255],
            "colour": "RGB",
            "multiple": 16,
            "padding": "edge",
        },
        "clip": {"frames": 17, "frame_rule": "1+4n", "max_video_positions": 600},
        "lengths": {"max_tokens": 64, "trained_tokens": 48, "length_multiple": 16},
        "placement": "columns",
        "policy": {"kind": "detail", "density": 500.0},
        "sampler": {
            "kind": "euler",
            "schedule": {"kind": "linear", "min_t": 0.05},
            "default_steps": 1,
            "max_steps": 50,
        },
        "noise": {"algorithm": "philox4x32-10/table65536", "version": 1},
        "graphs": {name: graph_entry(folder / f"{name}.onnx") for name in GRAPHS},
        "tools": {"onnx": onnx.__version__},
        "tolerances": {"structural": 1e-5, "latents": 1e-5},
        "golden": {
            "file": "golden.safetensors",
            "cases": [
                {
                    "name": "five frames",
                    "seed": 3,
                    "tensors": {role: role for role in ("frames", "anchors", "structural", "latents", "decoded")},
                }
            ],
            "min_psnr_db": 60,
        },
        "parity": {},
    }


def graph_entry(path: Path) -> dict[str, Any]:
    """A graph's entry in the manifest."""
    graph = onnx.load(path, load_external_data=False).graph
    names = {1: "float32", 2: "uint8", 7: "int64", 9: "bool"}

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": names[value.type.tensor_type.elem_type],
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    return {
        "file": path.name,
        "opset": OPSET,
        "ir_version": IR_VERSION,
        "inputs": tensors(graph.input),
        "outputs": tensors(graph.output),
    }
