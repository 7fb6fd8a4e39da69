"""Reading a bundle: what is damaged, tampered with or unknown is refused by name; writing a manifest is whole or
nothing."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onedva_runtime.bundle import parse_manifest, read_bundle, write_manifest
from onedva_runtime.errors import BackendError, BundleError
from onedva_runtime.private_cache import private_folder


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit a bundle's manifest in place, without any check."""
    content = json.loads((folder / "manifest.json").read_text())
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def rehash(folder: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed: tampering by someone who knows how."""
    data = (folder / name).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(folder, lambda content: content["files"].update({name: entry}))


def put(*keys: str, value: object) -> Callable[[dict[str, Any]], None]:
    """An edit that sets content[k0][k1]… = value."""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def drop(*keys: str) -> Callable[[dict[str, Any]], None]:
    """An edit that removes content[k0][k1]…"""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def test_a_whole_bundle_is_read(fake_bundle: Path) -> None:
    bundle = read_bundle(fake_bundle)
    manifest = bundle.manifest
    assert manifest.name == "fake-v1" and manifest.max_tokens == 48
    assert manifest.graphs["encoder"].inputs[0].shape == ("B", "T", "H", "W", 3)
    assert set(manifest.files) == {path.name for path in fake_bundle.iterdir()} - {"manifest.json"}
    assert bundle.graph_path("velocity") == fake_bundle / "velocity.onnx"


EDITS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no schema": (drop("schema"), "schema None"),
    "other schema": (put("schema", value="something"), "schema 'something'"),
    "newer schema": (put("schema_version", value=4), "schema version 4; this onedva reads 3: upgrade onedva"),
    "older schema": (put("schema_version", value=2), "schema version 2; this onedva reads 3: export the model again"),
    "schema of another type": (put("schema_version", value=True), "schema version True"),
    "unknown sampler": (put("sampler", "kind", value="heun"), "sampler.kind is 'heun'; this version knows 'euler'"),
    "unknown schedule": (put("sampler", "schedule", "kind", value="cosine"), "schedule.kind is 'cosine'"),
    "unknown prediction": (put("model", "prediction", value="noise"), "model.prediction is 'noise'"),
    "unknown placement": (put("placement", value="patches"), "placement is 'patches'; this version knows 'columns'"),
    "no placement": (drop("placement"), "manifest lacks 'placement'"),
    "unknown noise": (put("noise", "algorithm", value="xorshift"), "noise.algorithm is 'xorshift'"),
    "newer noise": (put("noise", "version", value=2), "noise.version is 2"),
    "missing key": (drop("lengths", "max_tokens"), "manifest.lengths lacks 'max_tokens'"),
    "wrong type": (put("lengths", "max_tokens", value="64"), "manifest.lengths.max_tokens must be int, got '64'"),
    "list for object": (put("clip", value=[]), "manifest.clip must be an object"),
    "object for list": (put("golden", "cases", value={}), "manifest.golden.cases must be a list"),
    "no cases": (put("golden", "cases", value=[]), "golden.cases must not be empty"),
    "bad clip length": (put("clip", "frames", value=16), "clip.frames must be 1 + 4n"),
    "too many steps": (put("sampler", "max_steps", value=51), "max_steps <= 50"),
    "missing graph": (drop("graphs", "velocity"), "graphs must be encoder, condition, velocity and"),
    "nothing for velocity": (put("graphs", "condition", "outputs", value=[]), "velocity must want nothing that"),
    "unlisted weights": (drop("files", "model.safetensors"), "no size and hash for model.safetensors"),
    "unlisted graph": (put("graphs", "encoder", "file", value="other.onnx"), "no size and hash for other.onnx"),
    "wrong size": (put("files", "encoder.onnx", "bytes", value=1), "the manifest says 1: the bundle is damaged"),
    "wrong hash": (put("files", "README.md", "sha256", value="0" * 64), "README.md has the wrong hash"),
    "wrong fingerprint": (put("model", "fingerprint", value="0" * 64), "not the hash of model.safetensors"),
    "wrong opset": (put("graphs", "encoder", "opset", value=22), "encoder.onnx has opset 23"),
    "absolute path": (put("files", "/etc/passwd", value={"bytes": 1, "sha256": ""}), "'/etc/passwd', which is not"),
    "parent": (put("files", "../secret", value={"bytes": 1, "sha256": ""}), "'../secret', which is not"),
    "dots": (put("files", "..", value={"bytes": 1, "sha256": ""}), "'..', which is not a plain"),
    "backslash": (put("files", "..\\x", value={"bytes": 1, "sha256": ""}), "not a plain name"),
    "missing file": (put("files", "gone.bin", value={"bytes": 1, "sha256": ""}), "gone.bin is missing from the bundle"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_manifest_that_is_wrong_is_refused_by_name(name: str, make_bundle: Callable[..., Path]) -> None:
    edit, message = EDITS[name]
    folder = make_bundle()
    change(folder, edit)
    with pytest.raises(BundleError) as caught:
        read_bundle(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_unreadable_json_is_refused(text: bytes, make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_bundle(folder)


def test_a_huge_manifest_is_refused_unread(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    os.truncate(folder / "manifest.json", 1 << 30)
    with pytest.raises(BundleError, match="has 1073741824 bytes"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["encoder.onnx", "model.safetensors", "golden.safetensors", "README.md"])
def test_one_flipped_bit_is_refused(name: str, make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} has the wrong hash"):
        read_bundle(folder)


def test_a_missing_file_is_named(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    (folder / "velocity.onnx").unlink()
    with pytest.raises(BundleError, match=r"velocity\.onnx is missing"):
        read_bundle(folder)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_not(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    (folder / "README.md").rename(folder / "card.md")
    (folder / "README.md").symlink_to("card.md")
    read_bundle(folder)
    (folder / "card.md").rename(folder.parent / "card.md")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder.parent / "card.md")
    with pytest.raises(BundleError, match=r"README\.md is a link that leads out"):
        read_bundle(folder)


def test_a_linked_manifest_or_a_pipe_is_refused(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    (folder / "README.md").unlink()
    os.mkfifo(folder / "README.md")
    with pytest.raises(BundleError, match=r"README\.md is not a regular file"):
        read_bundle(folder)
    (folder / "manifest.json").rename(folder.parent / "manifest.json")
    (folder / "manifest.json").symlink_to(folder.parent / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json is a link that leads out"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda graph: graph.node[-1].MergeFrom(onnx.NodeProto(domain="com.evil")), "'com.evil'"),
        (lambda graph: graph.node.add(op_type="Loop"), "operator Loop"),
        (
            lambda graph: graph.initializer[0].external_data[0].MergeFrom(onnx.StringStringEntryProto(value="../x")),
            "../x",
        ),
    ],
)
def test_a_graph_that_was_tampered_with_is_refused_though_its_hash_agrees(
    edit: Callable[[onnx.GraphProto], None], message: str, make_bundle: Callable[..., Path]
) -> None:
    folder = make_bundle()
    model = onnx.load(folder / "encoder.onnx", load_external_data=False)
    edit(model.graph)
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())
    rehash(folder, "encoder.onnx")
    with pytest.raises(BundleError, match=r"encoder\.onnx") as caught:
        read_bundle(folder)
    assert message in str(caught.value)


def test_a_folder_without_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="onedva export"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="no bundle folder"):
        read_bundle(tmp_path / "nothing")


def test_writing_a_bad_manifest_leaves_the_old_one(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    before = (folder / "manifest.json").read_bytes()
    content = json.loads(before)
    content["sampler"]["kind"] = "heun"
    with pytest.raises(BundleError, match="heun"):
        write_manifest(folder, content)
    assert (folder / "manifest.json").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_written_manifest_lists_the_files_and_reads_back(fake_bundle: Path) -> None:
    text = (fake_bundle / "manifest.json").read_bytes()
    manifest = parse_manifest(text)
    size = (fake_bundle / "model.safetensors").stat().st_size
    assert manifest.files["model.safetensors"].bytes == size
    assert manifest == parse_manifest(json.loads(text))


def test_onnxruntime_keeps_its_optimised_graphs_privately(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made once, hold for these graphs only, and give the same bits."""
    from onedva_runtime.clips import make_clip
    from onedva_runtime.codec import VideoCodec

    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    folder, frames = make_bundle(), make_clip(5, 32, 48)
    first = VideoCodec.from_pretrained(folder, backend="onnxruntime", threads=1).encode_clip(frames, tokens=16)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "onnxruntime").iterdir()}
    assert len(kept) == 3 and all(path.suffix == ".onnx" for path in kept)
    again = VideoCodec.from_pretrained(folder, backend="onnxruntime", threads=1).encode_clip(frames, tokens=16)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "onnxruntime").iterdir()} == kept
    assert np.array_equal(first.latents, again.latents) and np.array_equal(first.structural, again.structural)


