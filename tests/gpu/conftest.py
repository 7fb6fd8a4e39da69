"""Two machines for one set of tests: the fake GPU, everywhere, and a real one where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fake_machine import FakeKernels, fake_machine
from onedva_runtime.backends.cuda_memory import Cuda
from onedva_runtime.backends.device_sampler import device_kernels


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cuda, Any, int]]:
    """A GPU, kernels for it, and a stream."""
    if request.param == "fake":
        with fake_machine(tmp_path_factory.mktemp("gpu") / "cache"):
            cuda = Cuda()
            yield cuda, FakeKernels(), cuda.stream()
        return
    kernels = device_kernels()
    assert kernels is not None, "the extension was built without CUDA: ONEDVA_CUDA=ON says why"
    cuda = Cuda()
    yield cuda, kernels, cuda.stream()
