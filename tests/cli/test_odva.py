"""`onedva thin`, and `onedva info` of `.odva` files, whole and damaged."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import Result

from onedva.commands.coding import CodecChoice
from onedva_runtime.clips import make_clip
from onedva_runtime.container import load_packets
from onedva_runtime.video_io import VideoWriter, read_video

Run = Callable[..., Result]
Refused = Callable[..., None]


@pytest.fixture
def coded(run: Run, video: Path, tmp_path: Path) -> Path:
    assert run("encode", video, tmp_path / "a.odva", "--tokens", "16").exit_code == 0
    return tmp_path / "a.odva"


@pytest.fixture(scope="module")
def large_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 frames of 100×90: 42 grid positions, so more than one tile of 16."""
    path = tmp_path_factory.mktemp("large") / "a.mp4"
    with VideoWriter(path, width=100, height=90, fps=Fraction(25)) as writer:
        writer.write(make_clip(23, 90, 100))
    return path


def test_info_counts_every_bit(run: Run, coded: Path, tmp_path: Path) -> None:
    report = json.loads(run("info", coded, "--json", "--plot", tmp_path / "a.png").stdout)
    assert sum(report["bits"].values()) == 8 * coded.stat().st_size == 8 * report["bytes"]
    assert (report["clips"], report["key_clips"], report["tokens"]) == (2, 2, [16, 16])
    assert report["complete"] and report["problems"] == [] and report["model_name"] is None
    starts = [packet.first_frame for packet in load_packets(coded).packets]
    assert [clip["first_frame"] for clip in report["per_clip"]] == starts and len(starts) == 2
    assert report["bits"]["structural"] == sum(clip["structural_bits"] for clip in report["per_clip"]) > 0
    assert report["kbps"] == pytest.approx(8e-3 * report["bytes"] / report["seconds"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    shown = run("info", coded).stdout
    assert "not a shipped one" in shown and "whole" in shown and "structural kbit" in shown


def test_info_tells_of_damage_and_of_what_is_left(run: Run, coded: Path, tmp_path: Path) -> None:
    data = bytearray(coded.read_bytes())
    (tmp_path / "cut.odva").write_bytes(data[:-60])
    result = run("info", tmp_path / "cut.odva", "--json")
    assert result.exit_code == 2 and "cut off" in result.stderr
    report = json.loads(result.stdout)
    assert report["clips"] == 2 and not report["complete"]
    data[data.index(b"PKT2") + 40] ^= 1
    (tmp_path / "bad.odva").write_bytes(data)
    result = run("info", tmp_path / "bad.odva", "--json")
    assert result.exit_code == 2 and "checksum" in result.stderr
    assert len(json.loads(result.stdout)["per_clip"]) == 1


def test_thin_leaves_latents_out(run: Run, coded: Path, tmp_path: Path, refused: Refused) -> None:
    result = run("thin", coded, tmp_path / "b.odva", "--tokens", "0", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["tokens"], report["tokens_before"]) == ([0, 0], [16, 16])
    assert report["bytes"] == (tmp_path / "b.odva").stat().st_size < report["bytes_before"]
    assert [packet.tokens for packet in load_packets(tmp_path / "b.odva").packets] == [0, 0]
    assert run("decode", tmp_path / "b.odva", tmp_path / "b.mp4").exit_code == 0
    assert run("thin", coded, tmp_path / "c.odva", "--max-kbps", "1000000").exit_code == 0
    assert load_packets(tmp_path / "c.odva").packets[0].tokens == 16

    refused(run("thin", coded, tmp_path / "b.odva", "--tokens", "0"), "exists", "-f")
    refused(run("thin", coded, tmp_path / "d.odva"), "one of them")
    assert "segments of 64 latents are kept whole" in run("thin", coded, tmp_path / "e.odva", "--tokens", "50").stderr
    refused(run("thin", coded, tmp_path / "d.odva", "--tokens", "1", "--max-kbps", "9"), "one of them")
    refused(run("thin", coded, tmp_path / "d.odva", "--max-kbps", "0.5"), "without any 1D latents")
    refused(run("thin", coded, coded, "-f", "--tokens", "0"), "the input itself")
    refused(run("thin", coded, tmp_path / "d.mp4", "--tokens", "0"), ".odva")
    refused(run("info", tmp_path / "b.mp4", "--plot", tmp_path / "b.png"), "--plot shows an .odva file")
    refused(run("info", "--plot", tmp_path / "b.png"), "--plot shows an .odva file")
    assert not (tmp_path / "d.odva").exists() and not (tmp_path / "b.png").exists()


def test_a_coarser_quantiser_gives_a_smaller_file(run: Run, coded: Path, video: Path, tmp_path: Path) -> None:
    assert run("encode", video, tmp_path / "b.odva", "--tokens", "16", "--quantiser", "1").exit_code == 0
    assert (tmp_path / "b.odva").stat().st_size < coded.stat().st_size
    assert load_packets(tmp_path / "b.odva").header.step == 1


def test_a_sandbox_changes_nothing_but_who_decodes(run: Run, coded: Path, video: Path, tmp_path: Path) -> None:
    assert run("encode", video, tmp_path / "b.odva", "--tokens", "16", "--sandbox").exit_code == 0
    assert (tmp_path / "b.odva").read_bytes() == coded.read_bytes()
    result = run("encode", "-", tmp_path / "c.odva", "--sandbox")
    assert result.exit_code == 2 and "--sandbox opens files" in result.stderr


def test_an_older_shipped_model_is_found_by_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("onedva_runtime.hub.shipped_maker", {"old": "tiny-v1"}.get)
    monkeypatch.setattr("onedva_runtime.VideoCodec.from_pretrained", lambda model, **_: asked.append(model))
    for model, made_by in (("tiny", "old"), ("tiny", "unknown"), ("tiny", None), ("small", "old"), ("tiny-v2", "old")):
        CodecChoice(model=model).open(made_by=made_by)
    assert asked == ["tiny-v1", "tiny", "tiny", "small", "tiny-v2"]


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames of 48×32 at uneven times, in milliseconds."""
    path = tmp_path_factory.mktemp("long") / "a.mkv"
    with VideoWriter(path, width=48, height=32, fps=Fraction(25), time_base=Fraction(1, 1000)) as writer:
        writer.write(make_clip(120, 32, 48, seed=1)[:60], LONG_TIMES)
    return path


LONG_TIMES = np.cumsum([0, *[20, 60, 35] * 20])[:60]


def hurt_packets(data: bytes, lost: list[int]) -> bytes:
    """A file with a byte changed in some of its packets."""
    bad = bytearray(data)
    places = [place for place in range(len(data)) if data[place : place + 4] == b"PKT2"]
    for number in lost:
        bad[places[number] + 40] ^= 1
    return bytes(bad)


@pytest.mark.parametrize("steps", ["0", "1"])
@pytest.mark.parametrize("lost", [[0], [1, 2], [-1], [0, -1]])
def test_damage_is_concealed_and_keeps_count_and_times(
    run: Run, long_video: Path, tmp_path: Path, refused: Refused, lost: list[int], steps: str
) -> None:
    """Whichever clips are lost, the first and the last too: as many frames as before, each at its time or near."""
    good, bad, out = tmp_path / "a.odva", tmp_path / "bad.odva", tmp_path / "bad.mkv"
    assert run("encode", long_video, good, "--tokens", "0", "--keyframe-interval", "1").exit_code == 0
    starts = [packet.first_frame for packet in load_packets(good).packets]
    hurt = np.zeros(60, bool)
    for number in lost:
        hurt[starts[number] : [*starts[1:], 60][number]] = True
    bad.write_bytes(hurt_packets(good.read_bytes(), lost))
    refused(run("decode", bad, out), "checksum")
    result = run("decode", bad, out, "--steps", steps, "--skip-damage", "-q", "--json")
    places = "1 place" if len(lost) == 1 else "2 places"
    told = f"onedva: {bad}: damaged in {places}: {hurt.sum()} of 60 frames are concealed\n"
    assert (result.exit_code, result.stderr) == (3, told)  # even though quiet
    report = json.loads(result.stdout)
    assert (report["frames"], report["concealed"], report["clips"]) == (60, hurt.sum(), len(starts) - len(lost))
    video = read_video(out)
    times = np.array([float(1000 * tick * video.time_base) for tick in video.timestamps.tolist()])
    np.testing.assert_array_equal(times[~hurt], LONG_TIMES[~hurt])
    assert np.abs(times - LONG_TIMES).max() <= (90 if -1 in lost else 45)  # of a last clip only the start is known
    if 0 in lost:
        assert np.abs(video.frames[: starts[1]].astype(int) - 128).max() <= 3  # grey: nothing was shown before


def test_losses_that_nothing_tells_of_are_admitted(
    run: Run, long_video: Path, tmp_path: Path, refused: Refused
) -> None:
    good, bad, out = tmp_path / "a.odva", tmp_path / "bad.odva", tmp_path / "bad.mkv"
    assert run("encode", long_video, good, "--tokens", "0", "--keyframe-interval", "1").exit_code == 0
    data, starts = good.read_bytes(), [packet.first_frame for packet in load_packets(good).packets]
    hurt = bytearray(hurt_packets(data, [0, -1]))

    def decode(content: bytes) -> str:
        bad.write_bytes(content)
        result = run("decode", bad, out, "-f", "--skip-damage", "-q")
        assert result.exit_code == 3, result.output
        return result.stderr.removeprefix(f"onedva: {bad}: ")

    hurt[hurt.index(b"IDX2") + 20] ^= 1
    unknown = f"{starts[1]} of {starts[-1]} frames are concealed; how many are missing after them is not known\n"
    assert decode(bytes(hurt)) == f"damaged in 3 places: {unknown}"
    assert read_video(out).frames.shape[0] == starts[-1]
    cut = data[: data.rindex(b"PKT2") + 50]
    assert decode(cut) == "damaged in 1 place: no frame between is missing; it has no end, so it may have had more\n"
    assert read_video(out).frames.shape[0] == starts[-1]
    bad.write_bytes(hurt_packets(data, list(range(len(starts)))))
    result = run("decode", bad, out, "-f", "--skip-damage", "-q")
    refused(result, str(bad), "no clip in it can be read", "checksum")
    refused(run("decode", bad, out, "-f"), "checksum")


def test_tiles_count_as_the_clip_that_they_are(run: Run, fake: ModuleType, tmp_path: Path, large_video: Path) -> None:
    """What `encode` and `thin` say of a file of tiles, and what `info` finds in it."""
    small = fake.make_fake_bundle(
        tmp_path / "small", edit=lambda content: content["clip"].update(max_video_positions=5 * 16)
    )
    result = run("encode", "-m", small, large_video, tmp_path / "a.odva", "--tokens", "16", "--json")
    assert result.exit_code == 0, result.output
    said, found = json.loads(result.stdout), json.loads(run("info", tmp_path / "a.odva", "--json").stdout)
    packets = load_packets(tmp_path / "a.odva").packets
    tiles = sum(packet.first_frame == 0 for packet in packets)
    assert tiles > 1 and len(packets) == tiles * said["clips"]
    for name in ("clips", "key_clips", "tokens", "frames", "width", "height", "bytes"):
        assert said[name] == found[name], name
    assert found["kbps"] == pytest.approx(said["kbps"])
    assert said["tokens"] == [16 * tiles] * said["clips"]
    assert [clip["tiles"] for clip in found["per_clip"]] == [tiles] * found["clips"]
    assert sum(found["bits"].values()) == 8 * found["bytes"]
    assert found["per_clip"][0]["predicted_psnr_db"] is not None
    assert f"of {tiles} tiles each" in run("info", tmp_path / "a.odva").stdout
    thinned = run("thin", tmp_path / "a.odva", tmp_path / "b.odva", "--tokens", "0")
    assert f"in {said['clips']} clips" in thinned.stdout
