"""Who may ask, from where, and what nobody learns; TLS; and how the verb refuses to serve carelessly."""

import asyncio
import json
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from onedva_runtime.serve.server import check_tls, make_server
from onedva_runtime.serve.service import Service
from onedva_runtime.serve.settings import Settings, read_tokens

TOKEN, OTHER = "a-token-of-some-length", "another-token-of-this"
SIZE = "width=64&height=48"


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def guarded(serve):
    allowed = {"allow_origins": frozenset({"https://example.com"}), "allow_hosts": frozenset({"codec.example"})}
    tokens = {"tokens": frozenset({TOKEN}), "metrics_tokens": frozenset({OTHER})}
    with serve(**allowed, **tokens) as server:
        yield server


def test_tokens(guarded) -> None:
    with guarded.client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = client.post("/v1/decode", headers=headers, content=b"x")
            assert code(answer) == (401, "no_token") and answer.headers["www-authenticate"].startswith("Bearer")
            assert code(client.get("/v1/info", headers=headers)) == (401, "no_token")
        assert client.get("/v1/info", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200


def test_tokens_of_live_sessions(guarded) -> None:
    """Browsers can say them as a subprotocol only."""
    with pytest.raises(InvalidStatus) as caught, guarded.live("encode", SIZE):
        pass
    assert caught.value.response.status_code == 401
    for options in (
        {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}},
        {"subprotocols": ["onedva.v1", f"bearer.{TOKEN}"]},
    ):
        with guarded.live("encode", SIZE, **options) as connection:
            assert connection.subprotocol in (None, "onedva.v1"), "the token must not be said back"


def test_metrics_need_their_own_token(guarded) -> None:
    with guarded.client() as client:
        assert code(client.get("/metrics")) == (401, "no_token")
        assert code(client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})) == (401, "no_token")
        assert client.get("/metrics", headers={"Authorization": f"Bearer {OTHER}"}).status_code == 200


def test_metrics_are_for_this_machine_only(server, serve) -> None:
    with server.client() as client:
        assert client.get("/metrics").status_code == 200
        assert code(client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})) == (403, "private")
    with serve(loopback=False) as other, other.client() as client:
        assert code(client.get("/metrics")) == (403, "private")


def test_origins(guarded) -> None:
    token = {"Authorization": f"Bearer {TOKEN}"}
    own = guarded.address
    with guarded.client() as client:
        for origin, status in ((own, 422), ("https://example.com", 422), ("https://evil.example", 403), ("null", 403)):
            answer = client.post("/v1/decode", headers={**token, "Origin": origin}, content=b"x")
            assert answer.status_code == status, origin
    for origin in (
        "https://evil.example",
        "null",
        own.replace("http", "https") + "0",
        "http://[",
        "https://example.com@x",
    ):
        with (
            pytest.raises(InvalidStatus) as caught,
            guarded.live("encode", SIZE, origin=origin, additional_headers=token),
        ):
            pass
        body = json.loads(caught.value.response.body or b"")
        assert (caught.value.response.status_code, body["error"]["code"]) == (403, "bad_origin"), origin
    with guarded.live("encode", SIZE, origin=own, additional_headers=token):
        pass


