"""One process or many: `torchrun --nproc-per-node N -m onedva.cli train …` is all a user writes.

Small models are replicated (DDP); large ones are sharded block by block (FSDP2). With one process nothing here does
anything, so the loop has no second path.
"""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from onedva.allocator import keep_freed_memory
from onedva.layers import Block, DiffusionBlock


@dataclass(frozen=True)
class World:
    """This process among the others of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


ALONE = World(0, 1, torch.device("cpu"))
SETTLE_SECONDS = 0.25


def start_world(device: str | None = None) -> World:
    """Join the other processes if torchrun started this one. On a CPU this process keeps the memory that it frees.

    device: "cpu" or "cuda", where the model goes; default CUDA if there. Raises ValueError for others.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = check_device(device)
    if kind == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    else:
        keep_freed_memory()
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return World(rank, size, torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind))


def check_device(device: str | None = None) -> str:
    """What was asked for, "cpu" or "cuda", default CUDA if there. Raises ValueError for others, or without a GPU."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {kind!r}; CUDA_VISIBLE_DEVICES chooses among several")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: PyTorch finds no CUDA GPU here")
    return kind


def end_world(world: World) -> None:
    """Leave the other processes."""
    if world.size > 1 and dist.is_initialized():
        # The thread of a gloo group lets go of the last work's tensors some time after that is done, and needs the GIL
        # to do so. Whoever frees the group with the GIL held (DDP does) would wait for it for good, and an interpreter
        # that ends first would abort (both seen with PyTorch 2.13): nothing tells when it has, so give it time.
        time.sleep(SETTLE_SECONDS)
        dist.destroy_process_group()


def wrap(step: nn.Module, world: World, *, sharded: bool) -> nn.Module:
    """`step` so that its backward pass averages gradients over the processes."""
    if world.size == 1:
        return step
    if not sharded:
        # which parts a step uses depends on its kind and length, alike in all processes
        return DistributedDataParallel(step, find_unused_parameters=True)
    for module in step.modules():
        if isinstance(module, Block | DiffusionBlock):
            fully_shard(module)
            if isinstance(module, DiffusionBlock):
                register_fsdp_forward_method(module, "in_context")
    # the encoder's blocks return two parts of one tensor; nothing changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    fully_shard(step)
    return step


def wait(world: World) -> None:
    """Until every process is here."""
    if world.size > 1:
        dist.barrier()


def mean_over(values: dict[str, float], world: World) -> dict[str, float]:
    """The mean of each value over the processes."""
    if world.size == 1:
        return values
    tensor = torch.tensor(list(values.values()), device=world.device, dtype=torch.float32)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / world.size).tolist(), strict=True))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on its device; all processes must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of `other`, and sharded as that is: the inverse of `whole`.

    Every process holds all of it and keeps its part: nothing is sent.
    """
    tensor = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def bf16_is_faster() -> bool:
    """Whether a bfloat16 matrix product beats float32 by half on this machine: measured, since CPUs differ by 5×."""
    fastest = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(dtype)
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - begun)
        fastest[dtype] = min(times)
    return fastest[torch.bfloat16] * 1.5 < fastest[torch.float32]
