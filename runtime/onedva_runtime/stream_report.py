"""What a stream says of each clip that it coded or concealed: `StreamReport`, given to `on_report`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["StreamReport"]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamReport:
    """One clip of a stream, or one gap in it."""

    first_frame: int
    """Number of its first frame in the video."""
    frames: int
    """How many frames."""
    timestamps: npt.NDArray[np.int64] | None = None
    """Their presentation times (frames,) in ticks, where packets have any; between those of its neighbours for a
    gap."""
    is_key: bool = False
    """Whether it is a key clip."""
    tokens: int = 0
    """1D latents that were coded or used, over all tiles."""
    num_steps: int = 0
    """Diffusion steps that were taken; 0 when encoding and for concealed frames."""
    seconds: float = 0.0
    """Time that coding took."""
    delay_frames: int = 0
    """When encoding: how many frames after the clip's first one had to come before it could be coded."""
    latency_s: float = 0.0
    """From the push of the clip's first frame or packet until what it became was handed out, in seconds."""
    late: bool = False
    """Whether coding took longer than `deadline_ms`."""
    reduced: bool = False
    """Whether it got fewer steps or latents than asked for, so as to meet `deadline_ms`."""
    concealed: str = ""
    """Why these frames are not the packets' own decode ("lost", "after a loss", "tiles lost"); empty where they are."""
