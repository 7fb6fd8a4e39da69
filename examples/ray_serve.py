"""The service on Ray Serve, as many replicas as it takes, over as many machines as there are:

    pip install 'onedva[serve,cpu,ray]'
    serve run examples.ray_serve:app            # from the repository; then as onedva serve, on port 8000

Every replica is a whole service with a codec, queues and limits of its own, and Ray's proxies share requests and live
sessions out among them. A replica that is full answers 429, as it does alone. ONEDVA_MODEL names the model,
ONEDVA_TOKENS the bearer tokens, ONEDVA_REPLICA_CPUS the cores of each.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

from onedva_runtime.serve.app import make_app
from onedva_runtime.serve.service import Service
from onedva_runtime.serve.settings import Settings, read_tokens

CPUS = int(os.environ.get("ONEDVA_REPLICA_CPUS", "2"))


def build() -> Any:
    """The application of one replica, made where it runs, after its golden test."""
    settings = Settings(
        tokens=read_tokens(None, "ONEDVA_TOKENS"),
        metrics_tokens=read_tokens(None, "ONEDVA_METRICS_TOKENS"),
        allow_hosts=frozenset({"*"}),  # Ray's proxies stand before it
        loopback=False,
    )
    model, backend = os.environ.get("ONEDVA_MODEL", "tiny"), os.environ.get("ONEDVA_BACKEND", "auto")
    service = Service(settings, model=model, backend=backend, threads=CPUS)
    service.warm_up()  # Ray sends a replica nothing until it is made
    return make_app(service)


@serve.deployment(
    ray_actor_options={"num_cpus": CPUS},
    max_ongoing_requests=128,  # the service has limits of its own, which say when to come back
    autoscaling_config={"min_replicas": 1, "max_replicas": 16, "target_ongoing_requests": 4},
    graceful_shutdown_timeout_s=30,
)
@serve.ingress(build)
class Codec:
    """One replica."""


app = Codec.bind()
