"""The TensorRT backend on a fake GPU that runs the engines' graphs in ONNX Runtime: numbers, pointers, profiles, pools
and errors are tried for real; kernels and speed are not."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_machine import FakeKernels, builds, fake_machine
from onedva_runtime import VideoCodec
from onedva_runtime.backends import tensorrt
from onedva_runtime.bundle import read_bundle
from onedva_runtime.engines import EngineOptions
from onedva_runtime.errors import BackendError

SIZES = [(5, 32, 48), (9, 64, 64)]


@pytest.fixture(scope="module")
def folder(fake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake.make_fake_bundle(tmp_path_factory.mktemp("trt") / "fake-v1", static=SIZES)


@pytest.fixture(scope="module")
def built(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with engines of profiles 1-4, 5-8, 9-…, for up to two clips at once."""
    from onedva_export import build_engines

    cache = tmp_path_factory.mktemp("engines") / "cache"
    with fake_machine(cache):
        assert len(build_engines(read_bundle(folder), EngineOptions(profiles=(4, 8), max_batch=2))) == 6
    return cache


@pytest.fixture(params=["kernels", "host"])
def machine(built: Path, request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """The machine with these engines; once with the extension's kernels, once without, when steps go by the host."""
    with fake_machine(built) as patch:
        kernels = FakeKernels() if request.param == "kernels" else None
        patch.setattr(tensorrt, "device_kernels", lambda: kernels)
        yield patch


def opened(folder: Path, **options: Any) -> VideoCodec:
    return VideoCodec.from_pretrained(folder, backend="tensorrt", dtype="fp32", **options)


def reference(folder: Path) -> VideoCodec:
    return VideoCodec.from_pretrained(folder, backend="onnxruntime", threads=1)


def clip(size: tuple[int, int, int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [0, 16])
def test_it_computes_what_onnxruntime_computes(folder: Path, machine, size, tokens: int) -> None:
    """Every step count, also 0, in every profile: the numbers are those of the same kernels, to the bit."""
    ours, theirs = opened(folder), reference(folder)
    packet, expected = ours.encode_clip(clip(size), tokens=tokens), theirs.encode_clip(clip(size), tokens=tokens)
    np.testing.assert_allclose(packet.structural, expected.structural, atol=1e-6)
    np.testing.assert_allclose(packet.latents, expected.latents, atol=1e-6)
    for length in {0, min(1, packet.tokens), min(5, packet.tokens), packet.tokens}:
        thin = packet.thin(length) if length < packet.tokens else packet
        for steps in (0, 1, 2, 5):
            decoded = ours.decode_clip(thin, num_steps=steps, seed=5)
            expected_frames = theirs.decode_clip(thin, num_steps=steps, seed=5)
            assert np.abs(decoded.astype(int) - expected_frames).max() <= 1, (length, steps)


def test_chains_of_clips_and_batches_over_the_engines_most(folder: Path, machine) -> None:
    """Continuation clips keep their context frame; five clips go as 2 + 2 + 1, each with its own place and seed."""
    ours, theirs = opened(folder), reference(folder)
    source = clip((13, 32, 48))
    parts = [source[:5], source[5:9], source[9:13]]
    contexts = [None, source[4], source[8]]
    for codec in (ours, theirs):
        packets = codec.encode_clips(parts, tokens=8, first_frames=[0, 5, 9], context_frames=contexts)
    decoded = [codec.decode_clips(packets, num_steps=3, seed=2, context_frames=contexts) for codec in (ours, theirs)]
    assert [frames.shape[0] for frames in decoded[0]] == [5, 4, 4]
    for got, expected in zip(*decoded, strict=True):
        assert np.abs(got.astype(int) - expected).max() <= 1
    many = [clip((5, 32, 48), seed) for seed in range(5)]
    packets = ours.encode_clips(many, tokens=8, first_frames=[0, 5, 10, 15, 20])
    together = ours.decode_clips(packets, num_steps=2, seed=3)
    alone = [theirs.decode_clip(packet, num_steps=2, seed=3) for packet in packets]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(together, alone, strict=True))


def test_the_selftest_runs_on_the_engines(folder: Path, machine) -> None:
    codec = opened(folder)
    assert codec.info()["backend"] == "tensorrt" and codec.info()["device"] == "cuda"
    (case,) = codec.selftest()
    assert case["passed"], case


def test_graphs_are_captured_once_and_replayed(folder: Path, machine) -> None:
    """Replays see new latents, seeds and lengths; a new number of latents or steps is a new graph."""
    codec = opened(folder)
    backend = codec._backend
    assert isinstance(backend, tensorrt.TensorRtBackend)
    if not backend.samples_on_device:
        pytest.skip("no kernels, no graphs")
    expected = reference(folder)
    for seed in range(4):
        packet = codec.encode_clip(clip((5, 32, 48), seed), tokens=12)
        got = codec.decode_clip(packet, num_steps=4, seed=seed)
        assert np.abs(got.astype(int) - expected.decode_clip(packet, num_steps=4, seed=seed)).max() <= 1
    (slot,) = backend._slots
    graphs = slot.sampler(lambda: pytest.fail("there is a sampler")).graphs
    assert graphs is not None and graphs.captures == 1
    codec.decode_clip(packet, num_steps=3)
    codec.decode_clip(packet.thin(4), num_steps=4)
    assert graphs.captures == 3
    codec.decode_clip(packet, num_steps=4)
    assert graphs.captures == 3


def test_memory_is_taken_once(folder: Path, machine) -> None:
    from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

    codec = opened(folder)
    sizes = []
    for seed in range(6):
        packet = codec.encode_clip(clip((5, 32, 48), seed), tokens=12)
        codec.decode_clip(packet, num_steps=1 + seed % 2)
        sizes.append((len(runtime.blocks), len(runtime.pinned)))
    assert len(set(sizes[2:])) == 1, sizes


def test_streams_share_nothing_but_engines(folder: Path, machine) -> None:
    codec = opened(folder, streams=3)
    backend = codec._backend
    assert isinstance(backend, tensorrt.TensorRtBackend)
    packets = [codec.encode_clip(clip((5, 32, 48), seed), tokens=12) for seed in range(12)]
    serial = [codec.decode_clip(packet, num_steps=3, seed=1) for packet in packets]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda packet: codec.decode_clip(packet, num_steps=3, seed=1), packets))
    assert all(np.array_equal(a, b) for a, b in zip(serial, together, strict=True))
    assert len({slot.stream for slot in backend._slots}) == 3 and len(backend._engines) == 3


