"""Damaged and cut `.odva` files: found or harmless, at most the clips up to the next key, never a crash."""

import io
import struct

import numpy as np
import pytest

from odva_files import as_bytes, assert_same, make_packet, make_quantiser, make_video
from onedva_runtime.container import load_packets, open_packets
from onedva_runtime.container_packet import encode_packet, join
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import Corrupt, NotOdva, Truncated
from onedva_runtime.packet import Packet

CLIPS = [(1, 1), (2, 1), (1, 0), (1, 1), (3, 1)]  # the first and the fourth are key clips


@pytest.fixture(scope="module")
def small() -> bytes:
    return as_bytes(make_video(CLIPS, times=True, height=16, width=16))


def whole(data: bytes) -> list[Packet]:
    return load_packets(io.BytesIO(data)).packets


def skipping(data: bytes) -> tuple[list[Packet], list[object]]:
    """What a reader that skips gives out, and the gaps that it tells of."""
    with open_packets(io.BytesIO(data), on_error="skip") as reader:
        return list(reader), list(reader.gaps)


def check_flip(data: bytes, good: list[Packet], position: int, flip: int) -> None:
    """A file with one byte changed raises, and skipping loses no clip beyond the next key, and changes none."""
    bad = bytearray(data)
    bad[position] ^= flip
    with pytest.raises((Corrupt, NotOdva, Truncated)), open_packets(io.BytesIO(bad)) as reader:
        list(reader.coded())
    got, gaps = skipping(bytes(bad))
    assert gaps, "damage that nobody is told of"
    by_start = {packet.first_frame: packet for packet in good}
    starts = [packet.first_frame for packet in got]
    assert starts == sorted(set(starts))
    for packet in got:
        expected = by_start[packet.first_frame]
        if packet.tokens < expected.tokens:  # a damaged segment: what is before it is kept
            expected = expected.thin(packet.tokens)
        np.testing.assert_array_equal(packet.structural, expected.structural)
        np.testing.assert_array_equal(packet.latents, expected.latents)
        np.testing.assert_array_equal(packet.anchors, expected.anchors)
    missing = [start for start in by_start if start not in starts]
    if missing:  # one run that ends where a key clip starts, or the file does
        order = list(by_start)
        first, last = order.index(missing[0]), order.index(missing[-1])
        assert order[first : last + 1] == missing
        assert last + 1 == len(order) or good[last + 1].is_key
        assert not any(good[index].is_key for index in range(first + 1, last + 1))


def test_every_flipped_byte_is_found_and_costs_little(small: bytes) -> None:
    good = whole(small)
    for position in range(len(small)):
        check_flip(small, good, position, (0x01, 0x80, 0xFF)[position % 3])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_flips_in_a_large_file() -> None:
    packets = make_video([(16, 60)] * 14, height=448, width=448, times=True, structural=8, latent=16)
    data = as_bytes(packets, quantiser=make_quantiser(structural=8, latent=16))
    assert len(data) > 200_000
    random = np.random.default_rng(0)
    good = whole(data)
    starts = {packet.first_frame for packet in good}
    for position, flip in zip(random.integers(0, len(data), 20_000), random.integers(1, 256, 20_000), strict=True):
        bad = bytearray(data)
        bad[position] ^= int(flip)
        with open_packets(io.BytesIO(bad), on_error="skip") as reader:
            facts = [coded.facts for coded in reader.coded()]  # every checksum, without decoding all clips each time
        assert reader.gaps
        missing = starts - {fact.first_frame for fact in facts}
        assert len(missing) <= 3 and all(fact.first_frame in starts for fact in facts)


def test_every_cut_gives_the_clips_before_it(small: bytes) -> None:
    good = whole(small)
    ends: list[int] = []  # of each packet's record
    with open_packets(io.BytesIO(small)) as reader:
        for entry in reader.index():
            ends.append(entry.offset + 12 + struct.unpack_from("<I", small, entry.offset + 4)[0])
    for length in range(len(small)):
        packets: list[Packet] = []
        expected = sum(end <= length for end in ends)
        with pytest.raises((Truncated, NotOdva)) as caught, open_packets(io.BytesIO(small[:length])) as reader:
            for packet in reader:
                packets.append(packet)
        assert isinstance(caught.value, Truncated) or length < 12
        assert len(packets) == expected
        for packet, wanted in zip(packets, good, strict=False):
            assert_same(packet, wanted)
        if expected:
            got, gaps = skipping(small[:length])
            assert len(got) == expected and len(gaps) == 1


def test_what_follows_the_end_is_found(small: bytes) -> None:
    with pytest.raises(Corrupt, match="bytes follow after its end"):
        whole(small + b"\0")


def test_a_lost_clip_is_named_and_reading_goes_on_at_the_next_key(small: bytes) -> None:
    with open_packets(io.BytesIO(small)) as reader:
        second = reader.index()[1].offset
    for position in (second, second + 20):  # its mark, its facts
        bad = bytearray(small)
        bad[position] ^= 0xFF
        with open_packets(io.BytesIO(bad), on_error="skip") as reader:
            assert [packet.first_frame for packet in reader] == [0, 4, 5]
            assert [(gap.offset, gap.first_frame) for gap in reader.gaps] == [(second, 1)]
        assert not any(packet.first_frame in (1, 3) for packet in skipping(bytes(bad))[0])


def test_a_damaged_segment_costs_what_follows_it_only() -> None:
    packet = make_packet(frames=16, tokens=150, height=128, width=128)
    data = bytearray(as_bytes([packet]))
    segments = join(encode_packet(packet, make_quantiser(), TABLES).keep(1))
    data[data.index(b"PKT2") + 12 + len(segments) + 30] ^= 1
    (got,), (gap,) = skipping(bytes(data))
    assert got.tokens == 64 and "checksum" in str(gap)
    with pytest.raises(Corrupt, match="checksum"):
        whole(bytes(data))
