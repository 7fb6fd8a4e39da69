"""The bytes of an `.odva` file, but for those of packets (container_packet.py): pure functions, each by its inverse.

All numbers little-endian; every byte but the version and the two after it lies under a CRC-32 (zlib's), or is checked
by its value. A file is an opening, then records; docs/odva.md says the same for people.

    part      offset  bytes
    opening        0      8   magic 89 4F 44 56 41 0D 0A 1A ("\\x89ODVA\\r\\n\\x1a")
                   8      2   version, 2
                  10      2   0
    record         0      4   mark: "SET2", "PKT2", "IDX2" or "END2"
                   4      4   L, the length of the body
                   8      4   CRC of bytes 0 to 8: so L can be trusted, and a mark be told from bytes that look like one
                  12      L   body
    section        0      4   S, the length of what follows (bodies are made of sections)
                   4      S   content
                 4+S      4   CRC of bytes 0 to 4+S

    SET2  what packets are read by; first in the file, again before a packet that needs more levels, again at the end
          section: JSON, UTF-8, at most 65536 bytes: the fields of `Header`, rationals as "30000/1001"
          section: tables of the entropy coder, 19 classes x 18 symbols: uint16, class by class of each symbol, deflated
          section for each kind of clip so far: levels
                   0      1   1 for key clips, 0 for continuation clips
                   1      1   Tg, groups of frames
                   2      …   int16 (coded groups, Zs + Z), along the rows as differences, deflated
    PKT2  one clip: container_packet.py
    IDX2  section: the index
                   0      4   N, number of packets
                   4      …   int64 (6, N), deflated; rows as differences along N: offset of the record, first frame,
                              frames, 1 for key clips, 1D latents, time stamp of the first frame (0 where it has none)
    END2  section: offset of the last SET2 (8), offset of the IDX2 (8), number of packets (4); the file ends here
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.entropy import Tables, inflate
from onedva_runtime.errors import Corrupt, NotOdva, OverLimit, PacketError
from onedva_runtime.quantiser import HIGHEST_LEVEL, LOWEST_LEVEL, Kind, Levels, Quantiser
from onedva_runtime.typed_json import parse_rational

MAGIC, VERSION = b"\x89ODVA\r\n\x1a", 2
OPENING = struct.Struct("<8sHH")
RECORD = struct.Struct("<4sII")
SETUP, PACKET, INDEX, END = b"SET2", b"PKT2", b"IDX2", b"END2"
MARKS = (SETUP, PACKET, INDEX, END)
MAX_HEADER = 1 << 16
MAX_SIDE = 1 << 16  # pixels
MAX_SETUP = 1 << 20  # bytes of a setup's body
MAX_LEVELS = 1 << 15  # of one kind of clip
MAX_GROUPS = 64  # of one clip
MAX_FRAMES = 4 * MAX_GROUPS - 3  # of one clip
MAX_CHANNELS = 1 << 12  # Zs, Z, and Zs of all coded groups: they bound the steps that decoding one packet takes
_LENGTH, _CRC, _END, _COUNT = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<QQI"), struct.Struct("<I")
END_SIZE = RECORD.size + _LENGTH.size + _END.size + _CRC.size
_COLUMNS = 6


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
    step: float
    """`Quantiser.step`."""
    colour: str
    """How the source coded its colours, for people."""


class Entry(NamedTuple):
    """One packet in the index."""

    offset: int
    """Of its record, bytes from the start of the file."""
    first_frame: int
    frames: int
    is_key: int
    tokens: int
    time: int
    """Time stamp of its first frame, 0 where it has none."""


def opening() -> bytes:
    """How every file starts."""
    return OPENING.pack(MAGIC, VERSION, 0)


def check_opening(data: bytes) -> None:
    """Raise NotOdva unless `data` is an opening."""
    if data[: len(MAGIC)] != MAGIC[: len(data)] or len(data) < OPENING.size:
        raise NotOdva(f"not an .odva file ({'its first bytes are others' if data else 'there is nothing in it'})")
    _, version, zero = OPENING.unpack(data)
    if version != VERSION or zero:
        raise NotOdva(f"version {version} of the format, this program reads version {VERSION}")


def record(mark: bytes, body: bytes) -> bytes:
    """One record."""
    head = mark + _LENGTH.pack(len(body))
    return head + _CRC.pack(zlib.crc32(head)) + body


def record_head(data: bytes) -> tuple[bytes, int] | None:
    """Mark and length of body of the record that starts with `data` (12 bytes or more); None where none does."""
    mark, length, crc = RECORD.unpack_from(data)
    return (mark, length) if mark in MARKS and crc == zlib.crc32(data[:8]) else None


def section(content: bytes) -> bytes:
    """One section."""
    data = _LENGTH.pack(len(content)) + content
    return data + _CRC.pack(zlib.crc32(data))


def sections(body: bytes) -> Iterator[bytes]:
    """The contents of the sections of a body; raises Corrupt at the first one that is damaged."""
    view, at = memoryview(body), 0
    while at < len(body):
        if len(body) - at < _LENGTH.size + _CRC.size:
            raise Corrupt("a section is cut off")
        (size,) = _LENGTH.unpack_from(body, at)
        end = at + _LENGTH.size + size
        if end + _CRC.size > len(body):
            raise Corrupt("the length of a section does not fit")
        if _CRC.unpack_from(body, end)[0] != zlib.crc32(view[at:end]):
            raise Corrupt("damaged: a checksum does not fit")
        yield bytes(view[at + _LENGTH.size : end])
        at = end + _CRC.size


def _only_section(body: bytes) -> bytes:
    """The content of a body's one section; raises Corrupt for another number of them."""
    parts = list(sections(body))
    if len(parts) != 1:
        raise Corrupt(f"a record of one section has {len(parts)}")
    return parts[0]


