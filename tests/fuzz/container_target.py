"""What the fuzzer does with bytes as an `.odva` file: any may raise the errors that are there for it, and no others.

Checksums would stop nearly every change, so the bytes are tried as they are and again with all checksums put right.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

from onedva_runtime.container import load_packets, open_packets
from onedva_runtime.errors import PacketError
from onedva_runtime.limits import Limits

LIMITS = Limits(max_pixels=1 << 18, max_frames=1000, max_latents=512, max_values=1 << 15, max_packet_bytes=1 << 20)


def one_input(data: bytes) -> None:
    """Read `data` in every way there is."""
    for file in (data, repaired(data)):
        with suppress(PacketError):
            load_packets(io.BytesIO(file), limits=LIMITS)
        with suppress(PacketError), open_packets(io.BytesIO(file), limits=LIMITS, on_error="skip") as reader:
            packets = list(reader)
            reader.index()
            reader.seek(frame=5)
            for packet in [*packets, *reader]:
                packet.validate()


def repaired(data: bytes) -> bytes:
    """`data` with the magic of an `.odva` file, records and sections that fit into each other, and right checksums."""
    out, at = bytearray(b"\x89ODVA\r\n\x1a\x02\0\0\0"), 12
    while at + 12 <= len(data):
        mark = data[at : at + 4]
        length = min(struct.unpack_from("<I", data, at + 4)[0], len(data) - at - 12)
        body = _sections(data[at + 12 : at + 12 + length])
        head = mark + struct.pack("<I", len(body))
        out += head + struct.pack("<I", zlib.crc32(head)) + body
        at += 12 + length
    return bytes(out + data[at:])


def _sections(body: bytes) -> bytes:
    out, at = bytearray(), 0
    while at + 8 <= len(body):
        size = min(struct.unpack_from("<I", body, at)[0], len(body) - at - 8)
        content = struct.pack("<I", size) + body[at + 4 : at + 4 + size]
        out += content + struct.pack("<I", zlib.crc32(content))
        at += 8 + size
    return bytes(out)
