"""Rate and distortion of `.odva` files on the dev split, beside libx264 at the same bits; and what thinning costs.

    python bench/rate.py --clips CLIPS -o RATE.md                    # the table of docs/odva.md
    python bench/rate.py --clips CLIPS --thin -o THIN.md             # thin against encoding again at half the latents

The view is that of `onedva eval`: 17 frames from the middle of each video, short side scaled to 256, centre crop of
256×256; PSNR of a clip is capped at 45 dB, then averaged over clips. Bits are those of whole records: a file adds
0.8 kB once and again at its end. libx264 codes the same 17 frames, preset medium, yuv420p, at the lowest crf, in
quarters, that takes no more bits than we do; its bits are those of its packets, and its PSNR is taken in RGB as ours
is.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from onedva.data import centre_clip, load_clips
from onedva_runtime import Packet, VideoCodec
from onedva_runtime.container import header_of
from onedva_runtime.container_packet import encode_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.metrics import psnr
from onedva_runtime.thin import Clip, clip_of, share

Frames = NDArray[np.uint8]
CAP = 45.0
LENGTHS = (0, 64, 256, 1024)
STEPS = (0.125, 0.25, 0.5, 1.0)
THIN_CLIPS = 4  # of each video, one after the other; rates are at 24 frames per second


def quality(source: Frames, decoded: Frames) -> float:
    """PSNR in dB, capped."""
    return min(CAP, psnr(source, decoded))


def bits_of(packet: Packet, codec: VideoCodec, step: float) -> tuple[int, int]:
    """Bits of a packet's record as it is stored: all but its latents, and its latents."""
    quantiser = codec.quantiser(step=step)
    clip = clip_of(encode_packet(packet, quantiser, TABLES), header_of(packet, quantiser))
    return 8 * clip.base, 8 * sum(clip.sizes)


