"""`.odva` files on the command line: what `onedva info FILE` shows, and `onedva thin`. Nothing here needs a model."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onedva.commands.console import Terminal, check_output, write_whole
from onedva.commands.options import Force, Json, Quiet
from onedva.commands.tables import Table, counted

if TYPE_CHECKING:
    from onedva_runtime.container import Header
    from onedva_runtime.container_packet import Coded

__all__ = ["describe", "show_odva", "thin"]

logger = logging.getLogger("onedva")
SHOWN = 40  # clips of a file, in tables for people; --json has all


def describe(path: Path) -> dict[str, Any]:
    """What is in an .odva file: every checksum is tried, no latents are decoded. Damage is told of, not raised.

    Bits are of what they serve: structural, latents (with their places), overhead (all else). Raises PacketError where
    nothing of the file can be read.
    """
    from onedva_runtime.container import open_packets
    from onedva_runtime.hub import shipped_maker

    with open_packets(path, on_error="skip") as reader:
        clips = [_clip(packets, reader.header) for packets in _by_clip(reader.coded())]
        header, gaps, complete = reader.header, reader.gaps, reader.complete
    frames = sum(clip["frames"] for clip in clips)
    seconds, size = frames / float(header.fps), path.stat().st_size
    structural, latents = (sum(clip[name] for clip in clips) for name in ("structural_bits", "latent_bits"))
    facts = {
        name: str(value) if isinstance(value, Fraction) else value for name, value in dataclasses.asdict(header).items()
    }
    return {
        **facts,
        "model_name": shipped_maker(header.model),
        "frames": frames,
        "seconds": seconds,
        "clips": len(clips),
        "key_clips": sum(clip["is_key"] for clip in clips),
        "tokens": [clip["tokens"] for clip in clips],
        "bytes": size,
        "kbps": 8e-3 * size / seconds if seconds else None,
        "bits_per_pixel": 8 * size / (frames * header.width * header.height) if frames else None,
        "bits": {"structural": structural, "latents": latents, "overhead": 8 * size - structural - latents},
        "complete": complete,
        "problems": [f"byte {gap.offset}: {gap.problem}" for gap in gaps],
        "per_clip": clips,
    }


def _by_clip(packets: Iterable[Coded]) -> Iterator[list[Coded]]:
    """Packets by clip: one each, or the tiles of one."""
    clip: list[Coded] = []
    for coded in packets:
        if clip and (coded.facts.begins_clip or coded.facts.first_frame != clip[0].facts.first_frame):
            yield clip
            clip = []
        clip.append(coded)
    if clip:
        yield clip


def _clip(packets: Sequence[Coded], header: Header) -> dict[str, Any]:
    """One clip, all tiles of it together, without decoding it."""
    facts = packets[0].facts
    return {
        "first_frame": facts.first_frame,
        "seconds": facts.first_frame / float(header.fps),
        "frames": facts.frames,
        "is_key": facts.is_key,
        "tiles": len(packets),
        "follows_camera": any(coded.facts.camera is not None for coded in packets),
        "tokens": sum(coded.tokens for coded in packets),
        "structural_bits": sum(8 * len(coded.structural) for coded in packets),
        "latent_bits": sum(8 * len(segment.data) for coded in packets for segment in coded.segments),
        "predicted_psnr_db": _predicted_psnr(packets, header),
    }


def _predicted_psnr(packets: Sequence[Coded], header: Header) -> float | None:
    """Of a clip's pixels, in dB; None where a packet has no prediction."""
    total = pixels = 0.0
    for coded in packets:
        if coded.facts.first_error is None or not coded.segments:
            return None
        height, width = coded.facts.tile[2:] if coded.facts.tile else (header.height, header.width)
        total += height * width * math.exp(coded.segments[-1].error)
        pixels += height * width
    return 10 * math.log10(4 * pixels / total)


def describe_tables(path: Path, document: dict[str, Any]) -> list[Table]:
    """The document of `describe` for people: the file, then its clips."""
    bits, total = document["bits"], max(1, 8 * document["bytes"])
    tokens = document["tokens"] or [0]
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in bits.items())
    rate = f", {document['kbps']:.1f} kbit/s, {document['bits_per_pixel']:.4f} per pixel" if document["frames"] else ""
    most = max((clip["tiles"] for clip in document["per_clip"]), default=1)
    tiles = f", of {most} tiles each" if most > 1 else ""
    model = document["model_name"] or "not a shipped one"
    rows = [
        ["video", f"{document['width']}×{document['height']}, {document['frames']} frames, {document['fps']} fps"],
        ["duration", f"{document['seconds']:.2f} s"],
        ["model", f"{model}, {document['model'][:12]}…"],
        ["clips", f"{document['clips']}, {document['key_clips']} of them key clips{tiles}"],
        [
            "camera followed",
            f"in {sum(clip['follows_camera'] for clip in document['per_clip'])} of {document['clips']} clips",
        ],
        ["latents per clip", f"{min(tokens)}–{max(tokens)}, mean {sum(tokens) / len(tokens):.1f}"],
        ["quantiser", f"{document['step']:g}"],
        ["size", f"{document['bytes']:,} bytes{rate}"],
        ["bits", shares],
        ["colour", document["colour"] or "not said"],
        ["end of file", "whole" if document["complete"] else "missing: cut off, or still being written"],
        *(["problem", problem] for problem in document["problems"]),
    ]
    clips = [
        [
            f"{clip['first_frame']}",
            f"{clip['seconds']:.2f}",
            f"{clip['frames']}",
            "key" if clip["is_key"] else "goes on",
            f"{clip['tokens']}",
            f"{clip['structural_bits'] / 1000:.1f}",
            f"{clip['latent_bits'] / 1000:.1f}",
            "–" if clip["predicted_psnr_db"] is None else f"{clip['predicted_psnr_db']:.1f}",
        ]
        for clip in document["per_clip"][:SHOWN]
    ]
    left = document["clips"] - len(clips)
    names = ["frame", "s", "frames", "kind", "latents", "structural kbit", "latents kbit", "predicted dB"]
    return [
        Table(title=str(path), columns=["", ""], rows=rows, text=True),
        Table(title="clips" + (f" (the first {SHOWN}; {left} more)" if left else ""), columns=names, rows=clips),
    ]


