"""`onedva demo`: one short video through the codec, left in a folder as something to look at: source.mp4,
reconstruction.mp4, side_by_side.png, length.png, results.json, results.md. It takes about a minute on two cores,
and says what it cut to stay there."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.commands.coding import CodecChoice, codec_facts, spread
from onedva.commands.console import Terminal, check_output, output_folder, to_json, write_whole
from onedva.commands.fidelity import Fidelity
from onedva.commands.fit import fit_frames, size_within
from onedva.commands.plots import length_png, require_plot, side_by_side_png
from onedva.commands.provenance import provenance
from onedva.commands.reconstruct import Album
from onedva.commands.sweep import Timing, length_label, sweep
from onedva.commands.tables import Table, to_markdown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime import VideoCodec
    from onedva_runtime.manifest import Manifest

__all__ = ["FILES", "run_demo"]

logger = logging.getLogger("onedva")

FILES = ("source.mp4", "reconstruction.mp4", "side_by_side.png", "length.png", "results.json", "results.md")
MAX_FRAMES = 48  # two seconds of film
MAX_PIXELS = 384 * 256  # per frame; with MAX_FRAMES and TIMING this is what a minute on two cores buys
LENGTHS: tuple[int | str, ...] = (0, 16, 64, 256, "full", "auto")
TIMING = Timing(warm_up=1, runs=10, time_box=2.0)


def run_demo(
    source: Path | None, output: Path, *, choice: CodecChoice, seed: int, force: bool, terminal: Terminal
) -> None:
    """The verb `demo`: fill `output` and show the table that it holds. source None: a made-up clip."""
    require_plot()
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; name a folder for the demo")
    with output_folder(output):
        _fill(source, output, choice=choice, seed=seed, force=force, terminal=terminal)


def _fill(
    source: Path | None, output: Path, *, choice: CodecChoice, seed: int, force: bool, terminal: Terminal
) -> None:
    for name in FILES:
        check_output(output / name, force=force, source=source)
    terminal.start_logging()
    from onedva_runtime.video_io import VideoWriter, probe

    if source is not None:
        probe(source)  # before backends are measured, which may take a while
    conditions = provenance(threads=choice.threads)
    codec = choice.open()
    frames, fps, notes = _frames(source, codec.manifest)
    for note in notes:
        logger.info("%s", note)
    height, width = frames.shape[1:3]
    with terminal.progress("demo", total=len(LENGTHS) + 1, unit="lengths") as advance:
        decoded, tokens, fidelity = _reconstruct(codec, frames, fps=float(fps), seed=seed)
        advance(1)
        step = codec.clip_frames
        clips = [frames[start : start + step] for start in range(0, len(frames), step)]
        rows = sweep(
            codec, clips, lengths=LENGTHS, steps=[1], fps=float(fps), seed=seed, timing=TIMING, advance=advance
        )
    for name, video in (("source.mp4", frames), ("reconstruction.mp4", decoded)):
        with VideoWriter(output / name, width=width, height=height, fps=fps, overwrite=force) as writer:
            writer.write(video)
    album = Album()
    album.add(0, frames, decoded)
    latents = f"{spread(tokens)} latents per clip (auto)"
    what = f"{codec.name}, {latents}, 1 step: {fidelity.psnr:.2f} dB"
    what += "" if fidelity.ssim is None else f", SSIM {fidelity.ssim:.3f}"
    where = f"{codec.backend_name}, {conditions['cores']} cores"
    sizes = f"{codec.name}: clips of {len(clips[0])} frames of {width}×{height}, {where}"
    picture = side_by_side_png(album.shown(fps=float(fps)), title=what)
    write_whole(output / "side_by_side.png", picture, overwrite=force)
    write_whole(output / "length.png", length_png(rows, title=sizes), overwrite=force)
    document = {
        "schema": "onedva-demo",
        "schema_version": 1,
        **codec_facts(codec),
        "source": "made-up clip" if source is None else str(source),
        "notes": notes,
        "frames": len(frames),
        "width": width,
        "height": height,
        "fps": float(fps),
        "clips": len(clips),
        "auto": {"tokens": tokens, "psnr_db": fidelity.psnr, "ssim": fidelity.ssim},
        "rows": rows,
        "provenance": conditions,
    }
    tables = [
        _lengths_table(rows, title=f"{document['source']}, {sizes}"),
        _files_table(output, what=what, notes=notes),
    ]
    write_whole(output / "results.json", to_json(document), overwrite=force)
    write_whole(output / "results.md", "\n".join(to_markdown(table) for table in tables), overwrite=force)
    terminal.show(document, tables)


def _frames(source: Path | None, manifest: Manifest) -> tuple[npt.NDArray[np.uint8], Fraction, list[str]]:
    """The frames to show (T, H, W, 3) uint8, their rate, and what was done to the source to get them."""
    notes: list[str] = []
    if source is None:
        from onedva_runtime.clips import make_clip

        frames, fps = make_clip(MAX_FRAMES, 256, 256), Fraction(24)
    else:
        from onedva_runtime.video_io import read_video

        video = read_video(source, max_frames=MAX_FRAMES)
        frames, fps, announced = video.frames, video.fps, video.info.frames
        if len(frames) == MAX_FRAMES and (announced is None or announced > MAX_FRAMES):
            of = "" if announced is None else f" of {announced}"
            notes.append(f"only the first {MAX_FRAMES} frames{of} are shown")
    height, width = frames.shape[1:3]
    groups = 1 + (manifest.clip.frames - 1) // 4
    positions = manifest.clip.max_video_positions // groups
    wide, high = size_within(width, height, pixels=MAX_PIXELS, positions=positions)
    if (wide, high) != (width, height):
        fits = size_within(width, height, pixels=width * height, positions=positions) == (width, height)
        why = "to keep the demo short" if fits else f"since {manifest.name} takes {positions} blocks of 16×16 per frame"
        notes.append(f"frames are resized and cropped from {width}×{height} to {wide}×{high} {why}")
    return fit_frames(frames, width=wide, height=high), fps, notes


def _reconstruct(
    codec: VideoCodec, frames: npt.NDArray[np.uint8], *, fps: float, seed: int
) -> tuple[npt.NDArray[np.uint8], list[int], Fidelity]:
    """All frames there and back at the length that the policy chooses: reconstruction, latents per clip, fidelity."""
    packets = codec.encode(frames, tokens="auto", fps=fps)
    decoded = codec.decode(packets, num_steps=1, seed=seed)
    fidelity = Fidelity()
    for packet in packets:
        part = slice(packet.first_frame, packet.first_frame + packet.frames)
        fidelity.add(frames[part], decoded[part])
    return decoded, [packet.tokens for packet in packets], fidelity


def _lengths_table(rows: list[dict[str, Any]], *, title: str) -> Table:
    """The numbers behind length.png."""
    return Table(
        title=title,
        columns=["latents per clip", "PSNR dB", "encode ms", "decode ms", "× real time"],
        rows=[
            [
                length_label(row),
                f"{row['psnr_db']:.2f}",
                f"{row['encode_ms']['p50']:.0f}",
                f"{row['decode_ms']['p50']:.0f}",
                f"{row['real_time_factor']:.2f}",
            ]
            for row in rows
        ],
    )


def _files_table(output: Path, *, what: str, notes: list[str]) -> Table:
    """What lies in the folder, and what was cut to get there."""
    said = {
        "source.mp4": "the frames that were coded",
        "reconstruction.mp4": what,
        "side_by_side.png": "source | reconstruction | error of three frames",
        "length.png": "PSNR and latency against the latent length",
        "results.json": "every number here, with the machine and versions behind it",
        "results.md": "these tables",
    }
    rows = [[str(output / name), said[name]] for name in FILES]
    return Table(
        title="left in the folder",
        columns=["file", "what"],
        rows=[*rows, *(["note", note] for note in notes)],
        text=True,
    )
