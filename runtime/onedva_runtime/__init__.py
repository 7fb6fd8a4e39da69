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
    from onedva_runtime.errors import BackendError, BundleError, OneDVAError, PacketError, VideoError
    from onedva_runtime.packet import Packet

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Manifest",
    "OneDVAError",
    "Packet",
    "PacketError",
    "VideoCodec",
    "VideoError",
    "read_bundle",
]

_HOMES = {
    "Bundle": "bundle",
    "Manifest": "bundle",
    "Packet": "packet",
    "VideoCodec": "codec",
    "read_bundle": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
