"""`backend="auto"`: measured once, kept by what it depends on, and never a backend that fails the golden test."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from onedva_runtime import VideoCodec, backends
from onedva_runtime.backends import choose, open_backend
from onedva_runtime.backends.choose import Measured
from onedva_runtime.errors import BackendError, BundleError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "choices"


def test_it_measures_once_and_says_why(fake_bundle: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="onedva")
    first = VideoCodec.from_pretrained(fake_bundle, threads=1).info()
    assert "measuring once" in caplog.text
    caplog.clear()
    again = VideoCodec.from_pretrained(fake_bundle, threads=1).info()
    assert caplog.text == "" and again == first
    measured = {(entry["backend"], entry["dtype"]): entry for entry in first["backends_measured"]}
    assert {("onnxruntime", "fp32"), ("openvino", "fp32")} <= set(measured)
    assert first["backends_measured"][0]["backend"] == first["backend"]
    assert all(entry["seconds"] > 0 for entry in measured.values() if entry["passed"])
    assert "golden test passed at" in first["backend_reason"] and "onnxruntime fp32" in first["backend_reason"]
    VideoCodec.from_pretrained(fake_bundle, threads=2)
    assert len(list(cache.iterdir())) == 2  # threads are part of the question


def test_the_answer_is_read_and_damage_is_noticed(
    fake_bundle: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    VideoCodec.from_pretrained(fake_bundle, threads=1)
    (path,) = cache.iterdir()
    entries = sorted(json.loads(path.read_bytes()), key=lambda entry: entry["backend"] != "onnxruntime")
    path.write_text(json.dumps(entries))
    assert VideoCodec.from_pretrained(fake_bundle, threads=1).backend_name == "onnxruntime"
    path.write_text("{")
    VideoCodec.from_pretrained(fake_bundle, threads=1)
    assert "not readable, measuring again" in caplog.text
    assert len(json.loads(path.read_bytes())) == len(entries)


def test_fewer_bits_must_be_worth_it() -> None:
    exact = Measured("openvino", "fp32", True, 95.0, 1.0)
    close, fast = replace(exact, dtype="bf16", seconds=0.95), replace(exact, dtype="int8", seconds=0.5)
    broken = replace(exact, dtype="bf16", passed=False, seconds=0.0)
    assert choose._ranked([broken, close, exact])[0] == exact
    assert choose._ranked([broken, close, exact, fast])[0] == fast
    assert choose._ranked([fast, broken])[-1] == broken


def test_none_that_fails_the_golden_test(fake_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = choose._golden

    def failing(names: set[str]):
        return lambda bundle, backend: {**golden(bundle, backend), "passed": backend.name not in names}

    monkeypatch.setattr(choose, "_golden", failing({"onnxruntime"}))
    assert VideoCodec.from_pretrained(fake_bundle, threads=1).backend_name == "openvino"
    monkeypatch.setattr(choose, "_golden", failing({"onnxruntime", "openvino"}))
    with pytest.raises(BackendError, match=r"no backend passes the golden test of fake-v1: .*onnxruntime fp32"):
        VideoCodec.from_pretrained(fake_bundle, threads=2)
    with pytest.raises(BackendError, match="openvino fp32"):  # a failure is kept as well
        VideoCodec.from_pretrained(fake_bundle, threads=2)


def test_what_cannot_be_opened_is_left_out(fake_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *arguments, **options):
        if name == "openvino":
            raise BackendError("no such instruction")
        return open_backend(name, *arguments, **options)

    monkeypatch.setattr(choose, "open_backend", broken)
    info = VideoCodec.from_pretrained(fake_bundle, threads=1).info()
    assert info["backend"] == "onnxruntime"
    assert {entry["problem"] for entry in info["backends_measured"]} == {"", "no such instruction"}


def test_a_single_candidate_is_not_measured(fake_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = [backends.STATUSES["onnxruntime"]()]
    monkeypatch.setattr(choose, "available", lambda: statuses)
    info = VideoCodec.from_pretrained(fake_bundle).info()
    assert info["backend"] == "onnxruntime" and info["backends_measured"] == []
    assert "the only usable backend; golden test passed" in info["backend_reason"]
    assert not cache.exists()


def test_a_graph_that_one_backend_refuses_leaves_the_others(
    fake_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(name: str, *arguments, **options):
        if name == "openvino":
            raise BundleError("OpenVINO refuses encoder.onnx")
        return open_backend(name, *arguments, **options)

    monkeypatch.setattr(choose, "open_backend", refuses)
    info = VideoCodec.from_pretrained(fake_bundle, threads=1).info()
    assert info["backend"] == "onnxruntime"
    assert "OpenVINO refuses encoder.onnx" in {entry["problem"] for entry in info["backends_measured"]}


def test_a_choice_that_cannot_be_kept_costs_time_only(
    fake_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(choose, "AtomicFile", full)
    VideoCodec.from_pretrained(fake_bundle, threads=1)
    assert "cannot be kept, so it will be measured again: [Errno 28] No space left" in caplog.text
