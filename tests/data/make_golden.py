"""Made tests/data/golden.odva and golden.json with version 2 of the format and tiny-v2, once:

    python tests/data/make_golden.py

Files that exist must be read for ever, so nobody runs this again for a change that is meant to keep the format.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from onedva_runtime import VideoCodec
from onedva_runtime.clips import make_clip
from onedva_runtime.container import load_packets, save_packets
from onedva_runtime.packet import Packet

HERE = Path(__file__).parent


def facts(packet: Packet) -> dict[str, object]:
    """What golden.json says of a packet: arrays by the sha256 of their bytes."""
    arrays = (packet.structural.astype("<f4"), packet.latents.astype("<f4"), packet.anchors.astype("<i8"))
    assert packet.timestamps is not None and packet.predicted_error is not None
    return {
        **{name: getattr(packet, name) for name in ("frames", "first_frame", "is_key", "height", "width", "tokens")},
        "corner": list(packet.corner),
        "timestamps": packet.timestamps.tolist(),
        "last_error": float(packet.predicted_error[-1]),
        "sha256": [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays],
    }


def main() -> None:
    codec = VideoCodec.from_pretrained("tiny", threads=1)
    frames = make_clip(30, 100, 112, seed=5)
    times = np.cumsum(np.random.default_rng(0).integers(500, 1500, 26))  # a variable rate
    key = codec.encode_clip(frames[:17], tokens=112)
    other = codec.encode_clip(frames[16:25], tokens=64, first_frame=17)  # 8 new frames, and what a context would be
    structural = other.structural.copy()
    structural[0] = 0
    coded = other.anchors >= structural.shape[1] * structural.shape[2]
    assert other.predicted_error is not None
    continued = replace(
        other,
        structural=structural,
        latents=other.latents[coded],
        anchors=other.anchors[coded],
        predicted_error=other.predicted_error[coded],
        is_key=False,
        frames=8,
    )
    end = codec.encode_clip(frames[25:26], tokens=16, first_frame=25)
    packets = [
        replace(packet, timestamps=times[packet.first_frame :][: packet.frames], time_base=Fraction(1, 24000))
        for packet in (key, continued, end)
    ]
    tiles = [
        replace(packet, corner=corner, frame_size=(100, 176)) for packet in packets for corner in ((0, 0), (0, 64))
    ]
    quantiser = codec.quantiser(step=0.25)
    save_packets(HERE / "golden.odva", tiles, quantiser=quantiser, fps=Fraction(24), colour="golden", overwrite=True)
    loaded = load_packets(HERE / "golden.odva").packets
    (HERE / "golden.json").write_text(json.dumps([facts(packet) for packet in loaded], indent=1) + "\n")


if __name__ == "__main__":
    main()
