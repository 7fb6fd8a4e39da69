"""Requests and frames that nobody honest sends: every answer is as the service's own OpenAPI says, none is a 500, and
nothing of them stays. tests/fuzz/serve_fuzz.py does the same 10,000 times."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.errors
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # now: deep in a test, Python 3.11 may fail to compile it

from onedva_runtime.clips import make_clip
from onedva_runtime.video_pipe import PipeWriter

EVERY_CHECK: Any = list(hypothesis.HealthCheck)  # a request over a socket is slow to hypothesis
FUZZ = Path(__file__).parents[1] / "fuzz" / "serve_fuzz.py"


@pytest.fixture(scope="module")
def bodies(server: Any) -> dict[str, bytes]:
    """A small body for each path that takes one: some requests ask for 50 steps."""
    file = io.BytesIO()
    with PipeWriter(file, width=32, height=32, fps=24, kind="mp4") as writer:
        writer.write(make_clip(3, 32, 32))
    upload = file.getvalue()
    with server.client() as client:
        return {"/v1/encode": upload, "/v1/decode": client.post("/v1/encode", content=upload).content}


@pytest.mark.filterwarnings("ignore")  # the tool's own, and those of its dependencies
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/info", "/v1/encode", "/v1/decode"])
def test_answers_are_as_the_openapi_says(server: Any, bodies: dict[str, bytes], path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    results: Any = schema.get_all_operations()
    (operation,) = [found for found in (result.ok() for result in results) if found.path == path]
    assert attempts(operation, schemathesis.GenerationMode.POSITIVE, bodies.get(path)) >= 1
    attempts(operation, schemathesis.GenerationMode.NEGATIVE, None)  # there may be nothing to get wrong


def attempts(operation: Any, mode: Any, body: bytes | None) -> int:
    """Make requests of an operation, check every answer, and return how many there were. body: for those that are to
    be right, since a schema cannot say what a video is."""
    count = 0

    @hypothesis.settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=EVERY_CHECK,
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Any) -> None:
        nonlocal count
        count += 1
        if body is not None:
            case.body = body
        case.call_and_validate(timeout=60)

    with suppress(hypothesis.errors.Unsatisfiable):
        attempt()
    return count


@pytest.fixture(scope="module")
def fuzz() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("serve_fuzz", FUZZ)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_fuzz"] = module
    spec.loader.exec_module(module)
    yield module


def test_malformed_requests_and_frames(serve: Any, fuzz: Any) -> None:
    with serve(upload_stall_seconds=0.5, idle_seconds=1.0) as server:
        report = fuzz.attack(server.address, count=150, seed=1)
        assert report.answers["5xx"] == 0 and report.sent == 150
        assert report.answers["4xx"] > 20 and report.answers["closed"] > 20, report
        fuzz.wait_idle(server.address)
        admission = server.service.admission
        assert (admission.at_work, admission.owed, len(server.service.live)) == (0, 0, 0)
        with server.client() as client:
            assert client.get("/readyz").status_code == 200
