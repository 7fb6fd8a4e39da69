"""onedva_export: checkpoints to bundles that the torch-free runtime loads, and bundles to TensorRT engines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onedva_export.to_onnx import export_bundle as export_bundle
    from onedva_export.to_tensorrt import build_engines as build_engines
    from onedva_export.verify import ParityError as ParityError

__all__ = ["ParityError", "build_engines", "export_bundle"]

# Looked up when asked for: engines are built on machines without PyTorch.
_WHERE = {"ParityError": "verify", "build_engines": "to_tensorrt", "export_bundle": "to_onnx"}


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
