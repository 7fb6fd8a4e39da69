"""A camera through the codec, live: what it sees, and what a receiver would see of it after a short delay.

    python examples/camera.py                    # /dev/video0, or the first camera of macOS or Windows
    python examples/camera.py --device FILE      # a video file, at its own rate, in place of a camera
    python examples/camera.py -o seen.mp4        # what a receiver would see, as a file

Prints bits, latents and delay of every clip. Frames that come while the machine is behind are left out at the source,
where that is honest, never in between.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from onedva import VideoCodec
from onedva_runtime.container_packet import encode_packet, join
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.video_io import VideoWriter

CAMERAS = {"linux": ("v4l2", "/dev/video0"), "darwin": ("avfoundation", "default"), "win32": ("dshow", "video=0")}


def opened(device: str | None) -> Any:
    """A camera, or a file. Ends the program where there is none."""
    kind, default = CAMERAS.get(sys.platform, (None, ""))
    try:
        return av.open(device or default, format=None if _is_file(device) else kind)
    except (OSError, ValueError) as error:  # av's errors are these
        raise SystemExit(f"{device or default}: no camera and no video file: {error}") from None


def frames(device: str | None, *, side: int, seconds: float, fps: float) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of a camera, or of a file at its own rate, with the longer side as asked, for some seconds."""
    is_file = _is_file(device)
    with opened(device) as container:
        start, number = time.monotonic(), 0
        for frame in container.decode(video=0):
            scale = side / max(frame.width, frame.height)
            size = {"width": max(16, round(frame.width * scale)), "height": max(16, round(frame.height * scale))}
            now = time.monotonic() - start
            if now > seconds:
                return
            if is_file:
                time.sleep(max(0.0, number / fps - now))
            elif now < number / fps:  # the camera is faster than asked for
                continue
            number += 1
            yield frame.to_ndarray(format="rgb24", **size)


def run(options: argparse.Namespace) -> int:
    """Show what becomes of each clip; return how many frames came through."""
    codec = VideoCodec.from_pretrained("tiny", backend=options.backend)
    quantiser, writer, shown = codec.quantiser(), None, 0
    fps = options.fps or rate_of(options.device)
    seen = {"side": options.side, "seconds": options.seconds, "fps": fps}
    with codec.open_encoder(fps=fps, tokens=options.tokens) as encoder, codec.open_decoder() as decoder:
        sent_at: list[float] = []
        for frame in _with_end(frames(options.device, **seen)):
            if frame is not None:
                sent_at.append(time.monotonic())
            for packet in encoder.flush() if frame is None else encoder.push(frame[None]):
                bits = 8 * len(join(encode_packet(packet, quantiser, TABLES)))
                for out in decoder.push(quantiser.apply(packet)):
                    delay = time.monotonic() - sent_at[packet.first_frame]
                    print(f"frame {packet.first_frame}: {packet.tokens} latents, {bits} bits, {1e3 * delay:.0f} ms")
                    shown += len(out)
                    if options.output is not None:
                        if writer is None:
                            height, width = out.shape[1:3]
                            rate = Fraction(fps).limit_denominator(1001)
                            writer = VideoWriter(options.output, width=width, height=height, fps=rate)
                        writer.write(out)
    if writer is not None:
        writer.close()
    return shown


def rate_of(device: str | None) -> float:
    """Frames per second: a file's own, 24 of a camera."""
    if not _is_file(device):
        return 24.0
    with opened(device) as container:
        return float(container.streams.video[0].average_rate or 24)


def _is_file(device: str | None) -> bool:
    return device is not None and Path(device).is_file()


def _with_end(source: Iterator[np.ndarray]) -> Iterator[np.ndarray | None]:
    """The frames, and None after the last."""
    yield from source
    yield None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", help="a camera, or a video file")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--fps", type=float, help="of a camera 24, of a file its own, unless given")
    parser.add_argument("--side", type=int, default=128, help="pixels of the longer side")
    parser.add_argument("--tokens", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    print(f"{run(options)} frames")


if __name__ == "__main__":
    main()
