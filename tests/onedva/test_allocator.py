"""What training frees stays with the process: measured in a process of its own, since nothing undoes it there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onedva.allocator import keep_freed_memory

FAULTS = """
import resource, torch
from onedva.allocator import keep_freed_memory
{call}
torch.ones(32, 1 << 20)  # 128 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16, 1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    """Pages mapped for a tensor of 64 MiB, after one of 128 MiB was freed."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_what_is_freed_is_not_mapped_anew() -> None:
    assert 4 * faults("keep_freed_memory()") < faults("")  # where pages are huge, both are few


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
