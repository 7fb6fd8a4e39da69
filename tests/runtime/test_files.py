"""Files on a full disk: the error names the file, and nothing is left."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, sys
from pathlib import Path
from fractions import Fraction
import numpy as np
from odva_files import make_packet, make_quantiser
from onedva_runtime.container import save_packets
from onedva_runtime.errors import OneDVAError
from onedva_runtime.thin import thin_file
from onedva_runtime.video_io import VideoWriter
from onedva.commands.console import write_whole

folder = Path(sys.argv[1])
packet = make_packet(frames=16, tokens=200, height=512, width=512)
save_packets(folder / "in.odva", [packet], quantiser=make_quantiser())
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # to a program, a disk that is full after 2000 bytes


def video():
    with VideoWriter(folder / "out.mp4", width=64, height=64, fps=Fraction(25)) as writer:
        writer.write(np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8))


for attempt in (
    lambda: save_packets(folder / "out.odva", [packet], quantiser=make_quantiser()),
    lambda: thin_file(folder / "in.odva", folder / "out.odva", tokens=64),
    lambda: write_whole(folder / "out.json", "x" * 3000, overwrite=False),
    video,
    lambda: save_packets(folder / "live.odva", [packet], quantiser=make_quantiser(), live=True),
):
    try:
        attempt()
    except OneDVAError as error:
        print(str(error).replace(sys.argv[1], ""))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX systems")
def test_a_full_disk_is_told_of_by_the_name_of_the_file(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tests)!r})\n{CODE}", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    names = ("out.odva", "out.odva", "out.json", "out.mp4", "live.odva")
    assert done.stdout.splitlines() == [f"/{name}: cannot be written (File too large)" for name in names], done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.odva", "live.odva"]
    assert done.stderr == ""