def test_a_cache_that_cannot_be_made_costs_time_only(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from onedva_runtime.codec import VideoCodec

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "file" / "cache"))
    codec = VideoCodec.from_pretrained(fake_bundle, threads=1)
    assert all(case["passed"] for case in codec.selftest())
    assert caplog.text.count("every start takes longer: point ONEDVA_CACHE") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and modes are those of POSIX systems")
def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "shared"
    monkeypatch.setenv("ONEDVA_CACHE", str(top))
    top.mkdir()
    top.chmod(0o777)  # others could put a folder of theirs in the place of ours
    with pytest.raises(BackendError, match="belongs to another user or may be written to by others"):
        private_folder("kind", "name")
    assert list(top.iterdir()) == []
    top.chmod(0o1777)  # as /tmp: what is ours stays ours
    assert private_folder("kind", "name") == top / "kind" / "name"
    (top / "kind").chmod(0o770)
    with pytest.raises(BackendError, match="mode 0700"):
        private_folder("kind", "name")
    (top / "kind").chmod(0o700)
    top.chmod(0o755)
    monkeypatch.setattr("os.geteuid", lambda: top.stat().st_uid + 12345)
    with pytest.raises(BackendError, match="belongs to another user"):
        private_folder("kind", "name")


def test_optimised_graphs_that_cannot_be_read_or_written_cost_time_only(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a power cut or on a full disk the model still opens, from its own graphs."""
    from onedva_runtime.backends.onnxruntime import OnnxRuntimeBackend
    from onedva_runtime.codec import VideoCodec

    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    folder, kept = make_bundle(), tmp_path / "cache" / "onnxruntime"

    def passes() -> bool:
        codec = VideoCodec.from_pretrained(folder, backend="onnxruntime", threads=1)
        return all(case["passed"] for case in codec.selftest())

    assert passes()
    whole = {path: path.read_bytes() for path in kept.iterdir()}
    for path, data in whole.items():
        path.write_bytes(data[: len(data) // 2])
    assert passes() and caplog.text.count("is not readable, making it again") == 3
    assert {path: path.read_bytes() for path in kept.iterdir()} == whole
    nowhere = tmp_path / "cache" / "gone" / "graph.onnx"
    monkeypatch.setattr(OnnxRuntimeBackend, "_optimised_path", staticmethod(lambda *_: nowhere))
    assert passes() and not nowhere.parent.exists()
