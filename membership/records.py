"""Fixed-layout records: a disk format declared once, as data with offsets (R12).

A record class lists its fields with explicit offsets; from that declaration come the constructor, the
codec, the checks at import (size, order, no overlap) and the tables in ``docs/format``.  Every record
starts with the same 48-byte header, which is what R7 asks of a metadata block:

====== ===== ==========================================================================
offset bytes meaning
====== ===== ==========================================================================
0      8     magic: what kind of record this is
8      2     version of the layout; a greater one than ours is refused, not guessed at
10     2     zero
12     4     CRC-32C of the whole record with this field zero
16     16    owner: uuid of the cluster or filesystem it belongs to
32     8     address: its own block number, so a misdirected write is noticed
40     8     generation: only grows under the exclusive lock; replay compares it (R7)
====== ===== ==========================================================================

All integers are little-endian.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from fastcrc import crc32

from membership.errors import CorruptRecord
from membership.seams import Buffer

HEADER = struct.Struct("<8sHHI16sQQ")
HEADER_BYTES = HEADER.size
GENERATION_MAX = (1 << 63) - 1  # never reached by counting: a greater one is damage
_CHECKSUM_AT = 12
_CHECKSUM = struct.Struct("<I")

assert HEADER_BYTES == 48


@dataclass(frozen=True, slots=True)
class Field:
    """One field: where it lies and how it is packed."""

    at: int
    code: str  # struct format of one element, without byte order
    count: int  # elements of an array, 1 for a scalar
    kind: str  # "int", "bytes", "text", "array"
    doc: str

    @property
    def size(self) -> int:
        """Bytes it takes on disk."""
        return struct.calcsize("<" + self.code) * self.count


def _field(at: int, code: str, kind: str, doc: str, count: int, default: object) -> Any:
    meta = {"field": Field(at, code, count, kind, doc)}
    return dataclasses.field(default=default, metadata=meta)


def u8(at: int, doc: str, *, default: int = 0) -> Any:
    """An unsigned byte."""
    return _field(at, "B", "int", doc, 1, default)


def u16(at: int, doc: str, *, default: int = 0) -> Any:
    """A 16-bit unsigned integer."""
    return _field(at, "H", "int", doc, 1, default)


def u32(at: int, doc: str, *, default: int = 0) -> Any:
    """A 32-bit unsigned integer."""
    return _field(at, "I", "int", doc, 1, default)


def u64(at: int, doc: str, *, default: int = 0) -> Any:
    """A 64-bit unsigned integer."""
    return _field(at, "Q", "int", doc, 1, default)


def i64(at: int, doc: str, *, default: int = 0) -> Any:
    """A 64-bit signed integer."""
    return _field(at, "q", "int", doc, 1, default)


def raw(at: int, length: int, doc: str, *, default: bytes = b"") -> Any:
    """``length`` bytes, zero-padded; decoded at full length."""
    return _field(at, f"{length}s", "bytes", doc, 1, default)


def text(at: int, length: int, doc: str, *, default: str = "") -> Any:
    """UTF-8 text of at most ``length`` bytes, zero-padded."""
    return _field(at, f"{length}s", "text", doc, 1, default)


def u64_array(at: int, count: int, doc: str, *, default: tuple[int, ...] = ()) -> Any:
    """``count`` 64-bit unsigned integers as a tuple; a shorter tuple is zero-padded."""
    return _field(at, "Q", "array", doc, count, default)


@dataclass(slots=True, kw_only=True)
class Record:
    """Base of all records: the common header's variable part."""

    owner: bytes = b""  # 16-byte uuid
    address: int = 0
    generation: int = 0

    MAGIC: ClassVar[bytes]
    SIZE: ClassVar[int]
    VERSION: ClassVar[int]
    FIELDS: ClassVar[dict[str, Field]]
    _BODY: ClassVar[struct.Struct]
    _PLAN: ClassVar[tuple[tuple[str, str, int], ...]]

    if TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            """All fields by name; those not given are zero or empty."""

    def encode(self) -> bytes:
        """The record's ``SIZE`` bytes, checksum included.  ValueError or struct.error on a value out of range."""
        values: list[Any] = []
        for name, kind, count in self._PLAN:
            value = getattr(self, name)
            if kind == "array":
                values.extend(value)
                values.extend([0] * (count - len(value)))
            elif kind == "text":
                data = value.encode()
                if len(data) > count:
                    raise ValueError(f"{name}: {value!r} is longer than {count} bytes")
                values.append(data)
            elif kind == "bytes":
                if len(value) > count:
                    raise ValueError(f"{name}: {len(value)} bytes, room for {count}")
                values.append(value)
            else:
                values.append(value)
        out = bytearray(self.SIZE)
        HEADER.pack_into(out, 0, self.MAGIC, self.VERSION, 0, 0, self.owner, self.address, self.generation)
        self._BODY.pack_into(out, HEADER_BYTES, *values)
        _CHECKSUM.pack_into(out, _CHECKSUM_AT, crc32.iscsi(out))
        return bytes(out)

    @classmethod
    def decode_untrusted(
        cls, data: Buffer, where: str, *, owner: bytes | None = None, address: int | None = None
    ) -> Self:
        """Decode bytes from a disk.

        Args:
            data: at least ``SIZE`` bytes.
            where: how an error names the place.
            owner: the uuid it must carry, when known.
            address: the block number it must carry, when known.

        Raises:
            CorruptRecord: and nothing else, whatever the bytes are (R11).
        """
        found_owner, found_address, generation = check_header_untrusted(
            data, where, magic=cls.MAGIC, size=cls.SIZE, version=cls.VERSION, owner=owner, address=address
        )
        values = cls._BODY.unpack_from(data, HEADER_BYTES)
        fields: dict[str, Any] = {"owner": found_owner, "address": found_address, "generation": generation}
        i = 0
        for name, kind, count in cls._PLAN:
            if kind == "array":
                fields[name] = values[i : i + count]
                i += count
                continue
            value = values[i]
            i += 1
            if kind == "text":
                try:
                    value = value.rstrip(b"\0").decode()
                except UnicodeDecodeError:
                    raise CorruptRecord(where, f"{name}", "UTF-8", value[:32]) from None
            fields[name] = value
        return cls(**fields)


