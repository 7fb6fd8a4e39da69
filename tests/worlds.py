"""Two processes that meet and part many times, as a script: python tests/worlds.py FOLDER TIMES"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from onedva.distributed import World, end_world, wait, wrap


def meet(rank: int, folder: str, times: int) -> None:
    torch.set_num_threads(1)
    for index in range(times):
        dist.init_process_group("gloo", init_method=f"file://{folder}/{index}", rank=rank, world_size=2)
        world = World(rank, 2, torch.device("cpu"))
        module = wrap(nn.Linear(4, 4), world, sharded=False)
        module(torch.ones(1, 4)).sum().backward()
        wait(world)
        end_world(world)
        del module


if __name__ == "__main__":
    spawn(meet, args=(sys.argv[1], int(sys.argv[2])), nprocs=2)
