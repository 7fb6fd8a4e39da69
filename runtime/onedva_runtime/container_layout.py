"""The bytes of the plain latent file (container.py): pure functions between them and packets, each next to its inverse.

All numbers little-endian; every byte lies under a CRC-32 (zlib's).

    part      offset  bytes
    header         0      8   magic 89 4F 44 56 41 0D 0A 1A ("\\x89ODVA\\r\\n\\x1a")
                   8      2   version, 1
                  10      2   0
                  12      4   H, the length of what follows, at most 65536
                  16      H   JSON, UTF-8: the fields of `Header`, rationals as "30000/1001"
                16+H      4   CRC of bytes 0 to 16+H
    packet         0      4   "PKT1"
                   4      4   L, the length of what follows
                   8      1   flags: 1 key clip, 2 has time stamps, 4 has predicted errors
                   9      3   0
                  12      4   frames
                  16      4   number of the first frame in the video
                  20      4   K, 1D latents
                  24   2*Tg*Hg*Wg*Zs   structural, float16 (Tg, Hg, Wg follow from frames, width and height)
                   …   2*K*Z           latents, float16
                   …   4*K             anchors, uint32
                   …   4*K             predicted errors, float32, if flagged
                   …   8*frames        time stamps, int64, if flagged
                 8+L      4   CRC of bytes 0 to 8+L
    end            0      4   "END1"
                   4      4   number of packets
                   8      4   CRC of bytes 0 to 8; the file ends here

Latents are rounded to float16 when they are packed, so what was unpacked once is packed and unpacked again unchanged.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import PacketError
from .limits import Limits
from .packet import Packet, padded_frames, padded_size

MAGIC, VERSION = b"\x89ODVA\r\n\x1a", 1
PACKET_MARK, END_MARK = b"PKT1", b"END1"
PREFIX = struct.Struct("<8sHHI")
RECORD = struct.Struct("<4sI")
CRC = struct.Struct("<I")
MAX_HEADER = 1 << 16
_PACKET = struct.Struct("<B3xIII")
_KEY, _TIMES, _ERRORS = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all packets of a file share."""

    width: int
    """Pixels per row of the source."""
    height: int
    """Rows of the source."""
    fps: Fraction
    """Frames per second."""
    time_base: Fraction | None
    """Seconds per tick of the time stamps, None where there are none."""
    model: str
    """Fingerprint of the bundle that made the packets."""
    structural_channels: int
    """Zs."""
    latent_channels: int
    """Z."""
    colour: str
    """How the source coded its colours, for people."""


def with_crc(data: bytes) -> bytes:
    """`data` followed by its CRC."""
    return data + CRC.pack(zlib.crc32(data))


def pack_header(header: Header) -> bytes:
    """The header part of a file, CRC included."""
    fields = {k: str(v) if isinstance(v, Fraction) else v for k, v in asdict(header).items()}
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    return with_crc(PREFIX.pack(MAGIC, VERSION, 0, len(text)) + text)


def parse_header(text: bytes) -> Header:
    """The JSON of a header; raises PacketError where a field is missing, unknown, or not of its kind."""
    try:
        got = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PacketError(f"its header is not valid JSON ({error})") from error
    if not isinstance(got, dict):
        raise PacketError("its header is not a JSON object")
    values = dict(cast("dict[str, Any]", got))
    if set(values) != set(Header.__dataclass_fields__):
        raise PacketError(f"its header has the fields {sorted(values)}, not {sorted(Header.__dataclass_fields__)}")
    for name in ("width", "height", "structural_channels", "latent_channels"):
        if type(values[name]) is not int or not 1 <= values[name] < 1 << 31:
            raise PacketError(f"its header gives {name} as {values[name]!r}, not a whole number of at least 1")
    for name in ("model", "colour"):
        if not isinstance(values[name], str):
            raise PacketError(f"its header gives {name} as {values[name]!r}, not text")
    values["fps"] = _parse_rational("fps", values["fps"])
    if values["time_base"] is not None:
        values["time_base"] = _parse_rational("time_base", values["time_base"])
    return Header(**values)