# SET2


def pack_setup(header: Header, tables: Tables, levels: Iterable[tuple[Kind, Levels]]) -> bytes:
    """The body of a setup record. Raises PacketError for what no reader would take."""
    fields = {k: str(v) if isinstance(v, Fraction) else v for k, v in asdict(header).items()}
    text = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    body = b"".join([section(text), section(tables.pack()), *(section(_pack_levels(*row)) for row in levels)])
    if len(body) > MAX_SETUP:
        raise PacketError(f"a setup of {len(body)} bytes; the format holds {MAX_SETUP}")
    try:
        unpack_setup(body)
    except Corrupt as error:
        raise PacketError(f"the format cannot hold this: {error}") from error
    return body


def unpack_setup(body: bytes) -> tuple[Header, Tables, Quantiser]:
    """Inverse of `pack_setup`; raises Corrupt where a part is damaged, missing, or not of its kind."""
    parts = sections(body)
    text, tables = next(parts, None), next(parts, None)
    if text is None or tables is None:
        raise Corrupt("its header or its tables are missing")
    if len(text) > MAX_HEADER:
        raise Corrupt(f"its header takes {len(text)} bytes; the format holds {MAX_HEADER}")
    header = parse_header(text)
    channels = header.structural_channels, header.latent_channels
    levels: dict[Kind, Levels] = {}
    for part in parts:
        kind, found = _unpack_levels(part, *channels)
        if kind in levels:
            raise Corrupt("its levels come twice")
        levels[kind] = found
    quantiser = Quantiser(
        structural_channels=header.structural_channels,
        latent_channels=header.latent_channels,
        step=header.step,
        levels=levels,
    )
    return header, Tables.unpack(tables), quantiser


def _pack_levels(kind: Kind, levels: Levels) -> bytes:
    differences = np.diff(levels, axis=1, prepend=np.int16(0)).astype("<i2")
    return bytes(kind) + zlib.compress(differences.tobytes(), 9)


def fits(groups: int, structural: int, latent: int) -> bool:
    """Whether the format holds clips of this many coded groups, structural and latent channels."""
    return groups * structural <= MAX_CHANNELS and groups * (structural + latent) <= MAX_LEVELS


