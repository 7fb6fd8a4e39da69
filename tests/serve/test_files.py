"""Whole videos over HTTP: the same packets and frames as without, every refusal in one shape, nothing left behind."""

import io
import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

from onedva_runtime import load_packets
from onedva_runtime.container import save_packets
from onedva_runtime.video_io import VideoWriter, read_video
from service_clients import error, until


def test_encodes_what_the_codec_encodes(server, upload, coded, tmp_path) -> None:
    (tmp_path / "clip.mp4").write_bytes(upload)
    video = read_video(tmp_path / "clip.mp4")
    codec = server.service.codec
    local = io.BytesIO()
    packets = codec.encode(video.frames, tokens=16, fps=24, timestamps=video.timestamps, time_base=video.time_base)
    save_packets(local, packets, quantiser=codec.quantiser(), fps=video.fps, colour=str(video.info.colour))
    assert coded == local.getvalue()


def test_decodes_what_the_codec_decodes(server, coded, tmp_path) -> None:
    packets = load_packets(io.BytesIO(coded)).packets
    frames = server.service.codec.decode(packets, seed=5)
    with server.client() as client:
        answer = client.post("/v1/decode", params={"format": "nut", "seed": 5}, content=coded)
        (tmp_path / "a.nut").write_bytes(answer.content)
        np.testing.assert_array_equal(read_video(tmp_path / "a.nut").frames, frames)
        answer = client.post("/v1/decode", params={"seed": 5}, content=coded)
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "a.mp4").write_bytes(answer.content)
    video = read_video(tmp_path / "a.mp4")
    assert video.frames.shape == frames.shape and video.fps == 24
    # the fake bundle's noise has colours that 4:2:0 cannot hold: compared by means over 16x16 pixels
    means = [f.reshape(-1, 3, 16, 4, 16, 3).mean((2, 4)) for f in (video.frames.astype(float), frames)]
    assert np.abs(means[0] - means[1]).max() < 8


def test_mp4_keeps_uneven_times(server, tmp_path) -> None:
    frames = np.zeros((20, 48, 64, 3), np.uint8)
    ticks = np.cumsum([0, *([20, 60] * 10)])[:20].astype(np.int64)
    with VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=Fraction(25), time_base=Fraction(1, 1000)) as writer:
        writer.write(frames, ticks)
    with server.client() as client:
        odva = client.post("/v1/encode", content=(tmp_path / "a.mp4").read_bytes()).content
        (tmp_path / "b.mp4").write_bytes(client.post("/v1/decode", content=odva).content)
    video = read_video(tmp_path / "b.mp4")
    np.testing.assert_allclose(video.timestamps * float(video.time_base), ticks / 1000, atol=1e-4)