def test_conditions_do_not_mix(folder: Path, machine) -> None:
    """More of them than streams are held, then used: each has memory of its own."""
    backend = opened(folder)._backend
    rng = np.random.default_rng(0)
    one, resolution = np.ones(1, np.bool_), np.array([[5, 32, 48, 24]], np.float32)
    structural = rng.standard_normal((5, 1, 2, 2, 3, 3)).astype(np.float32)
    latents, anchors = np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.int64)
    noise = rng.standard_normal((1, 3, 5, 32, 48)).astype(np.float32)

    def condition(i: int):
        return backend.condition(structural[i], latents, anchors, one, resolution, one)

    serial = [backend.velocity(noise, np.ones((1, 2), np.float32), condition(i)) for i in range(5)]
    held = [condition(i) for i in range(5)]
    together = [backend.velocity(noise, np.ones((1, 2), np.float32), each) for each in held]
    assert all(np.array_equal(a, b) for a, b in zip(serial, together, strict=True))
    assert not np.array_equal(serial[0], serial[1])


# Errors


def test_a_size_without_an_engine_names_those_there_are(folder: Path, machine) -> None:
    codec = opened(folder)
    with pytest.raises(BackendError, match=r"no engine for clips of 1×32×48: fake-v1 has graphs for 5×32×48, 9×64×64"):
        codec.encode_clip(clip((1, 32, 48)))


