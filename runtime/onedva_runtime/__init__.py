"""onedva_runtime: encode and few-step diffusion decode with NumPy and an inference backend, never torch.

    from onedva_runtime import VideoCodec
    codec = VideoCodec.from_pretrained("tiny")
    packets = codec.encode(frames)      # (T, H, W, 3) uint8 RGB -> list[Packet]
    frames = codec.decode(packets)      # exactly as many frames back

Names are resolved when they are first used, so that importing a small module of this package does not load the
backends."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onedva_runtime.bundle import Bundle, Manifest, read_bundle
    from onedva_runtime.codec import VideoCodec
    from onedva_runtime.container import load_packets, open_packets, save_packets
    from onedva_runtime.errors import (
        BackendError,
        BundleError,
        Corrupt,
        NotOdva,
        OneDVAError,
        OverLimit,
        PacketError,
        Truncated,
        VideoError,
        WrongModel,
    )
    from onedva_runtime.packet import Packet
    from onedva_runtime.thin import thin_file, thin_packets

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Corrupt",
    "Manifest",
    "NotOdva",
    "OneDVAError",
    "OverLimit",
    "Packet",
    "PacketError",
    "Truncated",
    "VideoCodec",
    "VideoError",
    "WrongModel",
    "load_packets",
    "open_packets",
    "read_bundle",
    "save_packets",
    "thin_file",
    "thin_packets",
]

_HOMES = {
    "Bundle": "bundle",
    "Manifest": "bundle",
    "Packet": "packet",
    "VideoCodec": "codec",
    "load_packets": "container",
    "open_packets": "container",
    "read_bundle": "bundle",
    "save_packets": "container",
    "thin_file": "thin",
    "thin_packets": "thin",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
