"""The engine builder, on a fake GPU: what is built, under which key, and what is left when something goes wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fake_machine import FOLDER, builds, fake_machine
from onedva_export.to_tensorrt import EngineBuildError, Progress, build_engines
from onedva_runtime.backends.gpu import MissingGpu, find_gpu
from onedva_runtime.bundle import Bundle, read_bundle
from onedva_runtime.engines import (
    EngineOptions,
    Gpu,
    engine_folder,
    find_engine,
    read_engine,
    read_plan,
)
from onedva_runtime.errors import BackendError

SIZE = (5, 32, 48)
H100 = Gpu("Fake H100", "9.0", "10.16.1.11")


@pytest.fixture(scope="session")
def bundle(fake, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The fake bundle with graphs of one clip size: 12 positions, so at most 12 latents."""
    return read_bundle(fake.make_fake_bundle(tmp_path_factory.mktemp("trt") / "fake-v1", static=[SIZE]))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def machine(cache: Path) -> Iterator[pytest.MonkeyPatch]:
    with fake_machine(cache) as patch:
        yield patch


def left_over(cache: Path) -> set[str]:
    """Names in the engines' folder but for locks and the timing cache."""
    return {path.name for path in (cache / "tensorrt").iterdir() if path.suffix not in (".lock", ".cache")}


# Builds


def test_it_builds_once_and_keeps_what_it_has(bundle: Bundle, machine, cache: Path) -> None:
    told: list[Progress] = []
    built = build_engines(bundle, EngineOptions(profiles=(4, 8)), on_progress=told.append)
    assert [engine.facts["graph"] for engine in built] == ["encoder", "condition", "velocity"]
    assert all(engine.profiles == ((1, 4), (5, 8), (9, 12)) for engine in built)
    assert [line.split()[-1] for line in builds(cache)] == [
        "0",
        "1",
        "2",
    ]  # the timing cache goes on from build to build
    assert build_engines(bundle, EngineOptions(profiles=(4, 8))) == built and len(builds(cache)) == 3
    assert left_over(cache) == {Path(engine.folder).name for engine in built}
    assert (Path(built[0].folder).stat().st_mode & 0o777) == 0o700

    assert [step.done for step in told] == sorted(step.done for step in told) and told[-1].done == 2
    fractions = [step.fraction for step in told if step.done == 0]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert told[0].seconds_left is None and told[-1].seconds_left is not None

    build_engines(bundle, EngineOptions(profiles=(4,)))
    assert len(builds(cache)) == 6
    static = bundle.manifest.tensorrt[0]
    assert find_engine(bundle, static, "velocity", find_gpu()).profiles == ((1, 4), (5, 12))  # the newest


def test_precision_beside_the_graph_is_off_for_fp32(bundle: Bundle, machine, cache: Path) -> None:
    """TF32 rounds like fp16: not where fp32 was asked for, never in the encoder."""
    manifest = bundle.manifest
    low = replace(
        bundle, manifest=replace(manifest, tensorrt=tuple(replace(s, dtype="fp16") for s in manifest.tensorrt))
    )
    build_engines(bundle)
    build_engines(low)
    flags = [line.split(" ", 1)[1].rsplit(" ", 1)[0] for line in builds(cache)]
    assert flags == ["[]"] * 4 + ["['TF32']"] * 2


def test_a_damaged_plan_is_never_opened_and_built_again_once(bundle: Bundle, machine, cache: Path, caplog) -> None:
    built = build_engines(bundle)
    plan = Path(built[1].folder) / "engine.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    with pytest.raises(BackendError, match="damaged: `onedva engines` builds it again"):
        read_plan(built[1])
    again = build_engines(bundle)
    assert "damaged" in caplog.text and len(builds(cache)) == 4
    assert read_plan(again[1]) and [engine.sha256 for engine in again] == [engine.sha256 for engine in built]
    (Path(built[0].folder) / "engine.json").write_text("{")
    assert read_engine(Path(built[0].folder)) is None
    assert build_engines(bundle) and len(builds(cache)) == 5


@pytest.mark.parametrize(
    ("fault", "says"),
    [("condition", "no implementation for a node of trt-5x32x48-fp32-condition"), ("crash", "code 11")],
)
def test_a_failed_build_leaves_nothing(bundle: Bundle, machine, cache: Path, fault: str, says: str) -> None:
    machine.setenv("FAKE_TENSORRT_FAIL", fault)
    with pytest.raises(EngineBuildError, match=says):
        build_engines(bundle)
    assert len(left_over(cache)) == (1 if fault == "condition" else 0)  # the encoder's engine was whole
    machine.delenv("FAKE_TENSORRT_FAIL")
    assert len(build_engines(bundle)) == 3


