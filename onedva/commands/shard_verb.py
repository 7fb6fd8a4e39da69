"""`onedva shard`: a folder of videos packed into webdataset shards. Thin, as the verbs in onedva/cli.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from onedva.commands.console import Terminal
from onedva.commands.failures import needs_extra
from onedva.commands.options import Force, Json, Quiet

__all__ = ["parse_bytes", "shard"]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def shard(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder of videos; MANIFEST.csv names the splits.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the shards.")] = Path("shards"),
    max_size: Annotated[
        str, typer.Option("--max-size", help="Of a shard: bytes, or a number with MB, GiB, …")
    ] = "256MB",
    split: Annotated[
        str | None, typer.Option("--split", help="Pack only this split of the manifest.", show_default="all")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            "--short-side", help="Scale larger videos to it and encode them anew.", show_default="as they are"
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that decode; 0: only this one.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the shards that are there.")] = False,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Pack a folder of videos into shards for training.

    Webdataset tar files: each video as it is, with a JSON of its facts. Every video is decoded once to be sure of it;
    what cannot be read is left out and reported.
    """
    with needs_extra("train"):
        import webdataset  # noqa: F401

        from onedva.shards import pack_folder
        from onedva.sources import list_videos
    from onedva.commands.tables import Table

    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    size = parse_bytes(max_size)
    total = sum(split in (None, its_split) for _, its_split in list_videos(folder))
    with terminal.progress("shard", total=total, unit="videos") as advance:
        packed = pack_folder(
            folder,
            output,
            max_size=size,
            split=split,
            short_side=short_side,
            workers=workers,
            force=force,
            resume=resume,
            advance=advance,
        )
    document = {
        "output": str(output),
        "shards": [path.name for path in packed.shards],
        "videos": packed.videos,
        "frames": packed.frames,
        "bytes": packed.bytes,
        "present": packed.present,
        "damaged": list(packed.damaged),
        "skipped": [{"name": one.name, "reason": one.reason} for one in packed.skipped],
    }
    rows = [
        ["shards", str(len(packed.shards))],
        ["videos", f"{packed.videos} of {packed.frames} frames, {packed.bytes / 1e6:.1f} MB"],
        ["there already", str(packed.present)],
        ["packed, in part unreadable", str(len(packed.damaged))],
        ["skipped", str(len(packed.skipped))],
    ]
    terminal.show(document, [Table(title=f"{folder} in {output}", columns=["", ""], rows=rows, text=True)])


def parse_bytes(text: str) -> int:
    """Bytes of a text such as 1000000, 256MB or 1.5GiB; ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|[KMGT]I?)B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"a size is a number of bytes, or a number with kB, MB, GB, KiB, MiB, GiB, …; got {text!r}")
    return size
