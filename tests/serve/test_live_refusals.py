"""Live sessions that go wrong: a typed end for whatever a client does, and room that is not there."""

import io
import json
import socket
import time

import httpx
import numpy as np
import pytest
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from onedva_runtime import save_packets
from onedva_runtime.serve import live_encode
from onedva_runtime.serve import server as server_module
from service_clients import SIZE, denied, encode, ended, frame_message, received, until

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
        assert denied(server, "encode", SIZE).status_code == 413


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
        until(lambda: not server_module._transports)  # nothing of a connection is kept
        assert 'onedva_refused_total{code="slow_reader"} 1.0' in httpx.get(f"{server.address}/metrics").text


def test_what_falls_behind_is_noticed_and_mended(serve, monkeypatch) -> None:
    """Coding is made slower than frames come: nobody new is let in, the newest is let go, then all is well again."""
    with serve(live_lag_seconds=0.3, live_behind_seconds=0.6) as server:
        push = live_encode._Session.push
        slow = 0.3

        def delayed(self, *arguments):
            time.sleep(slow)
            return push(self, *arguments)

        monkeypatch.setattr(live_encode._Session, "push", delayed)
        frame = np.zeros((48, 64, 3), np.uint8)
        until(lambda: server.service.lag() < 0.1)  # a busy machine may have been slow to start it
        with server.live("encode", SIZE) as first, server.live("encode", SIZE) as second:
            for number in range(12):
                first.send(frame_message(frame, number))
                second.send(frame_message(frame, number))
            until(lambda: server.service.lag() > 0.3)
            assert denied(server, "encode", SIZE).status_code == 429
            facts, code = ended(second)
            assert (facts["code"], code) == ("busy", 1013)
            slow = 0.0
            until(lambda: server.service.lag() < 0.3)
            with server.live("encode", SIZE):
                first.send('{"type": "end"}')
                assert received(first)[-1][0]["frames"] == 12
