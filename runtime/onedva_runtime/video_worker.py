"""The process that video_sandbox.py starts: limits itself, then decodes one file and writes its frames to stdout."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from fractions import Fraction
from typing import Any


def main() -> None:
    order: dict[str, Any] = json.loads(sys.argv[1])
    _limit(order["sandbox"])  # before a library is loaded that could be told otherwise
    from .errors import OneDVAError

    try:
        _decode(order)
    except OneDVAError as error:
        _send(b"E", json.dumps([type(error).__name__, str(error)]).encode())
    except MemoryError:
        most = f"{order['sandbox']['memory_bytes']} bytes (Sandbox.memory_bytes)"
        _send(b"E", json.dumps(["SandboxError", f"decoding it takes more memory than {most}"]).encode())


def _limit(sandbox: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, sandbox["memory_bytes"]),
        (resource.RLIMIT_CPU, sandbox["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, ours = resource.getrlimit(kind)  # a limit that we are under already cannot be raised
        limit = most if ours == resource.RLIM_INFINITY else min(most, ours)
        resource.setrlimit(kind, (limit, limit))


def _decode(order: dict[str, Any]) -> None:
    from .limits import Limits
    from .video_read import VideoReader

    with VideoReader(order["path"], limits=Limits(**order["limits"]), batch=order["batch"], threads=1) as reader:
        _send(b"I", _facts(reader.info))
        for frames, timestamps in reader:
            _send(b"F", timestamps.tobytes(), frames.data.cast("B"))
        _send(b"I", _facts(reader.info))


def _facts(info: Any) -> bytes:
    facts = {name: str(value) if isinstance(value, Fraction) else value for name, value in asdict(info).items()}
    return json.dumps(facts).encode()


def _send(kind: bytes, *parts: bytes | memoryview) -> None:
    from .video_sandbox import HEAD

    out = sys.stdout.buffer
    out.write(HEAD.pack(kind, sum(map(len, parts))))
    for part in parts:
        out.write(part)
    out.flush()


if __name__ == "__main__":
    main()
