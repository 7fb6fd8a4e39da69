"""`onedva shard` from outside: what it writes and reports, what it skips, and what it refuses in one line."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from onedva.commands.shard_verb import parse_bytes

pytest.importorskip("webdataset")
Refused = Callable[..., None]


@pytest.fixture
def videos(video: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(video, folder / name)
    (folder / "c.mp4").write_bytes(b"noise")
    return folder


@pytest.fixture
def shard(run: Callable[..., Result]) -> Callable[..., Result]:
    def invoke(*arguments: str | Path) -> Result:
        return run("shard", *arguments)

    return invoke


def test_a_folder_is_packed_and_reported(shard: Callable[..., Result], videos: Path, tmp_path: Path) -> None:
    done = shard(videos, "-o", tmp_path / "out", "--max-size", "1kB", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["shards"] == ["clips-000000.tar", "clips-000001.tar"]
    assert (document["videos"], document["frames"], document["present"]) == (2, 42, 0)
    assert document["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert [one["name"] for one in document["skipped"]] == ["c.mp4"]
    assert "skipped c.mp4: not a video" in done.stderr

    refused = shard(videos, "-o", tmp_path / "out", "-q")
    assert refused.exit_code == 2 and "go on after them (--resume), or replace them (-f)" in refused.stderr
    resumed = shard(videos, "-o", tmp_path / "out", "--resume", "-q")
    assert resumed.exit_code == 0 and "there already" in resumed.stdout and resumed.stderr == ""
    assert json.loads(shard(videos, "-o", tmp_path / "out", "-f", "--json", "-q").stdout)["shards"] == [
        "clips-000000.tar"
    ]


def test_refusals_are_one_line(shard: Callable[..., Result], videos: Path, tmp_path: Path, refused: Refused) -> None:
    refused(shard(tmp_path / "missing", "-o", tmp_path / "out"), "no such folder")
    refused(shard(videos, "-o", tmp_path / "out", "--max-size", "many"), "'many'", "a number with kB, MB")
    refused(shard(videos, "-o", tmp_path / "out", "--split", "dev"), "no videos of split 'dev'")
    refused(shard(videos, "-o", videos), "must go to another folder")
    assert not list(videos.glob("*.tar"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("256MB", 256 * 10**6), ("1.5GiB", 3 * 2**29), ("2 kb", 2000), ("7M", 7 * 10**6), ("3b", 3)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "0", "1e6", "5 apples", "0.1"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a size is a number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_whole_shards_and_130(videos: Path, tmp_path: Path, workers: str) -> None:
    for number in range(400):
        shutil.copy(videos / "a.mp4", videos / f"more-{number:03d}.mp4")
    code = "from onedva.cli import main; main()"
    arguments = ["shard", str(videos), "-o", str(tmp_path / "out"), "--max-size", "1", "--workers", workers]
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until = time.monotonic() + 200
        while len(list((tmp_path / "out").glob("*.tar"))) < 3:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(60) == 130, errors
    assert "Traceback" not in errors
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert 3 <= len(left) < 402 and all(name.endswith(".tar") and not name.startswith(".") for name in left)
