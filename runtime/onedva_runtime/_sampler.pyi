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
