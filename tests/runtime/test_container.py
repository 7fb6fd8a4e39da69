"""The `.odva` file: its literal bytes; what goes in comes out, by file and pipe; reading along, seeking, saving."""

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odva_files import as_bytes, assert_same, make_packet, make_quantiser, make_tiles, make_video
from onedva_runtime.container import PacketWriter, load_packets, open_packets, save_packets
from onedva_runtime.errors import Corrupt, PacketError, Truncated
from onedva_runtime.packet import Packet


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", zlib.crc32(data))


def section(content: bytes) -> bytes:
    return with_crc(struct.pack("<I", len(content)) + content)


def test_the_bytes_are_those_of_the_table() -> None:
    packet = make_packet(frames=1, tokens=1, height=16, width=16, first=7)
    packet = replace(packet, fps=24.0, timestamps=np.array([-2]), time_base=Fraction(1, 90000))
    data = as_bytes([packet], colour="bt709")
    assert data[:12] == b"\x89ODVA\r\n\x1a" + b"\x02\x00" + b"\x00\x00"
    text = (
        b'{"colour":"bt709","fps":"24","height":16,"latent_channels":4,"model":"' + b"ab" * 32 + b'","step":0.25,'
        b'"structural_channels":2,"time_base":"1/90000","width":16}'
    )
    setup = data[12:]
    (length,) = struct.unpack_from("<I", setup, 4)
    assert setup[:12] == with_crc(b"SET2" + struct.pack("<I", length))
    assert setup[12:].startswith(section(text))
    # the packet: a key clip with time stamps and predicted errors, one frame, number 7; errors −3 (−768/256)
    facts = section(b"\x07" + b"\x01\x00" + b"\x07\0\0\0" + b"\x00\xfd" + b"\xfe" + b"\xff" * 7)
    record = setup[12 + length :]
    (length,) = struct.unpack_from("<I", record, 4)
    assert record[:12] == with_crc(b"PKT2" + struct.pack("<I", length))
    assert record[12:].startswith(facts)
    parts = record[12 + len(facts) : 12 + length]
    (words,) = struct.unpack_from("<I", parts)
    assert words % 4 == 0 and parts[: 8 + words] == section(parts[4 : 4 + words])
    (rest,) = struct.unpack_from("<I", parts, 8 + words)
    segment = parts[12 + words : 12 + words + rest]
    assert segment[:3] == b"\x01" + b"\x00\xfd" and parts[8 + words :] == section(segment)
    # the end: a copy of the setup, the index, the end record
    last = len(data) - 40
    offsets = struct.unpack_from("<QQI", data, last + 16)
    assert data[last:] == with_crc(b"END2" + struct.pack("<I", 28)) + section(struct.pack("<QQI", *offsets))
    assert data[offsets[0] :].startswith(data[12 : 24 + struct.unpack_from("<I", setup, 4)[0]])
    assert data[offsets[1] :].startswith(b"IDX2") and offsets[2] == 1


