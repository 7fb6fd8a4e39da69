"""The extension as it was built: with kernels for the GPUs named where nvcc works, importable without a driver."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onedva_runtime.noise import native

REPOSITORY = Path(__file__).parents[2]


def module():
    found = native()
    assert found is not None
    return found


def test_kernels_are_there_where_nvcc_is() -> None:
    """cuobjdump is not everywhere nvcc is: the names of architectures and kernels stand in the file's text as well."""
    if not module().has_cuda:
        pytest.skip("built without CUDA: nvcc was not found, or does not work")
    content = Path(str(module().__file__)).read_bytes()
    targets = {int(number) for number in re.findall(rb"-arch sm_(\d+)", content)}
    assert targets == {int(number) for number in re.findall(r"\d+", module().cuda_architectures)}
    assert {80, 90} <= targets
    for kernel in (b"gaussian", b"unpack", b"set_time", b"update", b"pack"):
        assert re.search(rb"_ZN6onedva\w*%d%s" % (len(kernel), kernel), content), kernel
    assert b"-fmad false" in content, "contraction would round once where NumPy rounds twice"
    linked = subprocess.run(["ldd", str(module().__file__)], capture_output=True, text=True, check=True).stdout
    assert "libcuda" not in linked, "it must load on a machine without a driver"


def test_a_launch_without_a_gpu_is_an_error_in_words() -> None:
    if not module().has_cuda:
        pytest.skip("built without CUDA")
    code = "from onedva_runtime import _sampler; _sampler.device_begin(0, 0, 0, 0, 1, 0)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and re.search(r"CUDA: begin failed: cudaError\w+", done.stderr), done.stderr


@pytest.mark.parametrize(("option", "works"), [("ON", False), ("AUTO", True), ("OFF", True), ("MAYBE", False)])
def test_the_build_option_says_what_it_does(option: str, works: bool, tmp_path: Path) -> None:
    """With an nvcc that does not work: AUTO goes on without kernels and says why, ON stops."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    broken = tmp_path / "nvcc"
    broken.write_text("#!/bin/sh\necho unsupported host compiler >&2\nexit 1\n")
    broken.chmod(0o755)
    command = ["cmake", "-S", REPOSITORY, "-B", tmp_path / "build", f"-DONEDVA_CUDA={option}"]
    command += [f"-DONEDVA_NVCC={broken}", f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == works, said
    if option in ("ON", "AUTO"):
        assert "unsupported host compiler" in said
    if option == "MAYBE":
        assert "must be AUTO, ON or OFF" in said
