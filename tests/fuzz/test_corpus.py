"""The fuzzer's corpus as a test: every input that once led somewhere new ends as it should, and quickly."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def target(name: str) -> Callable[[bytes], None]:
    spec = importlib.util.spec_from_file_location(f"{name}_target", HERE / f"{name}_target.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.one_input


@pytest.mark.parametrize("name", ["container", "bundle"])
def test_the_corpus_runs_clean(name: str) -> None:
    files = sorted((HERE / "corpus" / name).iterdir())
    assert len(files) > 20 and sum(file.stat().st_size for file in files) < 150_000
    one_input = target(name)
    for file in files:
        start = time.perf_counter()
        one_input(file.read_bytes())
        assert time.perf_counter() - start < 10, file.name


def test_the_targets_reach_what_they_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of another kind comes out: the target hides none."""
    monkeypatch.setattr("onedva_runtime.container_packet.Coded.decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        for file in sorted((HERE / "corpus" / "container").iterdir()):
            target("container")(file.read_bytes())
