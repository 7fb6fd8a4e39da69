"""Hostile `.odva` files: their checksums are right, what they say is not. All are refused, before memory or work."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import pytest

from odva_files import as_bytes, assert_same, make_packet, make_quantiser, make_video
from onedva_runtime import container_layout as layout
from onedva_runtime.container import load_packets, open_packets
from onedva_runtime.container_packet import encode_packet, join
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import Corrupt, NotOdva, OverLimit, PacketError, Truncated
from onedva_runtime.limits import Limits
from onedva_runtime.quantiser import Quantiser


@pytest.fixture(scope="module")
def small() -> bytes:
    return as_bytes(make_video([(1, 1), (2, 1), (1, 0)], times=True, height=16, width=16))


def rebuilt(
    changes: Mapping[str, object] = MappingProxyType({}), *, setup: bytes | None = None, packet: bytes | None = None
) -> bytes:
    """A file whose checksums are right and whose setup or packet is not: changes to the fields of the header."""
    made = make_packet(frames=5, tokens=3)
    quantiser = make_quantiser()
    if setup is None:
        kind = (True, 2)
        fields: dict[str, object] = {
            "colour": "", "fps": "24", "height": 17, "latent_channels": 4, "model": "", "step": 0.25,
            "structural_channels": 2, "time_base": None, "width": 33,
        }  # fmt: skip
        header = layout.parse_header(json.dumps(fields).encode())
        good = layout.pack_setup(header, TABLES, [(kind, quantiser.of(kind))])
        fields = {key: value for key, value in (fields | dict(changes)).items() if value != "missing"}
        rest = list(layout.sections(good))[1:]
        setup = b"".join(map(layout.section, [json.dumps(fields).encode(), *rest]))
    body = join(encode_packet(made, quantiser, TABLES)) if packet is None else packet
    return layout.opening() + layout.record(b"SET2", setup) + layout.record(b"PKT2", body)


def test_what_rebuilt_makes_is_read() -> None:
    with pytest.raises(Truncated), open_packets(io.BytesIO(rebuilt())) as reader:
        assert next(iter(reader)).tokens == 3
        next(iter(reader))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width"),
        ({"width": True}, "width"),
        ({"height": 1.5}, "height"),
        ({"height": -3}, "height"),
        ({"width": (1 << 16) + 1}, "width"),
        ({"width": 1 << 16, "height": 1 << 16}, r"Limits\.max_pixels"),
        ({"fps": "1/0"}, "fps"),
        ({"fps": "nan"}, "fps"),
        ({"fps": "0"}, "fps"),
        ({"fps": 24}, "fps"),
        ({"fps": "9" * 1000}, "fps"),
        ({"fps": "1e999999999"}, "fps"),  # Python's Fraction would work out every digit
        ({"fps": "0/7"}, "fps"),
        ({"fps": "24 "}, "fps"),
        ({"fps": "２４"}, "fps"),
        ({"time_base": "1E-999999999"}, "time_base"),
        ({"time_base": "1/1" + 20 * "0"}, "time_base"),
        ({"time_base": "-1/3"}, "time_base"),
        ({"model": 5}, "model"),
        ({"colour": None}, "colour"),
        ({"colour": "\x1b[2J"}, "printed"),
        ({"model": "\ud800"}, "printed"),
        ({"step": "1"}, "step"),
        ({"step": -1.0}, "step"),
        ({"latent_channels": 1 << 40}, "latent_channels"),
        ({"latent_channels": 5}, "compressed bytes"),  # the levels are of four
        ({"evil": 1}, "evil"),
        ({"fps": "missing"}, "fields"),
    ],
)
def test_a_header_with_a_right_checksum_is_not_trusted(changes: dict[str, object], message: str) -> None:
    with pytest.raises((Corrupt, OverLimit), match=message):
        open_packets(io.BytesIO(rebuilt(changes)))


def bomb() -> bytes:
    return zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    ("index", "content", "message"),
    [
        (0, b"[]", "not a JSON object"),
        (0, b"{", "not valid JSON"),
        (0, b"\xff", "not valid JSON"),
        (0, b"[" * 60000, "not valid JSON"),
        (0, b" " * 70000, "70000 bytes; the format holds 65536"),
        (1, b"", "compressed bytes"),
        (1, b"abc", "compressed bytes"),
        (1, bomb, "do not hold"),
        (1, lambda: zlib.compress(bytes(2 * 19 * 18)), "tables"),
        (1, lambda: zlib.compress(np.full(19 * 18, 65536 // 18, "<u2").tobytes()), "tables"),
        (2, b"", "levels"),
        (2, b"\x02\x03" + b"abc", "levels"),
        (2, b"\x00\x01" + b"abc", "levels"),
        (2, lambda: b"\x01\x02" + bomb(), "do not hold"),
        (2, lambda: b"\x01\x02" + zlib.compress(np.full(12, 20000, "<i2").tobytes()), "levels must be"),
    ],
)
def test_a_setup_with_right_checksums_is_not_trusted(
    index: int, content: bytes | Callable[[], bytes], message: str
) -> None:
    data = rebuilt()
    (length,) = struct.unpack_from("<I", data, 16)
    parts = list(layout.sections(data[24 : 24 + length]))
    parts[index] = content if isinstance(content, bytes) else content()
    with pytest.raises(Corrupt, match=message):
        open_packets(io.BytesIO(rebuilt(setup=b"".join(map(layout.section, parts)))))


def test_a_setup_is_bounded() -> None:
    data = rebuilt()
    (length,) = struct.unpack_from("<I", data, 16)
    body = data[24 : 24 + length]
    *_, levels = layout.sections(body)
    with pytest.raises(Corrupt, match="come twice"):
        open_packets(io.BytesIO(rebuilt(setup=body + layout.section(levels))))
    with pytest.raises(Corrupt, match="the format holds 1048576"):
        open_packets(io.BytesIO(rebuilt(setup=body + layout.section(bytes(1 << 20)))))
    with pytest.raises(Corrupt, match="more than the format holds"):
        open_packets(io.BytesIO(rebuilt({"latent_channels": 4000, "structural_channels": 4000})))


def facts(flags: int = 1, frames: int = 5, first: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("<BHI", flags, frames, first) + rest


GOOD = list(layout.sections(join(encode_packet(make_packet(errors=False), make_quantiser(), TABLES))))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "too short"),
        ([facts()], "too short"),
        ([facts(frames=0), b""], "facts are damaged"),
        ([facts(flags=33), b""], "facts are damaged"),
        ([facts(rest=b"\0"), b""], "facts are damaged"),
        ([facts(flags=3, rest=b"\0" * 11), b""], "cut off"),
        ([facts(flags=3, rest=b"\0" * 8 + b"\xff" * 40), b""], "numbers are damaged"),
        ([facts(flags=3, rest=b"\xff" * 7 + b"\x7f" + b"\x02" * 4), b""], "out of range"),
        ([facts(flags=17, rest=b"\0" * 9), b""], "cut off"),
        ([facts(flags=17, rest=b"\xff" * 40), b""], "numbers are damaged"),
        ([facts(flags=17, rest=b"\xff\xff\x7f" * 34), b""], "path is out of range"),
        ([facts(flags=17, rest=b"\0" * 4 + b"\xf0\x2e" + b"\0" * 29), *GOOD[1:]], "within the frame"),
        ([facts(flags=9, rest=b"\0" * 16), b""], "without pixels"),
        ([facts(flags=9, rest=struct.pack("<IIII", 0, 0, 1 << 31, 1 << 31)), b""], "inside the frame"),
        ([facts(flags=9, rest=struct.pack("<IIII", 0, 16, 17, 18)), b""], "inside the frame"),
        ([facts(flags=9, rest=struct.pack("<IIII", 0, 8, 16, 16)), b""], "multiple of 16"),
        ([facts(frames=65535), b""], "groups of frames"),
        ([facts(frames=9), GOOD[1]], "no quantiser steps"),
        ([facts(flags=0, first=3), GOOD[1]], "no quantiser steps"),
        ([facts(), b"abc"], "whole|words of four"),
        ([facts(), GOOD[1] * 3], "bytes are left"),
        ([facts(), GOOD[1], b"ab"], "too short"),
        ([facts(), GOOD[1], b"\x00\0\0" + GOOD[2][3:]], "0 latents"),
        ([facts(), GOOD[1], b"\x41\0\0" + GOOD[2][3:]], "65 latents"),
        ([facts(), GOOD[1], GOOD[2], GOOD[2]], "one place"),
        ([facts(flags=1, first=2**32 - 1), *GOOD[1:]], "first_frame"),
        ([facts(flags=3, rest=b"\0" * 12), *GOOD[1:]], "time_base"),  # time stamps without a time base
        ([facts(flags=9, rest=struct.pack("<IIII", 16, 16, 17, 33)), *GOOD[1:]], "inside the frame"),
    ],
)
def test_a_packet_with_right_checksums_is_not_trusted(parts: list[bytes], message: str) -> None:
    body = b"".join(map(layout.section, parts))
    with pytest.raises(PacketError, match=message) as caught:
        load_packets(io.BytesIO(rebuilt(packet=body)))
    assert not isinstance(caught.value, Truncated)


def test_any_words_decode_to_a_packet_or_are_refused() -> None:
    """Words that no encoder wrote: what they decode to is a packet that can be saved, and read again the same."""
    random = np.random.default_rng(1)
    decoded = refused = 0
    for number in range(600):
        words = [random.bytes(4 * int(random.integers(0, 8))) for _ in range(2)]
        parts = [facts(), words[0], b"\x01\0\0" + words[1]][: 2 + number % 2]
        body = b"".join(map(layout.section, parts))
        with open_packets(io.BytesIO(rebuilt(packet=body))) as reader:
            try:
                packet = next(iter(reader))
            except Corrupt:
                refused += 1
                continue
        again = as_bytes([packet], quantiser=reader.quantiser)
        assert_same(load_packets(io.BytesIO(again)).packets[0], packet)
        decoded += 1
    assert decoded > 20 and refused > 20, (decoded, refused)


def test_a_short_file_that_claims_hours_is_refused_before_any_work() -> None:
    import tracemalloc

    wide = {"width": 8192, "height": 4096}
    body = b"".join(map(layout.section, [facts(), GOOD[1]]))  # 262 144 values and more in a few bytes
    tracemalloc.start()
    with pytest.raises(Corrupt, match="cannot hold"):
        load_packets(io.BytesIO(rebuilt(wide, packet=body)))
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    long = layout.opening() + layout.record(b"SET2", b"")[:4] + b"\xff\xff\xff\xff" + b"abcd"
    with pytest.raises(Corrupt):
        open_packets(io.BytesIO(long))
    head = b"PKT2" + struct.pack("<I", 0xFFFFFFFF)
    data = rebuilt().partition(b"PKT2")[0] + head + struct.pack("<I", zlib.crc32(head))
    with pytest.raises(OverLimit, match=r"Limits\.max_packet_bytes"):
        load_packets(io.BytesIO(data))


def test_an_index_is_not_trusted(small: bytes) -> None:
    with open_packets(io.BytesIO(small)) as reader:
        expected = reader.index()
    place = small.index(b"IDX2")
    for body in (
        layout.section(struct.pack("<I", 0xFFFFFFFF) + bomb()),
        layout.section(struct.pack("<I", 5) + bomb()),
        layout.section(b""),
        layout.pack_index([layout.Entry(1 << 50, 0, 1, 1, 0, 0)]),
        layout.pack_index([layout.Entry(-1, 0, 1, 1, 0, 0)]),
    ):
        data = small[:place] + layout.record(b"IDX2", body)
        data += layout.record(b"END2", layout.pack_end(small.rindex(b"SET2"), place, 3))
        with open_packets(io.BytesIO(data)) as reader:
            assert reader.index() == expected  # found by looking at the packets instead
    outside = small[:-40] + layout.record(b"END2", layout.pack_end(1 << 63, 1 << 62, 3))
    with open_packets(io.BytesIO(outside)) as reader:
        assert reader.index() == expected


def test_an_end_of_two_sections_is_refused(small: bytes) -> None:
    end = small[-40:][12:]
    with pytest.raises(Corrupt, match="one section has 2"):
        load_packets(io.BytesIO(small[:-40] + layout.record(b"END2", end + end)))


def test_limits_are_the_readers() -> None:
    data = as_bytes([make_packet(frames=5), make_packet(frames=5, first=5)])
    values = 2 * 2 * 3 * 2 + 3 * 4
    load_packets(io.BytesIO(data), limits=Limits(max_pixels=17 * 33, max_frames=10, max_latents=3, max_values=values))
    for limits in (
        Limits(max_pixels=560),
        Limits(max_frames=9),
        Limits(max_latents=2),
        Limits(max_values=values - 1),
        Limits(max_packet_bytes=60),
    ):
        with pytest.raises(OverLimit, match=r"Limits\.max_"):
            load_packets(io.BytesIO(data), limits=limits)


def test_other_files_are_refused(tmp_path, small: bytes) -> None:
    for data, message in (
        (b"\0" * 100, "not an .odva file"),
        (small[:5], "not an .odva file"),
        (layout.MAGIC + b"\x01\0\0\0", "version 1 of the format, this program reads version 2"),
    ):
        with pytest.raises(NotOdva, match=message):
            load_packets(io.BytesIO(data))
    (tmp_path / "empty.odva").write_bytes(b"")
    (tmp_path / "large.odva").write_bytes(small)
    with pytest.raises(PacketError, match="empty"):
        load_packets(tmp_path / "empty.odva")
    with pytest.raises(PacketError, match=r"Limits\.max_bytes"):
        load_packets(tmp_path / "large.odva", limits=Limits(max_bytes=len(small) - 1))
    with pytest.raises(PacketError, match="regular file"):
        load_packets(tmp_path)
    with pytest.raises(PacketError, match=r"none\.odva: No such file"):
        load_packets(tmp_path / "none.odva")
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        open_packets(io.BytesIO(small), on_error="ignore")  # type: ignore[arg-type]


def test_levels_for_another_model_are_refused() -> None:
    packet = make_packet()
    few = Quantiser(structural_channels=2, latent_channels=4, step=0.25, levels={})
    with pytest.raises(PacketError, match="no quantiser steps for a key clip of 2 groups"):
        as_bytes([packet], quantiser=few)
