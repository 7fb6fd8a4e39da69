"""How a request is refused: a status, a code that programs read, a line for people, and nothing of the machine's
insides. HTTP answers carry it as JSON, live sessions as their last message."""

from __future__ import annotations

import math
import re
from typing import Any

from onedva_runtime.errors import OneDVAError, OverLimit, SandboxError, VideoError, WrongModel

__all__ = ["CLOSE_CODES", "Refusal", "busy", "refusal_of"]

# WebSocket close codes by HTTP status (RFC 6455, 7.4.1): policy, too big, try again later, internal, going away.
CLOSE_CODES = {408: 1008, 413: 1009, 429: 1013, 500: 1011, 503: 1001}
_ANSWERS: tuple[tuple[type[OneDVAError], tuple[int, str]], ...] = (
    (WrongModel, (422, "wrong_model")),
    (OverLimit, (413, "over_limit")),
    (SandboxError, (422, "media_crashed")),
    (VideoError, (422, "not_a_video")),
)
_OURS = re.compile(r"^(the upload|stream): | \(Limits\.\w+\)")  # what says nothing to a client


class Refusal(Exception):
    """A request that is not served, and why."""

    def __init__(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        """status: of HTTP. code: one word for programs. message: what was got, what is allowed, what to do.
        retry_after: seconds after which asking again makes sense."""
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))

    @property
    def close_code(self) -> int:
        """For a WebSocket: 1008 (policy) where nothing fits better."""
        return CLOSE_CODES.get(self.status, 1008)

    def body(self) -> dict[str, Any]:
        """As JSON."""
        document: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after is not None:
            document["retry_after"] = self.retry_after
        return {"error": document}

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        headers = {"Cache-Control": "no-store"}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="onedva"'
        return headers


def busy(message: str, *, retry_after: float) -> Refusal:
    """429: come back later."""
    return Refusal(429, "busy", message, retry_after=retry_after)


def refusal_of(error: BaseException) -> Refusal | None:
    """The refusal that an error of the runtime means for the client who caused it; None where it is not theirs."""
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, OneDVAError):
        return None
    status, code = next(
        (answer for kind, answer in _ANSWERS if isinstance(error, kind)), (422, type(error).__name__.lower())
    )
    message = _OURS.sub("", " ".join(str(error).split()))
    if isinstance(error, VideoError) and "over the limit" in message:
        status, code = 413, "over_limit"
    return Refusal(status, code, message)
