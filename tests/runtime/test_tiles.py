"""Large frames as tiles: the plan covers every pixel within the bound of the model, blending is seamless and exact
where tiles agree, noise does not know of tiles, and missing tiles show the frame before."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import PacketError
from onedva_runtime.metrics import psnr
from onedva_runtime.packet import Packet
from onedva_runtime.tiles import OVERLAP, Tile, blend, check_tiles, plan_tiles
from onedva_runtime.video_io import read_video

LARGE = np.random.default_rng(0).integers(0, 256, (20, 170, 243, 3), np.uint8)  # 11×16 positions, the fake takes 120


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 1500), st.integers(1, 2500), st.integers(16, 900))
def test_a_plan_covers_the_frame_with_overlapping_tiles_within_the_bound(
    height: int, width: int, positions: int
) -> None:
    tiles = plan_tiles(height, width, positions=positions)
    covered = np.zeros((height, width), np.int8)
    for tile in tiles:
        assert tile.height >= 1 and tile.width >= 1 and tile.top % 16 == tile.left % 16 == 0
        assert -(-tile.height // 16) * -(-tile.width // 16) <= positions
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] += 1
    assert covered.min() >= 1
    assert tiles == sorted(tiles, key=lambda tile: (tile.top, tile.left))
    for before, after in itertools.pairwise(tiles):
        if before.top == after.top:
            assert before.left + before.width - after.left >= 16 * OVERLAP or after.width < 16 * OVERLAP


def test_plans_of_common_sizes() -> None:
    assert plan_tiles(288, 512, positions=720) == [Tile(0, 0, 288, 512)]
    for size, most, ratio in (((1080, 1920), 16, 1.25), ((720, 1280), 8, 1.25), ((2160, 3840), 60, 1.25)):
        tiles = plan_tiles(*size, positions=720)
        assert len(tiles) <= most
        assert sum(tile.height * tile.width for tile in tiles) < ratio * size[0] * size[1]
    with pytest.raises(ValueError, match="frames of 160x160 are 100 grid positions, more than the 15"):
        plan_tiles(160, 160, positions=15)


def as_packet(tile: Tile, size: tuple[int, int], first_frame: int = 0) -> Packet:
    grid = 1, -(-tile.height // 16), -(-tile.width // 16)
    return Packet(
        structural=np.zeros((*grid, 3), np.float32),
        latents=np.zeros((0, 3), np.float32),
        anchors=np.zeros(0, np.int64),
        frames=1,
        height=tile.height,
        width=tile.width,
        corner=(tile.top, tile.left),
        frame_size=size,
        first_frame=first_frame,
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(60, 200), st.integers(60, 200), st.integers(16, 40))
def test_blending_gives_back_what_the_tiles_agree_on(height: int, width: int, positions: int) -> None:
    frame = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), np.uint8)
    tiles = plan_tiles(height, width, positions=positions)
    packets = [as_packet(tile, (height, width)) for tile in tiles]
    canvas = np.full_like(frame, 7)
    blend(packets, [frame[:, t.top : t.top + t.height, t.left : t.left + t.width] for t in tiles], canvas)
    assert check_tiles(packets) or len(tiles) == 1
    np.testing.assert_array_equal(canvas, frame)


def test_a_blend_of_two_levels_is_a_ramp_without_a_step() -> None:
    tiles = plan_tiles(64, 160, positions=24)
    assert len(tiles) == 2
    canvas = np.zeros((1, 64, 160, 3), np.uint8)
    parts = [np.full((1, t.height, t.width, 3), level, np.uint8) for t, level in zip(tiles, (40, 200), strict=True)]
    blend([as_packet(tile, (64, 160)) for tile in tiles], parts, canvas)
    row = canvas[0, 5, :, 0].astype(int)
    assert row[0] == 40 and row[-1] == 200
    shared = tiles[0].width - tiles[1].left
    assert (np.diff(row) >= 0).all() and np.diff(row).max() <= -(-160 // shared) + 1


@pytest.mark.parametrize(("tokens", "batch_size"), [(16, 1), (0, 4), ("auto", 4)])
def test_a_large_video_comes_back_whole(codec: VideoCodec, tokens: int | str, batch_size: int) -> None:
    """The fake decodes a patch by itself, so tiles give what one large clip would give, on one noise."""
    packets = codec.encode(LARGE, tokens=tokens, batch_size=batch_size, follow_camera=False)
    firsts = [packet.first_frame for packet in packets]
    assert sorted(set(firsts)) == [0, 17] and firsts == sorted(firsts)
    assert {packet.whole_size for packet in packets} == {(170, 243)} and {packet.is_key for packet in packets[:1]} == {
        True
    }
    assert all(packet.validate().grid[1] * packet.grid[2] <= 120 for packet in packets)
    decoded = codec.decode(packets, seed=3, batch_size=batch_size)
    assert decoded.shape == LARGE.shape
    if tokens == 0:
        untiled = [
            codec.encode_clip(LARGE[start : start + 9], tokens=0, first_frame=start, follow_camera=False)
            for start in (0,)
        ]
        whole = codec.decode_clip(untiled[0], seed=3)
        assert psnr(whole, decoded[:9]) > 60


def test_tiles_go_on_from_the_blended_frame(codec: VideoCodec) -> None:
    packets = codec.encode(LARGE, tokens=0, cuts=False)
    decoded = codec.decode(packets, seed=1)
    for packet in packets:
        if packet.first_frame == 17:
            assert not packet.is_key
            (top, left), height, width = packet.corner, packet.height, packet.width
            context = decoded[16, top : top + height, left : left + width]
            own = codec.decode_clip(packet, seed=1, context_frame=context)
            inner = np.s_[:, 40 : height - 40, 40 : width - 40]  # where no other tile lies
            box = decoded[17:20, top : top + height, left : left + width]
            np.testing.assert_array_equal(own[inner], box[inner])


def test_streams_of_large_frames(codec: VideoCodec) -> None:
    wanted = codec.decode(codec.encode(LARGE, tokens=16), seed=5)
    encoder, decoder = codec.open_encoder(tokens=16), codec.open_decoder(seed=5)
    outputs: list[np.ndarray] = []
    for start in range(0, 20, 6):
        for packet in encoder.push(LARGE[start : start + 6]):
            outputs += decoder.push(packet)
    for packet in encoder.flush():
        outputs += decoder.push(packet)
    np.testing.assert_array_equal(np.concatenate(outputs), wanted)


@pytest.mark.parametrize("gone", [0, 1, -1])
def test_a_missing_tile_shows_the_frame_before(codec: VideoCodec, gone: int) -> None:
    packets = codec.encode(LARGE, tokens=0, cuts=False)
    whole = codec.decode(packets)
    second = [packet for packet in packets if packet.first_frame == 17]
    lost = second.pop(gone)
    reports = []
    decoder = codec.open_decoder(on_report=reports.append)
    outputs = [frames for packet in packets if packet.first_frame == 0 for frames in decoder.push(packet)]
    outputs += [frames for packet in second for frames in decoder.push(packet)] + decoder.flush()
    frames = np.concatenate(outputs)
    assert frames.shape == whole.shape and decoder.needs_key
    assert [report.concealed for report in reports] == ["", "tiles lost"]
    rows = np.s_[lost.corner[0] + 48 : lost.corner[0] + lost.height - 48]
    columns = np.s_[lost.corner[1] + 48 : lost.corner[1] + lost.width - 48]
    assert (frames[17:, rows, columns] == whole[16, rows, columns]).all()
    for packet in second:
        if packet.corner[0] == 0 != lost.corner[0]:
            part = np.s_[17:, : packet.height - 48, packet.corner[1] + 48 : packet.corner[1] + packet.width - 48]
            np.testing.assert_array_equal(frames[part], whole[part])


def test_a_clip_left_incomplete_is_shown_before_the_next(codec: VideoCodec) -> None:
    packets = codec.encode(LARGE, tokens=0, keyframe_interval=1)
    first = [packet for packet in packets if packet.first_frame == 0]
    decoder = codec.open_decoder()
    for packet in first[:-1]:
        assert decoder.push(packet) == []
    outputs = [frames for packet in packets if packet.first_frame == 17 for frames in decoder.push(packet)]
    assert [len(frames) for frames in outputs] == [17, 3] and not decoder.needs_key
    np.testing.assert_array_equal(outputs[1], codec.decode(packets)[17:])


def test_tiles_in_disorder_are_refused(codec: VideoCodec) -> None:
    packets = codec.encode(LARGE[:5], tokens=0)
    assert len(packets) >= 2
    with pytest.raises(PacketError, match="the clip from frame 0 on ends after the tile at"):
        codec.decode(packets[:-1])
    with pytest.raises(PacketError, match="has a tile missing"):
        codec.decode(packets[1:])
    with pytest.raises(PacketError, match=r"has a tile missing|ends after the tile at"):
        codec.decode([packets[1], *packets])
    strict = codec.open_decoder(conceal="raise")
    strict.push(packets[0])
    with pytest.raises(PacketError, match="tiles before the packet from frame 5 on did not come"):
        strict.push(replace(packets[0], first_frame=5))


def test_a_strict_decoder_does_not_conceal_a_tile(codec: VideoCodec) -> None:
    packets = codec.encode(LARGE[:5], tokens=0)
    whole = codec.decode(packets)
    decoder = codec.open_decoder(conceal="raise")
    with pytest.raises(PacketError, match="a tile of the clip from frame 0 on did not come"):
        for packet in packets[1:]:
            decoder.push(packet)
    decoder = codec.open_decoder(conceal="raise")
    np.testing.assert_array_equal(np.concatenate([f for packet in packets for f in decoder.push(packet)]), whole)


def test_a_tile_cannot_claim_a_frame_beyond_all_limits(codec: VideoCodec) -> None:
    tile = replace(codec.encode_clip(LARGE[:5, :64, :64], tokens=0), frame_size=(1 << 20, 1 << 20))
    with pytest.raises(PacketError, match="1099511627776 pixels; allowed: "):
        codec.open_decoder().push(tile)


def test_the_bound_is_the_models(make_bundle: Callable[..., Path]) -> None:
    codec = VideoCodec.from_pretrained(make_bundle(edit=lambda content: content["clip"].update(max_video_positions=60)))
    with pytest.raises(ValueError, match="more than the 12 that a clip of this model may have per group"):
        codec.encode(LARGE)
    encoder = codec.open_encoder(clip_frames=5, tokens=0)  # 30 positions for each of two groups
    assert len(encoder.push(LARGE[:5])) == len(plan_tiles(170, 243, positions=30))


def line_energy(frames: np.ndarray, rows: set[int], columns: set[int]) -> float:
    """Mean squared difference across these rows and columns, the pixels just before and after each."""
    pixels = frames.astype(np.int32)
    across = [np.square(pixels[:, y] - pixels[:, y - 1]).mean() for y in rows]
    across += [np.square(pixels[:, :, x] - pixels[:, :, x - 1]).mean() for x in columns]
    return float(np.mean(across))


@pytest.mark.slow
def test_tiles_of_the_shipped_model_cannot_be_told_from_one_clip(shipped_bundle: Path, dev_clips: list[Path]) -> None:
    """Against the untiled decode ≥ 35 dB; at tile borders no more gradient, against other lines between patches, than
    1.1 times what the untiled decode has there."""
    whole = VideoCodec.from_pretrained(shipped_bundle, threads=1)
    bundle = whole._bundle
    clip = replace(bundle.manifest.clip, max_video_positions=5 * 120)
    tiled = VideoCodec(replace(bundle, manifest=replace(bundle.manifest, clip=clip)), whole._engine.backend)
    for path in dev_clips[:3]:
        source = read_video(path, max_frames=17, threads=1).frames[:, :272, :384]
        height, width = source.shape[1:3]
        tiles = plan_tiles(height, width, positions=120)
        packets = tiled.encode(source, follow_camera=False)  # each tile would follow for itself
        assert len(packets) >= len(tiles) >= 2
        decoded, wanted = tiled.decode(packets), whole.decode(whole.encode(source, follow_camera=False))
        assert psnr(source, tiled.decode(tiled.encode(source))) > psnr(source, decoded) - 0.1
        assert psnr(wanted, decoded) >= 35
        rows = {y for tile in tiles for y in (tile.top, tile.top + tile.height)} - {0, height}
        columns = {x for tile in tiles for x in (tile.left, tile.left + tile.width)} - {0, width}
        others = set(range(16, height, 16)) - rows, set(range(16, width, 16)) - columns
        ratio, usual = (line_energy(v, rows, columns) / line_energy(v, *others) for v in (decoded, wanted))
        assert ratio <= 1.1 * usual
