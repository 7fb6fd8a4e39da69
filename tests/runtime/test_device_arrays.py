"""Frames on a (fake) GPU go in and come out by the interface that PyCUDA, CuPy and PyTorch share."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fake_machine import fake_machine
from onedva_runtime import VideoCodec, device_arrays
from onedva_runtime.device_arrays import is_on_device, to_device, to_host
from onedva_runtime.errors import BackendError


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    with fake_machine(tmp_path / "cache") as patch:
        device_arrays._cuda.cache_clear()
        yield patch
        device_arrays._cuda.cache_clear()


def test_there_and_back(machine) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    frames = to_device(array[:, ::2])  # what has gaps is packed first
    assert is_on_device(frames) and not is_on_device(array)
    assert frames.__cuda_array_interface__["data"] == (frames.pointer, False)
    assert (frames.shape, frames.dtype) == ((5, 16, 48, 3), np.uint8)
    np.testing.assert_array_equal(to_host(frames), array[:, ::2])


def test_the_codec_takes_them(machine, fake_bundle: Path) -> None:
    codec = VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    packet, expected = codec.encode_clip(to_device(array), tokens=12), codec.encode_clip(array, tokens=12)  # type: ignore[arg-type]
    np.testing.assert_array_equal(packet.latents, expected.latents)
    with pytest.raises(TypeError, match=r"uint8, RGB in 0..255; got float32"):
        codec.encode_clip(to_device(array.astype(np.float32)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["handle", "cuda_stream", "ptr", None])
def test_streams_of_every_library_are_waited_for(machine, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    frames = to_device(np.arange(12, dtype=np.uint8))
    cuda, own = device_arrays._cuda(0)
    theirs, waited = cuda.stream(), []
    wait = cuda.wait
    monkeypatch.setattr(cuda, "wait", lambda stream: waited.append(stream) or wait(stream))
    stream = theirs if name is None else SimpleNamespace(**{name: theirs})
    assert to_host(frames, stream=stream).tolist() == list(range(12))
    assert waited == [theirs, own]


def test_what_it_cannot_take_is_refused(machine) -> None:
    with pytest.raises(TypeError, match="has __cuda_array_interface__; got list"):
        to_host([1])
    frames = to_device(np.zeros((4, 4), np.uint8))
    gaps = SimpleNamespace(__cuda_array_interface__={**frames.__cuda_array_interface__, "strides": (8, 1)})
    with pytest.raises(ValueError, match=r"C-contiguous; got the shape \(4, 4\) with the strides \(8, 1\)"):
        to_host(gaps)


def test_without_a_gpu_it_says_so(fake_bundle: Path) -> None:
    device_arrays._cuda.cache_clear()
    with pytest.raises(BackendError, match=r"cuda-python is not installed: pip install 'onedva\[trt\]'"):
        to_device(np.zeros(4, np.uint8))
