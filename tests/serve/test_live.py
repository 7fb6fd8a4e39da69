"""Live sessions: nothing lost or in disorder, bandwidth obeyed, and a stop that loses nothing."""

import io
import json
import threading
import time

import httpx
import numpy as np
import pytest

from onedva_runtime import VideoCodec, load_packets
from onedva_runtime.clips import make_clip
from onedva_runtime.container_packet import encode_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.serve.live import Pacer
from onedva_runtime.serve.live_decode import HEAD
from onedva_runtime.serve.live_encode import Bandwidth
from onedva_runtime.thin import clip_of, header_of
from service_clients import SIZE, encode, frame_message, received


def test_the_messages_are_an_odva_file(server, clip) -> None:
    messages = encode(server, clip)
    file = load_packets(io.BytesIO(b"".join(data for _, data in messages)))
    local = server.service.codec.encode(clip, tokens=64, fps=24)
    assert file.frames == 40 and [p.tokens for p in file.packets] == [p.tokens for p in local]
    for packet, other in zip(file.packets, local, strict=True):
        np.testing.assert_array_equal(packet.anchors, other.anchors)
    clips = [facts for facts, _ in messages if facts["type"] == "clip"]
    assert [facts["first_frame"] for facts in clips] == [p.first_frame for p in local]
    assert [facts["bytes"] for facts in clips] == [len(data) for facts, data in messages if facts["type"] == "clip"]
    assert messages[-1][0]["frames"] == 40


@pytest.mark.parametrize("cut", [7, 4096])
def test_frames_come_back_in_order_however_bytes_are_cut(server, clip, cut) -> None:
    data = b"".join(data for _, data in encode(server, clip))
    packets = load_packets(io.BytesIO(data)).packets
    with server.live("decode", f"{SIZE}&seed=3") as connection:
        for start in range(0, len(data), cut):
            connection.send(data[start : start + cut])
        connection.send('{"type": "end"}')
        messages = received(connection)
    frames, expected = [], 0
    for facts, body in messages[:-1]:
        first, count, height, width, _ = HEAD.unpack_from(body)
        assert (first, count) == (facts["first_frame"], facts["frames"]) and first == expected
        assert facts["concealed"] == "" and len(facts["times"]) == count
        frames.append(np.frombuffer(body, np.uint8, offset=HEAD.size).reshape(count, height, width, 3))
        expected += count
    np.testing.assert_array_equal(np.concatenate(frames), server.service.codec.decode(packets, seed=3))
    assert messages[-1][0] == {"type": "end", "frames": 40, "complete": True}


def test_bandwidth_reports_drop_tail_segments(serve) -> None:
    """The fake bundle's clips have one segment of 48 latents, which goes while 2 kbit/s are reported."""
    frames = np.random.default_rng(0).integers(0, 256, (68, 64, 256, 3), np.uint8)
    with serve() as server:
        with server.live("encode", "width=256&height=64&fps=24&tokens=48&keyframe_interval=1") as connection:
            for number, frame in enumerate(frames):
                if number in (17, 51):
                    connection.send(json.dumps({"type": "bandwidth", "kbps": 2 if number == 17 else None}))
                connection.send(frame_message(frame, number))
            connection.send('{"type": "end"}')
            messages = received(connection)
        text = httpx.get(f"{server.address}/metrics").text
    clips = [facts for facts, _ in messages if facts["type"] == "clip"]
    assert [facts["tokens"] for facts in clips] == [48, 0, 0, 48]
    assert [facts["dropped_segments"] for facts in clips] == [0, 1, 1, 0]
    assert {facts["encoded_tokens"] for facts in clips} == {48}
    file = load_packets(io.BytesIO(b"".join(data for _, data in messages)))
    assert [packet.tokens for packet in file.packets] == [48, 0, 0, 48]
    assert "onedva_dropped_segments_total 2.0" in text