clips = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 80)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(clips, st.booleans(), st.booleans(), st.booleans(), st.integers(1, 70), st.integers(1, 70))
def test_what_goes_in_comes_out_and_twice_is_the_same(
    lengths: list[tuple[int, int]], times: bool, errors: bool, camera: bool, height: int, width: int
) -> None:
    columns = -(-height // 16) * -(-width // 16)
    fitting = [(frames, min(tokens, columns * -(-frames // 4))) for frames, tokens in lengths]
    packets = make_video(fitting, times=times, errors=errors, camera=camera, height=height, width=width)
    quantiser = make_quantiser()
    data = as_bytes(packets, colour="bt601, limited")
    once = load_packets(io.BytesIO(data))
    assert once.frames == sum(frames for frames, _ in lengths)
    assert (once.timestamps is not None) == times
    assert (once.header.fps, once.header.colour) == (Fraction(30000, 1001), "bt601, limited")
    for packet, loaded in zip(packets, once.packets, strict=True):
        stored = quantiser.apply(packet)
        assert_same(replace(stored, predicted_error=None), replace(loaded, predicted_error=None))
        if packet.predicted_error is not None:  # stored at the ends of segments, in 1/256
            assert loaded.predicted_error is not None
            np.testing.assert_allclose(loaded.predicted_error, packet.predicted_error, atol=1 / 256)
    assert as_bytes(once.packets, colour=once.header.colour, quantiser=once.quantiser) == data


def test_tiles_keep_their_place() -> None:
    tiles = [tile for packet in make_video([(5, 3), (4, 2)], times=True) for tile in make_tiles(packet)]
    loaded = load_packets(io.BytesIO(as_bytes(tiles)))
    assert (loaded.header.height, loaded.header.width, loaded.frames) == (17, 49, 9)
    assert loaded.timestamps is not None and len(loaded.timestamps) == 9
    for tile, got in zip(tiles, loaded.packets, strict=True):
        assert_same(replace(make_quantiser().apply(tile), predicted_error=got.predicted_error), got)


def test_anchors_in_any_order_are_kept() -> None:
    packet = make_packet(frames=16, tokens=40, height=64, width=64)
    mixed = replace(packet, anchors=np.random.default_rng(0).permutation(packet.anchors))
    loaded = load_packets(io.BytesIO(as_bytes([mixed]))).packets[0]
    np.testing.assert_array_equal(loaded.anchors, mixed.anchors)


def test_a_pipe_is_as_good_as_a_file() -> None:
    packets, quantiser = make_video([(5, 3), (4, 0), (4, 6), (16, 7)]), make_quantiser()
    read_end, write_end = os.pipe()

    def write() -> None:
        with open(write_end, "wb", buffering=0) as file:
            save_packets(cast(BinaryIO, file), iter(packets), quantiser=quantiser)

    thread = threading.Thread(target=write)
    thread.start()
    with open(read_end, "rb") as file, open_packets(file) as reader:
        got = list(reader)
        assert reader.complete
        with pytest.raises(PacketError, match="a pipe cannot be searched"):
            reader.seek(frame=3)
    thread.join()
    assert [packet.first_frame for packet in got] == [0, 5, 9, 13]
    for packet, loaded in zip(packets, got, strict=True):
        np.testing.assert_array_equal(loaded.structural, quantiser.apply(packet).structural)


@pytest.mark.timeout(60)
def test_the_end_of_a_stream_is_seen_while_its_pipe_stays_open() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as file, open(write_end, "wb", buffering=0) as other:
        other.write(as_bytes([make_packet()]))
        with open_packets(file) as reader:
            assert len(list(reader)) == 1 and reader.complete


def test_a_file_is_read_while_it_is_written(tmp_path: Path) -> None:
    path, packets = tmp_path / "live.odva", make_video([(5, 3), (4, 0), (4, 6)])
    reader = None
    seen: list[int] = []

    def grows() -> Iterator[Packet]:
        nonlocal reader
        for number, packet in enumerate(packets):
            yield packet
            if number == 0:
                reader = open_packets(path)
            assert reader is not None
            with pytest.raises(Truncated, match="still being written"):
                seen.extend(packet.first_frame for packet in reader)
            assert len(seen) == number + 1  # what was yielded is on the disk, and no more

    save_packets(path, grows(), quantiser=make_quantiser(), live=True)
    assert reader is not None
    assert list(reader) == [] and reader.complete and seen == [0, 5, 9]
    reader.close()
    with pytest.raises(PacketError, match="exists already"):
        save_packets(path, packets, quantiser=make_quantiser(), live=True)


@pytest.mark.parametrize("end", ["whole", "cut"])
def test_seeking_goes_to_the_key_clip_before(end: str) -> None:
    packets = make_video([(5, 1)] + [(4, 1)] * 6, times=True)
    data = as_bytes(packets)
    with open_packets(io.BytesIO(data if end == "whole" else data[:-50])) as reader:
        assert [entry.first_frame for entry in reader.index()] == [0, 5, 9, 13, 17, 21, 25]
        for frame, start in ((0, 0), (12, 0), (13, 13), (24, 13), (25, 25), (999, 25)):
            reader.seek(frame=frame)
            assert next(iter(reader)).first_frame == start
        times = [float(packet.timestamps[0] / 30000) for packet in packets if packet.timestamps is not None]
        for second, start in ((-5.0, 0), (times[3] - times[0] - 0.001, 0), (times[3] - times[0] + 0.001, 13)):
            reader.seek(seconds=second)
            assert next(iter(reader)).first_frame == start
        with pytest.raises(ValueError, match="a frame or a finite time"):
            reader.seek(frame=1, seconds=1)


def test_seeking_finds_the_first_tile_and_steps_that_come_later() -> None:
    tiles = [tile for first in (0, 5) for tile in make_tiles(make_packet(first=first))]
    short = make_tiles(make_packet(frames=9, first=10))  # another kind of clip: its levels come in a later setup
    with open_packets(io.BytesIO(as_bytes([*tiles, *short]))) as reader:
        reader.seek(frame=8)
        assert (next(iter(reader)).first_frame, next(iter(reader)).corner) == (5, (0, 16))
        reader.seek(frame=12)
        assert [(packet.first_frame, packet.corner) for packet in reader] == [(10, (0, 0)), (10, (0, 16))]


def test_memory_stays_flat() -> None:
    import tracemalloc

    packet = make_packet(frames=5, tokens=20, height=128, width=128)
    size = len(as_bytes([packet]))

    class Nowhere(io.RawIOBase):
        def write(self, data: object) -> int:
            return len(cast(bytes, data))

    writer = PacketWriter(cast(BinaryIO, Nowhere()), quantiser=make_quantiser())
    for number in range(60):
        writer.write(replace(packet, first_frame=5 * number))
        if number == 20:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 40 * size / 3  # the 40 packets written since left no more than an index entry each


def test_saving_is_whole_or_nothing(tmp_path: Path) -> None:
    path, good, quantiser = tmp_path / "a.odva", make_packet(), make_quantiser()

    def breaks(cause: Exception) -> Iterator[Packet]:
        yield good
        raise cause

    huge = replace(good, latents=np.full((3, 4), 1e9, np.float32))
    other = make_packet(structural=3)
    long = make_packet(frames=25, first=5)
    for packets, message in (
        ([], "no packets"),
        ([good, make_packet(width=34, first=5)], "another video"),
        ([good, replace(good, model="cd")], "another video"),
        ([replace(good, frames=99)], "structural"),
        ([huge], "quantiser steps; allowed"),
        ([other], r"channels \(3, 4\), the quantiser has \(2, 4\)"),
        ([good, long], "no quantiser steps for a key clip of 7 groups"),
        ([make_packet(frames=257)], "packet of 65 groups of frames"),
    ):
        with pytest.raises(PacketError, match=message) as caught:
            save_packets(path, packets, quantiser=quantiser)
        assert str(path) in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    for cause in (
        RuntimeError("the camera fell"),
        OSError(5, "Input/output error", "in.odva"),
        Corrupt("in: bad"),
    ):
        with pytest.raises(type(cause)) as caught:  # what is not this file's fault is not said of it
            save_packets(path, breaks(cause), quantiser=quantiser)
        assert caught.value is cause and list(tmp_path.iterdir()) == []
    with pytest.raises(PacketError, match="does not belong"):
        save_packets(path, [good], quantiser=quantiser, fps=Fraction(25))

    size = save_packets(path, [good], quantiser=quantiser, fps=Fraction(2997, 100))
    assert load_packets(path).header.fps == Fraction(2997, 100) and path.stat().st_size == size
    before = path.read_bytes()
    with pytest.raises(PacketError, match="exists already"):
        save_packets(path, [good], quantiser=quantiser)
    with pytest.raises(PacketError, match="cannot be written"):
        save_packets(tmp_path / "no" / "folder.odva", [good], quantiser=quantiser)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.odva"]
    save_packets(path, [make_packet(frames=9)], quantiser=quantiser, overwrite=True)
    assert load_packets(path).frames == 9


def test_what_no_reader_would_take_is_not_written(tmp_path: Path) -> None:
    good = make_packet()
    tall = make_packet(height=65537, width=1, tokens=0)
    wrong = replace(make_quantiser(), levels={(True, 2): np.full((2, 6), 137, np.int16)})
    for packets, options, message in (
        ([good], {"colour": "x" * 65536}, "the format holds 65536"),
        ([good], {"colour": "bell\a"}, "printed"),
        ([tall], {"quantiser": make_quantiser()}, "height as 65537"),
        ([make_packet(times=True)], {"time_base": Fraction(1, 10**20)}, "time_base"),
        ([good], {"quantiser": wrong}, "levels must be from"),
    ):
        base = options.pop("time_base", None)
        packets = [replace(packet, time_base=base or packet.time_base) for packet in packets]
        with pytest.raises(PacketError, match=message):
            save_packets(tmp_path / "a.odva", packets, **{"quantiser": make_quantiser(), **options})
        stream = io.BytesIO()
        with pytest.raises(PacketError, match=message):
            save_packets(stream, packets, **{"quantiser": make_quantiser(), **options})
        assert stream.getvalue() == b"" and list(tmp_path.iterdir()) == []