def x264(frames: Frames, fps: float, crf: float) -> tuple[int, Frames]:
    """Bits and pictures of frames (T, H, W, 3) through libx264."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        options = {"crf": f"{crf}", "preset": "medium"}
        stream = cast(VideoStream, container.add_stream("libx264", Fraction(fps).limit_denominator(1000), options))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        size = 0
        for picture in [*frames, None]:
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, "rgb24")
            for packet in stream.encode(frame):
                size += packet.size
                container.mux(packet)
    buffer.seek(0)
    with cast(InputContainer, av.open(buffer)) as container:
        decoded = [cast(Frames, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return 8 * size, np.stack(decoded)


class Reference:
    """libx264 on one clip, each crf once."""

    def __init__(self, frames: Frames, fps: float) -> None:
        self._frames, self._fps = frames, fps
        self._known: dict[int, tuple[int, float]] = {}

    def at(self, bits: int) -> tuple[int, float]:
        """Bits and PSNR at the lowest crf that takes at most `bits`."""
        low, high = 0, 4 * 51
        while low < high:
            middle = (low + high) // 2
            if self._try(middle)[0] <= bits:
                high = middle
            else:
                low = middle + 1
        return self._try(low)

    def _try(self, quarters: int) -> tuple[int, float]:
        if quarters not in self._known:
            size, decoded = x264(self._frames, self._fps, quarters / 4)
            self._known[quarters] = size, quality(self._frames, decoded)
        return self._known[quarters]


def rate_table(codec: VideoCodec, clips: Sequence[Any]) -> list[str]:
    """One row per quantiser step and length: means over clips."""
    found: dict[tuple[float, int], list[tuple[float, ...]]] = {}
    exact: dict[int, list[float]] = {}
    for clip in clips:
        frames = centre_clip(clip)
        whole = codec.encode_clip(frames, tokens=max(LENGTHS), fps=clip.fps)
        seconds = len(frames) / clip.fps
        reference = Reference(frames, clip.fps)
        for length in LENGTHS:
            packet = whole.thin(length)
            exact.setdefault(length, []).append(quality(frames, codec.decode_clip(packet)))
            for step in STEPS:
                structural, latents = bits_of(packet, codec, step)
                decoded = codec.decode_clip(codec.quantiser(step=step).apply(packet))
                size, theirs = reference.at(structural + latents)
                rates = [bits / seconds / 1000 for bits in (structural, latents, structural + latents, size)]
                found.setdefault((step, length), []).append((*rates, quality(frames, decoded), theirs))
        print(f"{clip.name}: done", flush=True)
    lines = [
        "| step | latents | structural | 1D | kbit/s | PSNR dB | not quantised | libx264 kbit/s | libx264 dB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for step in STEPS:
        for length in LENGTHS:
            means = np.mean(found[step, length], axis=0)
            numbers = [f"{value:.0f}" for value in means[:3]] + [f"{means[4]:.2f}", f"{np.mean(exact[length]):.2f}"]
            lines.append(f"| {step:g} | {length} | {' | '.join(numbers)} | {means[3]:.0f} | {means[5]:.2f} |")
    return lines


@dataclass
class Coded:
    """One clip of a video, and what it decodes to at any length."""

    video: str
    frames: Frames
    packet: Packet
    again: Packet
    """Encoded once more, at half the latents."""
    clip: Clip
    """Its sizes and predictions, as thinning sees them."""
    half_bits: int
    """1D bits of `again`."""
    errors: dict[tuple[bool, int], float] = field(default_factory=dict[tuple[bool, int], float])

    def bits(self, tokens: int) -> int:
        """1D bits of the packet thinned to `tokens`, which whole segments hold."""
        ends = [0, *accumulate(self.clip.tokens)]
        return 8 * sum(self.clip.sizes[: ends.index(tokens)])

    def error(self, codec: VideoCodec, step: float, packet: Packet) -> float:
        """Squared error of the decoded clip, summed; each length is decoded once."""
        key = packet is self.again, packet.tokens
        if key not in self.errors:
            decoded = codec.decode_clip(codec.quantiser(step=step).apply(packet))
            self.errors[key] = float(np.square(decoded.astype(np.int32) - self.frames).sum())
        return self.errors[key]


def code_clips(codec: VideoCodec, clips: Sequence[Any], *, tokens: int | str, step: float) -> list[Coded]:
    """Up to THIN_CLIPS clips from the middle of each video."""
    quantiser = codec.quantiser(step=step)
    coded: list[Coded] = []
    for clip in clips:
        count = min(THIN_CLIPS, len(clip.frames) // 17)
        begin = (len(clip.frames) - 17 * count) // 2
        for start in range(begin, begin + 17 * count, 17):
            view = centre_clip(replace(clip, frames=clip.frames[start : start + 17]))
            packet = codec.encode_clip(view, tokens=tokens, fps=24)
            again = codec.encode_clip(view, tokens=packet.tokens // 2, fps=24)
            number = 17 * len(coded)
            packet, again = replace(packet, first_frame=number), replace(again, first_frame=number)
            header = header_of(packet, quantiser)
            whole = clip_of(encode_packet(packet, quantiser, TABLES), header)
            coded.append(Coded(clip.name, view, packet, again, whole, bits_of(again, codec, step)[1]))
        print(f"{clip.name}: coded", flush=True)
    return coded


def thinned(group: Sequence[Coded], *, most: float) -> list[Packet]:
    """What `thin_packets` keeps at the highest rate at which 1D latents take at most `most` bits."""
    clips = [replace(one.clip, base=0) for one in group]
    kept = share(clips, int(most / 8), source="dev split")
    return [one.packet.thin(sum(clip.tokens[:count])) for one, clip, count in zip(group, clips, kept, strict=True)]


def thin_table(codec: VideoCodec, clips: Sequence[Any], *, tokens: int | str, step: float) -> list[str]:
    """Clips at `tokens`; encoded again at half the latents each; thinned to half the 1D bits, and to the bits of the
    encoding at half. Each video as a file of its own, and all of them as one."""
    coded = code_clips(codec, clips, tokens=tokens, step=step)
    lines = ["| | 1D kbit | PSNR dB |", "|---|---:|---:|"]
    names = ("whole", "encoded at half the latents", "thinned to half the 1D bits", "thinned to the same bits as that")
    videos = [[one for one in coded if one.video == name] for name in dict.fromkeys(one.video for one in coded)]
    for title, groups in (("each video a file", videos), ("all clips one file", [coded])):
        rows: list[list[tuple[float, float]]] = []
        for group in groups:
            size, half = sum(8 * sum(one.clip.sizes) for one in group), sum(one.half_bits for one in group)
            choices = [[one.packet for one in group], [one.again for one in group]]
            choices += [thinned(group, most=most) for most in (size / 2, half)]
            sizes = [size, half]
            for packets in choices[2:]:
                sizes.append(sum(one.bits(packet.tokens) for one, packet in zip(group, packets, strict=True)))
            row: list[tuple[float, float]] = []
            for packets, bits in zip(choices, sizes, strict=True):
                error = sum(one.error(codec, step, packet) for one, packet in zip(group, packets, strict=True))
                pixels = sum(one.frames.size for one in group)
                row.append((bits / 1000, 10 * float(np.log10(255**2 * pixels / error))))
            rows.append(row)
        for name, (bits, decibels) in zip(names, np.mean(rows, axis=0), strict=True):
            lines.append(f"| {title}: {name} | {bits:.1f} | {decibels:.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Rate and distortion of .odva files on the dev split.")
    parser.add_argument("--clips", type=Path, required=True, help="folder with MANIFEST.csv")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a Markdown file to write")
    parser.add_argument("--thin", action="store_true", help="what thinning costs, instead of the table of rates")
    parser.add_argument("--tokens", default="256", help="with --thin: latents before, a number or auto")
    parser.add_argument("--step", type=float, default=0.125, help="with --thin: the quantiser's step")
    parser.add_argument("--videos", type=int, default=None, help="only the first so many, to try")
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    codec = VideoCodec.from_pretrained(options.model)
    loaded = load_clips(options.clips, split="dev")
    clips = [loaded[index] for index in range(len(loaded))][: options.videos]
    if options.thin:
        lines = thin_table(codec, clips, tokens=options.tokens, step=options.step)
    else:
        lines = rate_table(codec, clips)
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