def bits_png(document: dict[str, Any], *, title: str) -> bytes:
    """Bits and latents of each clip over time, as PNG bytes; key clips are marked."""
    from matplotlib.figure import Figure

    from onedva.commands.plots import COLOURS, figure_png

    clips, fps = document["per_clip"], document["frames"] / max(document["seconds"], 1e-9)
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    rates, lengths = figure.subplots(2, 1, sharex=True)
    starts = [clip["seconds"] for clip in clips]
    spans = [clip["frames"] / fps for clip in clips]
    structural = [clip["structural_bits"] / 1000 / span for clip, span in zip(clips, spans, strict=True)]
    latents = [clip["latent_bits"] / 1000 / span for clip, span in zip(clips, spans, strict=True)]
    rates.bar(starts, structural, spans, align="edge", color=COLOURS[0], label="structural")
    rates.bar(starts, latents, spans, bottom=structural, align="edge", color=COLOURS[1], label="1D latents")
    rates.set_ylabel("kbit/s")
    rates.legend(fontsize=9, frameon=False)
    lengths.bar(starts, [clip["tokens"] for clip in clips], spans, align="edge", color=COLOURS[2])
    keys = [clip["seconds"] for clip in clips if clip["is_key"]]
    lengths.plot(keys, [0] * len(keys), "^", color="#222222", markersize=5, label="key clip", clip_on=False)
    lengths.set_ylabel("latents per clip")
    lengths.set_xlabel("seconds")
    lengths.legend(fontsize=9, frameon=False)
    for axis in (rates, lengths):
        axis.spines[["top", "right"]].set_visible(False)
    return figure_png(figure)


def show_odva(path: Path, *, plot: Path | None, force: bool, terminal: Terminal) -> None:
    """`onedva info FILE.odva`. Raises OneDVAError, after all was shown, where something of the file cannot be read."""
    from onedva.commands.plots import require_plot
    from onedva_runtime.errors import OneDVAError

    if plot is not None:
        require_plot()
        check_output(plot, force=force, source=path, suffixes=(".png",))
    document = describe(path)
    if plot is not None and document["per_clip"]:
        write_whole(plot, bits_png(document, title=path.name), overwrite=force)
    terminal.show({"kind": "odva", **document}, describe_tables(path, document))
    if document["problems"]:
        raise OneDVAError(f"{path}: {document['problems'][0]} ({counted(len(document['problems']), 'problem')} in all)")


def thin(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An .odva file.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .odva file to write.", show_default=False)],
    max_kbps: Annotated[
        float | None, typer.Option("--max-kbps", min=0, help="Mean rate of the file, in 1000 bits per second.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=0, help="Most 1D latents per clip, in whole segments of 64.")
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make an .odva file smaller without encoding again.

    Leaves out 1D latents from the end of clips: to a rate, where bits earn least by the model's own prediction, or to a
    number per clip. What is kept is copied as it is; no model is needed.
    """
    from onedva_runtime.container_packet import SEGMENT
    from onedva_runtime.thin import thin_file

    check_output(target, force=force, source=source, suffixes=(".odva",))
    terminal = Terminal(quiet=quiet, as_json=json)
    terminal.start_logging()
    result = thin_file(source, target, max_kbps=max_kbps, tokens=tokens, overwrite=force)
    if tokens is not None and tokens % SEGMENT:
        logger.warning("segments of %d latents are kept whole: not all that %d allows is there", SEGMENT, tokens)
    document = {"source": str(source), "target": str(target), **dataclasses.asdict(result)}
    before, after = sum(result.tokens_before), sum(result.tokens)
    rows = [
        ["thin", f"{source} → {target}"],
        ["size", f"{result.bytes_before:,} → {result.bytes:,} bytes ({result.bytes / result.bytes_before:.1%})"],
        ["latents", f"{before:,} → {after:,} in {counted(result.clips, 'clip')}"],
    ]
    terminal.show(document, [Table(title="onedva thin", columns=["", ""], rows=rows, text=True)])
