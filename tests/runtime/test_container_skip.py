"""Reading past damage (on_error="skip"): what is left out is told of, once, in the right place; the rest is given out;
and no file makes it work or remember more than it is long."""

import io
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from odva_files import as_bytes, make_packet, make_quantiser, make_tiles, make_video
from onedva_runtime import container_layout as layout
from onedva_runtime.container import PacketWriter, open_packets
from onedva_runtime.container_packet import encode_packet
from onedva_runtime.container_records import Records
from onedva_runtime.container_source import Source
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import Corrupt, OverLimit, Truncated
from onedva_runtime.limits import Limits


class Pipe(io.BytesIO):
    """Bytes that cannot be searched."""

    def seekable(self) -> bool:
        return False


@pytest.fixture(scope="module")
def video() -> bytes:
    """Key clip 0–4, continuation clips 5–8 and 9–11, key clip 12–16, and one more of each kind."""
    return as_bytes(make_video([(5, 1), (4, 1), (3, 1), (5, 1), (4, 1)], height=16, width=16))


def places(data: bytes, mark: bytes) -> list[int]:
    """Offsets of the records with this mark."""
    found, at = [], layout.OPENING.size
    while at < len(data):
        head = layout.record_head(data[at:])
        assert head is not None
        if head[0] == mark:
            found.append(at)
        at += layout.RECORD.size + head[1]
    return found


def flipped(data: bytes, *positions: int) -> bytes:
    bad = bytearray(data)
    for position in positions:
        bad[position] ^= 0xFF
    return bytes(bad)


def read(file: io.BytesIO) -> tuple[list[int], list[tuple[int, int | None]]]:
    """First frames of the packets, and offset and first lost frame of the gaps."""
    with open_packets(file, on_error="skip") as reader:
        return [packet.first_frame for packet in reader], [(gap.offset, gap.first_frame) for gap in reader.gaps]


@pytest.mark.parametrize("position", [3, 12, 30])  # of the magic, the head of the first record, its body
def test_a_damaged_start_loses_nothing_where_the_file_can_be_searched(video: bytes, position: int) -> None:
    bad = flipped(video, position)
    assert read(io.BytesIO(bad)) == ([0, 5, 9, 12, 17], [(12 if position > 8 else 0, None)])
    end = places(video, layout.END)[0]
    assert read(io.BytesIO(bad[:end]))[0] == [0, 5, 9, 12, 17]  # nor where the file has no end
    # A pipe is read on from the next setup, which comes with the first continuation clip: that must not be given out.
    assert read(Pipe(bad)) == (([12, 17], [(12, 0)]) if position > 8 else ([0, 5, 9, 12, 17], [(0, None)]))


def test_a_damaged_setup_on_the_way_costs_no_clip(video: bytes) -> None:
    second = places(video, layout.SETUP)[1]
    assert read(io.BytesIO(flipped(video, second))) == ([0, 5, 9, 12, 17], [(second, None)])
    for mark in (layout.INDEX, layout.END):
        (place,) = places(video, mark)
        got, gaps = read(io.BytesIO(flipped(video, place)))
        assert got == [0, 5, 9, 12, 17] and gaps[0][0] == place
        assert mark == layout.END or gaps == [(place, None)]


def test_looking_for_lost_levels_leaves_the_reader_where_it_was(video: bytes) -> None:
    """Continuation clips have no levels, here or at the end: each gap is at its own packet, and nothing is searched
    twice."""
    setups, packets = places(video, layout.SETUP), places(video, layout.PACKET)
    bad = flipped(video, setups[1] + 20, setups[-1] + 20)
    got, gaps = read(io.BytesIO(bad))
    assert got == [0, 12]
    assert gaps == [(setups[1], None), (packets[1], 5), (packets[4], 17), (setups[-1], None)]