def _parse_rational(name: str, value: object) -> Fraction:
    try:
        if not isinstance(value, str) or len(value) > 40:
            raise ValueError("not a short text")
        number = Fraction(value)
        if not (number > 0 and math.isfinite(float(number))):
            raise ValueError("not above 0")
    except (ValueError, ArithmeticError) as error:
        raise PacketError(f"its header gives {name} as {value!r}, not a positive rational ({error})") from error
    return number


def pack_packet(packet: Packet) -> bytes:
    """The packet part of a file, CRC included; raises PacketError where a value is too large for float16."""
    structural, latents = _to_half("structural", packet.structural), _to_half("latents", packet.latents)
    flags = _KEY * packet.is_key
    parts = [structural.tobytes(), latents.tobytes(), packet.anchors.astype("<u4").tobytes()]
    if packet.predicted_error is not None:
        flags |= _ERRORS
        parts.append(packet.predicted_error.astype("<f4").tobytes())
    if packet.timestamps is not None:
        flags |= _TIMES
        parts.append(packet.timestamps.astype("<i8").tobytes())
    body = b"".join([_PACKET.pack(flags, packet.frames, packet.first_frame, packet.tokens), *parts])
    return with_crc(RECORD.pack(PACKET_MARK, len(body)) + body)


def unpack_packet(body: bytes, header: Header, limits: Limits) -> Packet:
    """The packet of a body (what follows L, without the CRC); raises PacketError: inconsistent, or over `limits`."""
    if len(body) < _PACKET.size:
        raise PacketError("a packet is too short")
    flags, frames, first_frame, tokens = _PACKET.unpack_from(body)
    if not 1 <= frames <= limits.max_frames:
        raise PacketError(f"a packet of {frames} frames, allowed are 1 to {limits.max_frames} (Limits.max_frames)")
    if tokens > limits.max_latents:
        raise PacketError(f"a packet of {tokens} latents, over the limit of {limits.max_latents} (Limits.max_latents)")
    grid = 1 + (padded_frames(frames) - 1) // 4, padded_size(header.height) // 16, padded_size(header.width) // 16
    shapes: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
        "structural": ("<f2", (*grid, header.structural_channels)),
        "latents": ("<f2", (tokens, header.latent_channels)),
        "anchors": ("<u4", (tokens,)),
    }
    if flags & _ERRORS:
        shapes["errors"] = "<f4", (tokens,)
    if flags & _TIMES:
        shapes["times"] = "<i8", (frames,)
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for dtype, shape in shapes.values()]
    if flags > (_KEY | _TIMES | _ERRORS) or _PACKET.size + sum(sizes) != len(body):
        raise PacketError("a packet's length does not fit its contents")
    arrays: dict[str, NDArray[Any]] = {}
    offset = _PACKET.size
    for (name, (dtype, shape)), size in zip(shapes.items(), sizes, strict=True):
        arrays[name] = np.frombuffer(body, dtype, math.prod(shape), offset).reshape(shape)
        offset += size
    errors, times = arrays.get("errors"), arrays.get("times")
    return Packet(
        structural=arrays["structural"].astype(np.float32),
        latents=arrays["latents"].astype(np.float32),
        anchors=arrays["anchors"].astype(np.int64),
        predicted_error=None if errors is None else errors.astype(np.float32),
        timestamps=None if times is None else times.astype(np.int64),
        is_key=bool(flags & _KEY),
        frames=frames,
        first_frame=first_frame,
        height=header.height,
        width=header.width,
        fps=float(header.fps),
        time_base=header.time_base,
        model=header.model,
    ).validate()


def _to_half(name: str, values: NDArray[np.float32]) -> NDArray[np.float16]:
    largest = float(np.max(np.abs(values), initial=0))
    if largest >= 65520:  # the smallest number that rounds to infinity
        raise PacketError(f"packet {name} reach {largest:g}, too large for 16 bits")
    return values.astype("<f2")
