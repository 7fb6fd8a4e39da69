"""The runtime and the command line work where torch cannot be imported, and this test would notice if they did not."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("without_torch.py")

ROUND_TRIP = """
import numpy as np
from onedva import VideoCodec
from onedva_runtime.clips import make_clip

frames = make_clip(20, 48, 80)
codec = VideoCodec.from_pretrained("tiny", threads=1)
packets = codec.encode(frames, tokens=16)
decoded = codec.decode(packets)
assert decoded.shape == frames.shape and decoded.dtype == np.uint8
error = np.mean((decoded.astype(float) - frames) ** 2)
assert error < np.var(frames.astype(float)), "no better than a grey picture"
"""


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    # -P: the folder of the script, tests/, has folders with the packages' names.
    return subprocess.run([sys.executable, "-P", SCRIPT, code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "code",
    [
        "import onedva, onedva_runtime",
        "import onedva.cli",
        "from onedva import VideoCodec",
        "import onedva_runtime.serve.server",
    ],
)
def test_imports_never_try_torch(code):
    done = run_without_torch(code)
    assert done.returncode == 0, done.stderr


def test_encode_and_decode_never_try_torch(shipped_bundle):
    done = run_without_torch(ROUND_TRIP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import torch",
        "import torch.nn",
        "import onedva.layers",
        "try:\n    import torch\nexcept ImportError:\n    pass",
    ],
)
def test_the_ban_can_fail(code):
    done = run_without_torch(code)
    assert done.returncode != 0 and "torch" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0, "must work where torch is allowed"


def test_the_version_is_there_without_loading_anything():
    code = "import sys, onedva; print(onedva.__version__, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{version('onedva')} False\n"
