"""The fake GPU against the real thing: every class, method, argument and enum that tests/fake_gpu has exists in the
real bindings of TensorRT 10.16 and 11, and every call in cuda-python. Since our code runs on the fake, which knows
nothing else, what our code uses is there. The bindings are real, the libraries behind them empty: nothing is run.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from fake_machine import fake_machine

BINDINGS = Path(__file__).parents[2] / ".venv" / "bindings"
VERSIONS = [path.name.removeprefix("tensorrt-") for path in sorted(BINDINGS.glob("tensorrt-*"))]
# what the fake calls its classes → what TensorRT does
CLASSES = {
    "Builder": "Builder",
    "Network": "INetworkDefinition",
    "OnnxParser": "OnnxParser",
    "Profile": "IOptimizationProfile",
    "Config": "IBuilderConfig",
    "Runtime": "Runtime",
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
    "ILogger": "ILogger",
    "Logger": "Logger",
    "IAttentionBoundaryLayer": "IAttentionBoundaryLayer",
}
ENUMS = (
    "NetworkDefinitionCreationFlag", "BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "TensorIOMode",
    "DataType", "ExecutionContextAllocationStrategy",
)  # fmt: skip
OWN = {"Config": {"profiles", "flags", "workspace", "timing"}}  # attributes that only the fake has
FUNCTIONS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
DESCRIBE = """
import json, sys
import tensorrt_bindings as trt
asked = json.loads(sys.argv[1])
found = {"version": trt.__version__, "classes": {}, "enums": {}, "functions": {}}
for name in asked["classes"]:
    kind = getattr(trt, name, None)
    found["classes"][name] = None if kind is None else {m: getattr(kind, m).__doc__ or "" for m in dir(kind)}
for name in asked["enums"]:
    found["enums"][name] = list(getattr(getattr(trt, name, None), "__members__", ()))
found["functions"]["init_libnvinfer_plugins"] = getattr(trt, "init_libnvinfer_plugins", str).__doc__
steps = ("phase_start", "step_complete", "phase_finish")
found["monitor"] = {name: getattr(trt.IProgressMonitor, name).__doc__ for name in steps}
found["severities"] = list(trt.ILogger.Severity.__members__)
found["decomposable"] = hasattr(trt.IAttention, "decomposable") and hasattr(trt.IAttentionBoundaryLayer, "attention")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fake_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    with fake_machine(tmp_path_factory.mktemp("fake") / "cache"):
        import tensorrt  # pyright: ignore[reportMissingImports]

        return tensorrt


