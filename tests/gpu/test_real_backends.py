"""On a machine with a GPU: engines that TensorRT really builds, and ONNX Runtime's CUDA provider, against the CPU."""

from pathlib import Path

import numpy as np
import pytest

from onedva_runtime import VideoCodec
from onedva_runtime.backends import STATUSES
from onedva_runtime.bundle import read_bundle
from onedva_runtime.clips import make_clip


def agree(ours: VideoCodec, theirs: VideoCodec, size: tuple[int, int, int], lengths: tuple[int, ...]) -> None:
    """Encode and decode of one clip at every length and some numbers of steps, key and continuation."""
    frames = make_clip(*size, seed=4)
    context = make_clip(1, *size[1:], seed=5)[0]
    for tokens in lengths:
        packet, expected = ours.encode_clip(frames, tokens=tokens), theirs.encode_clip(frames, tokens=tokens)
        np.testing.assert_allclose(packet.structural, expected.structural, atol=5e-3)
        np.testing.assert_allclose(packet.latents, expected.latents, atol=5e-3)
        for steps in (0, 1, 4):
            got, wanted = (codec.decode_clip(expected, num_steps=steps, seed=tokens) for codec in (ours, theirs))
            assert psnr(got, wanted) > 50, (tokens, steps)
    follow = theirs.encode_clip(frames[1:], tokens=lengths[-1], first_frame=9, context_frame=context)
    got, wanted = (codec.decode_clip(follow, num_steps=2, context_frame=context) for codec in (ours, theirs))
    assert psnr(got, wanted) > 50


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


@pytest.mark.gpu
def test_onnxruntime_cuda_agrees_with_the_cpu_at_every_length(shipped_bundle: Path) -> None:
    status = STATUSES["onnxruntime-cuda"]()
    if not status.usable:
        pytest.skip(status.reason)
    ours = VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime-cuda")
    assert all(case["passed"] for case in ours.selftest())
    theirs = VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime")
    agree(ours, theirs, (17, 128, 128), (0, 16, 64, 256, 320))


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tensorrt_agrees_with_the_cpu_at_every_length(shipped_bundle: Path, dtype: str, tmp_path: Path) -> None:
    """The shipped model, exported with --trt, at and between the edges of its profiles; then replayed from threads."""
    from onedva_export import build_engines, export_bundle
    from onedva_export.static_export import StaticSizes
    from onedva_runtime.engines import EngineOptions

    target = tmp_path / "bundle"
    export_bundle(shipped_bundle, target, resolutions=[(128, 128)], tensorrt=StaticSizes(((128, 128),), (17,), dtype))
    build_engines(read_bundle(target), EngineOptions(profiles=(64, 256), opt_level=1))
    ours = VideoCodec.from_pretrained(target, backend="tensorrt", dtype=dtype, streams=2)
    theirs = VideoCodec.from_pretrained(target, backend="onnxruntime")
    assert all(case["passed"] for case in ours.selftest())
    agree(ours, theirs, (17, 128, 128), (0, 16, 64, 80, 256, 320))
