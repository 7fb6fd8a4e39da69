"""`VideoCodec`: frames to packets and back. It owns a checked bundle and a backend, keeps no state between calls, and
may be shared by any number of threads.

    codec = VideoCodec.from_pretrained("tiny")
    packet = codec.encode_clip(frames, tokens="auto")            # (T, H, W, 3) uint8 RGB, T up to a clip's length
    frames = codec.decode_clip(packet, num_steps=1, seed=0)      # the same size and number of frames
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend, LatentBackend
from onedva_runtime.backends.choose import Measured, open_fastest
from onedva_runtime.bundle import Bundle, Manifest, find, read_bundle
from onedva_runtime.clip_coding import Engine, decode_packets, encode_clips
from onedva_runtime.clipper import KEYFRAME_INTERVAL, Clip, Clipper
from onedva_runtime.generation import check_asked, generate_latents, read_statistics
from onedva_runtime.graphs import OnTiming
from onedva_runtime.packet import FRAME_NUMBERS, Packet
from onedva_runtime.prepare import (
    check_fps,
    check_frames,
    check_integer,
    check_switch,
    check_timestamps,
    clip_frames_for,
    parse_tokens,
)
from onedva_runtime.quantiser import DEFAULT_STEP, Quantiser, quantiser_of
from onedva_runtime.selftest import run_golden
from onedva_runtime.stream_decoder import Conceal, StreamDecoder
from onedva_runtime.stream_encoder import StreamEncoder
from onedva_runtime.stream_report import StreamReport
from onedva_runtime.whole_frames import decode_video, encode_whole

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
        measured: Sequence[Measured] = (),
        limits: Limits | None = None,
        on_timing: OnTiming | None = None,
    ) -> None:
        """See `from_pretrained`, which checks the bundle and opens the backend. reason: why this backend; measured:
        what it was chosen from."""
        self._bundle, self._backend, self._reason, self._measured = bundle, backend, reason, tuple(measured)
        self._engine = Engine(bundle.manifest, backend, limits, on_timing)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "tiny",
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        dtype: str = "auto",
        streams: int = 1,
        revision: str | None = None,
        limits: Limits | None = None,
        on_timing: OnTiming | None = None,
    ) -> VideoCodec:
        """Open a bundle.

        name_or_path: a shipped name ("tiny" is the newest tiny-vN), a folder, or a hub id "owner/name@revision".
        backend: "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", or "auto": the fastest usable one that
        passes the bundle's first golden test; where there are several this is measured once and kept in ONEDVA_CACHE.
        device: "cpu", "cuda", "cuda:NUMBER", or "auto": any. threads: CPU threads, ≥ 1; None: every core this process
        may use. dtype: what the backend computes in: "fp32", "fp16", "bf16" or "int8" where it and the machine have
        it, or "auto": the fastest that passes, measured the same way. streams: calls that run at once on a GPU.
        revision: the pinned revision of a hub id. limits: bounds on packets beside the bundle's own (max_pixels,
        max_latents). on_timing: called as on_timing(stage, seconds) in the calling thread after camera, place, encode,
        condition, noise, velocity, pack, soften, and decode, which is those of one step in one graph.

        Raises BundleError for a bundle that is missing or refused, BackendError for a backend that is unknown, not
        installed or not computing this model, ValueError for threads or streams below 1.
        """
        bundle = read_bundle(find(name_or_path, revision=revision))
        chosen = open_fastest(backend, bundle, device=device, threads=threads, dtype=dtype, streams=streams)
        return cls(
            bundle,
            chosen.backend,
            reason=chosen.reason,
            measured=chosen.measured,
            limits=limits,
            on_timing=on_timing,
        )

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
            "dtype": self._backend.dtype,
            "backend_reason": self._reason,
            "backends_measured": [
                {"name": f"{entry.backend} {entry.dtype}", **asdict(entry)} for entry in self._measured
            ],
            "device": "cuda" if self.backend_name in ("tensorrt", "onnxruntime-cuda") else "cpu",
            "threads": self._backend.threads,
            "max_tokens": self.max_tokens,
            "clip_frames": self.clip_frames,
            "generator": None if self.manifest.generator is None else asdict(self.manifest.generator),
            "tools": self.manifest.tools,
            "parity": self.manifest.parity,
        }

    def quantiser(self, *, step: float = DEFAULT_STEP) -> Quantiser:
        """How `save_packets` rounds this model's latents.

        step: in units of the transform, from 1/1024 to 2; the default costs about 0.1 dB at 256 latents. Raises
        ValueError, and BundleError for a broken checkpoint.
        """
        return quantiser_of(self._bundle, step=step)

    def selftest(self) -> list[dict[str, Any]]:
        """Run every golden case of the bundle on this backend: name, passed, psnr_db, max_error of each."""
        return run_golden(self._bundle, self._backend)

    def encode_clip(
        self,
        frames: Frames,
        *,
        tokens: int | str = "auto",
        fps: float = 24.0,
        first_frame: int = 0,
        context_frame: Frames | None = None,
        follow_camera: bool = True,
    ) -> Packet:
        """Encode one clip.

        frames: (T, H, W, 3) uint8 RGB, T from 1 to the bundle's clip length, any size: padded in time by the last frame
        and in space by the edge; NumPy, or an array on a GPU (see `device_arrays`). tokens: "auto" (by the clip's
        detail), a count (rounded up to a multiple of 16 and capped at what the clip and the model hold; 0 is allowed),
        or "35dB" (the shortest predicted to reach it). fps: frames per second. first_frame: number of the clip's first
        frame in its video. context_frame: the source's frame
        before the clip (H, W, 3) makes it a continuation clip, of one frame less at most. follow_camera: where the
        camera moves, turn the clip until its scene stands still, if that pays; the packet says by how much. Raises
        TypeError or ValueError.
        """
        (packet,) = self.encode_clips(
            [frames],
            tokens=tokens,
            fps=fps,
            first_frames=[first_frame],
            context_frames=[context_frame],
            follow_camera=follow_camera,
        )
        return packet

    def encode_clips(
        self,
        clips: Sequence[Frames],
        *,
        tokens: int | str = "auto",
        max_tokens: int | None = None,
        fps: float = 24.0,
        first_frames: Sequence[int] | None = None,
        context_frames: Sequence[Frames | None] | None = None,
        follow_camera: bool = True,
        batch_size: int = 8,
    ) -> list[Packet]:
        """Encode clips of any sizes, lengths and kinds, in batches of those that share size, length and number of
        latents.

        As `encode_clip`; max_tokens: no clip gets more. first_frames, context_frames: one per clip, zeros and None by
        default. batch_size: most clips per run. Packets come in the order of the clips. A clip's values depend on its
        batch in their last bits only: within 1e-3 of those that `encode_clip` gives.
        """
        firsts = _one_per_clip("first_frames", first_frames, len(clips), 0)
        contexts = _one_per_clip("context_frames", context_frames, len(clips), None)
        for first in firsts:
            check_integer("first_frame", first, 0, FRAME_NUMBERS - self.clip_frames)
        return encode_clips(
            self._engine,
            [
                Clip(frames=_on_host(frames), first_frame=int(first), context_frame=context)
                for frames, first, context in zip(clips, firsts, contexts, strict=True)
            ],
            budget=parse_tokens(tokens),
            limit=self._token_limit(max_tokens),
            fps=check_fps(fps),
            follow_camera=check_switch("follow_camera", follow_camera),
            batch_size=check_integer("batch_size", batch_size, 1, 2**16),
        )

    def encode(
        self,
        frames: Frames,
        *,
        tokens: int | str = "auto",
        fps: float = 24.0,
        keyframe_interval: int = KEYFRAME_INTERVAL,
        cuts: bool = True,
        follow_camera: bool = True,
        timestamps: npt.NDArray[np.int64] | None = None,
        time_base: Fraction | None = None,
        batch_size: int = 1,
    ) -> list[Packet]:
        """Encode a video of any number of frames ≥ 1 and any size: large frames become tiles, a packet each, and a
        count of `tokens` is for each of them.

        keyframe_interval: clips from one key clip to the next; between them stand continuation clips, which go on from
        the frame before. 1: key clips only; 0: none but the first and those at cuts. cuts: end a clip where a scene
        ends, and begin the next with a key clip. timestamps: presentation time of each frame (T,) int64, rising, in
        ticks of `time_base` seconds. The rest as `encode_clip` and `encode_clips`.
        """
        check_frames(frames)
        clipper = Clipper(
            clip_frames=self.clip_frames,
            keyframe_interval=check_integer("keyframe_interval", keyframe_interval, 0, 2**31),
            cuts=cuts,
        )
        clips = clipper.push(frames, check_timestamps(timestamps, len(frames), time_base)) + clipper.flush()
        coded = encode_whole(
            self._engine,
            clips,
            clip_frames=self.clip_frames,
            budget=parse_tokens(tokens),
            limit=self.max_tokens,
            fps=check_fps(fps),
            time_base=time_base,
            follow_camera=check_switch("follow_camera", follow_camera),
            batch_size=check_integer("batch_size", batch_size, 1, 2**16),
        )
        return [packet for packets in coded for packet in packets]

    def decode_clip(
        self, packet: Packet, *, num_steps: int = 1, seed: int = 0, context_frame: Frames | None = None
    ) -> Frames:
        """Decode one packet to frames (T, H, W, 3) uint8 RGB, as many and as large as were encoded.

        num_steps: Euler steps, 0 (the preview, no noise) to the manifest's max_steps. seed: 0 to 2**64 - 1; with the
        frames' numbers in their video it decides the noise. context_frame: the frame (H, W, 3) decoded before a
        continuation clip, which needs it but for a preview. Raises PacketError for a packet that is inconsistent, too
        large for the bundle or the limits, of another model, or a continuation without its context; TypeError or
        ValueError for the rest.
        """
        return self.decode_clips([packet], num_steps=num_steps, seed=seed, context_frames=[context_frame])[0]

    def decode_clips(
        self,
        packets: Sequence[Packet],
        *,
        num_steps: int = 1,
        seed: int = 0,
        context_frames: Sequence[Frames | None] | None = None,
        batch_size: int = 8,
    ) -> list[Frames]:
        """Decode packets of any sizes in batches of those that share size, length and number of latents.

        As `decode_clip`; context_frames: one per packet, None by default; batch_size: most packets per run. Clips come
        in the order of the packets; a pixel differs from what `decode_clip` gives by one level at most, where rounding
        falls the other way.
        """
        contexts = _one_per_clip("context_frames", context_frames, len(packets), None)
        steps, noise_seed = self._check_decode(num_steps, seed)
        size = check_integer("batch_size", batch_size, 1, 2**16)
        return decode_packets(self._engine, packets, contexts, num_steps=steps, seed=noise_seed, batch_size=size)

    def decode(self, packets: Iterable[Packet], *, num_steps: int = 1, seed: int = 0, batch_size: int = 1) -> Frames:
        """Decode the packets of one video, from a key clip on, to frames (T, H, W, 3), T the sum of their frames.

        As `decode_clips`; batch_size: most packets per run, from as many key clips on at once. Raises ValueError for no
        packets or packets of several frame sizes, PacketError where a clip or a tile of one is missing.
        """
        steps, noise_seed = self._check_decode(num_steps, seed)
        size = check_integer("batch_size", batch_size, 1, 2**16)
        return decode_video(self._engine, packets, num_steps=steps, seed=noise_seed, batch_size=size)

    def generate_packet(
        self,
        *,
        label: str | None = None,
        tokens: int | None = None,
        num_steps: int = 30,
        guidance: float = 2.0,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        first_frame: Frames | None = None,
        text: npt.NDArray[np.float32] | None = None,
    ) -> Packet:
        """The latents of a new clip, by the bundle's generator: a packet that decodes like any other.

        label: a class by its name, None for any. tokens: 1D latents, 0 to the most for that size, rounded up to the
        generator's multiple; None for the most. num_steps: Euler steps, from 1. guidance: 1 follows class and text,
        more exaggerates them, 0 ignores them. size: (height, width) in pixels, multiples of 16; default what the
        generator was trained on. seed: 0 to 2**64 - 1. first_frame: (H, W, 3) of that size, which the clip then goes on
        from, as a continuation clip whose context it is. text: embeddings (L, C) as the generator was trained on.
        Raises BundleError for a bundle without a generator, BackendError for a backend that runs none, ValueError or
        TypeError for the rest.
        """
        asked = check_asked(
            self._bundle,
            self._backend,
            label=label,
            tokens=tokens,
            num_steps=num_steps,
            guidance=guidance,
            seed=seed,
            size=size,
            first_frame=first_frame,
            text=text,
        )
        assert isinstance(self._backend, LatentBackend)
        return generate_latents(self._bundle, self._backend, read_statistics(self._bundle), asked)

    def generate(
        self,
        *,
        label: str | None = None,
        tokens: int | None = None,
        num_steps: int = 30,
        guidance: float = 2.0,
        decode_steps: int = 1,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        first_frame: Frames | None = None,
        text: npt.NDArray[np.float32] | None = None,
    ) -> Frames:
        """A new clip (T, H, W, 3) uint8 RGB; with `first_frame` it begins with that.

        decode_steps: steps of the decoder, as `num_steps` of `decode_clip`. The rest as `generate_packet`.
        """
        packet = self.generate_packet(
            label=label,
            tokens=tokens,
            num_steps=num_steps,
            guidance=guidance,
            size=size,
            seed=seed,
            first_frame=first_frame,
            text=text,
        )
        made = self.decode_clip(packet, num_steps=decode_steps, seed=seed, context_frame=first_frame)
        return made if first_frame is None else np.concatenate([first_frame[None], made])

    def open_encoder(
        self,
        *,
        fps: float = 24.0,
        tokens: int | str = "auto",
        max_tokens: int | None = None,
        keyframe_interval: int = KEYFRAME_INTERVAL,
        cuts: bool = True,
        follow_camera: bool = True,
        clip_frames: int | None = None,
        time_base: Fraction | None = None,
        batch_size: int = 1,
        deadline_ms: float | None = None,
        on_report: Callable[[StreamReport], None] | None = None,
    ) -> StreamEncoder:
        """A stream of frames to packets: `push` batches of any size, `flush` at the end. See docs/streams.md.

        clip_frames: of a full clip, 1 + 4n up to the bundle's; 5 is the low-latency mode. time_base: seconds per tick
        of the time stamps that are pushed. batch_size: clips that wait for each other, to be coded in one run.
        deadline_ms: what coding one clip may take; where it took longer, clips get fewer latents. on_report: called
        with a `StreamReport` of every clip. The rest as `encode` and `encode_clips`.
        """
        return StreamEncoder(
            self._engine,
            fps=fps,
            tokens=tokens,
            max_tokens=max_tokens,
            keyframe_interval=keyframe_interval,
            cuts=cuts,
            clip_frames=clip_frames,
            time_base=time_base,
            follow_camera=follow_camera,
            batch_size=batch_size,
            deadline_ms=deadline_ms,
            on_report=on_report,
        )

    def open_decoder(
        self,
        *,
        num_steps: int = 1,
        seed: int = 0,
        conceal: Conceal = "hold",
        deadline_ms: float | None = None,
        on_report: Callable[[StreamReport], None] | None = None,
    ) -> StreamDecoder:
        """A stream of packets to frames: `push` each packet, `flush` at the end. See docs/streams.md.

        num_steps from 1: a preview cannot see the frame that a continuation clip goes on from. conceal: what is shown
        for lost packets: "hold" repeats the last frame until the next key clip, "continue" for the lost frames only and
        then goes on from it, "raise" raises PacketError. deadline_ms: what decoding one clip may take; where it takes
        longer, clips get fewer steps, then fewer latents. on_report: called with a `StreamReport` of every array of
        frames that is returned. The rest as `decode_clip`.
        """
        return StreamDecoder(
            self._engine,
            num_steps=num_steps,
            seed=seed,
            conceal=conceal,
            deadline_ms=deadline_ms,
            on_report=on_report,
        )

    def _token_limit(self, max_tokens: int | None) -> int:
        return self.max_tokens if max_tokens is None else check_integer("max_tokens", max_tokens, 0, 2**31)

    def _check_decode(self, num_steps: int, seed: int) -> tuple[int, int]:
        steps = check_integer("num_steps", num_steps, 0, self.manifest.sampler.max_steps)
        if steps == 0 and not self.manifest.model.preview:
            raise ValueError(f"num_steps must be at least 1: {self.name} has no preview")
        return steps, check_integer("seed", seed, 0, 2**64 - 1)


def _on_host(frames: Any) -> Any:
    """Frames as NumPy has them, where they lie on a GPU; as they are otherwise, for `check_clip` to judge."""
    if not hasattr(frames, "__cuda_array_interface__"):
        return frames
    from onedva_runtime.device_arrays import to_host

    return to_host(frames)


def _one_per_clip(name: str, values: Sequence[Any] | None, count: int, default: object) -> list[Any]:
    """`values`, one per clip, or `default` for each; ValueError for another number of them."""
    listed: list[Any] = [default] * count if values is None else list(values)
    if len(listed) != count:
        raise ValueError(f"{name} must have one entry per clip, got {len(listed)} for {count}")
    return listed
