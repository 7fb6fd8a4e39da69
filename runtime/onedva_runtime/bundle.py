"""A bundle: the folder that holds a deployed model. `read_bundle` checks everything that can be checked before a byte
of it reaches an inference library: sizes and hashes, names that stay inside the folder, what stands in the graphs.
Hashes say that a bundle is undamaged, not that its author is to be trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onedva_runtime.errors import BundleError
from onedva_runtime.files import AtomicFile, sha256_of
from onedva_runtime.hub import find, shipped
from onedva_runtime.manifest import FileSpec, GraphSpec, Manifest
from onedva_runtime.manifest_parsing import parse_manifest
from onedva_runtime.onnx_check import check_graph

__all__ = ["Bundle", "Manifest", "find", "parse_manifest", "read_bundle", "shipped", "write_manifest"]

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check."""

    folder: Path
    """Where it is."""
    manifest: Manifest
    """What it says."""

    def graph_path(self, graph: str) -> Path:
        """The file of "encoder", "condition", "velocity", …"""
        return self.folder / self.manifest.graphs[graph].file

    @property
    def golden_path(self) -> Path:
        """The file of golden tensors."""
        return self.folder / self.manifest.golden.file


def read_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read and check the bundle in `folder`.

    Raises BundleError, naming the file or key, for a missing folder or file, a manifest that is unreadable or of an
    unknown schema, a wrong size or hash, a name or link that leads out of the folder, and a graph with a foreign
    operator domain, a forbidden operator, or external data other than the graph's weights file within its bounds.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleError(f"no bundle folder {str(folder)!r}")
    if not (root / MANIFEST).exists():
        raise BundleError(
            f"{str(folder)!r} has no {MANIFEST}: not a bundle; `onedva export` makes one from a checkpoint"
        )
    path = _inside(root, MANIFEST)
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} has {path.stat().st_size} bytes; allowed: {MAX_MANIFEST_BYTES}")
    manifest = parse_manifest(path.read_bytes())
    every = (manifest.graphs, *(static.graphs for static in manifest.tensorrt))
    graph_files = {spec.file: (spec, manifest.weights_of(graph)) for graphs in every for graph, spec in graphs.items()}
    for required in (WEIGHTS, manifest.golden.file, *graph_files, *(weights for _, weights in graph_files.values())):
        if required not in manifest.files:
            raise BundleError(f"{MANIFEST} lists no size and hash for {required}")
    for name, spec in manifest.files.items():
        _check_file(root, name, spec)
    if manifest.files[WEIGHTS].sha256 != manifest.model.fingerprint:
        raise BundleError(f"{MANIFEST}: model.fingerprint is not the hash of {WEIGHTS}")
    for name, (graph, weights) in graph_files.items():
        _check_graph(root, name, graph, weights, manifest.files[weights].bytes)
    return Bundle(root, manifest)


def write_manifest(folder: str | os.PathLike[str], manifest: Mapping[str, object]) -> Manifest:
    """Write manifest.json into `folder`, whole or not at all, and return it parsed.

    manifest: its keys; where "files" is missing it is made from the regular files that stand in the folder. Raises
    BundleError for a manifest that `read_bundle` would not take.
    """
    root = Path(folder)
    content = dict(manifest)
    if "files" not in content:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_file() and entry.name != MANIFEST)
        content["files"] = {
            name: {"bytes": (root / name).stat().st_size, "sha256": sha256_of(root / name)} for name in names
        }
    parsed = parse_manifest(content)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with AtomicFile(root / MANIFEST, overwrite=True, error=BundleError) as out:
        out.file.write(text.encode())
        out.commit()
    return parsed


def _inside(root: Path, name: str) -> Path:
    """The regular file `name` of the folder; BundleError for any way out of it."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"{MANIFEST} names the file {name!r}, which is not a plain name inside the bundle's folder")
    path = root / name
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BundleError(f"{name} is missing from the bundle {root}") from None
    if target.parent != root.resolve():
        raise BundleError(f"{name} is a link that leads out of the bundle's folder")
    if not stat.S_ISREG(target.stat().st_mode):
        raise BundleError(f"{name} is not a regular file")
    return path


def _check_file(root: Path, name: str, spec: FileSpec) -> None:
    """Check one file's place, size and hash."""
    path = _inside(root, name)
    size = path.stat().st_size
    if size != spec.bytes:
        raise BundleError(
            f"{name} has {size} bytes, the manifest says {spec.bytes}: the bundle is damaged, get it again"
        )
    digest = sha256_of(path)
    if digest != spec.sha256:
        raise BundleError(
            f"{name} has the wrong hash {digest[:12]}…, not {spec.sha256[:12]}…: the bundle is damaged, get it again"
        )


def _check_graph(root: Path, name: str, spec: GraphSpec, weights: str, weights_bytes: int) -> None:
    """Check what stands in one graph, and that it is of the versions that the manifest says."""
    facts = check_graph((root / name).read_bytes(), name=name, weights_name=weights, weights_bytes=weights_bytes)
    if (facts.opset, facts.ir_version) != (spec.opset, spec.ir_version):
        got = f"opset {facts.opset} and IR version {facts.ir_version}"
        raise BundleError(f"{name} has {got}, the manifest says {spec.opset} and {spec.ir_version}")
