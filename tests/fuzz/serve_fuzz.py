"""Sends a service malformed requests and WebSocket frames, and looks that it answers none with a 500 and keeps nothing:

    onedva serve --port 8470 &
    python tests/fuzz/serve_fuzz.py http://127.0.0.1:8470 --count 10000 --pid $!

Prints what was answered; ends with 1 where the service gave a 5xx, died, or holds more than 10 MB or a few handles more
at the end than after a tenth of it. The same seed sends the same bytes. A short form is tests/serve/test_hostile.py.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

HERE = Path(__file__).parent
QUIET = 1.0  # seconds after which nothing more is expected
SIZE = "width=64&height=48&fps=24"
GOOD_TEXT = (
    '{"type": "set", "tokens": 16}',
    '{"type": "set", "steps": 2}',
    '{"type": "bandwidth", "kbps": 100}',
    '{"type": "key"}',
    '{"type": "flush"}',
    '{"type": "end"}',
)


@dataclass
class Report:
    """What came of an attack."""

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    """2xx, 4xx, 5xx, closed (a live session), nothing (the connection ended)."""
    failures: list[str] = field(default_factory=list)
    """What the 5xx were answers to."""


def attack(address: str, *, count: int, seed: int, on_sent: Callable[[Report], None] = lambda report: None) -> Report:
    """Send `count` malformed requests or sessions; which is decided by `seed`."""
    report, chance = Report(), random.Random(seed)
    seeds = _seeds()
    kinds = (_lines, _path, _headers, _body, _query, _handshake, _frames, _messages)
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, count, 100):
            numbers = range(start, min(start + 100, count))
            sent = [kinds[number % len(kinds)](chance, seeds) for number in numbers]
            for number, data, answer in zip(
                numbers, sent, pool.map(lambda data: _exchange(address, data), sent), strict=True
            ):
                report.sent += 1
                report.answers[_kind_of(answer)] += 1
                if _kind_of(answer) == "5xx":
                    name = kinds[number % len(kinds)].__name__
                    report.failures.append(f"{number} {name}: {data[:200]!r} → {answer[:200]!r}")
            on_sent(report)
    return report


def wait_idle(address: str, *, seconds: float = 30) -> None:
    """Return when nothing is in progress any more; raise TimeoutError where that does not come."""
    end = time.monotonic() + seconds
    while True:
        text = urlopen(f"{address}/metrics", timeout=10).read().decode()
        busy = re.findall(r"^onedva_(?:jobs|live_sessions\S*|queue_jobs|owed_seconds) (\S+)$", text, re.MULTILINE)
        if not any(float(value) for value in busy):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"still busy after {seconds:g} s: {busy}")
        time.sleep(0.1)


def _seeds() -> list[bytes]:
    """Files to break: the fuzzer's corpus, and a small video."""
    from onedva_runtime.clips import make_clip
    from onedva_runtime.video_pipe import PipeWriter

    file = io.BytesIO()
    with PipeWriter(file, width=64, height=48, fps=Fraction(24), kind="mp4") as writer:
        writer.write(make_clip(5, 48, 64))
    corpus = sorted((HERE / "corpus" / "container").iterdir())
    return [file.getvalue(), *(path.read_bytes() for path in corpus)]


def _mutated(chance: random.Random, data: bytes) -> bytes:
    """The data with some bytes changed, left out, repeated or cut off."""
    out = bytearray(data)
    for _ in range(chance.randint(0, 6)):
        if not out:
            break
        at = chance.randrange(len(out))
        match chance.randrange(4):
            case 0:
                out[at] = chance.randrange(256)
            case 1:
                del out[at : at + chance.randint(1, 64)]
            case 2:
                out[at:at] = out[at : at + chance.randint(1, 64)]
            case _:
                del out[at:]
    return bytes(out)


def _request(method: str, target: str, body: bytes = b"", headers: str = "", *, length: str | None = None) -> bytes:
    announced = f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{announced}{headers}\r\n".encode("latin-1") + body


def _noise(chance: random.Random, most: int) -> bytes:
    return chance.randbytes(chance.randint(0, most))