def test_a_file_without_levels_is_searched_once(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = as_bytes([make_packet(first=5 * number, height=16, width=16, tokens=1) for number in range(20)])
    setup, *_, last = places(keys, layout.SETUP)
    parts = list(layout.sections(keys[setup + 12 :][: layout.record_head(keys[setup:])[1]]))  # type: ignore[index]
    bare = layout.record(layout.SETUP, b"".join(map(layout.section, parts[:2])))
    body = keys[places(keys, layout.PACKET)[0] : last]
    calls: list[int] = []
    scan = Records.scan
    monkeypatch.setattr(Records, "scan", lambda self, on_setup: (calls.append(1), scan(self, on_setup))[1])
    assert read(io.BytesIO(layout.opening() + bare + body))[0] == []
    assert calls == [1]


def test_tiles_after_a_lost_one_wait_for_a_key(video: bytes) -> None:
    tiles = [tile for key, first in ((True, 0), (True, 5)) for tile in make_tiles(make_packet(first=first, key=key))]
    later = [tile for tile in make_tiles(make_packet(frames=4, first=10, key=False))]
    data = as_bytes([*tiles, *later])
    packets = places(data, layout.PACKET)
    got, gaps = read(io.BytesIO(flipped(data, packets[1])))
    assert got == [0, 5, 5, 10, 10] and gaps == [(packets[1], 0)]  # its first tile is there, so frame 0 is not whole
    assert read(io.BytesIO(flipped(data, packets[3]))) == ([0, 0, 5], [(packets[3], 5)])


def test_a_growing_file_is_read_on_and_its_gap_closes(video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "live.odva"
    packets = places(video, layout.PACKET)
    path.write_bytes(video[: packets[1] + 30])
    with open_packets(path, on_error="skip") as reader:
        assert [packet.first_frame for packet in reader] == [0]
        assert [packet.first_frame for packet in reader] == []
        assert [(gap.offset, gap.first_frame) for gap in reader.gaps] == [(packets[1], 5)]
        with open(path, "ab") as file:
            file.write(video[packets[1] + 30 : packets[3] + 5])
        assert [packet.first_frame for packet in reader] == [5, 9]  # continuation clips: nothing was lost
        with open(path, "ab") as file:
            file.write(video[packets[3] + 5 :])
        assert [packet.first_frame for packet in reader] == [12, 17]
        assert reader.gaps == [] and reader.complete


def test_false_marks_are_gone_through_once(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    second = places(video, layout.PACKET)[1]
    marks = b"PKT2SET2" * 40_000
    looked = 0
    look = Source.look

    def counted(self: Source, count: int, *, after: int = 0) -> bytes:
        nonlocal looked
        data = look(self, count, after=after)
        looked += len(data)
        return data

    monkeypatch.setattr(Source, "look", counted)
    data = video[:second] + marks + video[second:]
    assert read(io.BytesIO(data)) == ([0, 5, 9, 12, 17], [(second, None)])
    assert looked < 5 * len(data)
    looked = 0
    heads = layout.record(b"SET2", b"")[:4] + (1 << 20).to_bytes(4, "little")
    head = layout.record(b"SET2", bytes(1 << 20))[:12]  # right, but what it names is not there
    assert heads == head[:8]
    late = flipped(video[: second - 3], 30) + head * 20_000
    with open_packets(Pipe(late + video[second:]), on_error="skip") as reader:
        list(reader)
    assert looked < 5 * len(late)


def test_an_index_is_bounded(video: bytes) -> None:
    for data in (video, video[: places(video, layout.END)[0]]):
        with open_packets(io.BytesIO(data), limits=Limits(max_frames=5)) as reader:
            assert len(reader.index()) == 5
        with (
            pytest.raises(OverLimit, match=r"packets.*Limits\.max_frames"),
            open_packets(io.BytesIO(data), limits=Limits(max_frames=4)) as reader,
        ):
            reader.index()


def test_searching_keeps_no_setup(video: bytes) -> None:
    large = layout.record(layout.SETUP, layout.section(bytes((1 << 20) - 8)))
    end = places(video, layout.END)[0]
    file = io.BytesIO(video[:end] + 40 * large)
    with open_packets(file) as reader:
        tracemalloc.start()
        assert len(reader.index()) == 5
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_reading_takes_the_memory_of_a_few_packets() -> None:
    packet = make_packet(frames=16, tokens=100, height=128, width=128)
    coded = encode_packet(packet, make_quantiser(), TABLES)
    file = io.BytesIO()
    writer = PacketWriter(file, quantiser=make_quantiser())
    writer.write(packet)
    with pytest.raises(Truncated), open_packets(io.BytesIO(file.getvalue())) as reader:
        header = reader.header
        list(reader)
    for number in range(1, 6000):
        writer.write_coded(replace(coded, facts=replace(coded.facts, first_frame=16 * number)), header)
    assert writer.finish() > 6_000_000
    file.seek(0)
    with open_packets(file) as reader:
        tracemalloc.start()
        assert sum(1 for _ in reader.coded()) == 6000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()


def test_gaps_are_bounded_and_close_in_any_order(video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    junk = layout.record(layout.PACKET, b"no sections")
    data = video[: places(video, layout.PACKET)[1]] + 50 * junk
    assert len(read(io.BytesIO(data))[1]) == 50 + 1  # and that the file has no end
    monkeypatch.setattr("onedva_runtime.container_read.MOST_GAPS", 20)
    with pytest.raises(Corrupt, match="more than 20 places"):
        read(io.BytesIO(data))


def test_a_gap_closes_although_another_came_after_it(video: bytes) -> None:
    """Cut in its last clip, read from the start again with another clip damaged meanwhile, then grown."""
    packets = places(video, layout.PACKET)
    file = io.BytesIO(video[: packets[4] + 20])
    with open_packets(file, on_error="skip") as reader:
        assert [packet.first_frame for packet in reader] == [0, 5, 9, 12]
        content = flipped(video, packets[1] + 30)
        file.seek(0)
        file.write(content[: packets[4] + 20])
        reader.seek(frame=0)
        assert [packet.first_frame for packet in reader] == [0, 12]
        file.seek(0)
        file.write(content)
        file.seek(packets[4] + 20)
        assert [packet.first_frame for packet in reader] == [17]
        assert [(gap.offset, gap.first_frame) for gap in reader.gaps] == [(packets[1], 5)]
