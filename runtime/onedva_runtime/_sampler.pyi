"""Types of the C++ extension built from cpp_ext/."""

import numpy as np
from numpy.typing import NDArray

def gaussian(
    out: NDArray[np.float32],
    table: NDArray[np.float32],
    seed: int,
    first_frame: int,
    top: int,
    left: int,
    threads: int,
) -> None: ...
def update(video: NDArray[np.float32], velocity: NDArray[np.float32], dt: float, threads: int) -> None: ...
def pack(
    frames: NDArray[np.uint8],
    video: NDArray[np.float32],
    velocity: NDArray[np.float32] | None,
    dt: float,
    threads: int,
) -> None: ...
def texture_and_motion(frames: NDArray[np.uint8], texture: NDArray[np.int64], motion: NDArray[np.int64]) -> None: ...
def resample(out: NDArray[np.uint8], frames: NDArray[np.uint8], filters: NDArray[np.float32], threads: int) -> None: ...

has_cuda: bool
cuda_architectures: str  # where has_cuda, as are the functions below; see cpp_ext/kernels.h

def device_gaussian(
    out: int,
    table: int,
    seed: int,
    first_frame: int,
    top: int,
    left: int,
    frames: int,
    height: int,
    width: int,
    stream: int,
) -> None: ...
def device_unpack(out: int, frame: int, frames: int, height: int, width: int, stream: int) -> None: ...
def device_begin(t: int, generated: int, times: int, counter: int, count: int, stream: int) -> None: ...
def device_advance(t: int, generated: int, times: int, counter: int, count: int, stream: int) -> None: ...
def device_update(
    video: int, velocity: int, kind: int, count: int, lengths: int, counter: int, stream: int
) -> None: ...
def device_pack(
    out: int,
    video: int,
    velocity: int,
    kind: int,
    lengths: int,
    counter: int,
    batch: int,
    frames: int,
    height: int,
    width: int,
    stream: int,
) -> None: ...