def test_what_is_kept_fits_what_is_reported(shipped_bundle) -> None:
    codec = VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime", threads=1)
    packet = codec.encode_clip(make_clip(17, 128, 128), tokens=256)
    coded = encode_packet(packet, codec.quantiser(), TABLES)
    size = clip_of(coded, header_of(packet, codec.quantiser()))
    whole = size.base + sum(size.sizes)
    assert len(size.sizes) == 4
    bandwidth = Bandwidth(None)
    assert bandwidth.keep([coded], [size], 1.0) == [4]
    bandwidth.kbps = (whole - 1) / 125  # one byte short, second for second
    assert bandwidth.keep([coded], [size], 1.0) == [3]
    assert bandwidth.keep([coded], [size], 1.0) == [4]  # from what the clip before left over
    bandwidth.kbps = 0
    kept = [bandwidth.keep([coded], [size], 1.0)[0] for _ in range(3)]
    assert kept[1:] == [0, 0]
    bandwidth.kbps = 2 * whole / 125
    assert bandwidth.keep([coded], [size], 1.0) == [4]  # a clip that was too large once does not starve those after


def test_settings_change_on_the_way(server, clip) -> None:
    control = [(17, {"type": "set", "tokens": 16}), (20, {"type": "key"}), (30, {"type": "flush"})]
    messages = encode(server, clip, "tokens=48", control=control)
    clips = [facts for facts, _ in messages if facts["type"] == "clip"]
    assert [facts["first_frame"] for facts in clips] == [0, 17, 20, 30]
    assert [facts["tokens"] for facts in clips] == [48, 12, 16, 16] and clips[2]["key"]  # 3 frames hold 12
    data = b"".join(data for _, data in messages)
    with server.live("decode", SIZE) as connection:
        connection.send('{"type": "set", "steps": 3}')
        connection.send(data)
        connection.send('{"type": "end"}')
        assert {facts["steps"] for facts, _ in received(connection)[:-1]} == {3}


def test_low_latency_clips_are_short(server, clip) -> None:
    messages = encode(server, clip[:9], "low_latency=true&tokens=0")
    assert [facts["frames"] for facts, _ in messages if facts["type"] == "clip"] == [5, 4]


def test_lost_packets_are_concealed_and_told_of(server, clip) -> None:
    messages = encode(server, clip, "keyframe_interval=1")
    clips = [(facts, data) for facts, data in messages if facts["type"] == "clip"]
    last = clips[2][0]["first_frame"] + clips[2][0]["frames"]
    for tail, complete in ((messages[-1][1], True), (b"", False), (clips[1][1][:50], False)):
        with server.live("decode", SIZE) as connection:
            for data in (clips[0][1], clips[2][1], tail):
                connection.send(data)
            connection.send('{"type": "end"}')
            *shown, (end, _) = received(connection)
        assert (end["type"], end["frames"], end["complete"]) == ("end", last, complete)
    shown = [facts for facts, _ in shown]
    assert [facts["concealed"] for facts in shown] == ["", "lost", ""]
    assert (shown[1]["first_frame"], shown[1]["frames"]) == (clips[1][0]["first_frame"], clips[1][0]["frames"])


def test_a_stop_flushes_what_was_taken_in(serve, clip) -> None:
    with serve() as server, server.live("encode", SIZE) as connection:
        for number in range(5):
            connection.send(frame_message(clip[number], number))
        time.sleep(0.3)
        stopper = threading.Thread(target=server.stop)
        stopper.start()
        messages = received(connection)
        stopper.join()
    assert [facts.get("code", facts.get("frames")) for facts, _ in messages] == [5, "stopping"]


def test_a_pacer_holds_to_the_rate() -> None:
    pacer = Pacer(24)
    assert pacer.delay(40) == 0
    assert pacer.delay(30) == pytest.approx(22 / 30, abs=0.1) or pacer.delay(0) > 0
