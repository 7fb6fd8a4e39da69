"""What stands before every route: which hosts a request may name, which web pages it may come from, which token it must
carry; and what every answer carries. Plain ASGI, so that it holds for HTTP and WebSocket alike."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from onedva_runtime.serve.refusal import Refusal
from onedva_runtime.serve.service import Service
from onedva_runtime.serve.settings import Settings

__all__ = ["LIVE_PROTOCOL", "Guard", "refuse"]

logger = logging.getLogger("onedva")
LIVE_PROTOCOL = "onedva.v1"
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
PUBLIC = ("/healthz", "/readyz", "/openapi.json")
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; media-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Checks requests before `app` sees them, and turns what goes wrong in it into an answer that says no more than it
    should."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            check(scope, self._service.settings)
            await self._app(scope, receive, noted)
        except Refusal as refusal:
            if status:
                raise
            self._service.metrics.refused.labels(refusal.code).inc()
            await refuse(scope, noted, refusal)
        except asyncio.CancelledError:  # a stop that does not wait any longer
            if not status and scope["type"] == "http":
                await refuse(scope, noted, Refusal(503, "stopping", "the service is stopping", retry_after=5))
            raise
        except Exception:
            logger.exception("%s %s failed", scope["type"], getattr(scope.get("route"), "path", "?"))
            if status:
                raise
            await refuse(scope, noted, Refusal(500, "internal", "internal error: the operator's log has it"))
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()


def check(scope: Scope, settings: Settings) -> None:
    """Raise Refusal for a request that may not be made: 400 for a host, 403 for an origin, 401 for a token."""
    headers = Headers(scope=scope)
    if scope["path"] not in PUBLIC:  # probes come by address
        check_host(headers.get("host", ""), settings)
    if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        check_origin(headers, settings)
    if scope["path"].startswith("/v1/") and settings.tokens:
        check_token(bearer(scope, headers), settings.tokens)


def check_host(host: str, settings: Settings) -> None:
    """A name that is not ours is somebody's who lets it point here, so that his page may call us its own."""
    name = urlsplit(f"//{host}").hostname if _is_netloc(host) else None
    if "*" in settings.allow_hosts or name in LOCAL or (name is not None and name in settings.allow_hosts):
        return
    raise Refusal(400, "bad_host", "this host name is not served here: onedva serve --allow-host NAME would allow it")


def check_origin(headers: Headers, settings: Settings) -> None:
    """Browsers say which page a request comes from, and send it for any; other programs say nothing."""
    origin = headers.get("origin")
    if origin is None or origin in settings.allow_origins:
        return
    page = urlsplit(origin) if _is_netloc(origin.partition("://")[2]) else urlsplit("")
    if page.scheme in ("http", "https") and page.netloc == headers.get("host"):
        return
    raise Refusal(403, "bad_origin", "pages of this origin may not use this service (--allow-origin would allow it)")


def check_token(token: str, allowed: Iterable[str]) -> None:
    """Raise Refusal unless the token is one of those allowed, in time that does not depend on which."""
    matches = [hmac.compare_digest(token.encode(), one.encode()) for one in allowed]
    if not any(matches):
        raise Refusal(401, "no_token", "this needs a bearer token: Authorization: Bearer TOKEN")


def bearer(scope: Scope, headers: Headers) -> str:
    """The token that a request carries; browsers can give WebSockets none but as a subprotocol, bearer.TOKEN."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    offered: list[str] = scope.get("subprotocols", []) if scope["type"] == "websocket" else []
    return next((name.removeprefix("bearer.") for name in offered if name.startswith("bearer.")), "")


async def refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    """Answer with a refusal, over HTTP also where a WebSocket was asked for."""
    prefix = "http" if scope["type"] == "http" else "websocket.http"
    body = json.dumps(refusal.body()).encode()
    headers = {**refusal.headers(), "Content-Type": "application/json", "Content-Length": str(len(body))}
    raw: Any = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{prefix}.response.start", "status": refusal.status, "headers": raw})
    await send({"type": f"{prefix}.response.body", "body": body, "more_body": False})


def _is_netloc(text: str) -> bool:
    """Whether urlsplit takes it for a host without raising."""
    try:
        urlsplit(f"//{text}").port  # noqa: B018
    except ValueError:
        return False
    return not set(text) & set("/?#@\\ ")
