"""How fast a training step is, as a share of the rate of bare matrix products, and where its time goes.

    python bench/train_rate.py [-m tiny] [--runs 10]    # JSON on stdout

Steps of stage `joint` on 8 made-up clips of 17×128×128, at the precision that training picks on this machine. FLOPs are
PyTorch's own count of products and attention, forward and backward; the rate beside them is that of a 2048³ product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from timing import timed
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from onedva.allocator import keep_freed_memory
from onedva.data import Clip
from onedva.distributed import ALONE
from onedva.model import OneDVA
from onedva.sampler import ClipSampler, batches
from onedva.train import Loop
from onedva.train_config import TrainConfig
from onedva_runtime.clips import make_clip

SIDE, FRAMES, PRODUCT = 128, 17, 2048
WARM_UP = 3  # steps until the allocator holds what a step needs
# by PyTorch's names of operators; what is in none of these is elementwise work, norms and moving data
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn"),
    "attention": ("attention",),
    "optimizers": ("Optimizer", "aten::_foreach", "aten::lerp"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("-m", "--model", default="tiny")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    keep_freed_memory()  # as a run does
    train = TrainConfig(sizes=((SIDE, SIDE, 1.0),), frames=((FRAMES, 1.0),), p_continuation=0.0, still_motion=0.0)
    clips = [Clip(str(seed), make_clip(2 * FRAMES, 192, 192, seed=seed), 24.0) for seed in range(8)]
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(OneDVA.from_pretrained(options.model).train(), train, ALONE, Path(folder), resume=False)
        sampler = ClipSampler(
            clips, frames=train.frames, sizes=train.sizes, positions_per_batch=train.positions_per_batch, seed=0
        )
        stream = batches(sampler, workers=0)
        rows = [measured(loop, next(stream)) for _ in range(options.runs + WARM_UP)][WARM_UP:]
        kinds = profiled(loop, next(stream))
    seconds, gflop = (statistics.median(row[key] for row in rows) for key in ("seconds", "gflop"))
    rate = statistics.median(row["gflop"] / row["seconds"] for row in rows)
    dtype = torch.bfloat16 if loop.bf16 else torch.float32
    product = product_rate(dtype)
    found = {
        "dtype": str(dtype).removeprefix("torch."),
        "clips_per_s": statistics.median(row["clips"] / row["seconds"] for row in rows),
        "step_s": seconds,
        "gflop_per_step": gflop,
        "gflop_per_s": rate,
        "product_gflop_per_s": product,
        "share": rate / product,
        "profile": kinds,
    }
    print(json.dumps(found, indent=2))


def measured(loop: Loop, batch: Any) -> dict[str, float]:
    """Seconds of one step, then its FLOPs, which depend on how many latents it draws: the same step again."""
    begun = time.perf_counter()
    loop.update([batch])
    seconds = time.perf_counter() - begun
    with FlopCounterMode(display=False) as counter:
        loop.update([batch])
    loop.step += 1
    return {"seconds": seconds, "gflop": counter.get_total_flops() / 1e9, "clips": len(batch.video)}


def profiled(loop: Loop, batch: Any) -> dict[str, float]:
    """Share of one step's time by kind of work, of what operators themselves take."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        loop.update([batch])
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), "the rest")
        spent[kind] += event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: spent[kind] / whole for kind in sorted(spent, key=lambda kind: -spent[kind])}


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product in PyTorch."""
    a, b = (torch.randn(PRODUCT, PRODUCT).to(dtype) for _ in range(2))
    with torch.inference_mode():
        return 2 * PRODUCT**3 / 1e9 / timed(lambda: a @ b)["median_s"]


if __name__ == "__main__":
    main()
