"""Bundles of one's own, and a codec on the shared fake one of tests/conftest.py."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from onedva_runtime.codec import VideoCodec


@pytest.fixture
def make_bundle(fake: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """Makes a fake bundle of one's own: make_bundle(edit=function of the manifest's content)."""
    return lambda **options: fake.make_fake_bundle(tmp_path / "bundle", **options)


@pytest.fixture(scope="session")
def codec(fake_bundle: Path) -> VideoCodec:
    """A codec on the fake bundle. Its graphs round, so that ties may fall the other way on another backend."""
    return VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", threads=1)
