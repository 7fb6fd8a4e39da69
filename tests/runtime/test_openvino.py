"""The OpenVINO backend: the numbers of ONNX Runtime at fp32, within their bars at coarser dtypes, from many threads."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedva_runtime import VideoCodec
from onedva_runtime.backends import openvino_graphs
from onedva_runtime.backends.openvino import OpenVinoBackend, precisions
from onedva_runtime.backends.openvino_graphs import CompiledGraphs
from onedva_runtime.backends.openvino_split import MEETING, split_encoder
from onedva_runtime.bundle import read_bundle
from onedva_runtime.clips import make_clip
from onedva_runtime.errors import BackendError, BundleError

SHAPES = [(5, 32, 48), (1, 64, 64), (9, 20, 33)]


def opened(folder: Path, dtype: str = "fp32", threads: int = 1) -> VideoCodec:
    return VideoCodec.from_pretrained(folder, backend="openvino", dtype=dtype, threads=threads)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [0, 16, 48])
def test_it_computes_what_onnxruntime_computes(fake_bundle: Path, shape: tuple[int, int, int], tokens: int) -> None:
    ours, reference = opened(fake_bundle), VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
    frames = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    packet, expected = ours.encode_clip(frames, tokens=tokens), reference.encode_clip(frames, tokens=tokens)
    np.testing.assert_allclose(packet.structural, expected.structural, atol=1e-5)
    np.testing.assert_allclose(packet.latents, expected.latents, atol=1e-5)
    for steps in (0, 1, 3):
        decoded = ours.decode_clip(packet, num_steps=steps, seed=5)
        assert np.abs(decoded.astype(int) - reference.decode_clip(packet, num_steps=steps, seed=5)).max() <= 1


def test_threads_share_a_codec_and_conditions_do_not_mix(fake_bundle: Path) -> None:
    """Conditions live in the requests' own memory: more of them than threads are held at once, then used."""
    backend = opened(fake_bundle)._backend
    rng = np.random.default_rng(0)
    structural = rng.standard_normal((16, 1, 2, 2, 3, 3)).astype(np.float32)
    noise = rng.standard_normal((1, 3, 5, 32, 48)).astype(np.float32)
    one = np.ones(1, np.bool_)
    resolution = np.array([[5, 32, 48, 24]], np.float32)

    def condition(i: int):
        latents, anchors = np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.int64)
        return backend.condition(structural[i], latents, anchors, one, resolution, one)

    def velocity(held) -> np.ndarray:
        return backend.velocity(noise, np.ones((1, 2), np.float32), held)

    serial = [velocity(condition(i)) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(condition, range(16)))
        together = list(pool.map(velocity, held))
    assert all(np.array_equal(a, b) for a, b in zip(serial, together, strict=True))
    assert not np.array_equal(serial[0], serial[1])


def test_requests_go_back_and_shapes_used_long_ago_go(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graphs, "MAX_COMPILED", 6)
    codec = opened(fake_bundle)
    backend = codec._backend
    assert isinstance(backend, OpenVinoBackend)
    for height in range(16, 16 * 5, 16):
        for _ in range(2):
            codec.decode_clip(codec.encode_clip(make_clip(5, height, 32), tokens=16))
    assert backend._graphs.idle_runs() == [1] * 6


def test_one_compilation_serves_every_length(fake_bundle: Path) -> None:
    codec = opened(fake_bundle)
    backend = codec._backend
    assert isinstance(backend, OpenVinoBackend)
    for tokens in (0, 16, 32, 48):
        codec.decode_clip(codec.encode_clip(make_clip(9, 64, 64), tokens=tokens))
    assert len(backend._graphs) == 3