def test_hosts(guarded) -> None:
    """A page whose host name points here is not let in by that."""
    with guarded.client() as client:
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[", ""):
            assert code(client.get("/", headers={"Host": host})) == (400, "bad_host"), host
        for host in ("localhost", "127.0.0.1:80", "[::1]:80", "codec.example"):
            assert client.get("/", headers={"Host": host}).status_code == 200, host


def test_pages_may_load_nothing_from_elsewhere(server) -> None:
    with server.client() as client:
        headers = client.get("/").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and "server" not in headers


def test_a_failure_inside_says_nothing(server, monkeypatch, caplog) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("/a/secret/path")

    monkeypatch.setattr(type(server.service), "check_ready", fail)
    with server.client() as client:
        answer = client.get("/v1/info")
    assert code(answer) == (500, "internal") and "secret" not in answer.text
    assert "/a/secret/path" in caplog.text, "the operator must learn of it"


def test_not_ready_before_warm_up(fake_bundle, serve, monkeypatch) -> None:
    with serve() as server, server.client() as client:
        server.service.problem = "warming up"
        assert code(client.get("/readyz")) == (503, "not_ready") and client.get("/healthz").status_code == 200
        assert code(client.post("/v1/encode", content=b"x")) == (503, "not_ready")
        server.service.problem = None


def test_a_golden_test_that_fails_stops_the_service(fake_bundle, monkeypatch) -> None:
    service = Service(Settings(), model=str(fake_bundle), backend="onnxruntime", threads=1)
    monkeypatch.setattr(service._alone, "selftest", lambda: [{"name": "a", "passed": False}])
    server, bound, _ = make_server(service, host="127.0.0.1", port=0)
    server.run(sockets=[bound])  # ends by itself
    assert service.problem is not None


def test_pages_of_allowed_origins_may_read_answers(guarded, server) -> None:
    """As browsers ask: first whether, without a token, then for the thing; refusals can be read, too."""
    page = {"Origin": "https://example.com"}
    asks = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with guarded.client() as client:
        answer = client.options("/v1/encode", headers=asks)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page["Origin"]
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        for token, status in ((TOKEN, 200), ("wrong", 401)):
            answer = client.get("/v1/info", headers={**page, "Authorization": f"Bearer {token}"})
            assert answer.status_code == status and answer.headers["access-control-allow-origin"] == page["Origin"]
        asks["Origin"] = "https://evil.example"
        assert "access-control-allow-origin" not in client.options("/v1/encode", headers=asks).headers
    with server.client() as client:
        assert "access-control-allow-origin" not in client.get("/v1/info", headers=page).headers


@pytest.mark.parametrize(
    "origin", ["nonsense", "https://example.com/", "https://example.com/page", "ftp://a", "https://"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="an origin is https://NAME"):
        Settings(allow_origins=frozenset({origin}))


def test_probes_and_metrics_of_a_service_that_others_reach(serve) -> None:
    with serve(loopback=False) as server, server.client() as client:
        answer = client.get("/metrics")
        assert code(answer) == (403, "private") and "--metrics-token-file" in answer.text
        for path in ("/", "/healthz", "/readyz"):
            assert (client.head(path).status_code, client.head(path).text) == (200, "")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls(fake_bundle, tmp_path, serve) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make = ["openssl", "req", *options, *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    with serve(tls=(certificate, key)) as server:
        assert server.address.startswith("https://")
        context = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{server.address}/healthz", verify=context).status_code == 200

        async def live() -> None:  # the client in threads would read and write one TLS connection at once: a race
            async with connect(f"{server.address.replace('http', 'ws', 1)}/v1/live/encode?{SIZE}", ssl=context):
                pass

        asyncio.run(live())
        with pytest.raises(httpx.TransportError):
            httpx.get(server.address.replace("https", "http"))
    check_tls(certificate, key)
    other, locked, text = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "text.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    lock = ["openssl", "rsa", "-aes128", "-passout", "pass:secret", "-in", str(key), "-out", str(locked)]
    subprocess.run(lock, check=True, capture_output=True)
    text.write_text("no certificate")
    for files, words in (
        ((certificate, other), "other.pem is not the key of"),
        ((certificate, locked), "locked.pem: it wants a pass phrase"),
        ((text, key), "text.pem and .*key.pem must be a PEM certificate"),
        ((tmp_path / "none.pem", key), "none.pem: No such file"),
    ):
        with pytest.raises(ValueError, match=words):
            check_tls(*files)


def test_tokens_come_from_files_and_the_environment(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# whose\n{TOKEN}  # one\n\n")
    monkeypatch.setenv("ONEDVA_TOKENS", f"{OTHER}, ")
    assert read_tokens(file, "ONEDVA_TOKENS") == {TOKEN, OTHER}
    for text, word in (("short\n", "16"), (f"{TOKEN}!\n", "letters")):
        file.write_text(text)
        with pytest.raises(ValueError, match=word) as caught:
            read_tokens(file, "ONEDVA_TOKENS")
        assert text.strip() not in str(caught.value), "a token must not reach the log"
    monkeypatch.delenv("ONEDVA_TOKENS")
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="no tokens"):
        read_tokens(file, "ONEDVA_TOKENS")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], ["--token-file", "--open"]),
        (["--tls-key", "x"], ["--tls-certificate"]),
        (["--token-file", "/nowhere/tokens"], ["/nowhere/tokens"]),
        (["-m", "no-such-model"], ["no-such-model"]),
        (["--tls-key", "/nowhere/k", "--tls-certificate", "/nowhere/c"], ["/nowhere/c: No such file"]),
        (["--host", "nowhere.invalid", "--open"], ["cannot listen on nowhere.invalid"]),
        (["--allow-origin", "https://example.com/"], ["https://example.com/", "without a path"]),
        (["--host", "203.0.113.1", "--open"], ["cannot listen on 203.0.113.1"]),
    ],
)
def test_the_verb_refuses_in_one_line(fake_bundle, arguments, words) -> None:
    model = [] if "-m" in arguments else ["-m", str(fake_bundle), "--backend", "onnxruntime"]
    command = [sys.executable, "-c", "from onedva.cli import main; main()", "serve", *model, "--port", "0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("onedva: ") and all(word in lines[-1] for word in words), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn", "websockets", "prometheus_client"])
def test_the_verb_names_the_extra_that_it_needs(missing) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from onedva.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "serve"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"{missing}: pip install 'onedva[serve]'" in done.stderr, done.stderr
