"""One measured row per latent length and step count: PSNR, and latency as percentiles of repeated runs. `bench` and
`demo` share it.

Latency is wall time of `encode_clip` and `decode_clip`, uint8 frames in and out, one call at a time. Encoding does
not depend on the steps, so it is timed once per length."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onedva.commands.fidelity import PSNR_CAP, pooled_psnr
from onedva.commands.provenance import memory_mb
from onedva.commands.tables import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva_runtime import VideoCodec

__all__ = ["Timing", "latency", "length_label", "parse_lengths", "sweep", "sweep_tables"]

WORDS = ("auto", "full")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often a cell of the sweep is run."""

    warm_up: int = 5
    """Runs before the clock counts."""
    runs: int = 50
    """Timed runs."""
    time_box: float = 5.0
    """Seconds after which a cell stops short of `runs`; its row says how many it had."""


def parse_lengths(text: str) -> list[int | str]:
    """ "0,64,full,auto" → [0, 64, "full", "auto"]. Raises ValueError for anything else."""
    lengths: list[int | str] = []
    for part in (part.strip() for part in text.split(",")):
        if part in WORDS:
            lengths.append(part)
        elif part.isdecimal():
            lengths.append(int(part))
        else:
            raise ValueError(f"--lengths takes numbers, auto and full separated by commas, got {part!r}")
    return lengths


def latency(call: Callable[[int], object], *, timing: Timing) -> dict[str, float | int]:
    """Percentiles of the wall time of `call(run number)`, in ms.

    At least 3 runs are timed, whatever the time box. Percentiles are the nearest rank: each is a run that happened.
    """
    for run in range(timing.warm_up):
        call(run)
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 3 or (len(seconds) < timing.runs and time.perf_counter() - begun < timing.time_box):
        start = time.perf_counter()
        call(len(seconds))
        seconds.append(time.perf_counter() - start)
    ranked = sorted(seconds)
    ranks = {f"p{percent}": ranked[-(-percent * len(ranked) // 100) - 1] * 1000 for percent in (50, 90, 99)}
    return {**ranks, "runs": len(ranked)}


def sweep(
    codec: VideoCodec,
    clips: Sequence[npt.NDArray[np.uint8]],
    *,
    lengths: Sequence[int | str],
    steps: Sequence[int],
    fps: float,
    seed: int,
    timing: Timing,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Measure every length × step count.

    clips: each (T, H, W, 3) uint8 and of one size; PSNR pools them, timed runs take them in turn. fps: for the
    resolution tokens and the real-time factor. advance: called with 1 after each row. Returns rows ready for JSON.
    """
    from onedva_runtime.metrics import psnr

    frames, height, width = clips[0].shape[:3]
    rows: list[dict[str, Any]] = []
    for length in lengths:
        tokens = codec.max_tokens if length == "full" else length

        def encode(run: int, tokens: int | str = tokens) -> object:
            return codec.encode_clip(clips[run % len(clips)], tokens=tokens, fps=fps)

        encode_ms = latency(encode, timing=timing)
        packets = [codec.encode_clip(clip, tokens=tokens, fps=fps) for clip in clips]
        for num_steps in steps:

            def decode(run: int, num_steps: int = num_steps, packets: list = packets) -> object:
                return codec.decode_clip(packets[run % len(packets)], num_steps=num_steps, seed=seed)

            decoded = [codec.decode_clip(packet, num_steps=num_steps, seed=seed) for packet in packets]
            values = [min(PSNR_CAP, float(psnr(clip, out))) for clip, out in zip(clips, decoded, strict=True)]
            decode_ms = latency(decode, timing=timing)
            per_second = 1000 * frames / decode_ms["p50"]
            rows.append(
                {
                    "length": str(length),
                    "tokens": sum(packet.tokens for packet in packets) / len(packets),
                    "steps": num_steps,
                    "psnr_db": pooled_psnr(values, [len(clip) for clip in clips]),
                    "encode_ms": encode_ms,
                    "decode_ms": decode_ms,
                    "decode_fps": per_second,
                    "decode_mpx_s": per_second * height * width / 1e6,
                    "real_time_factor": 1000 * frames / fps / (encode_ms["p50"] + decode_ms["p50"]),
                    "rss_mb": memory_mb()[0],
                }
            )
            advance(1)
    return rows


def sweep_tables(rows: Sequence[dict[str, Any]], *, title: str) -> list[Table]:
    """The rows of `sweep` for people: encode and decode apart, since steps do not touch encoding."""
    first = [row for row in rows if row["steps"] == rows[0]["steps"]]
    encode = Table(
        title=f"{title}: encode",
        columns=["latents", "p50 p90 p99 ms", "runs"],
        rows=[[length_label(row), _percentiles(row["encode_ms"]), str(row["encode_ms"]["runs"])] for row in first],
    )
    decode = Table(
        title=f"{title}: decode (× real time counts encode and decode)",
        columns=["latents", "steps", "PSNR dB", "p50 p90 p99 ms", "runs", "fps", "Mpx/s", "× real time"],
        rows=[
            [
                length_label(row),
                str(row["steps"]),
                f"{row['psnr_db']:.2f}",
                _percentiles(row["decode_ms"]),
                str(row["decode_ms"]["runs"]),
                f"{row['decode_fps']:.1f}",
                f"{row['decode_mpx_s']:.2f}",
                f"{row['real_time_factor']:.2f}",
            ]
            for row in rows
        ],
    )
    return [encode, decode]


def _percentiles(timing: dict[str, float]) -> str:
    return "/".join(f"{timing[name]:.0f}" for name in ("p50", "p90", "p99"))


def length_label(row: dict[str, Any]) -> str:
    """The length as asked for and as it came out: "64", "full (1024)", "256 (48)"."""
    came = f"{row['tokens']:.0f}"
    return came if row["length"] == came else f"{row['length']} ({came})"
