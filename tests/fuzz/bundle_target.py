"""What the fuzzer does with bytes as parts of a bundle: a manifest, a graph, weights. Only BundleError may come out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from onedva_runtime.errors import BundleError
from onedva_runtime.manifest_parsing import parse_manifest
from onedva_runtime.onnx_check import check_graph
from onedva_runtime.quantiser import latent_std


def one_input(data: bytes) -> None:
    """The first byte says which part the others are."""
    kind, content = data[:1], data[1:]
    try:
        if kind == b"m":
            parse_manifest(content)
        elif kind == b"g":
            check_graph(content, name="a.onnx", weights_name="model.safetensors", weights_bytes=1 << 16)
        else:
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                latent_std(Path(file.name))
    except BundleError:
        pass
