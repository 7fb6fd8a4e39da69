"""Finding a bundle: shipped names and their newest version, folders, pinned hub ids; and which backends there are."""

from importlib import metadata
from pathlib import Path

import huggingface_hub
import pytest

from onedva_runtime import backends, hub
from onedva_runtime.bundle import read_bundle
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import BackendError, BundleError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with three versions of one family and one of another."""
    monkeypatch.setattr(hub, "MODELS", tmp_path)
    for name in ("tiny-v1", "tiny-v2", "tiny-v10", "tiny-hd-v3", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    return tmp_path


def test_a_name_without_a_version_is_the_newest(models: Path) -> None:
    assert hub.find("tiny") == models / "tiny-v10"
    assert hub.find("tiny-v2") == models / "tiny-v2"
    assert hub.find("tiny-hd") == models / "tiny-hd-v3"


def test_a_fingerprint_finds_its_maker(models: Path) -> None:
    (models / "tiny-v1" / "manifest.json").write_text('{"model": {"fingerprint": "abc"}}')
    (models / "tiny-v2" / "manifest.json").write_text('{"model": []}')
    assert hub.shipped_maker("abc") == "tiny-v1"
    assert hub.shipped_maker("abd") is None


def test_a_shipped_name_wins_over_a_folder_of_the_working_directory(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert hub.find("tiny") == models / "tiny-v10"
    assert hub.find("./tiny") == Path("tiny")
    assert hub.find(Path("tiny")) == Path("tiny")


def test_an_unknown_name_lists_what_there_is(models: Path) -> None:
    names = "tiny-v1, tiny-v2, tiny-v10, tiny-hd-v3"
    with pytest.raises(BundleError, match=rf"no bundle 'huge'; give a shipped name \({names}\), a folder, or a hub id"):
        hub.find("huge")
    with pytest.raises(BundleError, match="needs a pinned revision: owner/name@REVISION"):
        hub.find("owner/name")


def test_a_hub_bundle_becomes_a_folder_of_real_files(
    fake_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / COMMIT
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for index, file in enumerate(fake_bundle.iterdir()):
        (blobs / str(index)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / str(index))
    asked: list[tuple[str, str]] = []

    def snapshot_download(repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("ONEDVA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BundleError, match="link that leads out"):
        read_bundle(snapshot)
    folder = hub.find("owner/name@v1")
    assert folder == tmp_path / "cache" / "hub" / "owner--name" / COMMIT
    assert read_bundle(folder).manifest.name == "fake-v1"
    assert hub.find("owner/name", revision=COMMIT) == folder
    assert asked == [("owner/name", "v1"), ("owner/name", COMMIT)]
    assert [path.name for path in folder.parent.iterdir()] == [COMMIT]


def test_an_unreachable_hub_is_a_bundle_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BundleError, match=r"cannot get owner/name@v1 from the hub: no route$"):
        hub.find("owner/name@v1")


def test_unknown_backends_and_devices_list_the_valid_ones(fake_bundle: Path) -> None:
    valid = "auto, onnxruntime, openvino, onnxruntime-cuda, tensorrt"
    with pytest.raises(BackendError, match=f"unknown backend 'torch'; valid: {valid}"):
        VideoCodec.from_pretrained(fake_bundle, backend="torch")
    with pytest.raises(BackendError, match=r"tensorrt cannot be used: .* pip install 'onedva\[trt\]'"):
        VideoCodec.from_pretrained(fake_bundle, backend="tensorrt")
    with pytest.raises(
        BackendError, match=r"onnxruntime-cuda cannot be used: not installed: pip install 'onedva\[gpu\]'"
    ):
        VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", device="cuda")
    with pytest.raises(BackendError, match="unknown dtype 'fp8'; valid: auto, fp32, fp16, bf16, int8"):
        VideoCodec.from_pretrained(fake_bundle, dtype="fp8")
    with pytest.raises(BackendError, match="onnxruntime computes in fp32 on this machine, got dtype 'bf16'"):
        VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime", dtype="bf16")
    for device in ("gpu", "cpu:1", "cuda:", "cuda:x"):
        with pytest.raises(BackendError, match=f"unknown device '{device}'; valid: auto, cpu, cuda, cuda:NUMBER"):
            VideoCodec.from_pretrained(fake_bundle, device=device)
    with pytest.raises(
        BackendError, match=r"no usable backend on device 'cuda' .*; tensorrt: TensorRT is not installed"
    ):
        VideoCodec.from_pretrained(fake_bundle, device="cuda")
    with pytest.raises(BackendError, match="openvino runs on cpu, got device 'cuda:1'"):
        VideoCodec.from_pretrained(fake_bundle, backend="openvino", dtype="fp32", device="cuda:1")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        VideoCodec.from_pretrained(fake_bundle, threads=0)


def test_a_missing_onnxruntime_names_the_extra(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"onnxruntime cannot be used: not installed: pip install 'onedva\[cpu\]'"):
        VideoCodec.from_pretrained(fake_bundle)


def test_two_onnxruntimes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {status.name: status.usable for status in backends.available()} == {
        "onnxruntime": True,
        "openvino": True,
        "onnxruntime-cuda": False,
        "tensorrt": False,
    }
    monkeypatch.setattr(metadata, "version", lambda package: "1.31.1")
    status = backends.STATUSES["onnxruntime"]()
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 overwrite each other" in status.reason


def test_a_provider_that_is_dropped_silently_is_noticed(fake_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda session: ["OtherProvider"])
    with pytest.raises(BackendError, match="asked for CPUExecutionProvider"):
        VideoCodec.from_pretrained(fake_bundle, backend="onnxruntime")


def test_nothing_is_printed(fake_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    codec = VideoCodec.from_pretrained(fake_bundle)
    codec.selftest()
    assert capfd.readouterr() == ("", "")