@pytest.fixture(scope="module", params=VERSIONS or ["none"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the real bindings of one version have, told by a process that loads them over empty libraries."""
    if request.param == "none":
        pytest.skip(f"no bindings in {BINDINGS}: `make .venv/ready` brings them on Linux")
    folder = BINDINGS / f"tensorrt-{request.param}"
    libraries = tmp_path_factory.mktemp("libraries")
    source = libraries / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in FUNCTIONS))
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        file = f"lib{name}.so.{request.param.split('.')[0]}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", libraries / file, source], check=True, timeout=60
        )
    asked = {"classes": sorted({*CLASSES.values()}), "enums": ENUMS}
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(libraries)}
    command = [sys.executable, "-c", DESCRIBE, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_both_ends_of_the_supported_range_are_there() -> None:
    if not VERSIONS:
        pytest.skip(f"no bindings in {BINDINGS}")
    assert {version.split(".")[0] for version in VERSIONS} == {"10", "11"}


def test_every_class_method_and_argument_exists(real: dict[str, Any], fake_tensorrt: ModuleType) -> None:
    for ours, theirs in CLASSES.items():
        known = real["classes"][theirs]
        assert known is not None, f"TensorRT {real['version']} has no {theirs}"
        for name, member in vars(getattr(fake_tensorrt, ours)).items():
            if name.startswith("__") or name in OWN.get(ours, ()):
                continue
            assert name in known, f"TensorRT {real['version']}: {theirs} has no {name}"
            if inspect.isfunction(member):
                wanted = [arg for arg in inspect.signature(member).parameters if arg != "self"]
                signatures = re.findall(rf"{name}\((.*?)\) ->", known[name]) or [""]
                arguments = [re.findall(r"(\w+): ", signature.replace("self: ", "")) for signature in signatures]
                assert any(wanted == found[: len(wanted)] for found in arguments) or "*args" in known[name], (
                    f"TensorRT {real['version']}: {theirs}.{name} takes {arguments}, not {wanted}"
                )


def test_every_enum_member_exists(real: dict[str, Any], fake_tensorrt: ModuleType) -> None:
    for name in ENUMS:
        missing = set(getattr(fake_tensorrt, name).__members__) - set(real["enums"][name])
        assert not missing, f"TensorRT {real['version']}: {name} lacks {missing}"
    assert set(fake_tensorrt.ILogger.Severity.__members__) <= set(real["severities"])


def test_what_is_subclassed_and_set_exists(real: dict[str, Any]) -> None:
    signatures = {name: doc.strip().split("\n")[0].replace("self: ", "") for name, doc in real["monitor"].items()}
    arguments = {name: re.findall(r"(\w+): ", signature) for name, signature in signatures.items()}
    assert arguments["phase_start"] == ["phase_name", "parent_phase", "num_steps"]
    assert arguments["step_complete"] == ["phase_name", "step"] and arguments["phase_finish"] == ["phase_name"]
    assert real["decomposable"] and real["functions"]["init_libnvinfer_plugins"]


def test_the_comparison_can_fail(real: dict[str, Any], fake_tensorrt: ModuleType, monkeypatch) -> None:
    """What version 11 has dropped would be noticed on 11, and what no version has on both."""
    monkeypatch.setattr(fake_tensorrt.Builder, "platform_has_tf32", lambda self: True, raising=False)
    if real["version"].startswith("11"):
        with pytest.raises(AssertionError, match="Builder has no platform_has_tf32"):
            test_every_class_method_and_argument_exists(real, fake_tensorrt)
    monkeypatch.delattr(fake_tensorrt.Builder, "platform_has_tf32")
    monkeypatch.setattr(fake_tensorrt.Config, "set_flag", lambda self, banner: None)
    with pytest.raises(AssertionError, match="set_flag takes"):
        test_every_class_method_and_argument_exists(real, fake_tensorrt)


def test_every_cuda_call_exists(tmp_path: Path) -> None:
    """Names, and how many arguments each takes; this module needs no GPU to be loaded."""
    folder = BINDINGS / "cuda"
    if not folder.is_dir():
        pytest.skip(f"no cuda-bindings in {folder}: `make .venv/ready` brings them on Linux")
    with fake_machine(tmp_path / "cache"):
        from cuda.bindings import runtime  # pyright: ignore[reportMissingImports]

        calls = {
            name: len(inspect.signature(member).parameters)
            for name, member in vars(runtime).items()
            if name.startswith("cuda") and inspect.isfunction(member)
        }
        enums = {
            name: [entry.name for entry in cast(Any, member)]
            for name, member in vars(runtime).items()
            if name.startswith("cuda") and inspect.isclass(member)
        }
    assert len(calls) > 15 and len(enums) == 3
    code = """
import inspect, json, sys
from cuda.bindings import runtime
calls, enums = json.loads(sys.argv[1])
for name, count in calls.items():
    assert len(inspect.signature(getattr(runtime, name)).parameters) == count, name
for name, members in enums.items():
    for member in members:
        getattr(getattr(runtime, name), member)
assert int(runtime.cudaStreamNonBlocking) == 1 and int(runtime.cudaHostAllocDefault) == 0
print(int(runtime.cudaGetDeviceCount()[0]))
"""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code, json.dumps([calls, enums])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
