"""`VideoCodec`: frames to packets and back. It owns a checked bundle and a backend, keeps no state between calls, and
may be shared by any number of threads.

    codec = VideoCodec.from_pretrained("tiny")
    packet = codec.encode_clip(frames, tokens="auto")            # (T, H, W, 3) uint8 RGB, T up to a clip's length
    frames = codec.decode_clip(packet, num_steps=1, seed=0)      # the same size and number of frames
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend, open_backend
from onedva_runtime.bundle import Bundle, Manifest, find, read_bundle
from onedva_runtime.errors import BackendError
from onedva_runtime.graphs import OnTiming, decode_batch, encode_batch, timed
from onedva_runtime.packet import FRAME_NUMBERS, Packet, padded_grid
from onedva_runtime.prepare import (
    Decibels,
    check_clip,
    check_fps,
    check_frames,
    check_integer,
    check_packet,
    clip_frames_for,
    grouped,
    pad_clip,
    parse_tokens,
    place_latents,
    shortest_prefix,
)
from onedva_runtime.quantiser import DEFAULT_STEP, Quantiser, quantiser_of
from onedva_runtime.selftest import run_golden
from onedva_runtime.streams import StreamDecoder, StreamEncoder

if TYPE_CHECKING:
    from onedva_runtime.limits import Limits

__all__ = ["VideoCodec"]

Frames = npt.NDArray[np.uint8]


class VideoCodec:
    """Encode and decode video with one bundle on one backend."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        reason: str = "asked for",
        limits: Limits | None = None,
        on_timing: OnTiming | None = None,
    ) -> None:
        """See `from_pretrained`, which checks the bundle and opens the backend. reason: why this backend."""
        self._bundle, self._backend, self._reason = bundle, backend, reason
        self._limits, self._on_timing = limits, on_timing

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "tiny",
        *,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
        revision: str | None = None,
        limits: Limits | None = None,
        on_timing: OnTiming | None = None,
    ) -> VideoCodec:
        """Open a bundle.

        name_or_path: a shipped name ("tiny" is the newest tiny-vN), a folder, or a hub id "owner/name@revision".
        backend: "onnxruntime", or "auto": the fastest usable one, which must pass the bundle's first golden test.
        device: "cpu". threads: CPU threads, ≥ 1; None: every core this process may use.
        revision: the pinned revision of a hub id. limits: bounds on packets beside the bundle's own (max_pixels,
        max_latents). on_timing: called as on_timing(stage, seconds) in the calling thread after place, encode,
        condition, noise, velocity, pack.

        Raises BundleError for a bundle that is missing or refused, BackendError for a backend that is unknown, not
        installed or not computing this model, ValueError for threads below 1.
        """
        bundle = read_bundle(find(name_or_path, revision=revision))
        opened = open_backend(backend, bundle, device=device, threads=threads)
        reason = "asked for"
        if backend == "auto":
            case = run_golden(bundle, opened, bundle.manifest.golden.cases[:1])[0]
            if not case["passed"]:
                raise BackendError(f"backend {opened.name} fails the golden test of {bundle.manifest.name}: {case}")
            reason = f"fastest usable backend; golden test passed at {case['psnr_db']:.1f} dB"
        return cls(bundle, opened, reason=reason, limits=limits, on_timing=on_timing)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._bundle.manifest

    @property
    def name(self) -> str:
        """Versioned name of the bundle."""
        return self.manifest.name

    @property
    def backend_name(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def max_tokens(self) -> int:
        """Longest latent sequence: no more than was exported, and than was trained."""
        return self.manifest.max_tokens

    @property
    def clip_frames(self) -> int:
        """Frames of a full clip."""
        return self.manifest.clip.frames

    def clip_frames_for(self, *, height: int, width: int) -> int:
        """Frames of a full clip of this size in pixels: fewer than `clip_frames` where the model's attention could not
        take as many. Raises ValueError where not even one frame fits."""
        return clip_frames_for(height, width, self.manifest)

    def info(self) -> dict[str, Any]:
        """What is in use and why: bundle, backend, threads, and the export's parity report."""
        return {
            "name": self.name,
            "folder": str(self._bundle.folder),
            "fingerprint": self.manifest.model.fingerprint,
            "parameters": self.manifest.model.parameters,
            "backend": self.backend_name,
            "backend_reason": self._reason,
            "device": "cpu",
            "threads": self._backend.threads,
            "max_tokens": self.max_tokens,
            "clip_frames": self.clip_frames,
            "tools": self.manifest.tools,
            "parity": self.manifest.parity,
        }

    def quantiser(self, *, step: float = DEFAULT_STEP) -> Quantiser:
        """How `save_packets` rounds this model's latents.

        step: in units of the transform, from 1/1024 to 1024; the default costs about 0.1 dB at 256 latents. Raises
        ValueError, and BundleError for a broken checkpoint.
        """
        return quantiser_of(self._bundle, step=step)

    def selftest(self) -> list[dict[str, Any]]:
        """Run every golden case of the bundle on this backend: name, passed, psnr_db, max_error of each."""
        return run_golden(self._bundle, self._backend)

    def encode_clip(
        self, frames: Frames, *, tokens: int | str = "auto", fps: float = 24.0, first_frame: int = 0
    ) -> Packet:
        """Encode one clip.

        frames: (T, H, W, 3) uint8 RGB, T from 1 to the bundle's clip length, any size: padded in time by the last frame
        and in space by the edge. tokens: "auto" (by the clip's detail), a count (rounded up to a multiple of 16 and
        capped at what the clip and the model hold; 0 is allowed), or "35dB" (the shortest predicted to reach it). fps:
        frames per second. first_frame: number of the clip's first frame in its video. Raises TypeError or ValueError.
        """
        return self.encode_clips([frames], tokens=tokens, fps=fps, first_frames=[first_frame])[0]

    def encode_clips(
        self,
        clips: Sequence[Frames],
        *,
        tokens: int | str = "auto",
        max_tokens: int | None = None,
        fps: float = 24.0,
        first_frames: Sequence[int] | None = None,
        batch_size: int = 8,
    ) -> list[Packet]:
        """Encode clips of any sizes and lengths, in batches of those that share both and the number of latents.

        As `encode_clip`; max_tokens: no clip gets more. first_frames: one per clip, zeros by default. batch_size:
        most clips per run. Packets come in the order of the clips. A clip's values depend on its batch in their last
        bits only: within 1e-3 of those that `encode_clip` gives.
        """
        rate, budget = check_fps(fps), parse_tokens(tokens)
        size = check_integer("batch_size", batch_size, 1, 2**16)
        limit = self.max_tokens if max_tokens is None else check_integer("max_tokens", max_tokens, 0, 2**31)
        firsts = [0] * len(clips) if first_frames is None else list(first_frames)
        if len(firsts) != len(clips):
            raise ValueError(f"first_frames must have one number per clip, got {len(firsts)} for {len(clips)}")
        firsts = [check_integer("first_frame", first, 0, FRAME_NUMBERS - self.clip_frames) for first in firsts]
        for clip in clips:
            check_clip(clip, self.manifest)
        with timed(self._on_timing, "place"):
            anchors = [place_latents(clip, budget, limit, self.manifest) for clip in clips]
        packets: dict[int, Packet] = {}
        keys = [(len(places), *padded_grid(*clip.shape[:3])) for places, clip in zip(anchors, clips, strict=True)]
        for batch in grouped(keys, size):
            padded = np.stack([pad_clip(clips[i]) for i in batch])
            places = np.stack([anchors[i] for i in batch])
            outputs = encode_batch(self._backend, padded, places, [rate] * len(batch), on_timing=self._on_timing)
            for row, i in enumerate(batch):
                structural, latents, error = (output[row].copy() for output in outputs)
                packet = Packet(
                    structural=structural,
                    latents=latents,
                    anchors=anchors[i],
                    frames=clips[i].shape[0],
                    height=clips[i].shape[1],
                    width=clips[i].shape[2],
                    fps=rate,
                    first_frame=firsts[i],
                    predicted_error=error,
                    model=self.manifest.model.fingerprint,
                )
                if isinstance(budget, Decibels) and packet.tokens:
                    packet = packet.thin(shortest_prefix(error, budget, self.manifest.lengths.length_multiple))
                packets[i] = packet
        return [packets[i] for i in range(len(clips))]

    def encode(
        self, frames: Frames, *, tokens: int | str = "auto", fps: float = 24.0, batch_size: int = 1
    ) -> list[Packet]:
        """Encode a video of any number of frames ≥ 1 as key clips of `clip_frames_for` its size; the last one may be
        shorter. As `encode_clips`."""
        _, height, width, _ = check_frames(frames).shape
        length = self.clip_frames_for(height=height, width=width)
        starts = range(0, len(frames), length)
        clips = [frames[start : start + length] for start in starts]
        return self.encode_clips(clips, tokens=tokens, fps=fps, first_frames=starts, batch_size=batch_size)

    def decode_clip(self, packet: Packet, *, num_steps: int = 1, seed: int = 0) -> Frames:
        """Decode one packet to frames (T, H, W, 3) uint8 RGB, as many and as large as were encoded.

        num_steps: Euler steps, 0 (the preview, no noise) to the manifest's max_steps. seed: 0 to 2**64 - 1; with the
        frames' numbers in their video it decides the noise. Raises PacketError for a packet that is inconsistent, too
        large for the bundle or the limits, or of another model; TypeError or ValueError for the rest.
        """
        return self.decode_clips([packet], num_steps=num_steps, seed=seed)[0]

    def decode_clips(
        self, packets: Sequence[Packet], *, num_steps: int = 1, seed: int = 0, batch_size: int = 8
    ) -> list[Frames]:
        """Decode packets of any sizes in batches of those that share size, length and number of latents.

        As `decode_clip`; batch_size: most packets per run. Clips come in the order of the packets; a pixel differs from
        what `decode_clip` gives by one level at most, where rounding falls the other way.
        """
        steps = check_integer("num_steps", num_steps, 0, self.manifest.sampler.max_steps)
        noise_seed = check_integer("seed", seed, 0, 2**64 - 1)
        size = check_integer("batch_size", batch_size, 1, 2**16)
        if steps == 0 and not self.manifest.model.preview:
            raise ValueError(f"num_steps must be at least 1: {self.name} has no preview")
        for packet in packets:
            check_packet(packet, self.manifest, self._limits)
        clips: dict[int, Frames] = {}
        for batch in grouped([(packet.tokens, *packet.grid) for packet in packets], size):
            chosen = [packets[i] for i in batch]
            decoded = decode_batch(
                self._backend,
                np.stack([packet.structural for packet in chosen]),
                np.stack([packet.latents for packet in chosen]),
                np.stack([packet.anchors for packet in chosen]),
                [packet.fps for packet in chosen],
                [packet.first_frame for packet in chosen],
                sampler=self.manifest.sampler,
                num_steps=steps,
                seed=noise_seed,
                on_timing=self._on_timing,
            )
            for row, i in enumerate(batch):
                clips[i] = decoded[row, : packets[i].frames, : packets[i].height, : packets[i].width].copy()
        return [clips[i] for i in range(len(packets))]

    def decode(self, packets: Iterable[Packet], *, num_steps: int = 1, seed: int = 0, batch_size: int = 1) -> Frames:
        """Decode the packets of one video to frames (T, H, W, 3), T the sum of their frames. As `decode_clips`.

        Raises ValueError for no packets or packets of several sizes.
        """
        listed = list(packets)
        sizes = {(packet.width, packet.height) for packet in listed}
        if len(sizes) != 1:
            got = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no packets"
            raise ValueError(f"decode wants packets of one frame size, got {got}; decode_clips takes any")
        return np.concatenate(self.decode_clips(listed, num_steps=num_steps, seed=seed, batch_size=batch_size))

    def open_encoder(
        self, *, fps: float = 24.0, tokens: int | str = "auto", max_tokens: int | None = None
    ) -> StreamEncoder:
        """A stream of frames to packets: `push` batches of any size, `flush` at the end. Options as `encode_clips`."""
        check_fps(fps)  # here, not at the first full clip
        parse_tokens(tokens)
        if max_tokens is not None:
            check_integer("max_tokens", max_tokens, 0, 2**31)
        return StreamEncoder(self, fps=fps, tokens=tokens, max_tokens=max_tokens)

    def open_decoder(self, *, num_steps: int = 1, seed: int = 0) -> StreamDecoder:
        """A stream of packets to frames: `push` each packet, `flush` at the end. num_steps from 1: a preview cannot see
        the frame that a continuation clip goes on from. Options as `decode_clip`."""
        check_integer("num_steps", num_steps, 1, self.manifest.sampler.max_steps)
        check_integer("seed", seed, 0, 2**64 - 1)
        return StreamDecoder(self, num_steps=num_steps, seed=seed)