def _unpack_levels(data: bytes, structural: int, latent: int) -> tuple[Kind, Levels]:
    key, groups = (data[0], data[1]) if len(data) > 2 else (2, 0)
    if key > 1 or not 2 - key <= groups <= MAX_GROUPS:
        raise Corrupt("its levels are damaged")
    shape = groups - 1 + key, structural + latent
    if not fits(shape[0], structural, latent):
        raise Corrupt(f"{shape[0]} groups of {structural} and {latent} channels are more than the format holds")
    raw = np.frombuffer(inflate(data[2:], 2 * shape[0] * shape[1]), "<i2").reshape(shape)
    levels = np.cumsum(raw, axis=1, dtype=np.int64)
    if levels.min() < LOWEST_LEVEL or levels.max() > HIGHEST_LEVEL:
        raise Corrupt(f"its levels must be from {LOWEST_LEVEL} to {HIGHEST_LEVEL}, got {levels.min()}..{levels.max()}")
    return (bool(key), groups), levels.astype(np.int16)


def parse_header(text: bytes) -> Header:
    """The JSON of a header; raises Corrupt where a field is missing, unknown, or not of its kind."""
    try:
        got = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"its header is not valid JSON ({error})") from error
    if not isinstance(got, dict):
        raise Corrupt("its header is not a JSON object")
    values = dict(cast("dict[str, Any]", got))
    if set(values) != set(Header.__dataclass_fields__):
        raise Corrupt(f"its header has the fields {sorted(values)}, not {sorted(Header.__dataclass_fields__)}")
    for name in ("width", "height", "structural_channels", "latent_channels"):
        most = MAX_CHANNELS if "channels" in name else MAX_SIDE
        if type(values[name]) is not int or not 1 <= values[name] <= most:
            raise Corrupt(f"its header gives {name} as {values[name]!r}, not a whole number from 1 to {most}")
    for name in ("model", "colour"):
        if not isinstance(values[name], str) or not values[name].isprintable():  # terminals obey control characters
            raise Corrupt(f"its header gives {name} as {values[name]!r:.60}, not text that can be printed")
    if type(values["step"]) is not float or not (math.isfinite(values["step"]) and values["step"] > 0):
        raise Corrupt(f"its header gives step as {values['step']!r}, not a positive number")
    values["fps"] = _parse_rational("fps", values["fps"])
    if values["time_base"] is not None:
        values["time_base"] = _parse_rational("time_base", values["time_base"])
    return Header(**values)


def _parse_rational(name: str, value: object) -> Fraction:
    try:
        return parse_rational(value)
    except ValueError as error:
        raise Corrupt(f"its header gives {name} as {value!r:.60}, not a positive rational ({error})") from error


# IDX2 and END2


def pack_index(entries: list[Entry]) -> bytes:
    """The body of an index record."""
    table = np.array(entries, np.int64).reshape(-1, _COLUMNS).T
    differences = np.diff(table, axis=1, prepend=np.int64(0)).astype("<i8")
    return section(_COUNT.pack(len(entries)) + zlib.compress(differences.tobytes(), 9))


def unpack_index(body: bytes, *, size: int, most: int) -> list[Entry]:
    """Inverse of `pack_index`; raises Corrupt, also where it names more than a file of `size` bytes can hold, and
    OverLimit for more than `most` packets."""
    content = _only_section(body)
    if len(content) < _COUNT.size:
        raise Corrupt("its index is damaged")
    (count,) = _COUNT.unpack_from(content)
    if count > size // END_SIZE:
        raise Corrupt(f"its index counts {count} packets, a file of {size} bytes has no room for them")
    if count > most:
        raise OverLimit(f"an index of {count} packets; allowed: {most} (Limits.max_frames)")
    raw = np.frombuffer(inflate(content[_COUNT.size :], 8 * _COLUMNS * count), "<i8").reshape(_COLUMNS, count)
    table: NDArray[np.int64] = np.cumsum(raw, axis=1, dtype=np.int64)
    if count and (table[:-1].min() < 0 or table[0].max() > size):
        raise Corrupt("its index names what cannot be")
    return [Entry(*row) for row in table.T.tolist()]


def pack_end(setup: int, index: int, count: int) -> bytes:
    """The body of an end record: offsets of the last setup and of the index, and how many packets there are."""
    return section(_END.pack(setup, index, count))


def unpack_end(body: bytes) -> tuple[int, int, int]:
    """Inverse of `pack_end`; raises Corrupt."""
    content = _only_section(body)
    if len(content) != _END.size:
        raise Corrupt("its end is damaged")
    return _END.unpack(content)
