"""Quantisation: steps from a checkpoint, the same rounding twice, the same floats on every machine."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from odva_files import as_bytes, assert_same, make_packet, make_quantiser
from onedva_runtime.bundle import read_bundle
from onedva_runtime.codec import VideoCodec
from onedva_runtime.container import load_packets, save_packets
from onedva_runtime.container_packet import encode_packet, join, store_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import BundleError, MissingLevels, PacketError
from onedva_runtime.quantiser import latent_std, quantiser_of, steps_of, to_integers


@settings(max_examples=60, deadline=None)
@given(st.integers(-6, 6), st.booleans(), st.integers(0, 6))
def test_rounding_twice_is_rounding_once_and_stays_near(exponent: int, key: bool, tokens: int) -> None:
    packet, quantiser = make_packet(key=key, tokens=tokens, first=3), make_quantiser(step=2.0**exponent)
    once = quantiser.apply(packet)
    assert_same(quantiser.apply(once), once)
    steps = steps_of(quantiser.of((key, packet.grid[0])))
    coded = packet.structural[0 if key else 1 :]
    error = np.abs(once.structural[0 if key else 1 :] - coded) / steps[:, None, None, :2]
    assert error.max(initial=0) <= 0.5 + 60 / 256


def test_insets_lower_the_error_of_what_latents_look_like() -> None:
    """A value stands for the mean of what is rounded to it: nearer than the middle of its interval."""
    packet = make_packet(frames=16, tokens=0, height=256, width=256)
    quantiser = make_quantiser(step=4)
    steps = steps_of(quantiser.of((True, packet.grid[0])))[:, None, None, :2]
    integers = to_integers(packet, quantiser)[0]
    middle = np.square(integers * steps - packet.structural).mean()
    assert np.square(quantiser.apply(packet).structural - packet.structural).mean() < 0.99 * middle


def test_steps_are_eighths_of_octaves_bit_for_bit() -> None:
    levels = np.arange(-160, 137, dtype=np.int16)
    steps = steps_of(levels)
    np.testing.assert_allclose(steps, 2.0 ** (-levels.astype(float) / 8), rtol=1e-7)
    words = ["0000803f", "c7c06a3f", "fd44573f", "2a67453f", "f304353f", "d7fe253f", "f037183f", "c2950b3f", "0000003f"]
    assert steps[160:169].tobytes().hex() == "".join(words)


def test_steps_follow_the_checkpoint(make_bundle, tmp_path: Path) -> None:
    folder = make_bundle()
    bundle = read_bundle(folder)
    assert latent_std(folder / "model.safetensors") is None
    flat = quantiser_of(bundle, step=0.5)  # a model without the transform: unit scale
    assert set(flat.levels) == {(True, n) for n in range(1, 6)} | {(False, n) for n in range(2, 6)}
    assert all(bool((levels == 8).all()) for levels in flat.levels.values())
    assert flat.of((False, 4)).shape == (3, 6)

    rows = 1 + 2 + 3 + 4 + 5 + 1 + 2 + 3 + 4
    std = np.exp2(np.arange(rows * 6).reshape(rows, 6) / 64).astype(np.float16)
    for dtype in (np.float16, np.float32):
        save_file(
            {"other": np.zeros(3, np.float32), "transform.latent_std": std.astype(dtype)}, tmp_path / "w.safetensors"
        )
        np.testing.assert_array_equal(latent_std(tmp_path / "w.safetensors"), std)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onedva_runtime.quantiser.latent_std", lambda path: std.astype(np.float64))
        found = quantiser_of(bundle, step=0.5)
        np.testing.assert_array_equal(found.of((True, 2)), np.rint(8 * np.log2(std[1:3].astype(float) / 0.5)))
        np.testing.assert_array_equal(found.of((False, 3)), np.rint(8 * np.log2(std[16:18].astype(float) / 0.5)))
        patch.setattr("onedva_runtime.quantiser.latent_std", lambda path: std[:-1].astype(np.float64))
        with pytest.raises(BundleError, match="has the shape"):
            quantiser_of(bundle)


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for data in (b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"nope"):
        path.write_bytes(data)
        with pytest.raises(BundleError, match="safetensors"):
            latent_std(path)
    for bad in (0, -1, np.nan, np.inf):
        save_file({"transform.latent_std": np.array([[1, bad]], np.float16)}, path)
        with pytest.raises(BundleError, match="positive and finite"):
            latent_std(path)


@pytest.mark.parametrize("step", [0, -1, float("nan"), float("inf"), 2**-11, 2.01])
def test_steps_that_make_no_sense_are_refused(codec: VideoCodec, step: float) -> None:
    with pytest.raises(ValueError, match="step must be from"):
        codec.quantiser(step=step)


def test_what_does_not_fit_is_refused() -> None:
    packet = make_packet()
    with pytest.raises(PacketError, match="quantiser steps; allowed"):
        make_quantiser().apply(replace(packet, structural=packet.structural * 1e7))
    with pytest.raises(PacketError, match="channels"):
        make_quantiser(latent=5).apply(packet)
    with pytest.raises(MissingLevels, match="key clip of 6 groups"):
        make_quantiser().apply(make_packet(frames=21))


def test_a_finer_step_is_nearer_and_larger() -> None:
    packet = make_packet(frames=16, tokens=20, height=64, width=64)
    found = []
    for step in (2.0, 0.5, 0.125):
        data = as_bytes([packet], quantiser=make_quantiser(step=step))
        error = np.abs(load_packets(io.BytesIO(data)).packets[0].structural - packet.structural).mean()
        found.append((len(data), error))
    assert [size for size, _ in found] == sorted(size for size, _ in found)
    assert [error for _, error in found] == sorted((error for _, error in found), reverse=True)


def test_the_codec_brings_its_own(codec: VideoCodec, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    packet = codec.encode_clip(frames, tokens=16)
    save_packets(tmp_path / "a.odva", [packet], quantiser=codec.quantiser(step=0.01))
    loaded = load_packets(tmp_path / "a.odva").packets[0]
    assert np.abs(loaded.structural - packet.structural).max() <= 0.01
    assert np.abs(codec.decode_clip(loaded).astype(int) - codec.decode_clip(packet)).max() <= 2


def test_what_is_stored_is_what_is_found_there() -> None:
    packet, quantiser = make_packet(key=False, first=5, frames=8), make_quantiser()
    coded, stored = store_packet(packet, quantiser, TABLES)
    assert join(coded) == join(encode_packet(packet, quantiser, TABLES))
    assert_same(stored, quantiser.apply(packet))
