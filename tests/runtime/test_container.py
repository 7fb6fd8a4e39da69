"""The plain latent file: its literal bytes, every damaged byte, cuts, limits, and what goes in comes out."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime import container_layout as layout
from onedva_runtime.container import load_packets, open_packets, save_packets
from onedva_runtime.errors import PacketError
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet


def make_packet(
    *, frames: int = 5, tokens: int = 3, height: int = 17, width: int = 33, first: int = 0, times: bool = False
) -> Packet:
    random = np.random.default_rng(frames * 1000 + tokens)
    grid = 1 + -(-(frames - 1) // 4), -(-height // 16), -(-width // 16)
    return Packet(
        structural=random.standard_normal((*grid, 2)).astype(np.float32),
        latents=random.standard_normal((tokens, 4)).astype(np.float32),
        anchors=random.permutation(int(np.prod(grid)))[:tokens].astype(np.int64),
        frames=frames,
        height=height,
        width=width,
        fps=30000 / 1001,
        first_frame=first,
        timestamps=np.arange(first, first + frames, dtype=np.int64) * 1001 if times else None,
        time_base=Fraction(1, 30000) if times else None,
        predicted_error=-np.arange(tokens, dtype=np.float32) - 0.1 if times else None,
        model="ab" * 32,
    )


def assert_same(a: Packet, b: Packet) -> None:
    for name in Packet.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            assert x == y, name


def test_the_bytes_are_those_of_the_table(tmp_path: Path) -> None:
    packet = replace(make_packet(frames=1, tokens=1, height=16, width=16), fps=24.0)
    packet = replace(packet, structural=np.full((1, 1, 1, 2), 1.5, np.float32), anchors=np.zeros(1, np.int64))
    packet = replace(packet, latents=np.array([[1, -2, 0, 0.5]], np.float32))
    size = save_packets(tmp_path / "a.odva", [packet], colour="bt709")
    text = (
        b'{"colour":"bt709","fps":"24","height":16,"latent_channels":4,"model":"' + b"ab" * 32 + b'",'
        b'"structural_channels":2,"time_base":null,"width":16}'
    )
    header = b"\x89ODVA\r\n\x1a" + b"\x01\x00" + b"\x00\x00" + struct.pack("<I", len(text)) + text
    body = b"\x01\0\0\0" + b"\x01\0\0\0" + b"\0\0\0\0" + b"\x01\0\0\0"
    body += bytes.fromhex("003e003e") + bytes.fromhex("003c00c000000038") + b"\0\0\0\0"
    record = b"PKT1" + struct.pack("<I", 32) + body
    end = b"END1\x01\0\0\0"
    expected = b"".join(part + struct.pack("<I", zlib.crc32(part)) for part in (header, record, end))
    assert (tmp_path / "a.odva").read_bytes() == expected
    assert size == len(expected)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 17), st.integers(0, 12)), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_what_goes_in_comes_out_and_twice_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, clips: list[tuple[int, int]], times: bool, height: int, width: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.odva"
    packets, first = [], 0
    for frames, tokens in clips:
        positions = (1 + -(-(frames - 1) // 4)) * -(-height // 16) * -(-width // 16)
        packets.append(
            make_packet(
                frames=frames, tokens=min(tokens, positions), height=height, width=width, first=first, times=times
            )
        )
        first += frames
    save_packets(path, iter(packets), colour="bt601, limited", overwrite=True)
    once = load_packets(path)
    assert once.frames == first
    assert (once.timestamps is not None) == times
    assert once.header.fps == Fraction(30000, 1001)
    assert once.header.colour == "bt601, limited"
    for packet, loaded in zip(packets, once.packets, strict=True):
        halves = {
            name: getattr(packet, name).astype(np.float16).astype(np.float32) for name in ("structural", "latents")
        }
        assert_same(replace(packet, **halves), loaded)
    data = path.read_bytes()
    save_packets(path, once.packets, colour=once.header.colour, overwrite=True)
    assert path.read_bytes() == data


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odva") / "small.odva"
    one = make_packet(frames=1, height=9, width=9, tokens=1, times=True)
    two = make_packet(frames=2, height=9, width=9, tokens=0, first=1, times=True)
    save_packets(path, [one, two])
    return path


def test_every_flipped_byte_is_found(small_file: Path, tmp_path: Path) -> None:
    good, path = small_file.read_bytes(), tmp_path / "bad.odva"
    for index in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            bad = bytearray(good)
            bad[index] ^= flip
            path.write_bytes(bad)
            with pytest.raises(PacketError, match=r"bad\.odva: "):
                load_packets(path)


def test_every_cut_and_anything_appended_is_found(small_file: Path, tmp_path: Path) -> None:
    good, path = small_file.read_bytes(), tmp_path / "cut.odva"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(PacketError, match=r"cut off|empty"):
            load_packets(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(PacketError, match="1 bytes follow"):
        load_packets(path)


def test_what_was_whole_before_the_damage_is_given_out(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.odva"
    path.write_bytes(small_file.read_bytes()[:-20])
    packets: list[Packet] = []
    with pytest.raises(PacketError, match="cut off"), open_packets(path) as reader:
        for packet in reader:
            packets.append(packet)
    assert [packet.frames for packet in packets] == [1]


def with_header(**changes: object) -> bytes:
    fields = {
        "colour": "", "fps": "24", "height": 16, "latent_channels": 4, "model": "", "structural_channels": 2,
        "time_base": None, "width": 16,
    }  # fmt: skip
    text = json.dumps({k: v for k, v in (fields | changes).items() if v != "missing"}).encode()
    return layout.with_crc(layout.PREFIX.pack(layout.MAGIC, 1, 0, len(text)) + text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width"),
        ({"width": True}, "width"),
        ({"height": 1.5}, "height"),
        ({"height": -3}, "height"),
        ({"width": 1 << 20, "height": 1 << 20}, r"Limits\.max_pixels"),
        ({"fps": "1/0"}, "fps"),
        ({"fps": "nan"}, "fps"),
        ({"fps": "0"}, "fps"),
        ({"fps": 24}, "fps"),
        ({"fps": "9" * 1000}, "fps"),
        ({"time_base": "-1/3"}, "time_base"),
        ({"model": 5}, "model"),
        ({"colour": None}, "colour"),
        ({"latent_channels": 1 << 40}, "latent_channels"),
        ({"evil": 1}, "evil"),
        ({"fps": "missing"}, "fields"),
    ],
)
def test_a_header_with_a_right_checksum_is_not_trusted(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "a.odva"
    path.write_bytes(with_header(**changes))
    with pytest.raises(PacketError, match=message):
        load_packets(path)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b"[" * 60000, b'{"fps": NaN}'])
def test_a_header_that_is_no_json_object(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.odva"
    path.write_bytes(layout.with_crc(layout.PREFIX.pack(layout.MAGIC, 1, 0, len(text)) + text))
    with pytest.raises(PacketError, match=r"a\.odva: its header"):
        load_packets(path)


def record(flags: int, frames: int, first: int, tokens: int, rest: bytes) -> bytes:
    body = struct.pack("<B3xIII", flags, frames, first, tokens) + rest
    return layout.with_crc(layout.RECORD.pack(b"PKT1", len(body)) + body)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (record(1, 0, 0, 0, b""), "0 frames"),
        (record(1, 2**32 - 1, 0, 0, b""), r"Limits\.max_frames"),
        (record(1, 1, 0, 2**32 - 1, b""), r"Limits\.max_latents"),
        (record(1, 1, 0, 1000, b"\0" * 4), "length"),
        (record(9, 1, 0, 0, b"\0" * 4), "length"),
        (record(3, 1, 0, 0, b"\0" * 12), "time_base"),  # time stamps without a time base
        (record(1, 1, 0, 1, b"\0" * 12 + b"\1\0\0\0"), "anchors"),  # a grid of one position
        (record(1, 5, 0, 2, b"\0" * 24 + b"\1\0\0\0" * 2), "unique"),
        (record(1, 1, 0, 0, b"\x00\x7c\0\0"), "finite"),  # an infinity
        (layout.with_crc(layout.RECORD.pack(b"PKT1", 3) + b"abc"), "too short"),
        (layout.RECORD.pack(b"PKT1", 2**32 - 1) + b"abc", "cut off"),
        (layout.RECORD.pack(b"EVIL", 0), "damaged"),
        (layout.with_crc(layout.RECORD.pack(b"END1", 0)), "0 packets"),
    ],
)
def test_a_packet_with_a_right_checksum_is_not_trusted(tmp_path: Path, part: bytes, message: str) -> None:
    path = tmp_path / "a.odva"
    path.write_bytes(with_header() + part)
    with pytest.raises(PacketError, match=message):
        load_packets(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.odva"
    for data, message in (
        (b"\0" * 100, "not a latent file"),
        (b"", "empty"),
        (layout.PREFIX.pack(layout.MAGIC, 2, 0, 0), "version 2"),
        (layout.PREFIX.pack(layout.MAGIC, 1, 0, 1 << 20), "damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(PacketError, match=message):
            load_packets(path)
    with pytest.raises(PacketError, match="regular file"):
        load_packets(tmp_path)
    with pytest.raises(PacketError, match="No such file"):
        load_packets(tmp_path / "none.odva")


def test_limits_are_the_readers(tmp_path: Path) -> None:
    path = tmp_path / "a.odva"
    save_packets(path, [make_packet(frames=5), make_packet(frames=5, first=5)])
    load_packets(path, limits=Limits(max_pixels=17 * 33, max_frames=10, max_latents=3))
    size = path.stat().st_size
    for limits in (Limits(max_pixels=560), Limits(max_frames=9), Limits(max_latents=2), Limits(max_bytes=size - 1)):
        with pytest.raises(PacketError, match=r"Limits\.max_"):
            load_packets(path, limits=limits)


def test_saving_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.odva"
    good = make_packet()

    def breaks() -> Iterator[Packet]:
        yield good
        raise RuntimeError("the camera fell")

    huge = replace(good, latents=np.full((3, 4), 7e4, np.float32))
    for packets, message in (
        ([], "no packets"),
        ([good, make_packet(width=34, first=5)], "another video"),
        ([good, replace(good, model="cd")], "another video"),
        ([replace(good, frames=99)], "structural"),
        ([huge], "too large for 16 bits"),
    ):
        with pytest.raises(PacketError, match=message):
            save_packets(path, packets)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="camera"):
        save_packets(path, breaks())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PacketError, match="does not belong"):
        save_packets(path, [good], fps=Fraction(25))

    save_packets(path, [good], fps=Fraction(2997, 100))
    assert load_packets(path).header.fps == Fraction(2997, 100)
    before = path.read_bytes()
    with pytest.raises(PacketError, match="exists already"):
        save_packets(path, [good])
    with pytest.raises(PacketError, match="cannot be written here"):
        save_packets(tmp_path / "no" / "folder.odva", [good])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.odva"]
    save_packets(path, [make_packet(frames=9)], overwrite=True)
    assert load_packets(path).frames == 9