def test_streams_both_ways(server, coded) -> None:
    """The first frames come back while the last packets have not been sent."""
    first_part = threading.Event()

    def slowly() -> Iterator[bytes]:
        yield coded[: len(coded) * 3 // 4]
        assert first_part.wait(20), "nothing came back before everything was sent"
        yield coded[len(coded) * 3 // 4 :]

    with socket.create_connection(("127.0.0.1", int(server.address.rsplit(":", 1)[1]))) as line:
        head = "POST /v1/decode?format=y4m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        line.sendall(head.encode())
        answer = b""

        def send() -> None:
            for part in slowly():
                line.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            line.sendall(b"0\r\n\r\n")

        sender = threading.Thread(target=send)
        sender.start()
        while b"0\r\n\r\n" not in answer[-16:]:
            answer += line.recv(1 << 16)
            if b"FRAME" in answer:
                first_part.set()
        sender.join()
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"FRAME\n") == 40


def test_refuses_what_is_no_video(server, upload, coded, tmp_path) -> None:
    cases: list[tuple[str, bytes, int, str]] = [
        ("/v1/encode", b"", 422, "empty"),
        ("/v1/encode", b"nothing of a video", 422, "not_a_video"),
        ("/v1/encode", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", 422, "not_a_video"),
        ("/v1/encode", b"ffconcat version 1.0\nfile /etc/passwd\n", 422, "not_a_video"),
        ("/v1/encode", upload[: len(upload) // 2], 422, "not_a_video"),
        ("/v1/decode", b"", 422, "notodva"),
        ("/v1/decode", upload, 422, "notodva"),
        ("/v1/decode", coded[:40], 422, "truncated"),
        ("/v1/decode", coded[:300] + b"\x00x" + coded[302:], 422, "corrupt"),
        ("/v1/encode?tokens=many", upload, 422, "bad_tokens"),
        ("/v1/encode?tokens=-1", upload, 422, "bad_tokens"),
        ("/v1/encode?model=other", upload, 422, "bad_parameter"),
        ("/v1/decode?steps=0", coded, 422, "bad_parameter"),
        ("/v1/decode?format=exe", coded, 422, "bad_parameter"),
    ]
    with server.client() as client:
        for path, body, status, code in cases:
            answer = client.post(path, content=body)
            assert (answer.status_code, error(answer)["code"]) == (status, code), (path, body[:20], answer.text)
        assert error(client.get("/v1/nothing"))["code"] == "not_found"


def test_refuses_packets_of_another_model(server, coded) -> None:
    file = load_packets(io.BytesIO(coded))
    target = io.BytesIO()
    save_packets(target, [replace(p, model="0" * 64) for p in file.packets], quantiser=file.quantiser)
    with server.client() as client:
        answer = client.post("/v1/decode", content=target.getvalue())
    assert (answer.status_code, error(answer)["code"]) == (422, "wrong_model")


def test_a_file_cut_off_is_not_taken_for_whole(server, coded) -> None:
    """Half of it has been answered when that is found: the connection breaks off."""
    with server.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.post("/v1/decode", params={"format": "y4m"}, content=coded[: len(coded) // 2])


def test_a_client_that_goes_ends_its_work(serve, upload) -> None:
    with serve() as server:
        with socket.create_connection(("127.0.0.1", int(server.address.rsplit(":", 1)[1]))) as line:
            line.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n" + upload)
            until(lambda: server.service.admission.at_work == 1)
        until(lambda: server.service.admission.at_work == 0)
        assert server.service.admission.owed == 0


def test_uploads_leave_no_file(server, upload, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with server.client() as client:
        assert client.post("/v1/encode", content=upload).status_code == 200
        names = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n.isdecimal() and _exists(n)]
    assert list(tmp_path.iterdir()) == [] and not [name for name in names if str(tmp_path) in name]


def _exists(number: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{number}")


def test_the_decoding_process_may_be_killed(server, upload, monkeypatch) -> None:
    """kill -9 of the process that decodes an upload: the client gets a typed error, the service goes on."""
    import subprocess

    from onedva_runtime import video_sandbox

    started: list[subprocess.Popen[bytes]] = []
    take = video_sandbox.SandboxedReader._read_info

    def killed(self: Any) -> Any:
        self._process.kill()
        started.append(self._process)
        return take(self)

    with monkeypatch.context() as patch, server.client() as client:
        patch.setattr(video_sandbox.SandboxedReader, "_read_info", killed)
        answer = client.post("/v1/encode", content=upload)
    assert (answer.status_code, error(answer)["code"]) == (422, "media_crashed") and started
    with server.client() as client:
        assert client.post("/v1/encode", content=upload).status_code == 200


def test_metrics_count(server, upload) -> None:
    with server.client() as client:
        client.post("/v1/encode", params={"tokens": 16}, content=upload)
        text = client.get("/metrics").text
    for name in (
        'onedva_clip_seconds_count{tokens="16",work="encode"}',
        'onedva_bytes_total{direction="in"}',
        'onedva_requests_total{route="/v1/encode",status="200"}',
        "onedva_batch_clips_count",
        "onedva_queue_jobs",
    ):
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert float(line.rpartition(" ")[2]) > 0 or name == "onedva_queue_jobs"


def test_openapi_has_what_there_is(server) -> None:
    with server.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/healthz", "/readyz", "/metrics", "/v1/info", "/v1/encode", "/v1/decode"}


def test_json_of_refusals_is_json(server) -> None:
    with server.client() as client:
        for path, method in itertools.product(("/v1/encode", "/v1/decode"), ("GET", "PUT", "DELETE")):
            answer = client.request(method, path)
            assert answer.status_code == 405 and json.loads(answer.text)["error"]["code"] == "bad_method"