def test_what_is_missing_is_told_when_the_codec_opens(
    folder: Path, fake_bundle: Path, tmp_path: Path, built: Path
) -> None:
    with (
        fake_machine(tmp_path / "empty"),
        pytest.raises(BackendError, match="no engine of fake-v1, encoder at 5×32×48"),
    ):
        opened(folder)
    with fake_machine(built):
        with pytest.raises(BackendError, match=r"no graphs for TensorRT at dtype 'fp32': `onedva export .* --trt`"):
            opened(fake_bundle)
        with pytest.raises(BackendError, match=r"at dtype 'bf16': it has fp32"):
            VideoCodec.from_pretrained(folder, backend="tensorrt", dtype="bf16")
        with pytest.raises(BackendError, match="backend tensorrt runs on cuda, got device 'cpu'"):
            opened(folder, device="cpu")
        with pytest.raises(ValueError, match="streams must be at least 1, got 0"):
            opened(folder, streams=0)
    for other in ({"gpu": "Fake A100"}, {"tensorrt": "11.4.0.106"}):
        with (
            fake_machine(built, **other),
            pytest.raises(BackendError, match="was built for Fake H100 with TensorRT 10"),
        ):
            opened(folder)
    with pytest.raises(BackendError, match=r"tensorrt cannot be used: TensorRT is not installed: pip install 'onedva"):
        opened(folder)


def test_a_damaged_or_refused_plan_is_not_run(folder: Path, fake, tmp_path: Path) -> None:
    from onedva_export import build_engines

    cache = tmp_path / "cache"
    with fake_machine(cache):
        engines = build_engines(read_bundle(folder))
        path = Path(engines[0].folder) / "engine.plan"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(BackendError, match="damaged: `onedva engines` builds it again"):
            opened(folder).encode_clip(clip((5, 32, 48)))
        build_engines(read_bundle(folder))
        assert path.read_bytes() == whole and len(builds(cache)) == 7
        opened(folder).encode_clip(clip((5, 32, 48)))


def test_running_out_of_memory_says_what_to_do(folder: Path, machine) -> None:
    from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

    codec = opened(folder)
    machine.setattr(runtime, "LIMIT", sum(block.size for block in runtime.blocks.values()) + 4096)
    with pytest.raises(BackendError, match=r"out of GPU memory: \d+ MiB more are wanted.*fewer streams"):
        codec.encode_clip(clip((9, 64, 64)))
    machine.setattr(runtime, "LIMIT", 1 << 40)
    codec.encode_clip(clip((9, 64, 64)))  # nothing is stuck


def test_an_empty_capture_is_noticed(folder: Path, machine) -> None:
    backend = opened(folder)._backend
    assert isinstance(backend, tensorrt.TensorRtBackend)
    with pytest.raises(BackendError, match="captured an empty graph"):
        backend._cuda.capture(backend._slots[0].stream, lambda: None)


# The automatic choice


def test_auto_takes_it_where_engines_are_there_and_says_why(folder: Path, machine, built: Path, monkeypatch) -> None:
    from onedva_runtime.backends import choose

    timings = {"tensorrt": 0.001, "openvino": 0.01, "onnxruntime": 0.02}
    monkeypatch.setattr(choose, "_round_trip", lambda bundle, backend, size: lambda: timings[backend.name])
    info = VideoCodec.from_pretrained(folder, threads=1).info()
    assert info["backend"] == "tensorrt" and "fastest here: tensorrt fp32" in info["backend_reason"]
    assert VideoCodec.from_pretrained(folder, device="cpu", threads=1).backend_name == "openvino"
    assert VideoCodec.from_pretrained(folder, device="cuda").backend_name == "tensorrt"


def test_auto_leaves_it_out_where_engines_are_missing(folder: Path, tmp_path: Path, caplog) -> None:
    with fake_machine(tmp_path / "cache"):
        caplog.set_level("INFO", logger="onedva")
        assert VideoCodec.from_pretrained(folder, threads=1).backend_name in ("onnxruntime", "openvino")
        assert "TensorRT is left out: no engine of fake-v1" in caplog.text


def test_the_runtime_needs_no_torch_for_it(folder: Path, built: Path) -> None:
    import os
    import subprocess

    from fake_machine import FOLDER

    code = f"""
import numpy as np
from onedva import VideoCodec
from onedva_runtime.backends import tensorrt
tensorrt.device_kernels = lambda: None  # a fake GPU runs none
codec = VideoCodec.from_pretrained({str(folder)!r}, backend="tensorrt", dtype="fp32")
assert codec.decode_clip(codec.encode_clip(np.zeros((5, 32, 48, 3), np.uint8))).shape == (5, 32, 48, 3)
"""
    script = Path(__file__).parents[1] / "without_torch.py"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER), "ONEDVA_CACHE": str(built)}
    done = subprocess.run([sys.executable, "-P", script, code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
