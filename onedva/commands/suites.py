"""The suites of `onedva bench` beside latency: `stream` (files in and out, each verb a process of its own), `cold` (a
fresh process up to its first clip) and `quality` (every backend and dtype against PyTorch in float32). Each returns
rows ready for JSON; `suite_table` shows them."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onedva.commands.tables import Table
from onedva_runtime.errors import OneDVAError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from onedva.commands.coding import CodecChoice

__all__ = ["SUITES", "cold_rows", "options_of", "quality_rows", "stream_rows", "suite_table"]

SUITES = ("latency", "stream", "cold", "quality")
STREAM_SECONDS = 10.0
COLD_RUNS = 3
COLD = """
import json, sys, time
start = time.perf_counter()
from onedva_runtime import VideoCodec
from onedva_runtime.clips import make_clip
imported = time.perf_counter()
options = json.loads(sys.argv[1])
codec = VideoCodec.from_pretrained(options.pop("model"), **options)
loaded = time.perf_counter()
frames = make_clip(codec.clip_frames, {height}, {width})
made = time.perf_counter()
packet = codec.encode_clip(frames, tokens={tokens})
encoded = time.perf_counter()
codec.decode_clip(packet)
end = time.perf_counter()
print(json.dumps({{
    "backend": codec.info()["backend"], "dtype": codec.info()["dtype"], "import_s": imported - start,
    "load_s": loaded - imported, "encode_s": encoded - made, "decode_s": end - encoded,
    "total_s": end - start - (made - loaded),
}}))
"""


def options_of(choice: CodecChoice) -> list[str]:
    """The choice as options of the command line."""
    options = ["-m", choice.model, "--backend", choice.backend, "--dtype", choice.dtype, "--device", choice.device]
    return options + ([] if choice.threads is None else ["--threads", str(choice.threads)])


def stream_rows(
    choice: CodecChoice, source: Path | None, *, width: int, height: int, tokens: str, seconds: float = STREAM_SECONDS
) -> list[dict[str, Any]]:
    """Video file → .odva → video file by the verbs `encode` and `decode`, one step, each in a process of its own.

    source: its first `seconds` are taken, fitted to the size; a made-up video otherwise. Rows say real-time factor (the
    video's length over the time of the verb's work, and with start-up), CPU seconds and highest memory of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        video, coded, decoded = (Path(folder) / name for name in ("in.mp4", "coded.odva", "out.mp4"))
        length = _write_input(video, source, width=width, height=height, seconds=seconds)
        choice.open()  # what is measured or compiled once is, before the clock runs
        rows = [
            _verb_row("encode", [str(video), str(coded), "--tokens", tokens], choice, length),
            _verb_row("decode", [str(coded), str(decoded)], choice, length),
        ]
        first = _first_frame(choice, video, tokens)
    work = sum(row["work_s"] for row in rows)
    both = {
        "what": "encode + decode", "size": f"{width}x{height}", "video_s": length, "work_s": work,
        "wall_s": sum(row["wall_s"] for row in rows), "real_time_factor": length / work,
        "cpu_s": sum(row["cpu_s"] for row in rows), "peak_rss_mb": max(row["peak_rss_mb"] for row in rows),
        "first_frame_s": first,
    }  # fmt: skip
    return [{**row, "size": f"{width}x{height}"} for row in rows] + [both]


def _write_input(path: Path, source: Path | None, *, width: int, height: int, seconds: float) -> float:
    """The video to stream; returns its length in seconds."""
    from onedva.commands.fit import fit_frames
    from onedva_runtime.clips import make_clip
    from onedva_runtime.video_io import VideoWriter, probe, read_video

    fps = Fraction(24) if source is None else probe(source).fps
    count = max(1, round(seconds * fps))
    if source is None:
        frames = make_clip(count, height, width)
    else:
        frames = fit_frames(read_video(source, max_frames=count).frames, width=width, height=height)
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        writer.write(frames)
    return float(len(frames) / fps)