def _lines(chance: random.Random, seeds: list[bytes]) -> bytes:
    """No HTTP at all, or hardly."""
    good = _request(chance.choice(("POST", "GET")), "/v1/encode", b"x")
    return chance.choice((_noise(chance, 2000), _mutated(chance, good), b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02"))


def _path(chance: random.Random, seeds: list[bytes]) -> bytes:
    odd = (
        "/..%2f..%2fetc/passwd",
        "/page/../../app.py",
        "//",
        "/%00",
        "/v1/encode/",
        "/page/%2e%2e/app.py",
        "*",
        "/\xff",
    )
    method = chance.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD", "X" * 40))
    return _request(method, chance.choice(odd) + "?" + _noise(chance, 20).hex())


def _headers(chance: random.Random, seeds: list[bytes]) -> bytes:
    odd = (
        "Content-Type: \x00\r\n",
        "Authorization: Bearer " + "A" * 3000 + "\r\n",
        "Authorization: \xe9\xff\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Host: localhost\r\n",
        "Origin: http://[::1\r\n",
        "Expect: nothing\r\n",
        "Range: bytes=0-\r\n",
        "X: " + "y" * chance.choice((10, 70_000)) + "\r\n",
    )
    length = chance.choice(("-1", "1e9", "99999999999999999999", "0", "5, 5", "٣".encode().decode("latin-1")))
    return _request("POST", "/v1/decode", b"x" * 10, chance.choice(odd), length=chance.choice((None, length)))


def _body(chance: random.Random, seeds: list[bytes]) -> bytes:
    body = _mutated(chance, chance.choice(seeds))
    target = chance.choice(("/v1/encode?tokens=16", "/v1/decode?format=y4m", "/v1/decode?steps=2"))
    if chance.random() < 0.3:
        chunks = f"{len(body):x}\r\n".encode() + body + b"\r\n" + chance.choice((b"0\r\n\r\n", b"zz\r\n", b""))
        return f"POST {target} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
    return _request("POST", target, body)


def _query(chance: random.Random, seeds: list[bytes]) -> bytes:
    names = (
        "tokens",
        "steps",
        "seed",
        "format",
        "quantiser",
        "deadline_s",
        "keyframe_interval",
        "low_latency",
        "model",
    )
    values = (
        "-1",
        "nan",
        "inf",
        "1e400",
        "auto",
        "99dB",
        "-5dB",
        "%00",
        "true",
        "",
        "1" * 5000,
        "[]",
        "%f0%9f%98%80",
        "0x10",
    )
    query = "&".join(f"{chance.choice(names)}={chance.choice(values)}" for _ in range(chance.randint(1, 4)))
    return _request("POST", f"{chance.choice(('/v1/encode', '/v1/decode'))}?{query}", chance.choice(seeds)[:3000])


def _upgrade(chance: random.Random, target: str, *, broken: bool = False) -> bytes:
    key = base64.b64encode(chance.randbytes(16)).decode()
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    if broken:
        match chance.randrange(4):
            case 0:
                del lines[chance.randrange(1, len(lines))]
            case 1:
                lines[-1] = "Sec-WebSocket-Key: short"
            case 2:
                lines[-2] = "Sec-WebSocket-Version: 7"
            case _:
                lines.append("Origin: https://evil.example")
    return "\r\n".join([*lines, "", ""]).encode()


def _handshake(chance: random.Random, seeds: list[bytes]) -> bytes:
    values = ("0", "-1", "1e9", "nan", "64", "48", "", "8192", "%00")
    query = "&".join(
        f"{name}={chance.choice(values)}" for name in ("width", "height", "fps", chance.choice(("tokens", "x")))
    )
    query = chance.choice((query, SIZE))
    return _upgrade(chance, f"/v1/live/{chance.choice(('encode', 'decode', 'x'))}?{query}", broken=query == SIZE)


def _frame(chance: random.Random, code: int, payload: bytes, *, broken: bool = False) -> bytes:
    """A masked WebSocket frame (RFC 6455, 5.2), or something like one."""
    first, masked, length = 0x80 | code, 0x80, len(payload)
    if broken:
        first = chance.randrange(256)
        masked = chance.choice((0, 0x80))
        length = chance.choice((length, length + 5, 2**31, 2**63))
    head = bytes([first])
    if length < 126:
        head += bytes([masked | length])
    elif length < 65536:
        head += bytes([masked | 126]) + struct.pack(">H", length)
    else:
        head += bytes([masked | 127]) + struct.pack(">Q", length)
    mask = chance.randbytes(4) if masked else b""
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if masked else payload
    return head + mask + body


def _frames(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A good handshake, then frames that are none."""
    work = chance.choice(("encode", "decode"))
    frames = [_frame(chance, 2, _noise(chance, 400), broken=chance.random() < 0.7) for _ in range(chance.randint(1, 5))]
    return _upgrade(chance, f"/v1/live/{work}?{SIZE}") + b"".join(frames)


def _messages(chance: random.Random, seeds: list[bytes]) -> bytes:
    """A good handshake, then good frames with messages that are none."""
    work = chance.choice(("encode", "decode"))
    parts: list[bytes] = []
    for _ in range(chance.randint(1, 6)):
        match chance.randrange(4):
            case 0:
                text = _mutated(chance, chance.choice(GOOD_TEXT).encode())
                parts.append(_frame(chance, 1, text))
            case 1:
                parts.append(_frame(chance, 1, chance.choice(GOOD_TEXT).encode()))
            case 2:
                time_us = chance.randint(-(2**63), 2**63 - 1)
                parts.append(_frame(chance, 2, struct.pack("<q", time_us) + bytes(3 * 64 * 48)))
            case _:
                parts.append(_frame(chance, 2, _mutated(chance, chance.choice(seeds))))
    parts.append(_frame(chance, 8, struct.pack(">H", chance.choice((1000, 0, 999, 5000)))))
    return _upgrade(chance, f"/v1/live/{work}?{SIZE}") + b"".join(parts)


def _exchange(address: str, data: bytes) -> bytes:
    """Send bytes, and return what is answered until the service ends the connection, the answer is whole, or nothing
    comes any more."""
    where = urlsplit(address)
    answer = b""
    try:
        with socket.create_connection((where.hostname or "", where.port or 80), timeout=QUIET) as line:
            line.sendall(data)
            while not _is_whole(answer) and (part := line.recv(1 << 16)):
                answer += part
    except (ConnectionError, TimeoutError):  # it may end before all was sent
        pass
    return answer


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    return bool(found) and length is not None and len(body) >= int(length[1])


def _kind_of(answer: bytes) -> str:
    match = re.match(rb"HTTP/1\.[01] (\d)(\d\d)", answer)
    if match is None:
        return "nothing"
    if match[1] + match[2] == b"101":
        return "5xx" if b'"internal"' in answer else "closed"
    return match[1].decode() + "xx"


def _held(pid: int) -> tuple[float, int]:
    """Megabytes and handles that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int, help="of the service, whose memory and handles are watched")
    options = parser.parse_args()
    held: list[tuple[float, int]] = []

    def watch(report: Report) -> None:
        if report.sent % max(1, options.count // 10) == 0 and options.pid:
            wait_idle(options.address)
            held.append(_held(options.pid))
            print(f"{report.sent}: {dict(report.answers)} {held[-1][0]:.1f} MB, {held[-1][1]} handles", flush=True)

    start = time.monotonic()
    report = attack(options.address, count=options.count, seed=options.seed, on_sent=watch)
    ready = json.loads(urlopen(f"{options.address}/readyz", timeout=10).read())
    print(json.dumps({"sent": report.sent, "answers": report.answers, "seconds": time.monotonic() - start, **ready}))
    for failure in report.failures[:20]:
        print(failure, file=sys.stderr)
    leaked = bool(held) and (held[-1][0] - held[0][0] > 10 or held[-1][1] - held[0][1] > 4)
    sys.exit(1 if report.failures or leaked else 0)


if __name__ == "__main__":
    main()
