"""Everything that there is to measure on a GPU, in one run of a few minutes, offline: the kernels, PyTorch's own ways
of running the same model, the runtime's GPU backends where they are installed, and other decoders where diffusers is.

    make gpu                                                    # builds, tests, then this
    python bench/gpu.py -o docs/benchmarks-gpu.json             # PYTHONPATH must hold the built package
    python bench/gpu.py --device cpu --quick -o /tmp/try.json   # shows on a CPU that it works

What cannot be measured stands in the JSON with why. Times are medians and 99th percentiles of CUDA events around one
call, inputs on the device, after warm-up; random inputs, never zeros.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_kernels import kernel_rows, loop_rows

from onedva.config import PRESETS
from onedva.model import OneDVA, to_video
from onedva.one_step import one_step
from onedva_runtime.clips import make_clip
from onedva_runtime.sampler import moving_timesteps
from onedva_runtime.tiles import plan_tiles

FRAMES, SIDE = 17, 256
TILE_POSITIONS = 720  # per group: what the runtime cuts large frames into
COMPILED = ["compiled bf16", "compiled, CUDA graphs, bf16"]
BARS_MS = {"tiny": 5.0, "base": 15.0}  # decode of 17×256×256 in one step on an H100-class card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--presets", default="tiny,base", help="tiny has its weights, others random ones")
    parser.add_argument("--lengths", default="64,256,1024")
    parser.add_argument("--steps", default="1,2,4")
    parser.add_argument("--time-box", type=float, default=2.0, help="seconds per cell")
    parser.add_argument("--quick", action="store_true", help="a small clip, few runs, no compilation")
    options = parser.parse_args()
    bench = Bench(options)
    for name, part in {
        "provenance": bench.provenance,
        "rates": bench.rates,
        "kernels": bench.kernels,
        "pytorch": bench.pytorch,
        "backends": bench.backends,
        "peers": bench.peers,
    }.items():
        print(f"{name} …", file=sys.stderr)
        bench.results[name] = attempt(part)
        options.output.write_text(json.dumps(bench.results, indent=2) + "\n")  # a run cut short leaves what it has
    bench.show()


def attempt(part: Callable[[], Any]) -> Any:
    """What a part measured, or why it could not: one part's trouble is not another's."""
    try:
        return part()
    except Exception as error:
        return {"not_measured": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.frames, self.side = (5, 64) if options.quick else (FRAMES, SIDE)
        self.results: dict[str, Any] = {"bars_ms": BARS_MS}

    def numbers(self, name: str) -> list[int]:
        return [int(part) for part in getattr(self.options, name).split(",")]

    def timed(self, call: Callable[[], object]) -> dict[str, float]:
        """Median and 99th percentile in ms of one call: 3 to 200 runs within the time box, after 5 to warm up."""
        for _ in range(1 if self.options.quick else 5):
            call()
        found: list[float] = []
        begun = time.perf_counter()
        most = 3 if self.options.quick else 200
        while len(found) < 3 or (len(found) < most and time.perf_counter() - begun < self.options.time_box):
            if self.cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                found.append(start.elapsed_time(end))
            else:
                at = time.perf_counter()
                call()
                found.append(1e3 * (time.perf_counter() - at))
        return {
            "p50_ms": round(statistics.median(found), 4),
            "p99_ms": round(float(np.percentile(found, 99)), 4),
            "runs": len(found),
        }

    def provenance(self) -> dict[str, Any]:
        from onedva.commands.provenance import provenance
        from onedva_runtime.noise import native

        module = native()
        facts: dict[str, Any] = {**provenance(threads=None), "torch": torch.__version__, "cuda": torch.version.cuda}
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            facts["gpu"] = properties.name
            facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
            facts["multiprocessors"] = properties.multi_processor_count
        facts["kernels"] = getattr(module, "cuda_architectures", None) if module else None
        return facts

    def rates(self) -> dict[str, Any]:
        """What this card can do: bf16 products, and copies counted as bytes read and written."""
        size, length = (512, 1 << 20) if self.options.quick else (8192, 1 << 30)
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        matmul = self.timed(lambda: a @ b)
        source = torch.randint(0, 255, (length,), device=self.device, dtype=torch.uint8)
        target = torch.empty_like(source)
        copy = self.timed(lambda: target.copy_(source))
        return {
            "bf16_matmul": {**matmul, "size": size, "tflops": round(2 * size**3 / matmul["p50_ms"] / 1e9, 1)},
            "copy": {**copy, "gb_per_s": round(2 * length / copy["p50_ms"] / 1e6, 1)},
        }

    def kernels(self) -> dict[str, Any]:
        """The extension's kernels, and the loop around them."""
        sizes = [(self.frames, self.side, self.side), (self.frames, 720, 1280)]
        return {
            "rows": kernel_rows(self.timed, self.results["rates"]["copy"]["gb_per_s"], sizes),
            "loop": attempt(lambda: loop_rows(self.timed, sizes[0])),
        }

    def pytorch(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for preset in self.options.presets.split(","):
            net = self.model(preset)
            sizes = [(self.frames, self.side, self.side, 1)]
            if not self.options.quick:
                tile = plan_tiles(720, 1280, positions=TILE_POSITIONS)
                sizes.append((FRAMES, 16 * -(-tile[0].height // 16), 16 * -(-tile[0].width // 16), len(tile)))
            for size in sizes:
                for way in ("eager fp32", "eager bf16", *([] if self.options.quick else COMPILED)):
                    found = attempt(lambda net=net, size=size, way=way: self.cells(net, size, way))
                    known = {"model": preset, "way": way, "size": "×".join(map(str, size[:3])), "batch": size[3]}
                    rows += [{**known, **row} for row in (found if isinstance(found, list) else [found])]
        return rows

    def model(self, preset: str) -> OneDVA:
        if preset == "tiny":
            return OneDVA.from_pretrained("tiny").eval().to(self.device)
        torch.manual_seed(0)
        config = PRESETS[preset]
        if self.options.quick:
            config = replace(config, encoder_depth=1, stem_depth=1, diffusion_depth=1)
        net = OneDVA(config)
        if net.transform is not None:
            net.transform.start_random()
        return net.eval().to(self.device)

    @torch.inference_mode()
    def cells(self, net: OneDVA, size: tuple[int, int, int, int], way: str) -> list[dict[str, Any]]:
        """Encode and decode at every length and number of steps, one way."""
        frames, height, width, batch = size
        dtype = torch.bfloat16 if way.endswith("bf16") else torch.float32
        clips = np.stack([make_clip(frames, height, width, seed=seed) for seed in range(batch)])
        video = to_video(torch.from_numpy(clips)).to(self.device)
        noise = torch.randn(video.shape, device=self.device)
        positions = (1 + (frames - 1) // 4) * (height // 16) * (width // 16)
        encode, decode = net.encode, Decoding(net, dtype)
        if way.startswith("compiled"):
            torch._dynamo.reset()
            decode.compile("reduce-overhead" if "graphs" in way else "default")
        rows, longest = [], min(positions, net.config.trained_tokens)
        for tokens in sorted({min(length, longest) for length in self.numbers("lengths")}):
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                z = encode(video, tokens=tokens).latent_dist.mode()
                timing = self.timed(lambda tokens=tokens: encode(video, tokens=tokens))
                rows.append({"what": "encode", "tokens": tokens, **timing, **self.speed(video, timing)})
                for steps in self.numbers("steps"):
                    if self.cuda:
                        torch.cuda.reset_peak_memory_stats()
                    timing = self.timed(lambda z=z, steps=steps: decode(z, noise, steps))
                    row = {"what": "decode", "tokens": tokens, "steps": steps, **timing, **self.speed(video, timing)}
                    if self.cuda:
                        row["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
                    rows.append(row)
        return rows

    @staticmethod
    def speed(video: torch.Tensor, timing: dict[str, float]) -> dict[str, float]:
        pixels = video.shape[0] * video.shape[2] * video.shape[3] * video.shape[4]
        return {"mpx_per_s": round(pixels / timing["p50_ms"] / 1e3, 1)}

    def backends(self) -> dict[str, Any]:
        """The runtime's GPU backends end to end: NumPy in, NumPy out."""
        from onedva_runtime import VideoCodec
        from onedva_runtime.backends import available

        found: dict[str, Any] = {}
        for status in available():
            if status.device != "cuda":
                continue
            if not status.usable:
                found[status.name] = {"not_measured": status.reason}
                continue
            for dtype in status.dtypes:
                name = f"{status.name} {dtype}"
                found[name] = attempt(
                    lambda s=status, d=dtype: self.codec_rows(VideoCodec.from_pretrained(backend=s.name, dtype=d))
                )
        return found

    def codec_rows(self, codec: Any) -> list[dict[str, Any]]:
        clip, rows = make_clip(self.frames, self.side, self.side), []
        for tokens in self.numbers("lengths"):
            packet = codec.encode_clip(clip, tokens=tokens)
            rows.append(
                {"what": "encode", "tokens": tokens, **self.timed(lambda t=tokens: codec.encode_clip(clip, tokens=t))}
            )
            for steps in self.numbers("steps"):
                timing = self.timed(lambda p=packet, s=steps: codec.decode_clip(p, num_steps=s))
                rows.append({"what": "decode", "tokens": tokens, "steps": steps, **timing})
        return [*rows, {"what": "selftest", "cases": codec.selftest()}]

    @torch.inference_mode()
    def peers(self) -> list[dict[str, Any]]:
        import diffusers
        from peers import PEERS

        rows = []
        for name, (_, latent, compression, _) in PEERS.items():
            for dtype in (torch.float32, torch.bfloat16):

                def measure(name: str = name, latent: Any = latent, dtype: torch.dtype = dtype) -> dict[str, float]:
                    net = getattr(diffusers, name)().eval().to(self.device, dtype)
                    z = torch.randn(1, *latent, device=self.device, dtype=dtype)
                    return self.timed(lambda: net.decode(z).sample)

                rows.append({"name": name, "dtype": str(dtype), "compression": compression, "decode": attempt(measure)})
        return rows

    def show(self) -> None:
        for row in self.results["pytorch"]:
            if row.get("what") == "decode" or "not_measured" in row:
                print({key: value for key, value in row.items() if key not in ("runs",)})
        for name in ("rates", "kernels", "backends", "peers"):
            print(name, json.dumps(self.results[name])[:2000])


class Decoding:
    """A decode in PyTorch as the runtime does it: one graph for one step, else condition and velocity per step."""

    def __init__(self, net: OneDVA, dtype: torch.dtype) -> None:
        self.net, self.dtype = net, dtype
        self.condition, self.velocity, self.whole = net.decoder.condition, net.decoder.velocity, one_step

    def compile(self, mode: str) -> None:
        parts = (self.condition, self.velocity, self.whole)
        self.condition, self.velocity, self.whole = (torch.compile(part, mode=mode) for part in parts)

    def __call__(self, z: Any, noise: torch.Tensor, steps: int) -> torch.Tensor:
        net, device, batch = self.net, noise.device, noise.shape[0]
        transform = net.transform
        is_key = torch.ones(batch, dtype=torch.bool, device=device)
        resolution = torch.tensor([[*noise.shape[2:], 24.0]], device=device).repeat(batch, 1)
        latents = (z.structural, z.latents, z.anchors, torch.ones_like(is_key), resolution, is_key)
        condition = self.condition(*latents, transform)
        if steps == 1 and transform is not None:
            frame = torch.zeros(batch, *noise.shape[3:], 3, dtype=torch.uint8, device=device)
            return self.whole(net.decoder, condition, is_key, frame, transform)
        video, groups = noise.clone(), z.structural.shape[1]
        for now, after in zip(
            *(moving_timesteps(steps, min_t=0.05)[s] for s in (slice(-1), slice(1, None))), strict=True
        ):
            t = torch.full((batch, groups), float(now), device=device)
            video += float(after - now) * self.velocity(video, t, condition, transform)
        return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


if __name__ == "__main__":
    main()
