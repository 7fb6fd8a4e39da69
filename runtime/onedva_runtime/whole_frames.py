"""Clips of whole frames to packets and back: one packet each, or as many as there are tiles where the frame is
large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from onedva_runtime.clip_coding import Engine, decode_packets, encode_clips
from onedva_runtime.clipper import Clip
from onedva_runtime.errors import PacketError
from onedva_runtime.packet import Packet, as_packet, padded_grid
from onedva_runtime.prepare import Decibels, grouped
from onedva_runtime.tiles import blend, check_tiles, plan_tiles, same_clip, split

__all__ = ["decode_video", "decode_whole", "encode_whole", "ends_clip", "gathered", "joined", "positions_per_group"]

Uint8 = npt.NDArray[np.uint8]


def positions_per_group(engine: Engine, clip_frames: int) -> int:
    """Grid positions that a frame, or a tile of one, may have for clips of `clip_frames` frames to fit the model."""
    return engine.manifest.clip.max_video_positions // padded_grid(clip_frames, 1, 1)[0]


def encode_whole(
    engine: Engine,
    clips: Sequence[Clip],
    *,
    clip_frames: int,
    budget: int | Decibels | None,
    limit: int,
    fps: float,
    time_base: Fraction | None = None,
    follow_camera: bool,
    batch_size: int = 1,
) -> list[list[Packet]]:
    """Encode the clips of a video of one frame size, each to its packets. Options as `encode_clips`; clip_frames: of a
    full clip, from which the tiles follow, so that every clip of a video has the same."""
    if not clips:
        return []
    height, width = clips[0].frames.shape[1:3]
    tiles = plan_tiles(height, width, positions=positions_per_group(engine, clip_frames))
    parts = [part for clip in clips for part in split(clip, tiles)]
    packets = encode_clips(
        engine,
        parts,
        budget=budget,
        limit=limit,
        fps=fps,
        time_base=time_base,
        follow_camera=follow_camera,
        batch_size=batch_size,
    )
    return [packets[start : start + len(tiles)] for start in range(0, len(packets), len(tiles))]


def decode_whole(
    engine: Engine,
    clips: Sequence[Sequence[Packet]],
    last_frames: Sequence[Uint8 | None],
    *,
    num_steps: int,
    seed: int,
    batch_size: int = 1,
) -> list[Uint8]:
    """Decode clips, each given by its packets, to whole frames (T, H, W, 3).

    last_frames: for each clip the whole frame (H, W, 3) before it, which continuation clips need, and which stands
    where a tile is missing (grey where there is none). The rest as `decode_packets`.
    """
    packets = [packet for clip in clips for packet in clip]
    contexts: list[Uint8 | None] = []
    for clip, last in zip(clips, last_frames, strict=True):
        for packet in clip:
            top, left = packet.corner
            fits = last is not None and last.shape[:2] == packet.whole_size
            contexts.append(
                last[top : top + packet.height, left : left + packet.width] if fits and last is not None else None
            )
    decoded = decode_packets(engine, packets, contexts, num_steps=num_steps, seed=seed, batch_size=batch_size)
    outputs: list[Uint8] = []
    for clip, last in zip(clips, last_frames, strict=True):
        own, decoded = decoded[: len(clip)], decoded[len(clip) :]
        outputs.append(joined(clip, own, last))
    return outputs


def joined(clip: Sequence[Packet], decoded: Sequence[Uint8], last: Uint8 | None = None) -> Uint8:
    """The whole frames (T, H, W, 3) of one clip from its packets' own; `last`, or grey, where a tile is missing."""
    if clip[0].frame_size is None:
        return decoded[0]
    canvas = np.empty((clip[0].frames, *clip[0].whole_size, 3), np.uint8)
    if not check_tiles(clip):
        canvas[:] = 128 if last is None else last
    blend(clip, decoded, canvas)
    return canvas


def ends_clip(packet: Packet) -> bool:
    """Whether no tile of its clip can follow the packet: it is the whole frame, or reaches the frame's last pixel."""
    return (packet.corner[0] + packet.height, packet.corner[1] + packet.width) == packet.whole_size


def gathered(packets: Iterable[Packet]) -> Iterator[list[Packet]]:
    """The packets of a video, clip by clip. Raises PacketError for a clip with a tile missing, twice or in disorder."""
    clip: list[Packet] = []
    for packet in packets:
        if clip and not same_clip(clip[-1], packet):
            raise PacketError(f"the clip from frame {clip[0].first_frame} on ends after the tile at {clip[-1].corner}")
        clip.append(packet)
        if ends_clip(packet):
            if not check_tiles(clip):
                raise PacketError(f"the clip from frame {clip[0].first_frame} on has a tile missing")
            yield clip
            clip = []
    if clip:
        raise PacketError(f"the clip from frame {clip[0].first_frame} on ends after the tile at {clip[-1].corner}")


def decode_video(engine: Engine, packets: Iterable[Packet], *, num_steps: int, seed: int, batch_size: int = 1) -> Uint8:
    """Decode the packets of a video, from a key clip on, to frames (T, H, W, 3).

    batch_size: most packets per run. A key clip and the continuations after it are a chain, decoded in order; as many
    chains as that go on together. Raises as `VideoCodec.decode`.
    """
    if isinstance(packets, Packet):
        raise TypeError("decode wants the packets of a video, got one Packet: decode_clip decodes that")
    listed = [as_packet(packet) for packet in packets]
    sizes = {packet.whole_size for packet in listed}
    if len(sizes) != 1:
        got = ", ".join(sorted(f"{width}x{height}" for height, width in sizes)) or "no packets"
        raise ValueError(f"decode wants packets of one frame size, got {got}; decode_clips takes any")
    clips = list(gathered(listed))
    chains: list[list[int]] = []
    starts = [0]
    for index, clip in enumerate(clips):
        if clip[0].is_key:
            chains.append([])
        elif not chains or clips[index - 1][0].first_frame + clips[index - 1][0].frames != clip[0].first_frame:
            first = clip[0].first_frame
            raise PacketError(f"the clip before the continuation clip from frame {first} on is missing")
        chains[-1].append(index)
        starts.append(starts[-1] + clip[0].frames)
    frames = np.empty((starts[-1], *sizes.pop(), 3), np.uint8)
    for wave in grouped([0] * len(chains), batch_size):
        for place in range(max(len(chains[number]) for number in wave)):
            now = [chains[number][place] for number in wave if place < len(chains[number])]
            decoded = decode_whole(
                engine,
                [clips[i] for i in now],
                [frames[starts[i] - 1] if place else None for i in now],
                num_steps=num_steps,
                seed=seed,
                batch_size=batch_size,
            )
            for i, part in zip(now, decoded, strict=True):
                frames[starts[i] : starts[i + 1]] = part
    return frames
