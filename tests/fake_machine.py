"""How tests get at the GPU in tests/fake_gpu: by module path in this process and in those that it starts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("fake_gpu")
MODULES = ("tensorrt", "cuda", "cuda.bindings", "cuda.bindings.runtime")


@contextmanager
def fake_machine(cache: Path, *, gpu: str = "Fake H100", tensorrt: str = "10.16.1.11") -> Iterator[pytest.MonkeyPatch]:
    """A machine with a GPU, a TensorRT and an empty cache, until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("PYTHONPATH", str(FOLDER))
        patch.setenv("ONEDVA_CACHE", str(cache))
        patch.setenv("FAKE_GPU", gpu)
        patch.setenv("FAKE_TENSORRT", tensorrt)
        patch.setenv("FAKE_TENSORRT_LOG", str(cache.with_suffix(".log")))
        for name in MODULES:
            patch.delitem(sys.modules, name, raising=False)
        try:
            yield patch
        finally:
            for name in MODULES:
                sys.modules.pop(name, None)


def builds(cache: Path) -> list[str]:
    """What was built so far: file name, flags and size of the timing cache of each engine."""
    log = cache.with_suffix(".log")
    return log.read_text().splitlines() if log.exists() else []
