"""The codec inside an asyncio service: many streams, one codec, and a loop that is never held up.

    python examples/asyncio_service.py [--streams 3] [--seconds 2]

Each stream is a task. What takes time runs in threads, which the codec shares fairly; a bounded queue in front of each
stream's encoder holds up its source when the machine is behind. Prints what each stream took.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np

from onedva import VideoCodec
from onedva_runtime.clips import make_clip

FPS = 24


async def camera(seed: int, seconds: float) -> AsyncIterator[np.ndarray]:
    """Frames (H, W, 3) at their rate, as a camera or a network gives them."""
    frames = await asyncio.to_thread(make_clip, round(seconds * FPS), 96, 128, seed=seed)
    start = time.monotonic()
    for number, frame in enumerate(frames):
        await asyncio.sleep(max(0.0, start + number / FPS - time.monotonic()))
        yield frame


async def stream(codec: VideoCodec, seed: int, seconds: float) -> tuple[int, int, float]:
    """Encode and decode one stream; return frames sent, frames shown, and the longest wait of the loop."""
    queue: asyncio.Queue[np.ndarray | None] = asyncio.Queue(maxsize=FPS)  # a second: then the source waits

    async def source() -> None:
        async for frame in camera(seed, seconds):
            await queue.put(frame)
        await queue.put(None)

    sent = shown = 0
    worst = 0.0
    reading = asyncio.create_task(source())
    with codec.open_encoder(fps=FPS, tokens="auto") as encoder, codec.open_decoder() as decoder:
        while True:
            frame = await queue.get()
            sent += frame is not None
            start = time.monotonic()
            push = encoder.flush if frame is None else (lambda frame=frame: encoder.push(frame[None]))
            for packet in await asyncio.to_thread(push):  # this is where packets would be sent on
                for frames in await asyncio.to_thread(decoder.push, packet):
                    shown += len(frames)
            worst = max(worst, time.monotonic() - start)
            if frame is None:
                break
    await reading
    return sent, shown, worst


async def watch(tick: float = 0.01) -> float:
    """How long the loop was held up at most, until it is cancelled."""
    worst = 0.0
    try:
        while True:
            start = time.monotonic()
            await asyncio.sleep(tick)
            worst = max(worst, time.monotonic() - start - tick)
    except asyncio.CancelledError:
        return worst


async def run(streams: int, seconds: float) -> bool:
    """All streams at a time; return whether every frame came back."""
    codec = await asyncio.to_thread(VideoCodec.from_pretrained, "tiny", backend="onnxruntime")
    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*(stream(codec, seed, seconds) for seed in range(streams)))
    watching.cancel()
    for number, (sent, shown, worst) in enumerate(results):
        print(f"stream {number}: {sent} frames sent, {shown} shown, {1e3 * worst:.0f} ms for the slowest push")
    print(f"the loop was held up for {1e3 * await watching:.0f} ms at most")
    return all(sent == shown for sent, shown, _ in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    raise SystemExit(0 if asyncio.run(run(options.streams, options.seconds)) else 1)


if __name__ == "__main__":
    main()
