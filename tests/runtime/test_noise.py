"""The noise is the one that its definition names, and C++ and NumPy give the same bits."""

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime import noise

# Random123 (kat_vectors): philox4x32 10 rounds; counter, key, expected words.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
BOX: dict[str, Any] = dict(first_frame=3, frames=4, height=19, width=33)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter, key, expected):
    words = noise.philox4x32(tuple(np.array([word], np.uint64) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


def test_table_is_the_same_on_every_machine():
    table = noise.normal_table()
    assert hashlib.sha256(table.astype("<f4").tobytes()).hexdigest() == (
        "8422cf312998f0a9b1a53e8c310b44117c100408dbcf920220ca232c9852b413"
    )
    assert table.shape == (65536,) and not table.flags.writeable
    assert np.array_equal(table, -table[::-1]) and (np.diff(table) > 0).all()
    assert abs(table.std(dtype=np.float64) - 1) < 1e-4
    # From printed tables: the quantiles at 1 - 2^-17 and at 3/4 (entry 49152 lies 2^-17 above it).
    assert table[-1] == pytest.approx(4.32491, abs=2e-5)
    assert table[49152] == pytest.approx(0.674490 + 2.4e-5, abs=2e-5)


def test_the_extension_is_built():
    assert noise.is_native(), "the suite must test the C++ path; build it with `pip install .`"


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    first_frame=st.integers(0, 2**32 - 8),
    frames=st.integers(1, 4),
    height=st.integers(1, 20),
    width=st.one_of(st.integers(1, 40), st.integers(500, 530)),
    top=st.integers(0, 2**32 - 20),
    left=st.integers(0, 2**32 - 530),
    threads=st.integers(1, 5),
)
def test_native_and_reference_give_the_same_bits(seed, threads, **box):
    assert np.array_equal(noise.gaussian(seed, threads=threads, **box), noise.reference_gaussian(seed, **box))


def test_literal_values():
    # Computed with an independent Philox: counter (1, 2, 3, 0), key (0x9ABCDEF0, 0x12345678) gives the words 1D13739F,
    # ADC369AE, 51F25FB4. Guards the order of counter, key and channels.
    got = noise.gaussian(0x123456789ABCDEF0, first_frame=1, frames=1, height=1, width=1, top=2, left=3)
    assert got.shape == (3, 1, 1, 1) and got.dtype == np.float32
    assert (got.ravel() * 65536).tolist() == [-79149, 30425, -30632]


def test_noise_does_not_depend_on_how_a_video_is_cut():
    whole = noise.gaussian(11, **BOX)
    part = noise.gaussian(11, first_frame=5, frames=2, height=8, width=9, top=7, left=20)
    assert np.array_equal(part, whole[:, 2:4, 7:15, 20:29])
    assert np.array_equal(noise.gaussian(11, **BOX), whole)
    assert not np.array_equal(noise.gaussian(12, **BOX), whole)


def test_noise_is_standard_normal_and_uncorrelated():
    sample = noise.gaussian(0, first_frame=0, frames=5, height=128, width=128).astype(np.float64)
    assert abs(sample.mean()) < 0.01 and abs(sample.std() - 1) < 0.01
    assert abs((sample**4).mean() - 3) < 0.06  # the kurtosis of a normal
    for axis in range(4):
        neighbours = (np.delete(sample, 0, axis) * np.delete(sample, -1, axis)).mean()
        assert abs(neighbours) < 0.01, f"axis {axis}"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed must be in 0 … 2\\^64 - 1, got -1"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"frames": 0}, ValueError, "frames must be at least 1, got 0"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        ({"left": -1}, ValueError, "left must be at least 0"),
        ({"first_frame": 2**32 - 3}, ValueError, "at most 2\\^32"),
    ],
)
def test_refuses_what_is_out_of_range(change, error, message):
    with pytest.raises(error, match=message):
        noise.gaussian(**{"seed": 0, **BOX, **change})


def test_accepts_numpy_integers():
    box: dict[str, Any] = {name: np.int64(value) for name, value in BOX.items()}
    seeds: list[Any] = [np.uint64(2**64 - 1), np.int32(7)]
    for seed in seeds:
        assert np.array_equal(noise.gaussian(seed, **box), noise.reference_gaussian(int(seed), **BOX))


def test_works_without_the_extension(monkeypatch):
    expected = noise.gaussian(5, **BOX)
    monkeypatch.setattr(noise, "native", lambda: None)
    assert np.array_equal(noise.gaussian(5, **BOX), expected)


def test_the_gil_is_released():
    # One thread draws for tens of milliseconds while this one goes on counting; with the GIL held it would stand still.
    box = dict(first_frame=0, frames=24, height=512, width=512)
    noise.gaussian(0, **BOX)
    worker = threading.Thread(target=noise.gaussian, args=(0,), kwargs=box)
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks >= 5


CROWDED = """
import resource
import numpy as np
from onedva_runtime.noise import gaussian, reference_gaussian
from onedva_runtime.sampler import pack_frames, reference_pack

box = {"first_frame": 3, "frames": 4, "height": 50, "width": 16}
expected = reference_gaussian(7, **box)
gaussian(7, **box, threads=2)
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (48 << 20)  # for a few stacks of 8 MiB, not for 200
resource.setrlimit(resource.RLIMIT_AS, (room, room))
assert np.array_equal(gaussian(7, **box, threads=200), expected)
video = expected[None]
assert np.array_equal(pack_frames(video, threads=200), reference_pack(video))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.skipif(not noise.is_native(), reason="threads are those of C++")
def test_fewer_threads_than_asked_for_do_the_work_too() -> None:
    """Containers bound threads: what cannot be handed to one is done by the caller."""
    done = subprocess.run([sys.executable, "-c", CROWDED], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
