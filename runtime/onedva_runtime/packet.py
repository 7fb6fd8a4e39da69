"""`Packet`: the latents of one clip and what is needed to place the decoded frames in their video. Encoding one packet
needs no other, and it may be cut to any prefix of its 1D latents (`thin`). A *key clip* is all a decoder needs beside
the bundle that made it; a *continuation clip* also needs the frame that was decoded before it. A packet may hold a
*tile*: one of several overlapping parts of a frame that is too large for the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import numpy as np
import numpy.typing as npt

from onedva_runtime import placement
from onedva_runtime.errors import PacketError
from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE
from onedva_runtime.warp import LARGEST_SWING, PARTS, PATH_NUMBERS, Camera

__all__ = ["Packet", "as_packet", "padded_frames", "padded_grid", "padded_size"]

FRAME_NUMBERS = 2**32  # how many frames of one video the noise can tell apart


def padded_frames(frames: int, *, is_key: bool = True) -> int:
    """The smallest T = 1 + 4n that holds `frames` (≥ 1) frames and, in a continuation clip, the context frame."""
    return 1 + PATCH_FRAMES * -(-(frames - 1 if is_key else frames) // PATCH_FRAMES)


def padded_size(pixels: int) -> int:
    """The smallest multiple of 16 that holds `pixels` (≥ 1) pixels of one side."""
    return PATCH_SIZE * -(-pixels // PATCH_SIZE)


def padded_grid(frames: int, height: int, width: int, *, is_key: bool = True) -> tuple[int, int, int]:
    """Latent grid (Tg, Hg, Wg) of a clip of any length and size, each ≥ 1; a context frame has group 0 to itself."""
    return placement.grid_of(padded_frames(frames, is_key=is_key), padded_size(height), padded_size(width))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Packet:
    """The latents of one clip."""

    structural: npt.NDArray[np.float32]
    """Grid-aligned latent (Tg, Hg, Wg, Zs), Tg = 1 + (T−1)/4, Hg = ⌈height/16⌉, Wg = ⌈width/16⌉. Group 0 of a
    continuation clip is zeros: the context frame stands there, and it is not sent."""
    latents: npt.NDArray[np.float32]
    """1D latent sequence (K, Z); K = 0 is allowed."""
    anchors: npt.NDArray[np.int64]
    """Grid index (t·Hg + y)·Wg + x of each latent (K,), unique: it is layer t of the column at (y, x). A continuation
    clip has no layer 0: its indices start at Hg·Wg."""
    is_key: bool = True
    """A key clip sends everything, a reader may start here. A continuation clip goes on from the frame before it."""
    frames: int
    """Real frames that the clip brings, before padding in time, ≥ 1; a continuation clip's context frame is not one."""
    height: int
    """Height in pixels, before padding: the source's, or a tile's."""
    width: int
    """Width in pixels, before padding: the source's, or a tile's."""
    corner: tuple[int, int] = (0, 0)
    """(top, left) of a tile in the video's frame, in pixels, multiples of 16; (0, 0) where the packet is the frame."""
    frame_size: tuple[int, int] | None = None
    """(height, width) of the whole frame that a tile is part of; None where the packet is the whole frame. The tiles of
    a clip share first_frame, frames, is_key and timestamps, and stand next to each other in raster order."""
    fps: float = 24.0
    """Frames per second the clip was encoded for, > 0."""
    first_frame: int = 0
    """Number in the video of the first frame that the clip brings, ≥ 0, ≥ 1 for a continuation: it keys the noise."""
    timestamps: npt.NDArray[np.int64] | None = None
    """Presentation time of each real frame (frames,), in ticks of `time_base`."""
    time_base: Fraction | None = None
    """Seconds per tick of `timestamps`."""
    camera: Camera | None = None
    """How the camera moves over the frames that the graphs see, padded_frames and sides of multiples of 16, where the
    latents are of a clip that was drawn so that its scene stands still; None where it was not."""
    predicted_error: npt.NDArray[np.float32] | None = None
    """Predicted natural log of the MSE on the [-1, 1] scale after each prefix (K,): entry i is for i + 1 latents."""
    model: str = ""
    """Fingerprint of the bundle that made the packet: sha256 of its model.safetensors, hex."""

    def __repr__(self) -> str:
        kind, size = "key" if self.is_key else "continuation", f"{self.width}x{self.height}"
        if self.frame_size is not None:
            size += f" at {self.corner} of {self.frame_size[1]}x{self.frame_size[0]}"
        frames = f"frames {self.first_frame} to {self.first_frame + self.frames - 1}"
        return f"Packet({kind} clip, {frames}, {size}, {len(self.latents)} latents)"

    @property
    def tokens(self) -> int:
        """How many 1D latents the packet holds."""
        return int(self.latents.shape[0])

    @property
    def padded_frames(self) -> int:
        """T = 1 + 4n: the frames the graphs see, a continuation clip's context frame among them."""
        return padded_frames(self.frames, is_key=self.is_key)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(Tg, Hg, Wg) that `frames`, `height` and `width` ask for."""
        return padded_grid(self.frames, self.height, self.width, is_key=self.is_key)

    @property
    def whole_size(self) -> tuple[int, int]:
        """(height, width) of the video's frame in pixels, which a tile is only part of."""
        return self.frame_size or (self.height, self.width)

    def thin(self, tokens: int) -> Packet:
        """The same clip with at most its first `tokens` (≥ 0) latents: what a smaller budget would have produced.

        Raises TypeError for anything but a whole number, ValueError for a negative one.
        """
        if isinstance(tokens, bool) or not isinstance(tokens, int | np.integer):
            raise TypeError(
                f"tokens must be a whole number, got {tokens!r}; a target in dB or 'auto' is for encoding, a rate for "
                "thin_packets"
            )
        if tokens < 0:
            raise ValueError(f"tokens must be at least 0, got {tokens}")
        error = self.predicted_error
        return replace(
            self,
            latents=self.latents[:tokens],
            anchors=self.anchors[:tokens],
            predicted_error=None if error is None else error[:tokens],
        )

    def validate(self) -> Packet:
        """Return self, or raise PacketError naming the field that is not as its description says."""
        if self.frames < 1 or self.height < 1 or self.width < 1:
            raise PacketError(f"packet of {self.frames} frames of {self.width}x{self.height}: each must be at least 1")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise PacketError(f"packet fps must be positive and finite, got {self.fps}")
        least = 0 if self.is_key else 1
        if not least <= self.first_frame <= FRAME_NUMBERS - self.padded_frames:
            kind = "" if self.is_key else " of a continuation clip"
            raise PacketError(
                f"packet first_frame{kind} must be from {least} and its last frame below 2**32, got {self.first_frame}"
            )
        self._check_tile()
        _check("structural", self.structural, np.float32, (*self.grid, None))
        _check("latents", self.latents, np.float32, (None, None))
        _check("anchors", self.anchors, np.int64, (self.tokens,))
        if self.predicted_error is not None:
            _check("predicted_error", self.predicted_error, np.float32, (self.tokens,))
        if self.camera is not None:
            self._check_camera(self.camera)
        if self.timestamps is not None:
            _check("timestamps", self.timestamps, np.int64, (self.frames,))
            if self.time_base is None or self.time_base <= 0:
                raise PacketError(f"packet timestamps need a positive time_base, got {self.time_base}")
        if not self.is_key and self.structural[0].any():
            raise PacketError("packet structural must be zeros in group 0 of a continuation clip: it is not sent")
        positions = int(np.prod(self.grid))
        if self.tokens:
            first = 0 if self.is_key else positions // self.grid[0]
            low, high = int(self.anchors.min()), int(self.anchors.max())
            if low < first or high >= positions:
                raise PacketError(f"packet anchors must be in [{first}, {positions}), got {low}..{high}")
            if np.unique(self.anchors).size != self.tokens:
                raise PacketError("packet anchors must be unique: at most one latent per grid position")
        return self

    def _check_camera(self, camera: Camera) -> None:
        """Raise PacketError unless it can be followed."""
        _check("camera.path", camera.path, np.int16, (self.padded_frames, PATH_NUMBERS))
        sides = padded_size(self.height), padded_size(self.width)
        farthest = PARTS * sides[0], PARTS * sides[1], *[LARGEST_SWING] * 4
        if (np.abs(camera.path.astype(np.int32)) > farthest).any():
            raise PacketError(
                f"packet camera must stay within the frame, {self.width}x{self.height} pixels, its scene "
                "larger or turned by a quarter at most"
            )
        top, bottom, left, right = camera.bars
        if min(camera.bars) < 0 or top + bottom >= sides[0] or left + right >= sides[1]:
            raise PacketError(f"packet camera's bars must leave some of the frame, got {camera.bars}")

    def _check_tile(self) -> None:
        """Raise PacketError unless the packet lies inside the frame that it is part of."""
        (top, left), (height, width) = self.corner, self.whole_size
        got = f"{self.width}x{self.height} at (top, left) = {self.corner} of {width}x{height}"
        if top < 0 or left < 0 or top % PATCH_SIZE or left % PATCH_SIZE:
            raise PacketError(f"packet corner must be multiples of {PATCH_SIZE} from 0: got a tile of {got}")
        if top + self.height > height or left + self.width > width:
            raise PacketError(f"packet corner and size must lie inside the frame: got a tile of {got}")


def as_packet(value: object) -> Packet:
    """`value` if it is a Packet; TypeError saying what it is, and what makes packets of it."""
    if isinstance(value, Packet):
        return value
    if isinstance(value, np.ndarray):
        got = cast(npt.NDArray[np.generic], value)
        raise TypeError(f"wanted a Packet, got an array of shape {got.shape}: encode makes packets of frames")
    raise TypeError(f"wanted a Packet, got {type(value).__name__}: encode and open_packets give packets")


def _check(name: str, array: object, dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
    """Raise PacketError unless `array` is an array of `dtype` and `shape` (None: any length) with finite values."""
    allowed = f"{np.dtype(dtype)} of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    if not isinstance(array, np.ndarray):
        raise PacketError(f"packet {name} must be {allowed}, got {type(array).__name__}")
    got = cast(npt.NDArray[np.generic], array)
    fits = got.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, got.shape, strict=True))
    if got.dtype != dtype or not fits:
        raise PacketError(f"packet {name} must be {allowed}, got {got.dtype} of shape {got.shape}")
    if got.dtype.kind == "f" and not bool(np.isfinite(got).all()):
        raise PacketError(f"packet {name} has values that are not finite")