def next_generation(generation: int) -> int:
    """The generation of a changed record.  At the end, where no counting comes, it stays, and is not written again."""
    return min(generation + 1, GENERATION_MAX)


def check_header_untrusted(
    data: Buffer,
    where: str,
    *,
    magic: bytes,
    size: int,
    version: int,
    owner: bytes | None = None,
    address: int | None = None,
) -> tuple[bytes, int, int]:
    """Check the common header of a record; return (owner, address, generation).  Raises CorruptRecord."""
    if len(data) < size:
        raise CorruptRecord(where, "length", f"{size} bytes", len(data))
    found_magic, found_version, _, checksum, found_owner, found_address, generation = HEADER.unpack_from(data)
    if found_magic != magic:
        raise CorruptRecord(where, "magic", magic, found_magic)
    image = bytearray(data[:size])
    _CHECKSUM.pack_into(image, _CHECKSUM_AT, 0)
    computed = crc32.iscsi(image)
    if computed != checksum:
        raise CorruptRecord(where, "checksum", f"{computed:#010x}", f"{checksum:#010x}")
    if found_version > version:
        raise CorruptRecord(where, "version", f"at most {version} (upgrade this node)", found_version)
    if generation > GENERATION_MAX:
        raise CorruptRecord(where, "generation", f"at most {GENERATION_MAX}", generation)
    if owner is not None and found_owner != owner:
        raise CorruptRecord(where, "owner", owner.hex(), found_owner.hex())
    if address is not None and found_address != address:
        raise CorruptRecord(where, "address", address, found_address)
    return found_owner, found_address, generation


_R = TypeVar("_R", bound=Record)


def record(*, magic: bytes, size: int, version: int = 1) -> Callable[[type[_R]], type[_R]]:
    """Class decorator: make a fixed-layout record of a subclass of Record.

    Args:
        magic: 8 bytes.
        size: bytes of the whole record.
        version: version of this layout.
    """

    def wrap(cls: type[_R]) -> type[_R]:
        made = dataclass(slots=True, kw_only=True)(cls)
        fields: dict[str, Field] = {}
        for f in dataclasses.fields(made):
            if "field" in f.metadata:
                fields[f.name] = f.metadata["field"]
        _lay_out(made, magic, size, version, fields)
        return made

    return wrap


def _lay_out(made: type[Record], magic: bytes, size: int, version: int, fields: dict[str, Field]) -> None:
    """Check the declaration (order, overlap, size) and compile its codec."""
    assert len(magic) == 8, magic
    layout = "<"
    position = HEADER_BYTES
    for name, f in fields.items():
        assert f.at >= position, f"{made.__name__}.{name} at {f.at} overlaps what ends at {position}"
        if f.at > position:
            layout += f"{f.at - position}x"
        layout += f.code if f.count == 1 else f"{f.count}{f.code}"
        position = f.at + f.size
    assert position <= size, f"{made.__name__} ends at {position}, beyond its {size} bytes"
    made.MAGIC, made.SIZE, made.VERSION, made.FIELDS = magic, size, version, fields
    made._BODY = struct.Struct(layout)
    made._PLAN = tuple(
        (name, f.kind, f.count if f.kind == "array" else f.size) for name, f in fields.items()
    )
