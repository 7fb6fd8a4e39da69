"""`onedva serve`: the codec behind HTTP and WebSocket. Thin, as the verbs in onedva/cli.py, which registers it."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.options import Backend, Device, Dtype, Model, Quiet, Threads
from onedva_runtime.errors import OneDVAError

if TYPE_CHECKING:
    from onedva_runtime.serve.service import Service

__all__ = ["serve"]

INTERRUPTED = 130  # as shells say it of Ctrl-C
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: Model = "tiny",
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; others than loopback need tokens or --open.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8470,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help="Bearer tokens that may use it, one a line; ONEDVA_TOKENS adds some by comma."
        ),
    ] = None,
    metrics_token_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-token-file",
            help="Bearer tokens for /metrics, which else only this machine reads; ONEDVA_METRICS_TOKENS adds some.",
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM chain: speak TLS; needs --tls-key.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="PEM key of the certificate.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name by which clients may address it; repeatable; *: any."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="A web origin whose pages may use it, https://example.com; repeatable."),
    ] = None,
    anybody: Annotated[
        bool, typer.Option("--open", help="Serve everybody who reaches it, without tokens, on any address.")
    ] = False,
    max_upload_mb: Annotated[int, typer.Option("--max-upload-mb", min=1, help="Size of one upload.")] = 256,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=0.1, help="Length of one video.")] = 120,
    max_compute: Annotated[
        float, typer.Option("--max-compute", min=0.1, help="Estimated seconds of compute of one request.")
    ] = 300,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that one request may take in all.")] = 600,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Videos that are coded at a time.")] = 2,
    queue: Annotated[int, typer.Option("--queue", min=0, help="Videos that may wait for that.")] = 8,
    live: Annotated[int, typer.Option("--live", min=1, help="Live sessions at a time.")] = 64,
    live_load: Annotated[
        float, typer.Option("--live-load", min=0.01, max=4, help="Share of the measured compute that they may take.")
    ] = 0.85,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=64, help="Most clips of several clients in one run; 1: each alone.")
    ] = 4,
    batch_wait_ms: Annotated[
        float, typer.Option("--batch-wait-ms", min=0, max=1000, help="Longest wait of a clip for others to join.")
    ] = 4,
    grace: Annotated[float, typer.Option("--grace", min=0, help="Seconds that a stop waits for work.")] = 20,
    backend: Backend = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Serve the codec over HTTP and WebSocket, with a page that shows it.

    It prints its address and serves until it is stopped. Clients choose neither the model nor the limits.
    """
    with needs_extra("serve"):
        from onedva_runtime.serve.server import check_tls
        from onedva_runtime.serve.server import serve as run
        from onedva_runtime.serve.service import Service
    from onedva_runtime.serve.settings import Settings, read_tokens

    if (certificate is None) != (key is None):
        raise ValueError("TLS needs both --tls-certificate and --tls-key")
    if certificate is not None and key is not None:
        check_tls(certificate, key)
    tokens = read_tokens(token_file, "ONEDVA_TOKENS")
    loopback = host in LOOPBACK
    if not (loopback or tokens or anybody):
        raise ValueError(
            f"on {host} others can reach it: give --token-file or ONEDVA_TOKENS, or say --open to serve everybody"
        )
    named = {host} - {"0.0.0.0", "::"}
    settings = Settings(
        max_upload_bytes=max_upload_mb << 20,
        max_video_seconds=max_seconds,
        max_compute_seconds=max_compute,
        max_request_seconds=timeout,
        jobs=jobs,
        queue=queue,
        live_sessions=live,
        live_load=live_load,
        max_batch=batch,
        batch_wait_ms=batch_wait_ms,
        grace_seconds=grace,
        tokens=tokens,
        metrics_tokens=read_tokens(metrics_token_file, "ONEDVA_METRICS_TOKENS"),
        allow_origins=frozenset(allow_origin or []),
        allow_hosts=frozenset(allow_host or []) | named,
        loopback=loopback,
    )
    Terminal(quiet=quiet).start_logging()
    service = Service(settings, model=model, backend=backend, dtype=dtype, device=device, threads=threads)
    with _leaving(service):
        ready = run(
            service,
            host=host,
            port=port,
            certificate=certificate,
            key=key,
            on_listen=lambda address: print(address, flush=True),
        )
    if not ready:
        raise OneDVAError("it stopped before it was ready: the log has the reason")


@contextmanager
def _leaving(service: Service) -> Generator[None]:
    """Where a stop has left work, end at once as it would have ended: Python would wait for the threads that do it."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as end:
        if service.left_work:
            logging.shutdown()
            os._exit(end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else INTERRUPTED)
        raise