def _verb_row(verb: str, arguments: Sequence[str], choice: CodecChoice, length: float) -> dict[str, Any]:
    """One verb in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    document = _run_json(["-m", "onedva.cli", verb, *arguments, *options_of(choice), "--json", "--quiet"])
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "what": verb, "video_s": length, "work_s": document["seconds"], "wall_s": wall,
        "real_time_factor": length / document["seconds"], "cpu_s": cpu,
        "peak_rss_mb": after.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6,
    }  # fmt: skip


def _run_json(arguments: Sequence[str]) -> dict[str, Any]:
    """What a Python process prints on stdout, a JSON document. Raises OneDVAError where it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OneDVAError(f"the measured process failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def _first_frame(choice: CodecChoice, video: Path, tokens: str) -> float:
    """Seconds from opening a video to its first decoded frames, the codec being open and warm."""
    from onedva_runtime.video_io import open_reader

    codec = choice.open()
    for _ in range(2):
        start = time.perf_counter()
        with open_reader(video, batch=codec.clip_frames) as reader, codec.open_encoder(tokens=tokens) as encoder:
            frames, _ = next(iter(reader))
            packets = [*encoder.push(frames), *encoder.flush()]
            codec.decode_clip(packets[0])
        seconds = time.perf_counter() - start
    return seconds


def cold_rows(choice: CodecChoice, *, width: int, height: int, runs: int = COLD_RUNS) -> list[dict[str, Any]]:
    """Fresh processes: import, load, first encode and first decode of a clip, in seconds, the median run of `runs`.

    What is made once per machine (measured choice, compiled graphs) is made before, by a run that is not counted.
    """
    code = COLD.format(width=width, height=height, tokens=256)
    options = {"model": choice.model, "backend": choice.backend, "dtype": choice.dtype, "device": choice.device}
    given = json.dumps({**options, "threads": choice.threads})
    once, *measured = [_run_json(["-c", code, given]) for _ in range(1 + runs)]
    middle = sorted(measured, key=lambda row: row["total_s"])[len(measured) // 2]
    return [
        {"what": "the run before, not counted", **once},
        {"what": "cold start", **middle, "least_s": min(row["total_s"] for row in measured)},
    ]


def quality_rows(
    choice: CodecChoice, clips: Sequence[npt.NDArray[np.uint8]], *, lengths: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """PSNR in dB, over clips the mean and the least, of each usable backend and dtype against PyTorch in float32.

    clips: (T, H, W, 3) uint8 of multiples of 16. Both encode and decode with one step, each with its own latents.
    Raises OneDVAError where PyTorch is missing.
    """
    from dataclasses import replace

    from onedva_runtime.backends import available
    from onedva_runtime.metrics import psnr

    reference = _pytorch_decodes(choice.model, clips, lengths, seed)
    rows: list[dict[str, Any]] = []
    for status in available():
        for dtype in status.dtypes if status.usable else ():
            codec = replace(choice, backend=status.name, dtype=dtype).open()
            for length in lengths:
                values = []
                for index, clip in enumerate(clips):
                    decoded = codec.decode_clip(codec.encode_clip(clip, tokens=length), seed=seed)
                    values.append(min(100.0, float(psnr(decoded, reference[length, index]))))
                rows.append(
                    {
                        "what": "PSNR against PyTorch fp32", "backend": status.name, "dtype": dtype,
                        "length": str(length), "mean_db": sum(values) / len(values), "least_db": min(values),
                        "clips": len(values),
                    }
                )  # fmt: skip
    return rows


def _pytorch_decodes(
    model_name: str, clips: Sequence[npt.NDArray[np.uint8]], lengths: Sequence[int], seed: int
) -> dict[tuple[int, int], npt.NDArray[np.uint8]]:
    """What PyTorch decodes for (length, clip number)."""
    try:
        import torch
    except ModuleNotFoundError:
        raise OneDVAError("the quality suite compares with PyTorch: pip install 'onedva[train]'") from None
    from onedva.model import OneDVA, to_frames, to_video
    from onedva_runtime.noise import gaussian

    model = OneDVA.from_pretrained(model_name).eval()
    decodes = {}
    with torch.inference_mode():
        for index, clip in enumerate(clips):
            shape = dict(zip(("frames", "height", "width"), clip.shape[:3], strict=True))
            noise = torch.from_numpy(gaussian(seed, first_frame=0, **shape))[None]
            latents = model.encode(to_video(torch.from_numpy(clip)[None]), follow_camera=True).latent_dist.mode()
            for length in lengths:
                decodes[length, index] = to_frames(model.decode(latents.thin(length), noise=noise).sample)[0]
    return decodes


def suite_table(rows: Sequence[dict[str, Any]], *, title: str) -> Table:
    """Rows of one suite for people: every name that any row has is a column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    return Table(title=title, columns=[name.replace("_", " ") for name in columns], rows=cells)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
