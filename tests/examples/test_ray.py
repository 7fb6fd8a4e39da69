"""The service on a local Ray: two replicas, shared out, each with a codec of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

# In a process of its own: Ray's threads and signal handlers stay for good.
SCRIPT = """
import io, json, sys
import httpx, ray
from ray import serve
from websockets.sync.client import connect
from examples import ray_serve
from onedva_runtime import load_packets
from onedva_runtime.clips import make_clip
from onedva_runtime.video_pipe import PipeWriter

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(ray_serve.Codec.options(autoscaling_config=None, num_replicas=2).bind())
address = f"http://127.0.0.1:{sys.argv[1]}"
file = io.BytesIO()
with PipeWriter(file, width=64, height=48, fps=24, kind="mp4") as writer:
    writer.write(make_clip(20, 48, 64))
assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}, "a replica must be warm before it is asked"
found = serve.status().applications["default"].deployments["Codec"].replica_states
assert {str(key): value for key, value in found.items()} == {"RUNNING": 2}, found
for _ in range(4):
    with httpx.Client(timeout=60) as client:
        coded = client.post(f"{address}/v1/encode", content=file.getvalue())
        assert load_packets(io.BytesIO(coded.content)).frames == 20
        video = client.post(f"{address}/v1/decode?format=y4m", content=coded.content)
        assert (video.status_code, video.content.count(b"FRAME")) == (200, 20), video.content[:300]
        refused = client.post(f"{address}/v1/decode", content=b"no file")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "notodva"), refused.text
with connect(address.replace("http", "ws") + "/v1/live/encode?width=64&height=48") as socket:
    for number, frame in enumerate(make_clip(40, 48, 64)[:17]):
        socket.send((number * 41_666).to_bytes(8, "little") + frame.tobytes())
    facts = socket.recv(timeout=30)
    assert json.loads(facts)["frames"] == 17, facts
serve.shutdown()
ray.shutdown()
print("done")
"""


def test_two_replicas_share_the_work(fake_bundle: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    own = {
        "ONEDVA_MODEL": str(fake_bundle),
        "ONEDVA_BACKEND": "onnxruntime",
        "ONEDVA_REPLICA_CPUS": "1",
        "PYTHONPATH": str(EXAMPLES),
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine its own 5 s end in a killed proxy
    }
    command = [sys.executable, "-c", SCRIPT, str(port)]
    environment = {**os.environ, **own}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "done", done.stderr[-3000:]
