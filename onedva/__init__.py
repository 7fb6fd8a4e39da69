"""onedva: an adaptive 1D video diffusion autoencoder.

`VideoCodec` runs it without PyTorch, `OneDVA` is the PyTorch model; both are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onedva.config import OneDVAConfig
    from onedva.model import OneDVA
    from onedva_runtime import VideoCodec

    __version__: str

__all__ = ["OneDVA", "OneDVAConfig", "VideoCodec", "__version__"]

_HOMES = {"VideoCodec": "onedva_runtime", "OneDVA": "onedva.model", "OneDVAConfig": "onedva.config"}


def __getattr__(name: str) -> Any:
    """Import a public name's module when it is first used, so that `import onedva` stays light and needs no torch."""
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("onedva")
        except metadata.PackageNotFoundError:
            return "unknown"  # a source tree that is not installed
    if name not in _HOMES:
        raise AttributeError(f"module 'onedva' has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "einops"):
            raise
        hint = f"onedva.{name} needs {error.name}: pip install 'onedva[train]'"
        raise ModuleNotFoundError(hint, name=error.name) from None
