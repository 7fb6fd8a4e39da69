"""What tests of the service share: sending frames, and reading what it says."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

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


def error(answer: httpx.Response) -> dict[str, Any]:
    """The refusal that an answer carries."""
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()["error"]
    assert "/" not in document["message"].replace("/s", "").replace("1/", ""), f"a path? {document}"
    assert "Traceback" not in answer.text
    return document
