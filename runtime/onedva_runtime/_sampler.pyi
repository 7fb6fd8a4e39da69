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