def test_a_build_that_takes_too_long_is_ended(bundle: Bundle, machine, cache: Path) -> None:
    machine.setenv("FAKE_TENSORRT_SECONDS", "60")
    start = time.monotonic()
    with pytest.raises(EngineBuildError, match="took more than 3 s"):
        build_engines(bundle, timeout=3)
    assert time.monotonic() - start < 30 and left_over(cache) == set()


def test_builders_of_one_engine_wait_for_each_other(bundle: Bundle, machine, cache: Path) -> None:
    machine.setenv("FAKE_TENSORRT_SECONDS", "0.3")
    results: list[list] = []
    threads = [threading.Thread(target=lambda: results.append(build_engines(bundle))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and results[0] == results[1] == results[2]
    assert len(builds(cache)) == 3


def test_a_build_ends_with_its_parent(bundle: Bundle, machine, cache: Path) -> None:
    machine.setenv("FAKE_TENSORRT_SECONDS", "60")
    code = f"""
from onedva_export import build_engines
from onedva_runtime.bundle import read_bundle
build_engines(read_bundle({str(bundle.folder)!r}))
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while not builds(cache) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert children, "the worker must be running"
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    machine.delenv("FAKE_TENSORRT_SECONDS")
    assert len(build_engines(bundle)) == 3  # the lock went with its holder


def test_what_the_process_gets_is_a_list_not_a_shell(bundle: Bundle, machine, cache: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "a b; touch pwned $(touch pwned2)"
    hostile.symlink_to(bundle.folder)
    assert len(build_engines(read_bundle(hostile))) == 3
    assert not list(Path.cwd().glob("pwned*")) and not list(tmp_path.glob("pwned*"))


# What is missing or does not fit


def test_an_engine_of_another_machine_is_named(bundle: Bundle, machine, cache: Path) -> None:
    static = bundle.manifest.tensorrt[0]
    with pytest.raises(
        BackendError, match=r"no engine of fake-v1, velocity at 5×32×48, fp32 in .*: build it with `onedva"
    ):
        find_engine(bundle, static, "velocity", H100)
    build_engines(bundle)
    assert find_engine(bundle, static, "velocity", H100).facts["gpu"] == "Fake H100"
    for other in (replace(H100, name="Fake A100", capability="8.0"), replace(H100, tensorrt="11.4.0.106")):
        with pytest.raises(
            BackendError, match=r"was built for Fake H100 with TensorRT 10.16.1.11, here is Fake"
        ) as found:
            find_engine(bundle, static, "velocity", other)
        assert other.tensorrt in str(found.value)
    build_engines(bundle, EngineOptions(hardware_compatible=True))
    assert find_engine(bundle, static, "velocity", replace(H100, name="Fake A100", capability="8.0"))
    with pytest.raises(BackendError, match="here is Fake T4"):
        find_engine(bundle, static, "velocity", replace(H100, name="Fake T4", capability="7.5"))


def test_a_missing_gpu_or_an_unknown_version_is_named(bundle: Bundle, cache: Path, fake_bundle: Path) -> None:
    with pytest.raises(MissingGpu, match=r"TensorRT is not installed: pip install 'onedva\[trt\]'"):
        build_engines(bundle)
    with fake_machine(cache, gpu=""), pytest.raises(MissingGpu, match=r"no NVIDIA GPU here .*cudaErrorNoDevice"):
        build_engines(bundle)
    for version in ("10.14.1", "12.0.0"):
        with fake_machine(cache, tensorrt=version), pytest.raises(MissingGpu, match=f"TensorRT {version} is not one"):
            build_engines(bundle)
    with pytest.raises(BackendError, match=r"has no graphs for TensorRT: `onedva export .* --trt`"):
        build_engines(read_bundle(fake_bundle))
    with pytest.raises(BackendError, match="no graphs for clips of 9×32×48; it has 5×32×48"):
        build_engines(bundle, sizes=[(9, 32, 48)])


def test_it_works_with_tensorrt_11(bundle: Bundle, cache: Path) -> None:
    with fake_machine(cache, tensorrt="11.4.0.106"):
        assert {engine.facts["tensorrt"] for engine in build_engines(bundle)} == {"11.4.0.106"}


def test_a_folder_that_others_may_write_to_is_refused(bundle: Bundle, machine, cache: Path) -> None:
    engine_folder().chmod(0o777)
    with pytest.raises(BackendError, match="may be written to by others"):
        build_engines(bundle)


def test_engines_are_built_without_torch(bundle: Bundle, machine, cache: Path) -> None:
    code = f"""
from onedva_export import build_engines
from onedva_runtime.bundle import read_bundle
assert len(build_engines(read_bundle({str(bundle.folder)!r}))) == 3
"""
    script = Path(__file__).parents[1] / "without_torch.py"
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    done = subprocess.run([sys.executable, "-P", script, code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
