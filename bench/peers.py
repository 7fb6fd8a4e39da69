"""The same clip size through what users would pick instead, in PyTorch fp32 on this machine, beside onedva in one run.

    pip install -e '.[peers]'
    python bench/peers.py            # rows as JSON on stdout
    python bench/peers.py --quick    # the small ones only

Peers have random weights (time does not depend on them) at the sizes of the published ones, which the parameter counts
show; their PSNR is what others measured. Decoders of diffusers run without tiling and slicing, their defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from timing import timed

FRAMES, HEIGHT, WIDTH = 17, 256, 256
# class of diffusers; parameters of the published model in millions; latent (channels, T, H, W) of the clip; compression
# in time × height × width; PSNR that others report, with where
PEERS: dict[str, tuple[float, tuple[int, ...], str, str]] = {
    "AutoencoderKLLTXVideo": (419, (128, 3, 8, 8), "8×32×32, 128 channels", "not in our sources"),
    "AutoencoderKLCosmos": (106, (16, 3, 32, 32), "8×8×8, 16 channels", "not in our sources"),
    "AutoencoderKLWan": (
        127,
        (16, 5, 32, 32),
        "4×8×8, 16 channels",
        "not in our sources; 33.78 dB for Wan2.2's 4×16×16",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="tiny", help="onedva's model")
    parser.add_argument("--tokens", type=int, default=256, help="1D latents per clip of onedva")
    parser.add_argument("--quick", action="store_true", help="leave out Wan and torch.compile")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = onedva_rows(options.model, options.tokens)
    rows += pytorch_rows(options.model, options.tokens, compiled=not options.quick)
    for name, facts in PEERS.items():
        if options.quick and name == "AutoencoderKLWan":
            continue
        print(f"{name} …", file=sys.stderr)
        rows.append(peer_row(name, *facts))
    rows += onedva_rows(options.model, options.tokens)  # again, so that a machine that slowed down meanwhile shows
    print(json.dumps({"threads": torch.get_num_threads(), "matmul": matmul_rates(), "rows": rows}, indent=2))


def onedva_rows(model: str, tokens: int) -> list[dict[str, Any]]:
    """onedva's codec with its automatic backend: one clip at a time, and batches of four."""
    from onedva_runtime import VideoCodec
    from onedva_runtime.clips import make_clip

    codec = VideoCodec.from_pretrained(model)
    info = codec.info()
    clip = make_clip(FRAMES, HEIGHT, WIDTH)
    packet = codec.encode_clip(clip, tokens=tokens)
    facts = {
        "name": f"onedva {codec.name}, {info['backend']} {info['dtype']}",
        "parameters_m": info["parameters"] / 1e6,
        "compression": f"4×16×16, 32 channels, and {tokens} latents of 64",
    }
    rows = []
    for batch in (1, 4):
        encode = timed(lambda n=batch: codec.encode_clips([clip] * n, tokens=tokens, batch_size=n))
        decode = timed(lambda n=batch: codec.decode_clips([packet] * n, batch_size=n))
        rows.append({**facts, "batch": batch, "encode": encode, "decode": decode})
    return rows


def pytorch_rows(model: str, tokens: int, *, compiled: bool) -> list[dict[str, Any]]:
    """The same model in PyTorch: eager, and with torch.compile."""
    import torch

    from onedva import OneDVA
    from onedva.model import to_video
    from onedva_runtime.clips import make_clip

    net = OneDVA.from_pretrained(model).eval()
    video = to_video(torch.from_numpy(make_clip(FRAMES, HEIGHT, WIDTH))[None])
    rows = []
    with torch.inference_mode():
        latents = net.encode(video, tokens=tokens).latent_dist.mode()
        noise = torch.randn(video.shape)
        for way in ("eager", *(["torch.compile"] if compiled else [])):
            if way == "torch.compile":
                net.encoder, net.decoder.condition, net.decoder.velocity = (  # type: ignore[method-assign]
                    torch.compile(part) for part in (net.encoder, net.decoder.condition, net.decoder.velocity)
                )
            encode = timed(lambda: net.encode(video, tokens=tokens))
            decode = timed(lambda: net.decode(latents, num_steps=1, noise=noise))
            rows.append(
                {
                    "name": f"the same model, PyTorch fp32 {way}", "parameters_m": net.parameters_count / 1e6,
                    "compression": "the same", "batch": 1, "encode": encode, "decode": decode,
                }
            )  # fmt: skip
    return rows


def peer_row(name: str, published_m: float, latent: tuple[int, ...], compression: str, psnr: str) -> dict[str, Any]:
    """One decoder (and encoder) of diffusers. Raises ValueError where it has not the published model's size."""
    import diffusers
    import torch

    torch.manual_seed(0)
    net = getattr(diffusers, name)().eval()
    parameters = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    if abs(parameters - published_m) > 0.02 * published_m:
        raise ValueError(
            f"{name} has {parameters:.0f} M parameters here, {published_m:.0f} M published: see its config"
        )
    video, latents = torch.randn(1, 3, FRAMES, HEIGHT, WIDTH), torch.randn(1, *latent)
    with torch.inference_mode():
        decode = boxed(lambda: net.decode(latents).sample)
        shape = net.decode(latents).sample.shape if decode["median_s"] < 10 else video.shape
        encode = boxed(lambda: net.encode(video).latent_dist.mode())
    if shape != video.shape:
        raise ValueError(f"{name} decoded {tuple(latents.shape)} to {tuple(shape)}, wanted {tuple(video.shape)}")
    return {
        "name": f"diffusers {name} {diffusers.__version__}", "parameters_m": parameters, "compression": compression,
        "psnr": psnr, "batch": 1, "encode": encode, "decode": decode,
    }  # fmt: skip


def boxed(call: Callable[[], object]) -> dict[str, Any]:
    """As `timed`, but what takes longer than 10 s runs once, without a warm-up: by then that is no matter."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 10:
        return {"median_s": first, "least_s": first, "spread": 0.0, "runs": 1}
    return timed(call, warm_up=0, runs=5, time_box=15)


def matmul_rates() -> dict[str, float]:
    """GFLOP/s of 2048³ matrix products in PyTorch, by dtype."""
    import torch

    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, 2048, 2048).to(dtype)
        seconds = timed(lambda a=a, b=b: a @ b, warm_up=2, runs=10, time_box=5)["median_s"]
        rates[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / seconds / 1e9
    return rates


if __name__ == "__main__":
    main()
