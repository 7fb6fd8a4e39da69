"""ONNX Runtime's CUDA backend on a fake GPU: sessions run on the CPU, over tensors bound by address in fake device
memory. What is bound, copied and kept is tried for real; the provider is not."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fake_machine import FakeKernels, fake_machine
from onedva_runtime.backends import onnxruntime_cuda
from onedva_runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend
from onedva_runtime.bundle import read_bundle
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import BackendError


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}
        self.outputs: dict[str, tuple[Any, tuple[int, ...], int]] = {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.inputs[name] = (element_type, tuple(shape), buffer_ptr)

    def bind_output(self, name, device_type, device_id, element_type, shape, buffer_ptr) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.outputs[name] = (element_type, tuple(shape), buffer_ptr)


class Session:
    """A CPU session under the CUDA provider's name, with its settings checked."""

    dropped = False

    def __init__(self, path: str, options: Any, providers: list[tuple[str, dict[str, str]]]) -> None:
        ((self.provider, settings),) = providers
        assert settings["use_tf32"] == "0" and settings["device_id"] == "0"
        self.stream = int(settings["user_compute_stream"])
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"] if self.dropped else [self.provider, "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

        def view(bound: tuple[Any, tuple[int, ...], int]) -> np.ndarray:
            kind, shape, pointer = bound
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            return runtime.device_memory(pointer, size).view(kind).reshape(shape)

        def work() -> None:
            feeds = {name: view(bound) for name, bound in binding.inputs.items()}
            for name, value in zip(binding.outputs, self._session.run(list(binding.outputs), feeds), strict=True):
                view(binding.outputs[name])[:] = value

        runtime.submit(self.stream, work)


@pytest.fixture(params=["kernels", "host"])
def codec(request: pytest.FixtureRequest, fake_bundle: Path, tmp_path: Path) -> Iterator[VideoCodec]:
    with fake_machine(tmp_path / "cache") as patch:
        fake = SimpleNamespace(
            InferenceSession=Session, SessionOptions=onnxruntime.SessionOptions, RunOptions=onnxruntime.RunOptions
        )
        kernels = FakeKernels() if request.param == "kernels" else None
        patch.setattr(onnxruntime_cuda, "load_onnxruntime", lambda: fake)
        patch.setattr(onnxruntime_cuda, "device_kernels", lambda: kernels)
        bundle = read_bundle(fake_bundle)
        yield VideoCodec(bundle, OnnxRuntimeCudaBackend(bundle))


@pytest.mark.parametrize("tokens", [0, 16, 48])
@pytest.mark.parametrize("size", [(5, 32, 48), (1, 64, 64), (9, 20, 33)])
def test_it_computes_what_the_cpu_computes(codec: VideoCodec, fake_bundle: Path, size, tokens: int) -> None:
    theirs = VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
    frames = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    packet, expected = codec.encode_clip(frames, tokens=tokens), theirs.encode_clip(frames, tokens=tokens)
    np.testing.assert_array_equal(packet.latents, expected.latents)
    for steps in (0, 1, 3):
        decoded = codec.decode_clip(packet, num_steps=steps, seed=5)
        assert np.abs(decoded.astype(int) - theirs.decode_clip(expected, num_steps=steps, seed=5)).max() <= 1


def test_continuation_clips_keep_their_context(codec: VideoCodec, fake_bundle: Path) -> None:
    theirs = VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
    frames = np.random.default_rng(2).integers(0, 256, (4, 32, 48, 3), np.uint8)
    context = frames[::-1][0].copy()
    packet = theirs.encode_clip(frames, tokens=16, first_frame=5, context_frame=context)
    decoded = [c.decode_clip(packet, num_steps=3, seed=1, context_frame=context) for c in (codec, theirs)]
    assert np.abs(decoded[0].astype(int) - decoded[1]).max() <= 1


def test_the_selftest_passes(codec: VideoCodec) -> None:
    assert all(case["passed"] for case in codec.selftest())


def test_a_provider_that_is_dropped_is_noticed(codec: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "dropped", True)
    with pytest.raises(BackendError, match=r"asked for CUDAExecutionProvider: it needs the CUDA and cuDNN"):
        OnnxRuntimeCudaBackend(codec._bundle)
