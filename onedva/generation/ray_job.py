"""Tokenising on more than one machine: the shards of a plan as a Ray Data job (`onedva tokenize … --ray ADDRESS`).

Each item is the number of a shard, each actor holds the autoencoder; what a shard is does not depend on who makes it
(`tokenise.make_shard`), so the job gives the same files as one process does, and goes on after a crash the same way.
Videos and latents must be on a file system that all machines see under one path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.data

from onedva.generation.latent_shards import Plan
from onedva.generation.tokenise import Tokenised, begin, make_shard

__all__ = ["tokenise_on_ray"]


class ShardMaker:
    """An actor: makes shards one after the other."""

    def __init__(self, where: Path, output: Path, plan: Plan, device: str) -> None:
        import torch

        torch.set_num_threads(1)  # as the workers of one machine do: the same sums, the same bytes
        self.arguments, self.device = (where, output, plan), device

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        done = make_shard(*self.arguments, int(row["shard"]), device=self.device)
        return {"clips": done.clips, "skipped": "\n".join(done.skipped)}


def tokenise_on_ray(
    where: Path,
    output: Path,
    plan: Plan,
    *,
    address: str,
    model: str | Path,
    workers: int = 0,
    resume: bool = False,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda shards: None,
) -> Tokenised:
    """Make the shards of a plan that are not there yet, by actors of a Ray cluster.

    address: "local" starts one on this machine, "auto" finds a running one, else its address. workers: actors; 0: as
    many as the cluster has CPUs, or GPUs. device: "cpu" or "cuda" of the cluster's machines; this one needs none. The
    rest as `tokenise.tokenise`.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    todo = begin(output, plan, model=model, resume=resume)
    total = Tokenised(0, (), shards=0, present=len(plan.videos) - len(todo))
    advance(total.present)
    if not todo:
        return total
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        kind = "CPU" if device == "cpu" else "GPU"
        if not ray.cluster_resources().get(kind, 0):
            raise ValueError(f"device {device}: the Ray cluster {address} has no {kind}")
        actors = workers or max(1, int(ray.cluster_resources()[kind]))
        shards = ray.data.from_items([{"shard": index} for index in todo], override_num_blocks=len(todo))
        made = shards.map(
            ShardMaker,  # type: ignore[arg-type]  # a class means an actor
            fn_constructor_args=(where.absolute(), output.absolute(), plan, device),
            concurrency=min(actors, len(todo)),
            num_gpus=1 if device == "cuda" else 0,
        )
        for row in made.iter_rows():
            lines = tuple(line for line in row["skipped"].split("\n") if line)
            total = replace(
                total, clips=total.clips + row["clips"], skipped=total.skipped + lines, shards=total.shards + 1
            )
            advance(1)
    finally:
        if started:
            ray.shutdown()
    return total
