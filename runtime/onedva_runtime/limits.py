"""Limits: how much a reader is willing to take in. They belong to whoever reads, never to the file being read."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Upper bounds on untrusted input; anything above raises a typed error, before memory is taken where possible."""

    max_pixels: int = 8192 * 4320
    """Width x height of one frame, in pixels."""
    max_frames: int = 1_000_000
    """Frames in one video; packets in the index of one file."""
    max_latents: int = 1 << 16
    """1D latents in one packet."""
    max_values: int = 1 << 26
    """Values of structural and 1D latents in one packet."""
    max_packet_bytes: int = 64 << 20
    """Size of one packet in a file, in bytes."""
    max_bytes: int = 4 << 30
    """Size of one input file, and of the frames that `read_video` may hold at once, in bytes."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Limits.{name} must be an integer of at least 1, got {value!r}")
