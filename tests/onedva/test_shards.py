"""Folders packed into shards and read back: same videos, same splits, by webdataset too; damage costs what it hits."""

import csv
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedva import shards as packing
from onedva.data import Split, find_shards, find_sources, load_clips
from onedva.shards import Packed, pack_folder
from onedva_runtime.errors import OneDVAError
from onedva_runtime.video_io import read_video

WriteVideo = Callable[..., np.ndarray]


@pytest.fixture
def folder(tmp_path: Path, write_video: WriteVideo) -> Path:
    """Four videos in two splits, one of them in a folder below, and one that is none."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    names = ["a.mp4", "b.c.mp4", "deep/d.mkv", "e.mp4"]
    for seed, name in enumerate(names):
        write_video(folder / name, frames=6 + seed, height=64, width=80 + 16 * seed, seed=seed, fps=20 + seed)
    (folder / "broken.mp4").write_bytes(b"noise" * 100)
    rows = [("name", "split"), *((name, "dev" if name == "e.mp4" else "train") for name in names)]
    with (folder / "MANIFEST.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([*rows, ("broken.mp4", "train"), ("gone.mp4", "dev")])
    return folder


def pack(folder: Path, output: Path, **options: Any) -> Packed:
    return pack_folder(folder, output, **{"max_size": 10**8, **options})


def test_a_folder_and_its_shards_hold_the_same_clips(folder: Path, cache: Path, tmp_path: Path) -> None:
    packed = pack(folder, tmp_path / "out")
    assert [path.name for path in packed.shards] == ["clips-000000.tar"]
    assert packed.videos == 4 and packed.frames == 6 + 7 + 8 + 9 and packed.bytes == packed.shards[0].stat().st_size
    assert [one.name for one in packed.skipped] == ["broken.mp4", "gone.mp4"]
    assert "not a video" in packed.skipped[0].reason and packed.skipped[1].reason.endswith("No such file or directory")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clips-000000.tar"]
    expected: list[tuple[Split, int]] = [("train", 3), ("dev", 1)]
    for split, count in expected:
        plain = load_clips(folder, split=split, minimum_frames=5)
        packed_clips = load_clips(tmp_path / "out", split=split, minimum_frames=5)
        assert len(plain) == len(packed_clips) == count and not packed_clips.skipped
        for one, two in zip(plain, packed_clips, strict=True):
            assert two.name.endswith(one.name) and one.fps == two.fps
            np.testing.assert_array_equal(one.frames, two.frames)
    assert load_clips(tmp_path / "out", split="train", minimum_frames=5)[2].name == "deep/d.mkv"


def test_webdataset_reads_them(folder: Path, tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    shard = pack(folder, tmp_path / "out").shards[0]
    with shard.open("rb") as stream:  # `webdataset.WebDataset` does the same, and leaves the file open
        samples = list(group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}])))
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002", "00000003"]
    assert samples[1]["mp4"] == (folder / "b.c.mp4").read_bytes()
    assert samples[2]["mkv"] == (folder / "deep/d.mkv").read_bytes()
    facts = {"name": "e.mp4", "split": "dev", "fps": 23.0, "frames": 9, "width": 128, "height": 64}
    assert json.loads(samples[3]["json"]) == facts


def test_shards_of_others_are_read(folder: Path, cache: Path, tmp_path: Path) -> None:
    """No JSON, or one with other facts: everything is train, and length and rate come from the videos."""
    from webdataset.writer import TarWriter

    content = (folder / "a.mp4").read_bytes()
    with TarWriter(str(tmp_path / "theirs.tar"), encoder=False) as archive:
        archive.write({"__key__": "x/0", "mp4": content, "txt": b"a caption"})
        archive.write({"__key__": "x/1", "mp4": content, "json": b'{"caption": "a", "fps": "fast", "frames": -1}'})
        archive.write({"__key__": "x/2", "mp4": b"noise", "json": b"[not"})
        archive.write({"__key__": "x/3", "jpg": b"no video"})
    for limit in (None, 10**8):
        clips = load_clips(tmp_path / "theirs.tar", split="train", minimum_frames=5, cache_limit=limit)
        assert [clip.name for clip in clips] == ["theirs.tar/x/0.mp4", "theirs.tar/x/1.mp4"]
        assert [clip.fps for clip in clips] == [20, 20] and clips.frame_counts.tolist() == [6, 6]
        (skipped,) = clips.skipped
        assert skipped.name == "theirs.tar/x/2.mp4" and skipped.reason.startswith("not a video")
    with pytest.raises(FileNotFoundError, match="no videos of split 'dev'"):
        find_sources(tmp_path / "theirs.tar", split="dev")
    assert not list((cache / "clips").glob("*.tmp"))


def test_shards_are_cut_by_size_and_named_by_patterns(folder: Path, tmp_path: Path) -> None:
    sizes = [(folder / name).stat().st_size for name in ("a.mp4", "b.c.mp4")]
    packed = pack(folder, tmp_path / "out", max_size=sum(sizes) + 8000)
    names = [f"clips-{number:06d}.tar" for number in range(len(packed.shards))]
    assert len(names) >= 2 and [path.name for path in packed.shards] == names
    assert all(path.stat().st_size <= sum(sizes) + 8000 + 10240 for path in packed.shards)  # and tar's own padding
    one_each = pack(folder, tmp_path / "single", max_size=1)
    assert len(one_each.shards) == 4

    pattern = str(tmp_path / "single" / "clips-{000001..000002}.tar")
    assert find_shards(pattern) == list(one_each.shards[1:3])
    assert [source.name for source in find_sources(Path(pattern), split="train")[0]] == ["b.c.mp4", "deep/d.mkv"]
    with pytest.raises(FileNotFoundError, match=r"no such shard: .*clips-000004\.tar \(2 of 3 are missing\)"):
        find_shards(str(tmp_path / "single" / "clips-{000003..000005}.tar"))
    assert find_shards(tmp_path / "single") == list(one_each.shards)


def test_workers_and_time_change_no_byte(folder: Path, tmp_path: Path) -> None:
    alone, together = (pack(folder, tmp_path / str(count), workers=count) for count in (0, 2))
    assert alone.shards[0].read_bytes() == together.shards[0].read_bytes()
    assert alone.skipped == together.skipped


def test_one_split_can_be_packed(folder: Path, tmp_path: Path) -> None:
    assert pack(folder, tmp_path / "out", split="dev").videos == 1
    with pytest.raises(FileNotFoundError, match="no videos of split 'test'"):
        pack(folder, tmp_path / "other", split="test")


def test_larger_videos_are_encoded_anew(tmp_path: Path, write_video: WriteVideo) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    large = write_video(folder / "large.mkv", frames=7, height=96, width=150, fps=30)
    write_video(folder / "small.mp4", frames=5, height=32, width=48)
    shard = pack(folder, tmp_path / "out", short_side=48).shards[0]
    with tarfile.open(shard) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert members["00000001.mp4"] == (folder / "small.mp4").read_bytes()
    facts = json.loads(members["00000000.json"])
    assert facts == {"name": "large.mkv", "split": "train", "fps": 30, "frames": 7, "width": 76, "height": 48}
    (tmp_path / "again.mp4").write_bytes(members["00000000.mp4"])
    video = read_video(tmp_path / "again.mp4")
    assert video.frames.shape == (7, 48, 76, 3) and float(video.fps) == pytest.approx(30, abs=0.1)
    expected = packing.scale_short_side(large, 48, multiple=2).astype(float)
    assert np.abs(video.frames - expected).mean() < 7  # noise, the hardest to encode
    with pytest.raises(ValueError, match="even number of at least 16 pixels, got 47"):
        pack(folder, tmp_path / "odd", short_side=47)


def test_shards_that_are_there_are_kept_unless_told(folder: Path, tmp_path: Path, write_video: WriteVideo) -> None:
    output = tmp_path / "out"
    first = pack(folder, output, max_size=1)
    with pytest.raises(FileExistsError, match=r"holds 4 shards: go on after them \(--resume\), or replace them \(-f\)"):
        pack(folder, output)
    write_video(folder / "new.mp4", frames=5)
    with (folder / "MANIFEST.csv").open("a") as handle:
        handle.write("new.mp4,train\n")
    before = {path: path.read_bytes() for path in first.shards}
    more = pack(folder, output, resume=True)
    assert more.present == 4 and more.videos == 1 and [path.name for path in more.shards] == ["clips-000004.tar"]
    assert {path: path.read_bytes() for path in first.shards} == before
    with tarfile.open(more.shards[0]) as archive:
        assert archive.getnames() == ["00000004.json", "00000004.mp4"]
    again = pack(folder, output, resume=True)
    assert again.present == 5 and not again.videos and not again.shards
    assert len(pack(folder, output, force=True).shards) == 1
    assert [path.name for path in output.iterdir()] == ["clips-000000.tar"]  # no mix of old and new


def test_an_interrupt_leaves_whole_shards_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    def stop(count: int) -> None:
        if len(list((tmp_path / "out").glob("*.tar"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "out", max_size=1, advance=stop)
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["clips-000000.tar", "clips-000001.tar"]  # no temporary
    pack(folder, tmp_path / "out", max_size=1, resume=True)
    whole = pack(folder, tmp_path / "whole", max_size=1)
    assert [path.read_bytes() for path in find_shards(tmp_path / "out")] == [p.read_bytes() for p in whole.shards]


def test_a_shard_that_is_cut_off_gives_what_is_before_the_cut(
    folder: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = pack(folder, tmp_path / "out").shards[0]
    with tarfile.open(shard) as archive:
        cut = archive.getmember("00000002.mkv").offset_data + 100
    shard.write_bytes(shard.read_bytes()[:cut])
    clips = load_clips(tmp_path / "out", split="train", minimum_frames=5)
    assert [clip.name for clip in clips] == ["a.mp4", "b.c.mp4"]
    assert str(clips.skipped[0]) == "clips-000000.tar: unexpected end of data, after 2 videos"
    assert "train: 2 videos used, 1 skipped" in caplog.text
    with pytest.raises(OneDVAError, match=r"is damaged .* remove it, then resume"):
        pack(folder, tmp_path / "out", resume=True)
    shard.write_bytes(b"no tar file" * 100)
    with pytest.raises(FileNotFoundError, match="no videos of split 'train'"):
        load_clips(tmp_path / "out", split="train")


def test_links_and_paths_in_a_shard_lead_nowhere(folder: Path, cache: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        link = tarfile.TarInfo("0.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, str(folder / "a.mp4")
        archive.addfile(link)
        archive.add(folder / "a.mp4", "../../1.mp4")
    clips = load_clips(tmp_path / "odd.tar", split="train", minimum_frames=5)
    assert [clip.name for clip in clips] == ["odd.tar/../../1.mp4"]
    outside = {path.parent for path in tmp_path.rglob("*.npy")}
    assert outside == {cache / "clips"}


def test_what_cannot_work_is_said_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pack(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ValueError, match="must go to another folder"):
        pack(folder, folder)
    with pytest.raises(ValueError, match="give one of them"):
        pack(folder, tmp_path / "out", force=True, resume=True)
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        pack(folder, tmp_path / "out", max_size=0)
    useless = tmp_path / "useless"
    useless.mkdir()
    (useless / "a.mp4").write_bytes(b"noise")
    with pytest.raises(FileNotFoundError, match=r"no usable video in .*: all 1 were skipped"):
        pack(useless, tmp_path / "out")


def test_a_disk_that_fills_while_encoding_is_no_bad_video(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(packing.VideoWriter):
        def write(self, *args: Any) -> None:
            raise packing.VideoError(f"{self._path}: writing failed (No space left on device)")

    monkeypatch.setattr(packing, "VideoWriter", Full)
    with pytest.raises(OneDVAError, match="No space left on device") as failed:
        pack(folder, tmp_path / "out", short_side=32)
    assert not isinstance(failed.value, packing.VideoError)
    assert not list((tmp_path / "out").iterdir())