def test_compiled_graphs_are_kept_privately_by_content(
    make_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    codec = opened(make_bundle())
    codec.decode_clip(codec.encode_clip(make_clip(5, 32, 32), tokens=16))
    (folder,) = (tmp_path / "cache" / "openvino").iterdir()
    assert len(list(folder.glob("*.blob"))) == 3
    assert folder.stat().st_mode & 0o077 == 0
    opened(tmp_path / "bundle", threads=2)  # other settings, other graphs
    assert len(list(folder.parent.iterdir())) == 2
    folder.chmod(0o777)
    with pytest.raises(BackendError, match="may be written to by others"):
        opened(tmp_path / "bundle")


def test_what_it_cannot_do_it_refuses(fake_bundle: Path, make_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert precisions()[0] == "fp32"
    with pytest.raises(BackendError, match=r"OpenVINO on this CPU computes in fp32.*; got dtype 'fp64'"):
        OpenVinoBackend(read_bundle(fake_bundle), dtype="fp64")

    def edit(content: dict) -> None:
        content["graphs"]["encoder"]["outputs"].append({"name": "more", "dtype": "float32", "shape": ["B"]})

    with pytest.raises(BundleError, match=r"encoder\.onnx has the outputs .* the manifest says .*'more'"):
        opened(make_bundle(edit=edit))


def test_info_says_what_it_runs_at(fake_bundle: Path) -> None:
    info = opened(fake_bundle, "fp32").info()
    assert (info["backend"], info["dtype"], info["threads"]) == ("openvino", "fp32", 1)


@pytest.mark.parametrize(("count", "height", "width"), [(5, 1, 1), (5, 16, 48), (5, 48, 16), (1, 48, 64)])
def test_a_side_of_one_patch_and_a_clip_of_one_frame(shipped_bundle: Path, count: int, height: int, width: int) -> None:
    """Nothing beside a patch: no border to filter across, and no shape that would not fit; nor after frame 0."""
    frames = make_clip(count, height, width)
    ours = opened(shipped_bundle, "fp32")
    packet = ours.encode_clip(frames, tokens=0)
    reference = VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime", threads=1)
    for steps in (1, 2):
        decoded = ours.decode_clip(packet, num_steps=steps)
        assert np.abs(decoded.astype(int) - reference.decode_clip(packet, num_steps=steps)).max() <= 1


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_shipped_model_keeps_its_bars(shipped_bundle: Path, dev_clips: list[Path], dtype: str) -> None:
    """Golden test, and a real clip at no, few and all latents against ONNX Runtime: bf16 45 dB, int8 40 dB."""
    from onedva_runtime.video_io import read_video

    if dtype not in precisions():
        pytest.skip(f"this CPU has no {dtype}")
    ours = opened(shipped_bundle, dtype)
    assert all(case["passed"] for case in ours.selftest())
    reference = VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime", threads=1)
    frames = np.ascontiguousarray(read_video(dev_clips[0], max_frames=17).frames[:, :128, :128])
    bar = {"fp32": 65.0, "bf16": 45.0, "int8": 40.0}[dtype]
    for tokens in (0, 64, 320):
        packet, expected = ours.encode_clip(frames, tokens=tokens), reference.encode_clip(frames, tokens=tokens)
        assert psnr(ours.decode_clip(packet), reference.decode_clip(expected)) >= bar
        several = ours.decode_clip(packet, num_steps=3, seed=1)
        assert psnr(several, reference.decode_clip(expected, num_steps=3, seed=1)) >= min(bar, 60)
    prefix = ours.encode_clip(frames, tokens=64)
    assert np.abs(packet.latents[:64] - prefix.latents).max() < 0.02  # queries do not see later ones, at any dtype


def test_the_encoder_in_two_parts_is_the_whole(shipped_bundle: Path) -> None:
    """Its transformer apart from the linear transform, both in float32, with fewer and more latents."""
    import openvino

    core = openvino.Core()
    whole = core.read_model(shipped_bundle / "encoder.onnx")
    parts = split_encoder(whole)
    assert parts is not None
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = [core.compile_model(model, "CPU", settings) for model in (whole, *parts)]
    for tokens in (1, 40):
        feeds: dict[str, np.ndarray] = {
            "frames": make_clip(9, 64, 48)[None],
            "resolution": np.array([[9, 64, 48, 24]], np.float32),
            "is_key": np.ones(1, np.bool_),
            "anchors": np.random.default_rng(0).permutation(36)[None, :tokens].astype(np.int64),
        }
        expected = compiled[0](feeds)
        met = compiled[1](feeds)
        got = compiled[2](feeds | {name: met[name] for name in MEETING})
        for name in ("structural", "latents", "predicted_error"):
            np.testing.assert_allclose(got[name], expected[name], atol=2e-4)


def test_graphs_without_names_where_parts_meet_stay_whole(fake_bundle: Path) -> None:
    import openvino

    assert split_encoder(openvino.Core().read_model(fake_bundle / "encoder.onnx")) is None


def test_int8_changes_the_linear_layers_only(shipped_bundle: Path) -> None:
    """One scale per output channel; layers from or to pixels only where no picture goes through them."""
    import openvino

    from onedva_runtime.backends.openvino_int8 import PATCH_VALUES, quantise_weights

    for graph in ("condition", "velocity", "one_step"):
        model = openvino.Core().read_model(shipped_bundle / f"{graph}.onnx")
        count = quantise_weights(model)
        width = json.loads((shipped_bundle / "config.json").read_text())["width"]
        stored = [node.data for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
        eight_bit = [data for data in stored if data.dtype == np.int8 and data.ndim == 2]
        assert count == len(eight_bit) > 10
        assert all({768, PATCH_VALUES}.isdisjoint(data.shape) for data in eight_bit)  # of a frame, of a group
        assert sum(int(np.abs(data).max() == 127) for data in eight_bit) > 10
        # a layer that training has not reached is all zeros
        assert all(set(np.abs(data).max(axis=1).tolist()) <= {0, 127} for data in eight_bit)
        assert any(width in data.shape for data in eight_bit)


@pytest.mark.timeout(60)
def test_a_shape_that_is_there_does_not_wait_for_one_that_is_compiled(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And two that want the same new shape compile it once."""
    codec, frames = opened(fake_bundle), make_clip(5, 32, 48)
    packet = codec.encode_clip(frames, tokens=16)
    compiling, go_on, made = threading.Event(), threading.Event(), []
    make = CompiledGraphs._make

    def slow(self: CompiledGraphs, graph: str, *rest: Any) -> Any:
        made.append(graph)
        compiling.set()
        assert go_on.wait(30)
        return make(self, graph, *rest)

    monkeypatch.setattr(CompiledGraphs, "_make", slow)
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(codec.encode_clip, make_clip(5, 48, 48), tokens=16) for _ in range(2)]
        try:
            assert compiling.wait(30)
            np.testing.assert_array_equal(codec.encode_clip(frames, tokens=16).structural, packet.structural)
        finally:
            go_on.set()
        assert len({other.result().structural.tobytes() for other in others}) == 1
    assert made == ["encoder"]


def test_it_is_loaded_without_what_reports_over_the_network() -> None:
    code = """
import sys
from onedva_runtime.backends.openvino_graphs import core
core()
print([name for name in sys.modules if name.startswith(("openvino.tools.ovc", "openvino_telemetry"))])
import openvino
print(callable(openvino.convert_model), "openvino.tools.ovc" in sys.modules, hasattr(openvino, "no_such"))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "True True False"]
