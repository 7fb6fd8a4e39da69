"""Entropy coding: integers of any size come back; the tables are exact and checked; context pays; bytes bound work."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odva_files import make_packet, make_quantiser
from onedva_runtime.entropy import (
    BOUNDS,
    CLASSES,
    INTEGERS_PER_BYTE,
    LARGEST,
    MOST,
    SYMBOLS,
    TOTAL,
    Decoder,
    Encoder,
    Tables,
    classes_of,
    magnitudes,
)
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import Corrupt, PacketError
from onedva_runtime.latent_coding import (
    Neighbourhood,
    decode_segment,
    decode_structural,
    encode_segment,
    encode_structural,
)

batches = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 40), st.one_of(st.integers(-40, 40), st.integers(-LARGEST, LARGEST), st.just(LARGEST))
        ),
        min_size=1,
        max_size=30,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(batches, st.booleans())
def test_integers_come_back(values: list[list[tuple[int, int]]], signed: bool) -> None:
    encoder = Encoder(TABLES)
    parts = [(np.array([e for e, _ in part]), np.array([v for _, v in part], np.int32)) for part in values]
    parts = [(expected, integers if signed else np.abs(integers)) for expected, integers in parts]
    for expected, integers in parts:
        encoder.code(expected, integers, signed=signed)
    decoder = Decoder(TABLES, encoder.bytes())
    for expected, integers in parts:
        np.testing.assert_array_equal(decoder.code(expected, signed=signed), integers)
    decoder.finish()


def test_every_symbol_costs_what_its_table_says() -> None:
    """The coder gets the tables exactly: 16-bit frequencies, no rounding of its own."""
    weights = TABLES.weights
    assert weights.dtype == np.float32 and bool((weights.astype(np.int64).sum(1) == (1 << 24) - SYMBOLS).all())
    np.testing.assert_array_equal(weights.astype(np.int64), 256 * TABLES.frequencies - 1)
    random = np.random.default_rng(0)
    expected = random.integers(1, 256, 20_000)
    integers = np.minimum(random.geometric(1 / (1 + expected / 64)) - 1, SYMBOLS - 2).astype(np.int32)
    encoder = Encoder(TABLES)
    encoder.code(expected, integers, signed=False)
    ideal = -np.log2(TABLES.frequencies[classes_of(expected)[0], integers] / TOTAL).sum()
    assert ideal <= 8 * len(encoder.bytes()) <= ideal + 64


def test_a_good_expectation_is_cheaper() -> None:
    random = np.random.default_rng(1)
    strength = 2.0 ** random.integers(-2, 8, 4000)
    integers = np.rint(random.laplace(size=4000) * strength).astype(np.int32)
    sizes = []
    for expected in (64 * strength, np.full(4000, 64 * strength.mean())):
        encoder = Encoder(TABLES)
        encoder.code(expected.astype(np.int64), integers)
        sizes.append(len(encoder.bytes()))
    assert sizes[0] < 0.9 * sizes[1]


def test_classes_are_a_third_of_an_octave_and_large_numbers_shift() -> None:
    assert len(BOUNDS) + 1 == CLASSES == len(TABLES.frequencies)
    np.testing.assert_array_equal(BOUNDS, np.floor(4 * 2 ** (np.arange(len(BOUNDS)) / 3) + 0.5))
    classes, shifts = classes_of(np.array([0, 3, 4, 255, 256, 511, 512, 1 << 60]))
    assert classes.tolist() == [0, 0, 1, 18, 16, 18, 16, classes[-1]]
    assert shifts.tolist() == [0, 0, 0, 0, 1, 1, 2, 19]


def test_expected_magnitudes_are_those_of_a_laplacian() -> None:
    levels = np.array([-160, -16, 0, 8, 47, 48, 136], np.int16)
    scale = 2 ** (levels[1:].astype(float) / 8) / np.sqrt(2)
    exact = 64 * np.exp(-0.5 / scale) / (1 - np.exp(-1 / scale))
    np.testing.assert_allclose(magnitudes(levels)[1:], exact, rtol=0.06)
    assert magnitudes(levels)[0] == 4


@pytest.mark.parametrize(
    "change", [lambda f: f + 1, lambda f: f * 0, lambda f: f[:-1], lambda f: np.where(f == f.max(), TOTAL - 17, 1)]
)
def test_tables_that_are_none_are_refused(change) -> None:
    with pytest.raises(Corrupt, match="tables"):
        Tables(change(TABLES.frequencies))


def test_tables_travel() -> None:
    np.testing.assert_array_equal(Tables.unpack(TABLES.pack()).frequencies, TABLES.frequencies)
    assert len(TABLES.pack()) < 600
    for data in (TABLES.pack()[:-1], TABLES.pack() + b"\0", zlib.compress(b"")):
        with pytest.raises(Corrupt, match="compressed bytes"):
            Tables.unpack(data)


def test_no_byte_holds_more_integers_than_the_bound() -> None:
    cheapest = np.full((CLASSES, SYMBOLS), (TOTAL - MOST) // (SYMBOLS - 1))
    cheapest[:, 0] = TOTAL - cheapest[:, 1:].sum(1)
    cheapest[:, 1] += cheapest[:, 0] - MOST
    cheapest[:, 0] = MOST
    encoder, count = Encoder(Tables(cheapest)), 1 << 20
    encoder.code(np.zeros(count, np.int64), np.zeros(count, np.int32))
    data = encoder.bytes()
    decoder = Decoder(TABLES, data)
    decoder.expect(count)
    assert count > 0.9 * INTEGERS_PER_BYTE * len(data)  # the bound is near
    with pytest.raises(Corrupt, match="cannot hold"):
        decoder.expect(count + count // 9)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 16), st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(1, 9), st.integers(0, 2**32)
)
def test_clips_come_back(frames: int, height: int, width: int, key: bool, structural: int, seed: int) -> None:
    packet = make_packet(frames=frames, tokens=0, height=height, width=width, structural=structural, key=key)
    quantiser = make_quantiser(structural=structural, latent=11)
    levels = quantiser.of((key, packet.grid[0]))
    random = np.random.default_rng(seed)
    shape = (levels.shape[0], *packet.grid[1:])
    coded = np.rint(random.standard_t(2, (*shape, structural)) * 3).clip(-LARGEST, LARGEST).astype(np.int32)
    encoder = Encoder(TABLES)
    encode_structural(encoder, coded, levels)
    decoder = Decoder(TABLES, encoder.bytes())
    np.testing.assert_array_equal(decode_structural(decoder, shape, structural, levels), coded)
    around = Neighbourhood(coded, levels)
    positions = int(np.prod(shape))
    places = random.permutation(positions)[:64]
    if seed % 2:
        places = np.concatenate([np.sort(places[start : start + 16]) for start in range(0, len(places), 16)])
    latents = np.rint(random.standard_t(2, (len(places), 11))).clip(-LARGEST, LARGEST).astype(np.int32)
    part = Encoder(TABLES)
    encode_segment(part, places, latents, around)
    got = decode_segment(Decoder(TABLES, part.bytes()), len(places), around)
    np.testing.assert_array_equal(got[0], places)
    np.testing.assert_array_equal(got[1], latents)


def test_the_largest_integer_passes_and_a_larger_one_is_refused() -> None:
    integers = np.array([LARGEST, -LARGEST], np.int32)
    encoder = Encoder(TABLES)
    encoder.code(np.array([64, 64]), integers)
    np.testing.assert_array_equal(Decoder(TABLES, encoder.bytes()).code(np.array([64, 64])), integers)
    for bad in (LARGEST + 1, -(2**31)):
        with pytest.raises(PacketError, match=f"the format holds {LARGEST}"):
            Encoder(TABLES).code(np.array([64]), np.array([bad], np.int32))
