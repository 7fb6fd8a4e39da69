"""Live sessions: nothing lost or in disorder, bandwidth obeyed, and a typed end for whatever a client does wrong."""

import io
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.uri import parse_uri

from onedva_runtime import VideoCodec, load_packets, save_packets
from onedva_runtime.clips import make_clip
from onedva_runtime.container_packet import encode_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.serve.live import Pacer
from onedva_runtime.serve.live_decode import HEAD
from onedva_runtime.serve.live_encode import Bandwidth
from onedva_runtime.thin import clip_of, header_of

SIZE = "width=64&height=48&fps=24"


def frame_message(frame: np.ndarray, number: int) -> bytes:
    """A frame as a live encode takes it, 24 a second."""
    return int(number * 1_000_000 / 24).to_bytes(8, "little", signed=True) + frame.tobytes()


def received(connection) -> list[tuple[dict, bytes]]:
    """What a session sends up to its end: each control message with the bytes after it."""
    got: list[tuple[dict, bytes]] = []
    for message in connection:
        if isinstance(message, bytes):
            got[-1] = (got[-1][0], message)
        else:
            got.append((json.loads(message), b""))
    return got


def encode(server, clip, query="tokens=64", *, control=()):
    """A whole live encode; control: (before which frame, message)."""
    with server.live("encode", f"{SIZE}&{query}") as connection:
        for number, frame in enumerate(clip):
            for _, message in (entry for entry in control if entry[0] == number):
                connection.send(json.dumps(message))
            connection.send(frame_message(frame, number))
        connection.send('{"type": "end"}')
        return received(connection)


def denied(server, work, query, **options):
    """The HTTP answer to a session that is not let in."""
    with pytest.raises(InvalidStatus) as caught, server.live(work, query, **options):
        pass
    return caught.value.response


def until(true) -> None:
    """Return as soon as something is the case; fail where it never is."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def ended(connection) -> tuple[dict, int]:
    """The last words of a session, and its close code."""
    facts: dict = {}
    try:
        while True:
            message = connection.recv(timeout=20)
            if isinstance(message, str):
                facts = json.loads(message)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return facts, closed.rcvd.code


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
    assert messages[-1][0] == {"type": "end", "frames": 40}


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
    clips = [(facts, data) for facts, data in encode(server, clip, "keyframe_interval=1") if facts["type"] == "clip"]
    with server.live("decode", SIZE) as connection:
        connection.send(clips[0][1])
        connection.send(clips[2][1])
        connection.send('{"type": "end"}')
        shown = [facts for facts, _ in received(connection) if facts["type"] == "frames"]
    assert [facts["concealed"] for facts in shown] == ["", "lost", ""]
    assert (shown[1]["first_frame"], shown[1]["frames"]) == (clips[1][0]["first_frame"], clips[1][0]["frames"])


BAD_ENCODES = [
    (b"short", "bad_frame", 1008),
    ("not json", "bad_message", 1008),
    ("[1, 2]", "bad_message", 1008),
    ("[" * 3000, "bad_message", 1008),
    ("x" * 5000, "bad_message", 1008),
    ('{"type": "unknown"}', "bad_message", 1008),
    ('{"type": "bandwidth", "kbps": "much"}', "bad_message", 1008),
    ('{"type": "bandwidth", "kbps": NaN}', "bad_message", 1008),
    ('{"type": "set", "tokens": []}', "bad_message", 1008),
    ('{"type": "set", "tokens": "many"}', "bad_tokens", 1008),
]


@pytest.mark.parametrize(("message", "code", "close"), BAD_ENCODES)
def test_wrong_messages_end_an_encode(server, message, code, close) -> None:
    with server.live("encode", SIZE) as connection:
        connection.send(message)
        facts, closed = ended(connection)
    assert facts["type"] == "error" and (facts["code"], closed) == (code, close)


def test_times_must_rise(server, clip) -> None:
    with server.live("encode", SIZE) as connection:
        connection.send(frame_message(clip[0], 5))
        connection.send(frame_message(clip[1], 5))
        assert ended(connection)[0]["code"] == "bad_time"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"nothing of a file", "notodva"),
        ('{"type": "set", "steps": 0}', "bad_message"),
        ('{"type": "key"}', "bad_message"),
    ],
)
def test_wrong_messages_end_a_decode(server, message, code) -> None:
    with server.live("decode", SIZE) as connection:
        connection.send(message)
        assert ended(connection)[0]["code"] == code


def test_a_stream_of_another_size_is_refused(server, clip) -> None:
    data = b"".join(data for _, data in encode(server, clip[:5]))
    with server.live("decode", "width=48&height=48") as connection:
        connection.send(data)
        assert ended(connection)[0]["code"] == "bad_size"


def test_a_message_that_is_too_large_closes(server) -> None:
    with server.live("encode", SIZE) as connection:
        connection.send(bytes(2 << 20))
        assert ended(connection)[1] == 1009


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("width=0&height=48", 422, "bad_parameter"),
        ("width=64", 422, "bad_parameter"),
        (f"{SIZE}&model=other", 422, "bad_parameter"),
        (f"{SIZE}&tokens=x", 422, "bad_tokens"),
        ("width=4096&height=4096", 413, "too_large"),
    ],
)
def test_wrong_options_are_refused_over_http(server, query, status, code) -> None:
    answer = denied(server, "encode", query)
    assert (answer.status_code, json.loads(answer.body or b"")["error"]["code"]) == (status, code)


def test_capacity_is_reserved_and_the_rest_told_to_come_back(serve) -> None:
    with serve(live_sessions=2) as server:
        with server.live("encode", SIZE), server.live("decode", SIZE):
            answer = denied(server, "encode", SIZE)
            assert answer.status_code == 429 and int(answer.headers["Retry-After"]) >= 1
        until(lambda: server.service.admission.at_work == 0)
        with server.live("encode", SIZE):
            pass
    with serve(live_load=1e-6) as server:
        assert denied(server, "encode", SIZE).status_code == 429


def test_silence_ends_a_session(serve) -> None:
    with serve(idle_seconds=0.2) as server, server.live("encode", SIZE) as connection:
        assert ended(connection)[0]["code"] == "idle"


def test_slow_readers_are_let_go(serve) -> None:
    """A client that sends and never reads: its connection is broken off, and nothing of it stays."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 256, 256, 3), np.uint8)
    size = "width=256&height=256&fps=24"
    with serve(send_stall_seconds=0.3) as server:
        codec, target = server.service.codec, io.BytesIO()
        save_packets(target, codec.encode(noise, tokens=0, fps=24), quantiser=codec.quantiser())
        protocol = ClientProtocol(parse_uri(f"{server.address.replace('http', 'ws')}/v1/live/decode?{size}"))
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", int(server.address.rsplit(":", 1)[1])))
            protocol.send_request(protocol.connect())
            line.sendall(b"".join(protocol.data_to_send()))
            protocol.receive_data(line.recv(4096))
            protocol.send_binary(target.getvalue())
            line.sendall(b"".join(protocol.data_to_send()))
            until(lambda: bool(server.service.live))
            until(lambda: not server.service.live)
            got = 0
            while part := line.recv(1 << 16):
                got += len(part)
            assert got < noise.nbytes / 2  # broken off, not closed with all of it on its way
        assert 'onedva_refused_total{code="slow_reader"} 1.0' in httpx.get(f"{server.address}/metrics").text


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
