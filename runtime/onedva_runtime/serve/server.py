"""`serve`: the application on uvicorn. A stop (SIGTERM, Ctrl-C) first answers what is in progress; a second
Ctrl-C does not wait."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from onedva_runtime.serve.app import make_app
from onedva_runtime.serve.service import Service

__all__ = ["check_tls", "make_server", "serve"]

HEAD_SECONDS = 10.0  # from a connection to its first whole request head
_transports: dict[Any, Any] = {}  # of connections that are open, by the client's address, for `_abort`


class _Http(H11Protocol):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        _transports[self.client] = transport
        self._patience = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        _transports.pop(self.client, None)
        super().connection_lost(exc)

    def _lose_patience(self) -> None:
        asked = cast(object, self.cycle)  # None before the first request, whatever its type says
        if asked is None and self in self.connections:  # and no upgrade to a live session
            self.transport.close()


class _Live(WebSocketsSansIOProtocol):
    """Takes over a connection from `_Http` when it is upgraded, and sees its end."""

    def connection_lost(self, exc: Exception | None) -> None:
        _transports.pop(self.client, None)
        super().connection_lost(exc)


def _abort(scope: Mapping[str, Any]) -> None:
    """Break off the connection of a request, with what is waiting to be sent."""
    transport = _transports.get(tuple(scope["client"])) if scope.get("client") else None
    if transport is not None:
        transport.abort()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.drain(hurried=lambda: self.force_exit)
        await super().shutdown(sockets)


def make_server(
    service: Service,
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
) -> tuple[uvicorn.Server, socket.socket, str]:
    """A server, the socket to run it with, and its address. Options and errors as `serve`."""
    holder: list[_Server] = []

    def stop() -> None:
        holder[0].should_exit = True

    settings = service.settings
    config = uvicorn.Config(
        make_app(service, abort=_abort, stop=stop),
        http=_Http,
        ws=_Live,
        ws_max_size=max(1 << 20, 64 + 3 * settings.live_pixels),
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,  # frames are noise to it, packets are coded
        h11_max_incomplete_event_size=16 << 10,
        limit_concurrency=4 * (settings.uploads + settings.live_sessions) + 64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,  # after the grace that `Service.drain` gives
        server_header=False,
        proxy_headers=False,  # nobody is believed about whom he speaks for
        log_config=None,
        access_log=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    bound = _listen(host, port)
    holder.append(_Server(config, service))
    scheme = "http" if certificate is None else "https"
    shown = f"[{host}]" if ":" in host else host
    return holder[0], bound, f"{scheme}://{shown}:{bound.getsockname()[1]}"


def check_tls(certificate: Path, key: Path) -> None:
    """Raise ValueError, naming the file, unless both are PEM files that belong together and need no pass phrase."""
    for path in (certificate, key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error

    def locked() -> bytes:
        raise ValueError(f"{key}: it wants a pass phrase, which a service cannot be asked for: decrypt it first")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=locked)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key} is not the key of {certificate}") from error
        raise ValueError(f"{certificate} and {key} must be a PEM certificate chain and its PEM key") from error


def serve(
    service: Service,
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
    on_listen: Callable[[str], None] = lambda address: None,
) -> bool:
    """Serve until stopped; return whether that was not for a warm-up that failed.

    port: 0 takes a free one. certificate, key: PEM files; with them the service speaks TLS only. on_listen: called
    with the address once it listens. Raises OSError where it cannot, which ssl.SSLError for wrong files is too.
    """
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    server, bound, address = make_server(service, host=host, port=port, certificate=certificate, key=key)
    on_listen(address)
    server.run(sockets=[bound])
    return service.problem is None


def _worth_telling(record: logging.LogRecord) -> bool:
    """uvicorn takes a session that was refused over HTTP for one that was forgotten, and an answer that was broken off
    for one; and what a stop does not wait for, for an error of the application."""
    cancelled = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and not record.getMessage().startswith("ASGI callable returned without completing ")


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(error.errno, f"cannot listen on {host}: {error.strerror}") from error
    (family, kind, protocol, _, address), *_ = found
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(512)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror}") from error
    return bound
