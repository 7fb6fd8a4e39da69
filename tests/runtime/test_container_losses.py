"""What is missing of a damaged file: counted and timed as far as the index and the packets around it tell."""

import io
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from odva_files import as_bytes, make_packet, make_tiles
from onedva_runtime import container_layout as layout
from onedva_runtime.container import open_packets
from onedva_runtime.container_index import clips_of
from onedva_runtime.container_layout import Entry
from onedva_runtime.container_losses import Lost, with_losses
from onedva_runtime.container_records import Records
from onedva_runtime.errors import OverLimit
from onedva_runtime.packet import Packet

TICKS = np.cumsum(np.random.default_rng(0).integers(1, 90, 25))
Told = list[Any]


class Pipe(io.BytesIO):
    """Bytes that cannot be searched."""

    def seekable(self) -> bool:
        return False


def clip(first: int, *, times: bool = True) -> Packet:
    """Five frames, a key clip."""
    packet = make_packet(first=first, height=16, width=16, tokens=1)
    ticks = TICKS[first : first + 5]
    return replace(packet, timestamps=ticks, time_base=Fraction(1, 1000)) if times else packet


def hurt(data: bytes, *lost: int, index: bool = True) -> bytes:
    """A file with a byte changed in some of its packets, and in its index if that is to be no good."""
    bad = bytearray(data)
    places = [place for place in range(len(data)) if data[place : place + 4] == b"PKT2"]
    for place in [places[number] + 40 for number in lost] + ([] if index else [data.index(b"IDX2") + 20]):
        bad[place] ^= 1
    return bytes(bad)


def told(file: io.BytesIO) -> Told:
    """First frames of packets, and (first frame, frames, times) of what is lost."""
    with open_packets(file, on_error="skip") as reader:
        return [
            (item.first_frame, item.frames, None if item.timestamps is None else item.timestamps.tolist())
            if isinstance(item, Lost)
            else item.first_frame
            for item in with_losses(reader)
        ]


@pytest.fixture(scope="module")
def data() -> bytes:
    return as_bytes([clip(first) for first in range(0, 25, 5)])


def between(start: int, end: int, *, exact: int | None = None) -> list[int]:
    """Times on straight lines between the frames before and after, and through `exact`."""
    knots = [start - 1, *([] if exact is None else [exact]), end]
    return np.rint(np.interp(np.arange(start, end), knots, TICKS[knots])).astype(int).tolist()


def test_the_index_tells_of_every_clip(data: bytes) -> None:
    assert told(io.BytesIO(data)) == [0, 5, 10, 15, 20]
    assert told(io.BytesIO(hurt(data, 2))) == [0, 5, (10, 5, between(10, 15, exact=10)), 15, 20]
    *found, (first, frames, ticks) = told(io.BytesIO(hurt(data, 0, 3, 4)))
    start, *found = found
    assert found == [5, 10] and (first, frames) == (15, 10)
    assert ticks is not None and (ticks[0], ticks[5]) == (TICKS[15], TICKS[20])
    assert (np.diff(ticks) > 0).all() and len(ticks) == 10
    assert isinstance(start, tuple) and start[:2] == (0, 5) and start[2] is not None and start[2][0] == TICKS[0]


def test_a_pipe_tells_of_its_end(data: bytes) -> None:
    *found, (first, frames, ticks) = told(Pipe(hurt(data, 2, 4)))
    assert found == [0, 5, (10, 5, between(10, 15)), 15] and (first, frames) == (20, 5)
    assert ticks is not None and ticks[0] == TICKS[20]


def test_without_an_index_the_packets_tell_what_they_can(data: bytes) -> None:
    bad = hurt(data, 0, 2, 4, index=False)
    (first, frames, ticks), *found = told(io.BytesIO(bad))
    assert found == [5, (10, 5, between(10, 15)), 15]  # of the last clip nothing is known
    assert (first, frames) == (0, 5)  # a video begins with frame 0
    step = 1000 / (30000 / 1001)
    assert ticks == np.rint(TICKS[5] - step * np.arange(5, 0, -1)).astype(int).tolist() and ticks[0] > 0
    early = as_bytes([replace(clip(5), timestamps=np.arange(20, 25))])
    assert told(Pipe(early)) == [5]  # undamaged: it begins where it begins
    assert told(io.BytesIO(hurt(data, 0, 1, 2, 3, 4))) == []


def test_times_before_a_late_start_do_not_fall_below_zero() -> None:
    packets = [clip(0), replace(clip(5), timestamps=np.arange(20, 25))]
    ((_, _, ticks), *_) = told(io.BytesIO(hurt(as_bytes(packets), 0, index=False)))
    assert ticks == [0, 4, 8, 12, 16]


def test_files_without_times_are_counted() -> None:
    bad = hurt(as_bytes([clip(first, times=False) for first in range(0, 15, 5)]), 0, 2)
    assert told(io.BytesIO(bad)) == [(0, 5, None), 5, (10, 5, None)]


def test_a_lost_tile_costs_the_clip(data: bytes) -> None:
    tiles = [tile for first in (0, 5, 10) for tile in make_tiles(make_packet(first=first))]
    assert told(io.BytesIO(hurt(as_bytes(tiles), 2))) == [0, 0, (5, 5, None), 10, 10]
    assert told(io.BytesIO(hurt(as_bytes(tiles), 5))) == [0, 0, 5, 5, 10]


def test_an_index_that_claims_too_much_is_not_believed(data: bytes) -> None:
    good = [Entry(100 * n, 5 * n, 5, 1, 0, 0) for n in range(3)]
    assert clips_of(good) == good and clips_of([]) is None
    for index, change in (
        (1, {"first_frame": 6}),
        (2, {"first_frame": 1 << 40}),
        (2, {"frames": layout.MAX_FRAMES + 1}),
        (2, {"frames": 0}),
        (2, {"offset": 105}),
    ):
        bad = list(good)
        bad[index] = bad[index]._replace(**change)
        assert clips_of(bad) is None, change


def test_a_hole_is_bounded_by_the_readers_limits() -> None:
    far = as_bytes([clip(0), replace(clip(0), first_frame=(1 << 32) - 16)])
    for file in (far, hurt(as_bytes([clip(0), clip(5), replace(clip(0), first_frame=10**7)]), 1, index=False)):
        with pytest.raises(OverLimit, match=r"frames are missing from frame 5 on; allowed: 1000000 \(Limits\.max_fr"):
            told(io.BytesIO(file))


def test_an_index_that_is_not_there_is_not_looked_for_at_every_packet(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    footer = Records.footer
    monkeypatch.setattr(Records, "footer", lambda self: (asked.append(1), footer(self))[1])
    assert told(io.BytesIO(hurt(data, 0, index=False)))[1:] == [5, 10, 15, 20]
    assert len(asked) <= 3  # before the first packet, for its hole, and at the end
