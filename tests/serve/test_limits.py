"""How much one client may have: bytes, seconds, compute, a place in the queue."""

import io
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from onedva_runtime import save_packets
from onedva_runtime.serve.admission import Charge
from onedva_runtime.serve.jobs import EncodeOptions
from onedva_runtime.serve.refusal import Refusal
from service_clients import error, until


def test_limits(serve, upload, coded) -> None:
    def stalls() -> Iterator[bytes]:
        yield upload[:100]
        time.sleep(1)
        yield upload[100:]

    small = serve(max_upload_bytes=len(upload) - 1, max_video_seconds=1.0, upload_stall_seconds=0.3)
    with small as server, server.client() as client:
        for body in (upload, iter([upload[:100], upload[100:]])):  # announced, and not
            answer = client.post("/v1/encode", content=body)
            assert (answer.status_code, error(answer)["code"]) == (413, "too_large")
        with pytest.raises(httpx.RemoteProtocolError):  # too long, as is found on the way
            client.post("/v1/decode", content=coded)
        answer = client.post("/v1/encode", content=stalls())
        assert (answer.status_code, error(answer)["code"]) == (408, "too_slow")
    with serve(max_video_seconds=1.0) as server, server.client() as client:
        answer = client.post("/v1/encode", content=upload)
        assert (answer.status_code, error(answer)["code"]) == (413, "too_long")
    with serve(max_pixels=32 * 32) as server, server.client() as client:
        for path, body in (("/v1/encode", upload), ("/v1/decode", coded)):
            answer = client.post(path, content=body)
            assert (answer.status_code, error(answer)["code"]) == (413, "over_limit")


def test_compute_is_what_is_charged(serve, server, upload) -> None:
    """A budget below what the video is estimated to take refuses it before any work; so does a deadline."""
    with serve(max_compute_seconds=1e-6) as small, small.client() as client:
        answer = client.post("/v1/encode", content=upload)
        assert (answer.status_code, error(answer)["code"]) == (413, "over_budget")
    with server.client() as client:
        answer = client.post("/v1/encode", params={"deadline_s": 1e-6}, content=upload)
        assert answer.status_code in (408, 429)
    charge = Charge(server.service.admission, most=10)
    charge.expect(4)
    owed = server.service.admission.owed
    charge.done(1)
    assert server.service.admission.owed == owed - 1
    charge.close()
    assert server.service.admission.owed == owed - 4


def test_a_deadline_counts_from_when_it_was_asked(server) -> None:
    options = EncodeOptions(
        tokens="auto",
        quantiser=0.1,
        keyframe_interval=8,
        low_latency=False,
        deadline_s=1.0,
        asked_at=time.monotonic() - 3,
    )
    assert options.left_s is not None and -2.5 < options.left_s < -1.9
    with pytest.raises(Refusal, match="after the deadline"):
        Charge(server.service.admission, most=10).expect(0.1, deadline=options.left_s)


def test_a_form_is_no_body(server, upload) -> None:
    with server.client() as client:
        answer = client.post("/v1/encode", files={"file": upload})
        assert (answer.status_code, error(answer)["code"]) == (422, "bad_body") and "--data-binary" in answer.text


def test_a_session_that_never_fits_is_not_told_to_come_back(serve) -> None:
    with serve(live_load=0.5) as server:
        admission = server.service.admission
        with pytest.raises(Refusal, match=r"takes 60\.0 % .* may take 50 %") as never, admission.live(0.6, "encode"):
            pass
        assert (never.value.status, never.value.code, never.value.retry_after) == (413, "over_budget", None)
        with admission.live(0.3, "encode") as held, pytest.raises(Refusal, match=r"hold 30\.0 %") as later:
            held.change(0.45)  # what it holds itself is not held by others
            held.change(0.3)
            with admission.live(0.3, "encode"):
                pass
        assert later.value.status == 429


def test_more_tokens_and_steps_cost_more(server) -> None:
    cost = server.service.cost
    assert cost.encode(1280, 64) >= cost.encode(320, 64)
    assert cost.decode(320, 64, 4) >= cost.decode(320, 64, 1)


def test_work_that_fails_at_once_is_answered_at_once(server) -> None:
    """The codec gives up while the body is still being handed on: neither may wait for the other for good."""
    with httpx.Client(base_url=server.address, timeout=5) as client:
        for size in range(300):
            body = iter([b"x" * 12, b"y" * 100 * size])
            assert client.post("/v1/decode", content=body).status_code == 422


def test_queue_full_is_429_and_passes(serve, upload, coded) -> None:
    with serve(jobs=1, queue=0) as server, server.client() as client:
        hold = threading.Event()

        def dribble() -> Iterator[bytes]:
            yield coded[:20]
            hold.wait(20)
            yield coded[20:]

        answers: list[httpx.Response] = []
        slow = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.address}/v1/decode", content=dribble()))
        )
        slow.start()
        until(server.service.admission._turns.locked)
        answer = client.post("/v1/encode", content=upload)
        assert (answer.status_code, error(answer)["code"]) == (429, "busy")
        assert int(answer.headers["retry-after"]) == error(answer)["retry_after"] >= 1
        hold.set()
        slow.join()
        assert answers[0].status_code == 200
        assert client.post("/v1/encode", content=upload).status_code == 200


def test_connections_that_ask_for_nothing_end(serve, monkeypatch) -> None:
    monkeypatch.setattr("onedva_runtime.serve.server.HEAD_SECONDS", 0.2)
    with serve() as server:
        where = ("127.0.0.1", int(server.address.rsplit(":", 1)[1]))
        with socket.create_connection(where, timeout=10) as silent, socket.create_connection(where, timeout=10) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
            assert silent.recv(100) == b"" and slow.recv(100) == b""
        with server.live("encode", "width=64&height=48") as connection, server.client() as client:
            assert client.get("/healthz").status_code == 200
            time.sleep(0.4)
            connection.send('{"type": "end"}')
            assert "end" in connection.recv(timeout=10)
            assert client.get("/healthz").status_code == 200


def test_who_does_not_read_an_answer_is_let_go(serve) -> None:
    """10 MB are asked for and none is taken: memory must not fill with it, and the place becomes free."""
    noise = np.zeros((64, 320, 320, 3), np.uint8)
    with serve(send_stall_seconds=0.3, jobs=1) as server:
        codec, target = server.service.codec, io.BytesIO()
        save_packets(target, codec.encode(noise, tokens=0, fps=24), quantiser=codec.quantiser())
        head = f"POST /v1/decode?format=y4m HTTP/1.1\r\nHost: localhost\r\nContent-Length: {target.tell()}\r\n\r\n"
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", int(server.address.rsplit(":", 1)[1])))
            line.sendall(head.encode() + target.getvalue())
            until(lambda: server.service.admission.at_work == 1)
            until(lambda: server.service.admission.at_work == 0)
            got = 0
            while part := line.recv(1 << 16):
                got += len(part)
            assert got < 5_000_000
        text = httpx.get(f"{server.address}/metrics").text
        assert 'onedva_refused_total{code="timeout"} 1.0' in text and server.service.admission.owed == 0
