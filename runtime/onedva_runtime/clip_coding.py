"""Clips to packets and back, many at a time: what a batch may share is sorted out here, the rest of the codec sees
lists. Free functions over an `Engine`, which is all that a codec owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend
from onedva_runtime.camera import find_camera
from onedva_runtime.clipper import Clip
from onedva_runtime.errors import PacketError
from onedva_runtime.graphs import OnTiming, decode_batch, encode_batch, timed
from onedva_runtime.limits import Limits
from onedva_runtime.manifest import Manifest
from onedva_runtime.packet import Packet, padded_grid
from onedva_runtime.prepare import (
    Decibels,
    check_clip,
    check_frame,
    check_packet,
    grouped,
    pad_clip,
    place_latents,
    shortest_prefix,
)
from onedva_runtime.seams import soften
from onedva_runtime.warp import Camera, follow, hold_still

__all__ = ["Engine", "decode_packets", "encode_clips"]

Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Engine:
    """A model on a backend, and who is told how long the stages take."""

    manifest: Manifest
    backend: Backend
    limits: Limits | None = None
    on_timing: OnTiming | None = None


def encode_clips(
    engine: Engine,
    clips: Sequence[Clip],
    *,
    budget: int | Decibels | None,
    limit: int,
    fps: float,
    time_base: Fraction | None = None,
    follow_camera: bool,
    batch_size: int = 1,
) -> list[Packet]:
    """Encode clips of any sizes, lengths and kinds; packets come in their order.

    budget: latents as `parse_tokens` gives them, at most `limit`. fps: frames per second. time_base: seconds per tick
    of the clips' time stamps. follow_camera: see `VideoCodec.encode_clip`. batch_size: most clips per run. Raises
    TypeError or ValueError for clips that the model does not take.
    """
    for clip in clips:
        check_clip(clip, engine.manifest)
    coded = [pad_clip(clip.coded_frames) for clip in clips]
    cameras: list[Camera | None] = [None] * len(clips)
    if follow_camera:
        with timed(engine.on_timing, "camera"):
            cameras = [find_camera(frames) for frames in coded]
            coded = [
                frames if camera is None else hold_still(frames, camera)
                for frames, camera in zip(coded, cameras, strict=True)
            ]
    with timed(engine.on_timing, "place"):
        anchors = [
            place_latents(frames, clip.is_key, budget, limit, engine.manifest)
            for frames, clip in zip(coded, clips, strict=True)
        ]
    packets: dict[int, Packet] = {}
    keys = [(len(places), *padded_grid(*frames.shape[:3])) for places, frames in zip(anchors, coded, strict=True)]
    for batch in grouped(keys, batch_size):
        outputs = encode_batch(
            engine.backend,
            np.stack([coded[i] for i in batch]),
            np.stack([anchors[i] for i in batch]),
            [fps] * len(batch),
            is_key=[clips[i].is_key for i in batch],
            on_timing=engine.on_timing,
        )
        for row, i in enumerate(batch):
            clip = clips[i]
            structural, latents, error = (output[row].copy() for output in outputs)
            packet = Packet(
                structural=structural,
                latents=latents,
                anchors=anchors[i],
                is_key=clip.is_key,
                frames=clip.frames.shape[0],
                height=clip.frames.shape[1],
                width=clip.frames.shape[2],
                corner=clip.corner,
                frame_size=clip.frame_size,
                fps=fps,
                first_frame=clip.first_frame,
                timestamps=clip.timestamps,
                time_base=None if clip.timestamps is None else time_base,
                camera=cameras[i],
                predicted_error=error,
                model=engine.manifest.model.fingerprint,
            )
            if isinstance(budget, Decibels) and packet.tokens:
                packet = packet.thin(shortest_prefix(error, budget, engine.manifest.lengths.length_multiple))
            packets[i] = packet
    return [packets[i] for i in range(len(clips))]


def decode_packets(
    engine: Engine,
    packets: Sequence[Packet],
    context_frames: Sequence[Uint8 | None],
    *,
    num_steps: int,
    seed: int,
    batch_size: int = 1,
) -> list[Uint8]:
    """Decode packets of any sizes, lengths and kinds to their new frames (T, H, W, 3), in their order.

    context_frames: for each continuation clip the frame (H, W, 3) decoded before it; not looked at for key clips.
    num_steps, seed: as `VideoCodec.decode_clip`; a preview (0) needs no context. batch_size: most packets per run.
    Raises PacketError for packets that are not this model's, are over the limits or lack their context, ValueError for
    one that does not fit.
    """
    for packet, context in zip(packets, context_frames, strict=True):  # before any of them is looked into
        check_packet(packet, engine.manifest, engine.limits)
        if num_steps and not packet.is_key:
            _check_context(packet, context)
    clips: dict[int, Uint8] = {}
    for batch in grouped([(packet.tokens, *packet.grid) for packet in packets], batch_size):
        chosen = [packets[i] for i in batch]
        skipped = [0 if packet.is_key else 1 for packet in chosen]  # the context frame comes back with the new ones
        decoded = decode_batch(
            engine.backend,
            np.stack([packet.structural for packet in chosen]),
            np.stack([packet.latents for packet in chosen]),
            np.stack([packet.anchors for packet in chosen]),
            [packet.fps for packet in chosen],
            [packet.first_frame - skip for packet, skip in zip(chosen, skipped, strict=True)],
            sampler=engine.manifest.sampler,
            num_steps=num_steps,
            seed=seed,
            corners=[packet.corner for packet in chosen],
            context_frames=[_padded_context(packets[i], context_frames[i]) for i in batch],
            on_timing=engine.on_timing,
        )
        for row, (i, packet, skip) in enumerate(zip(batch, chosen, skipped, strict=True)):
            frames = decoded[row]
            if packet.camera is not None:
                with timed(engine.on_timing, "camera"):
                    frames = follow(frames, packet.camera)
            clip = frames[skip : skip + packet.frames, : packet.height, : packet.width]
            context = None if packet.is_key or num_steps == 0 else context_frames[i]
            if context is None:
                clips[i] = clip.copy()
                continue
            with timed(engine.on_timing, "soften"):
                clips[i] = soften(context, clip)
    return [clips[i] for i in range(len(packets))]


def _check_context(packet: Packet, context: Uint8 | None) -> None:
    """Raise unless a continuation clip has a context frame of its size."""
    if context is None:
        raise PacketError(
            f"the packet from frame {packet.first_frame} on is a continuation clip: it needs context_frame, the frame "
            "decoded before it; decode from the key clip on"
        )
    if check_frame("context_frame", context).shape[:2] != (packet.height, packet.width):
        got, wanted = f"{context.shape[1]}x{context.shape[0]}", f"{packet.width}x{packet.height}"
        raise ValueError(f"context_frame must have the packet's size, {wanted}; got {got}")


def _padded_context(packet: Packet, context: Uint8 | None) -> Uint8 | None:
    """The context frame as the graphs see it: None for a key clip; grey where a preview goes without."""
    if packet.is_key:
        return None
    if context is None:
        context = np.full((packet.height, packet.width, 3), 128, np.uint8)
    padded = pad_clip(context[None])
    return padded[0] if packet.camera is None else hold_still(padded, packet.camera)[0]
