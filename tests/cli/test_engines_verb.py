"""`onedva engines` and `onedva export --trt`: what they print, and exit 3 where there is no TensorRT."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import onedva_export
from fake_machine import builds, fake_machine
from onedva_export.static_export import StaticSizes

Run = Callable[..., Result]
Console = Callable[..., subprocess.CompletedProcess[str]]
Refused = Callable[..., None]


@pytest.fixture(scope="module")
def folder(fake, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with graphs for TensorRT of one size."""
    return fake.make_fake_bundle(tmp_path_factory.mktemp("trt") / "fake-v1", static=[(5, 32, 48)])


@pytest.fixture
def asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `export` asks for: the export itself takes a minute, and has tests of its own."""
    options: dict[str, Any] = {}

    def export_bundle(checkpoint: str, output: Path, **rest: Any) -> Path:
        options.update(rest, checkpoint=checkpoint)
        return Path(shutil.copytree(folder, output))

    monkeypatch.setattr(onedva_export, "export_bundle", export_bundle, raising=False)
    return options


def test_without_tensorrt_the_bundle_is_whole_and_one_line_says_what_is_missing(
    run: Run, asked: dict[str, Any], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    result = run("export", "tiny", "-o", target, "--trt", "--max-tokens", "1024", "--resolution", "48x32")
    assert result.exit_code == 3 and result.stdout == f"{target}\n"
    assert result.stderr == ("onedva: no engines were built: TensorRT is not installed: pip install 'onedva[trt]'\n"), (
        result.stderr
    )
    assert asked["tensorrt"] == StaticSizes(((32, 48),), None, "fp16") and asked["max_tokens"] == 1024
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    result = run("engines", "-m", target)
    assert result.exit_code == 3 and result.stdout == "" and result.stderr.count("\n") == 1


def test_with_tensorrt_engines_are_built_with_the_options_given(
    run: Run, asked: dict[str, Any], tmp_path: Path
) -> None:
    cache, target = tmp_path / "cache", tmp_path / "out"
    flags = [
        "--trt",
        "--dtype",
        "bf16",
        "--engine-frames",
        "17,5",
        "--profiles",
        "4,8",
        "--max-batch",
        "2",
        "--opt-level",
        "1",
        "--workspace",
        "128",
    ]
    with fake_machine(cache):
        result = run("export", "tiny", "-o", target, *flags, "--quiet")
        assert (result.exit_code, result.stdout) == (0, f"{target}\n"), result.stderr
        assert asked["tensorrt"] == StaticSizes(((128, 128), (256, 256)), (17, 5), "bf16")
        assert len(builds(cache)) == 3
        same = ["--profiles", "4,8", "--max-batch", "2", "--opt-level", "1", "--workspace", "128"]
        result = run("engines", "-m", target, *same, "--json")
        rows = json.loads(result.stdout)["engines"]
        assert len(builds(cache)) == 3
    assert [row["graph"] for row in rows] == ["encoder", "condition", "velocity"]
    assert all(row["profiles"] == "1-4, 5-8, 9-12" and row["size"] == "5×32×48" for row in rows)


def test_a_failed_build_is_exit_3_with_what_tensorrt_said(run: Run, folder: Path, tmp_path: Path) -> None:
    with fake_machine(tmp_path / "cache") as machine:
        machine.setenv("FAKE_TENSORRT_FAIL", "velocity")
        result = run("engines", "-m", folder, "--quiet")
    assert result.exit_code == 3 and result.stderr.count("\n") == 1
    assert "velocity 5×32×48 fp32 cannot be built: TensorRT gave no engine: no implementation" in result.stderr


def test_what_makes_no_sense_is_refused(run: Run, refused: Refused, folder: Path, fake_bundle: Path) -> None:
    refused(run("export", "tiny", "--trt", "--dtype", "int8"), "fp32, fp16, bf16", "int8")
    refused(run("export", "tiny", "--dtype", "bf16"), "--trt")
    refused(run("export", "tiny", "--engine-frames", "5"), "--trt")
    refused(run("export", "tiny", "--trt", "--engine-frames", "4"), "1 + 4n, got 4")
    refused(run("export", "tiny", "--trt", "--profiles", "64,x"), "64,256,1024", "64,x")
    refused(run("export", "tiny", "--trt", "--profiles", "256,64"), "rising")
    refused(run("engines", "-m", folder, "--size", "5x32"), "FRAMESxHEIGHTxWIDTH", "5x32")
    refused(run("engines", "-m", folder, "--size", "9x32x48"), "9×32×48", "5×32×48")
    refused(run("engines", "-m", fake_bundle), "--trt")


def test_info_names_what_is_missing(run: Run) -> None:
    backends = {status["name"]: status for status in json.loads(run("info", "--json").stdout)["backends"]}
    assert "pip install 'onedva[trt]'" in backends["tensorrt"]["reason"]
    assert "pip install 'onedva[gpu]'" in backends["onnxruntime-cuda"]["reason"]
