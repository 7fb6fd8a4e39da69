"""Thinning: kept segments are copied byte for byte, budgets are kept, bits go where they are predicted to earn most."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odva_files import as_bytes, assert_same, make_packet, make_quantiser, make_tiles, make_video
from onedva_runtime.container import load_packets, open_packets, save_packets
from onedva_runtime.container_packet import Coded
from onedva_runtime.errors import PacketError, Truncated
from onedva_runtime.packet import Packet
from onedva_runtime.thin import Clip, share, thin_file, thin_packets


def video(*, clips: int = 5, errors: bool = True) -> list[Packet]:
    packets = make_video([(16, 150)] * clips, times=True, height=112, width=112)
    steep = np.linspace(0.5, 2, clips)  # predictions differ from clip to clip
    return [
        replace(packet, predicted_error=np.linspace(-3, -3 - fall, 150).astype(np.float32) if errors else None)
        for packet, fall in zip(packets, steep, strict=True)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_packets(tmp_path / "in.odva", video(), quantiser=make_quantiser(), colour="x")
    return tmp_path / "in.odva"


def coded(path: Path) -> list[Coded]:
    with open_packets(path) as reader:
        return list(reader.coded())


@pytest.mark.parametrize(("tokens", "kept"), [(0, 0), (63, 0), (64, 64), (149, 128), (150, 150), (999, 150)])
def test_to_a_number_of_tokens(source: Path, tmp_path: Path, tokens: int, kept: int) -> None:
    result = thin_file(source, tmp_path / "out.odva", tokens=tokens)
    assert result.tokens == [kept] * 5 and result.tokens_before == [150] * 5
    assert (result.bytes_before, result.bytes) == (source.stat().st_size, (tmp_path / "out.odva").stat().st_size)
    for a, b in zip(coded(source), coded(tmp_path / "out.odva"), strict=True):
        assert (a.facts, a.structural) == (b.facts, b.structural)
        assert a.segments[: len(b.segments)] == b.segments  # the bytes themselves
    before, after = load_packets(source), load_packets(tmp_path / "out.odva")
    assert before.header == after.header
    for a, b in zip(before.packets, after.packets, strict=True):
        assert_same(a.thin(kept), b)
    with open_packets(tmp_path / "out.odva") as reader:
        assert [entry.tokens for entry in reader.index()] == [kept] * 5


def test_to_a_rate(source: Path, tmp_path: Path) -> None:
    seconds = 80 / (30000 / 1001)
    sizes: list[int] = []
    rates = [source.stat().st_size * 8e-3 / seconds * part for part in (1.5, 0.95, 0.9, 0.85)]
    for rate in rates:
        result = thin_file(source, tmp_path / "out.odva", max_kbps=rate, overwrite=True)
        assert result.bytes * 8e-3 / seconds <= rate
        sizes.append(result.bytes)
        if rate < rates[1]:
            assert result.tokens[0] < result.tokens[-1]  # whose error is predicted to fall fastest
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == source.stat().st_size
    assert sizes[1] > 0.85 * 0.95 * source.stat().st_size  # the budget is used
    with pytest.raises(PacketError, match=r"without any 1D latents it takes .* kbit/s, allowed are"):
        thin_file(source, tmp_path / "out.odva", max_kbps=rates[0] / 20, overwrite=True)


def test_packets_are_thinned_as_files_are(tmp_path: Path) -> None:
    packets, quantiser = video(), make_quantiser()
    save_packets(tmp_path / "in.odva", packets, quantiser=quantiser)
    with open_packets(tmp_path / "in.odva") as reader:
        setups = reader.index()[0].offset * 4  # after the opening, before each new kind of clip, at the end
    seconds = 80 / (30000 / 1001)
    rate = 8e-3 * 0.85 * ((tmp_path / "in.odva").stat().st_size - setups) / seconds
    by_file = thin_file(tmp_path / "in.odva", tmp_path / "out.odva", max_kbps=rate + 8e-3 * setups / seconds)
    by_hand = thin_packets(packets, quantiser=quantiser, max_kbps=rate)
    assert sum(packet.tokens for packet in by_hand) < 5 * 150
    assert abs(sum(by_file.tokens) - sum(packet.tokens for packet in by_hand)) <= 128
    assert [packet.tokens for packet in thin_packets(packets, quantiser=quantiser, tokens=100)] == [64] * 5
    assert thin_packets([], quantiser=quantiser, max_kbps=1) == []


def test_without_predictions_there_is_nothing_to_share_by(tmp_path: Path) -> None:
    save_packets(tmp_path / "in.odva", video(errors=False), quantiser=make_quantiser())
    with pytest.raises(PacketError, match="no predicted errors"):
        thin_file(tmp_path / "in.odva", tmp_path / "out.odva", max_kbps=1e6)
    assert thin_file(tmp_path / "in.odva", tmp_path / "out.odva", tokens=64).tokens == [64] * 5


def test_a_damaged_or_cut_source_leaves_nothing(source: Path, tmp_path: Path) -> None:
    data = bytearray(source.read_bytes())
    (tmp_path / "cut.odva").write_bytes(data[:-50])
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.odva").write_bytes(data)
    with pytest.raises(Truncated):
        thin_file(tmp_path / "cut.odva", tmp_path / "out.odva", tokens=64)
    with pytest.raises(PacketError, match="checksum"):
        thin_file(tmp_path / "bad.odva", tmp_path / "out.odva", tokens=64)
    assert not (tmp_path / "out.odva").exists()


def test_tiles_are_thinned_each(tmp_path: Path) -> None:
    tiles = make_tiles(make_packet(frames=16, tokens=100, height=112, width=112))
    (tmp_path / "in.odva").write_bytes(as_bytes(tiles))
    assert thin_file(tmp_path / "in.odva", tmp_path / "out.odva", tokens=70).tokens == [64, 64]
    assert load_packets(tmp_path / "out.odva").frames == 16


def test_half_a_wish_is_refused(source: Path, tmp_path: Path) -> None:
    for options in ({}, {"tokens": 1, "max_kbps": 1.0}):
        with pytest.raises(ValueError, match="one of them"):
            thin_file(source, tmp_path / "out.odva", **options)  # type: ignore[arg-type]
    for options in ({"tokens": -1}, {"max_kbps": float("nan")}, {"max_kbps": -1.0}):
        with pytest.raises(ValueError, match="at least 0"):
            thin_file(source, tmp_path / "out.odva", **options)  # type: ignore[arg-type]


steps = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=0, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, min_size=1, max_size=3), st.integers(0, 200))
def test_sharing_is_as_good_as_its_steps_allow(wanted: list[list[tuple[int, int]]], budget: int) -> None:
    """Within the budget, and no worse than the best by more than the largest step that equal slopes can miss."""
    clips = []
    for part in wanted:
        errors = 200.0 - np.cumsum([0, *(saved for _, saved in part)])
        clips.append(Clip(0, tuple(size for size, _ in part), (1,) * len(part), tuple(errors.tolist())))
    kept = share(clips, budget, source="x")
    spent = sum(sum(clip.sizes[:count]) for clip, count in zip(clips, kept, strict=True))
    assert spent <= budget

    def error(counts: tuple[int, ...]) -> float:
        return sum(clip.errors[count] for clip, count in zip(clips, counts, strict=True) if clip.errors)

    best = 1e9
    for counts in np.ndindex(*(len(clip.sizes) + 1 for clip in clips)):
        if sum(sum(clip.sizes[:count]) for clip, count in zip(clips, counts, strict=True)) <= budget:
            best = min(best, error(counts))
    largest = max((sum(max(0, saved) for _, saved in part) for part in wanted), default=0)
    assert error(tuple(kept)) <= best + largest


def test_predictions_that_rise_do_not_stop_what_follows() -> None:
    clip = Clip(0, (10, 10), (64, 64), (100.0, 101.0, 50.0))
    assert share([clip], 20, source="x") == [2]
    assert share([clip], 19, source="x") == [0]


def test_the_golden_property_of_a_prefix() -> None:
    """What a thinned file decodes to is what a shorter encode gives, up to the quantiser."""
    packet = make_packet(frames=16, tokens=150, height=112, width=112)
    long = load_packets(io.BytesIO(as_bytes([packet]))).packets[0].thin(64)
    short = load_packets(io.BytesIO(as_bytes([packet.thin(64)]))).packets[0]
    np.testing.assert_array_equal(long.latents, short.latents)
    np.testing.assert_array_equal(long.anchors, short.anchors)


def test_a_rate_holds_where_the_index_is_large(tmp_path: Path) -> None:
    """500 clips of a variable rate: their times take more of the index than of anything else."""
    random = np.random.default_rng(0)
    packets: list[Packet] = []
    tick = 0
    for number in range(500):
        packet = make_packet(frames=1, tokens=1, height=16, width=16, first=number, errors=True)
        tick += int(random.integers(1, 1 << 40))
        packets.append(replace(packet, timestamps=np.array([tick]), time_base=Fraction(1, 1 << 40)))
    source, target = tmp_path / "in.odva", tmp_path / "out.odva"
    save_packets(source, packets, quantiser=make_quantiser())
    size, least = source.stat().st_size, thin_file(source, target, tokens=0).bytes
    per_byte = 8e-3 * (30000 / 1001) / 500
    for share_of_it in (0.9, 0.5, 0.2):
        rate = per_byte * (least + share_of_it * (size - least))
        result = thin_file(source, target, max_kbps=rate, overwrite=True)
        assert result.bytes == target.stat().st_size <= rate / per_byte
        assert 0 < sum(result.tokens) < 500
    assert sum(result.tokens) >= 0.05 * 500  # the budget is used


def test_a_file_may_be_thinned_in_place(source: Path) -> None:
    before = source.stat().st_size
    result = thin_file(source, source, tokens=0, overwrite=True)
    assert (result.bytes_before, result.bytes) == (before, source.stat().st_size) and result.bytes < before
