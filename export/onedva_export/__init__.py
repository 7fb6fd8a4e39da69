"""onedva_export: checkpoints to bundles that the torch-free runtime loads."""

from onedva_export.to_onnx import export_bundle
from onedva_export.verify import ParityError

__all__ = ["ParityError", "export_bundle"]
