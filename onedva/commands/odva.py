"""`.odva` files on the command line: what `onedva info FILE` shows, and `onedva thin`. Nothing here needs a model."""

from __future__ import annotations

import dataclasses
import logging
import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onedva.commands.console import Terminal, check_output, write_whole
from onedva.commands.options import Force, Json, Quiet
from onedva.commands.tables import Table

if TYPE_CHECKING:
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
        clips = [_clip(coded, float(reader.header.fps)) for coded in reader.coded()]
        header, gaps, complete = reader.header, reader.gaps, reader.complete
    frames = sum(clip["frames"] for clip in clips if clip["corner"] == [0, 0])
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
        "packets": clips,
    }


def _clip(coded: Coded, fps: float) -> dict[str, Any]:
    """One packet, without decoding it."""
    facts = coded.facts
    error = coded.segments[-1].error if coded.segments else None
    predicted = None if facts.first_error is None or error is None else 10 * (math.log(4) - error) / math.log(10)
    return {
        "first_frame": facts.first_frame,
        "seconds": facts.first_frame / fps,
        "frames": facts.frames,
        "is_key": facts.is_key,
        "corner": list(facts.tile[:2]) if facts.tile else [0, 0],
        "tokens": coded.tokens,
        "structural_bits": 8 * len(coded.structural),
        "latent_bits": 8 * sum(len(segment.data) for segment in coded.segments),
        "predicted_psnr_db": predicted,
    }


def describe_tables(path: Path, document: dict[str, Any]) -> list[Table]:
    """The document of `describe` for people: the file, then its clips."""
    bits, total = document["bits"], max(1, 8 * document["bytes"])
    tokens = document["tokens"] or [0]
    shares = ", ".join(f"{name} {count / total:.1%}" for name, count in bits.items())
    rate = f", {document['kbps']:.1f} kbit/s, {document['bits_per_pixel']:.4f} per pixel" if document["frames"] else ""
    model = document["model_name"] or "not a shipped one"
    rows = [
        ["video", f"{document['width']}×{document['height']}, {document['frames']} frames, {document['fps']} fps"],
        ["duration", f"{document['seconds']:.2f} s"],
        ["model", f"{model}, {document['model'][:12]}…"],
        ["clips", f"{document['clips']}, {document['key_clips']} of them key clips"],
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
        for clip in document["packets"][:SHOWN]
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

    clips, fps = document["packets"], document["frames"] / max(document["seconds"], 1e-9)
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
    if plot is not None and document["packets"]:
        write_whole(plot, bits_png(document, title=path.name), overwrite=force)
    terminal.show({"kind": "odva", **document}, describe_tables(path, document))
    if document["problems"]:
        raise OneDVAError(f"{path}: {document['problems'][0]} ({len(document['problems'])} problems in all)")


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
        ["latents", f"{before:,} → {after:,} in {len(result.tokens)} clips"],
    ]
    terminal.show(document, [Table(title="onedva thin", columns=["", ""], rows=rows, text=True)])
