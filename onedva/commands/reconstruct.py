"""`onedva reconstruct`: encode and decode in memory, clip by clip, and say how near the result is and what it cost.

PSNR and SSIM are taken between the source's frames and the decoder's, before any video encoding touches either."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.commands.clip_streams import StreamChoice, decoded_clips, encoded_clips, followed
from onedva.commands.coding import CodecChoice, as_stored, check_tokens, codec_facts, refuse_truncated, spread
from onedva.commands.console import Terminal, check_output, write_whole
from onedva.commands.fidelity import PSNR_CAP, Fidelity
from onedva.commands.plots import Shown, require_plot, side_by_side_png, steps_text
from onedva.commands.tables import Table, counted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime import Packet

__all__ = ["Album", "reconstruct_file"]


@dataclass
class Album:
    """A few pairs of frames, evenly spread over a video whose length is not known, in bounded memory.

    Every `stride`-th frame is kept; when twice `pages` are held, every other one is dropped and the stride doubles.
    """

    pages: int = 3
    """Pairs wanted at the end, ≥ 1."""
    stride: int = 1
    """Frames from one kept pair to the next."""
    held: list[tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8]]] = field(default_factory=list)
    """(frame number, source, reconstruction)."""

    def add(self, first_frame: int, source: npt.NDArray[np.uint8], reconstruction: npt.NDArray[np.uint8]) -> None:
        """Look at one clip, (T, H, W, 3) uint8 each, whose first frame has number `first_frame`."""
        for offset in range(len(source)):
            if (first_frame + offset) % self.stride:
                continue
            self.held.append((first_frame + offset, source[offset].copy(), reconstruction[offset].copy()))
            if len(self.held) > 2 * self.pages:
                self.held = self.held[::2]
                self.stride *= 2

    def shown(self, *, fps: float) -> list[Shown]:
        """At most `pages` of the pairs, evenly chosen and labelled with frame number, time and PSNR."""
        from onedva_runtime.metrics import psnr

        count = min(self.pages, len(self.held))
        chosen = [self.held[(2 * page + 1) * len(self.held) // (2 * count)] for page in range(count)]
        return [
            Shown(
                label=f"frame {number} · {number / fps:.2f} s\n{min(PSNR_CAP, psnr(source[None], out[None])):.1f} dB",
                source=source,
                reconstruction=out,
            )
            for number, source, out in chosen
        ]


@dataclass
class Sources:
    """The source's frames from where they are encoded to where they are compared, in bounded memory: one thread passes
    them through, another takes them once their clip has come by."""

    held: deque[npt.NDArray[np.uint8]] = field(default_factory=deque)
    """Batches (n, H, W, 3) that were not taken yet."""

    def passed(
        self, batches: Iterable[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]
    ) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]]:
        """The same batches of frames and times; frames are kept."""
        for frames, timestamps in batches:
            self.held.append(frames)
            yield frames, timestamps

    def take(self, count: int) -> npt.NDArray[np.uint8]:
        """The next `count` frames, which have passed."""
        import numpy as np

        parts: list[npt.NDArray[np.uint8]] = []
        while count:
            frames = self.held.popleft()
            parts.append(frames[:count])
            if len(frames) > count:
                self.held.appendleft(frames[count:])
            count -= len(parts[-1])
        return np.concatenate(parts)


def reconstruct_file(
    source: Path,
    target: Path | None,
    *,
    choice: CodecChoice,
    stream: StreamChoice,
    step: float,
    steps: int,
    seed: int,
    picture: Path | None,
    force: bool,
    terminal: Terminal,
) -> None:
    """The verb `reconstruct`: measure, and write the video and the picture that were asked for."""
    from onedva_runtime.pipeline import Pipeline
    from onedva_runtime.video_io import VideoWriter, open_reader
    from onedva_runtime.video_write import CONTAINERS

    if target is not None:
        check_output(target, force=force, source=source, suffixes=tuple(CONTAINERS))
    if picture is not None:
        require_plot()
        check_output(picture, force=force, source=source, suffixes=(".png",))
    check_tokens(stream.tokens)
    terminal.start_logging()

    fidelity, album, sources = Fidelity(), Album(), Sources()
    lengths: list[int] = []
    sizes: list[int] = []
    follows: list[bool] = []
    begun = time.perf_counter()
    with ExitStack() as stack:
        reader = stack.enter_context(open_reader(source))
        info, codec = reader.info, choice.open()
        quantiser = codec.quantiser(step=step)

        def stored(clips: Iterable[list[Packet]]) -> Iterator[Packet]:
            for clip in clips:
                follows.append(followed(clip))
                for packet in clip:
                    kept, size = as_stored(packet, quantiser)
                    sizes.append(size)
                    yield kept

        writer = None
        if target is not None:
            writer = stack.enter_context(
                VideoWriter(
                    target,
                    width=info.width,
                    height=info.height,
                    fps=info.fps,
                    time_base=info.time_base,
                    overwrite=force,
                )
            )
        advance = stack.enter_context(terminal.progress("reconstruct", total=info.frames))
        pipeline = stack.enter_context(Pipeline())
        batches = pipeline.stage("read", reader)
        packets = pipeline.stage(
            "encode", stored(encoded_clips(codec, sources.passed(batches), info=info, choice=stream))
        )
        size = info.height, info.width
        decoded = decoded_clips(codec, packets, steps=steps, seed=seed, frame_size=size)
        for out, report in pipeline.stage("decode", decoded):
            frames = sources.take(len(out))
            fidelity.add(frames, out)
            lengths.append(report.tokens)
            if picture is not None:
                album.add(report.first_frame, frames, out)
            if writer is not None:
                writer.write(out, report.timestamps)
            advance(len(frames))
    bits = 8 * sum(sizes)
    count = sum(fidelity.frames_of_clips)
    seconds = time.perf_counter() - begun
    document = {
        "source": str(source),
        "target": None if target is None else str(target),
        "picture": None if picture is None else str(picture),
        **codec_facts(codec),
        "width": info.width,
        "height": info.height,
        "frames": count,
        "fps": float(info.fps),
        "steps": steps,
        "seed": seed,
        "clips": len(lengths),
        "followed_clips": sum(follows),
        "tokens": lengths,
        "bits": bits,
        "bits_per_pixel": bits / (count * info.width * info.height),
        "psnr_db": fidelity.psnr,
        "ssim": fidelity.ssim,
        "psnr_db_of_clips": fidelity.psnr_of_clips,
        "seconds": seconds,
    }
    if picture is not None:
        title = f"{source.name}, {codec.name}, {spread(lengths)} latents per clip, {steps_text(steps)}"
        write_whole(picture, side_by_side_png(album.shown(fps=float(info.fps)), title=title), overwrite=force)
    terminal.show(document, [fidelity_table(document)])
    refuse_truncated(reader.info, source, count)


def fidelity_table(document: dict[str, Any]) -> Table:
    """What `reconstruct` found, one fact per row."""
    clips, frames, seconds, fps = (document[name] for name in ("psnr_db_of_clips", "frames", "seconds", "fps"))
    rate = f"{document['bits'] / frames * fps / 1000:.1f} kbit/s"
    where = f"{document['model']} on {document['backend']}"
    rows = [
        ["video", f"{document['width']}×{document['height']}, {frames} frames, {fps:.3f} fps"],
        ["PSNR", f"{document['psnr_db']:.2f} dB (clips {min(clips):.2f} to {max(clips):.2f})"],
        ["SSIM", "none: frames are under 11×11" if document["ssim"] is None else f"{document['ssim']:.4f}"],
        ["latents per clip", f"{spread(document['tokens'])} ({counted(document['clips'], 'clip')})"],
        ["bits per pixel", f"{document['bits_per_pixel']:.4f} ({rate})"],
        ["decoding", f"{where}, {steps_text(document['steps'])}, seed {document['seed']}"],
        ["time", f"{seconds:.2f} s, {frames / max(seconds, 1e-9):.1f} frames per second"],
    ]
    if document["followed_clips"]:
        where_followed = f"in {document['followed_clips']} of {counted(document['clips'], 'clip')}"
        rows.insert(4, ["camera followed", where_followed])
    rows += [[name, document[name]] for name in ("target", "picture") if document[name]]
    return Table(title=f"onedva reconstruct {document['source']}", columns=["", ""], rows=rows, text=True)
