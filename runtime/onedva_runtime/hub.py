"""Where a bundle is: `find` turns a shipped name, a folder or a Hugging Face Hub id into a folder. Shipped bundles
stand in `models/` beside this file under versioned names; a name without a version means the newest."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from onedva_runtime.errors import BundleError

__all__ = ["cache_folder", "find", "shipped", "shipped_maker"]

MODELS = Path(__file__).parent / "models"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_BUNDLE_FILES = ["*.json", "*.onnx", "*.safetensors", "README.md"]


def shipped() -> dict[str, Path]:
    """The bundles in this package by versioned name, oldest version of each family first."""
    found: list[tuple[str, int, Path]] = []
    for folder in MODELS.iterdir() if MODELS.is_dir() else ():
        match = re.fullmatch(r"(.+)-v(\d+)", folder.name)
        if match and (folder / "manifest.json").is_file():
            found.append((match[1], int(match[2]), folder))
    return {folder.name: folder for _, _, folder in sorted(found)}


def shipped_maker(fingerprint: str) -> str | None:
    """The versioned name of the bundle in this package that has this fingerprint, so that what an older version wrote
    stays readable; None where it is none of them."""
    for name, folder in shipped().items():
        try:
            found = json.loads((folder / "manifest.json").read_bytes())["model"]["fingerprint"]
        except (ValueError, KeyError, TypeError):
            continue  # `read_bundle` says what is wrong with it, to whoever opens it
        if found == fingerprint:
            return name
    return None


def cache_folder() -> Path:
    """The folder for what can be made again: ONEDVA_CACHE, else onedva in XDG_CACHE_HOME, else ~/.cache/onedva. Not
    created."""
    named = os.environ.get("ONEDVA_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onedva"


def find(name_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a bundle.

    name_or_path: a shipped name ("tiny" is the newest tiny-vN), a folder, or a hub id "owner/name@revision". revision:
    the pinned revision of a hub id, if it is not in the id. Raises BundleError where nothing is found, for a hub id
    without a revision, and where the hub cannot be reached (HF_HUB_OFFLINE is honoured).
    """
    bundles = shipped()
    if isinstance(name_or_path, str):
        if name_or_path in bundles:
            return bundles[name_or_path]
        versions = [path for name, path in bundles.items() if name.rpartition("-v")[0] == name_or_path]
        if versions:
            return versions[-1]
    path = Path(name_or_path)
    if path.is_dir():
        return path
    match = _HUB_ID.fullmatch(name_or_path) if isinstance(name_or_path, str) else None
    if match is None:
        names = ", ".join(bundles) or "none in this installation"
        raise BundleError(
            f"no bundle {str(name_or_path)!r}; give a shipped name ({names}), a folder, or a hub id owner/name@revision"
        )
    pinned = revision or match["revision"]
    if not pinned:
        raise BundleError(
            f"no folder {str(name_or_path)!r}; as a hub id it needs a pinned revision: {name_or_path}@REVISION"
        )
    return _download(match["id"], pinned)


def _download(hub_id: str, revision: str) -> Path:
    """The hub's snapshot as a folder of real files: its cache is made of links out of the folder, which bundles may not
    have."""
    # here: it takes longer to import than a clip to decode
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    try:
        snapshot = Path(snapshot_download(hub_id, revision=revision, allow_patterns=_BUNDLE_FILES))
    except Exception as error:  # its errors have no common base: HTTP, offline, not found, file system
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"cannot get {hub_id}@{revision} from the hub: {reason}") from error
    target = cache_folder() / "hub" / hub_id.replace("/", "--") / snapshot.name
    if target.is_dir():
        return target
    cache_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        copy = Path(temporary) / snapshot.name
        copy.mkdir()
        for file in snapshot.iterdir():
            source = file.resolve()
            if source.is_file():
                try:
                    os.link(source, copy / file.name)
                except OSError:  # another file system
                    shutil.copyfile(source, copy / file.name)
        try:
            copy.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    return target
