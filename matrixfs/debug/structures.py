"""Any declared structure as text and as JSON, field by field, whatever its bytes are (D2, D3).

Fields are taken from the bytes by their declared offsets, without a decoder: so a structure with a bad checksum can be
read too.  What its decoder says of it stands beside.
"""

from __future__ import annotations

import importlib
import pkgutil
import stat
import struct
import uuid
from datetime import UTC, datetime
from typing import Any

import matrixfs.ondisk
from matrixfs.debug.contents import content_of
from matrixfs.debug.items import Item, row
from matrixfs.fsck.context import printable, reason
from matrixfs.ondisk.inode import FLAG_LETTERS, InodeRecord
from membership.errors import CorruptRecord
from membership.label import Label
from membership.records import HEADER, Field, Record

SECRETS = frozenset(("cluster_key",))  # whoever reads it is a node: not for a bug report
IN_HEX = ("flags", "features", "salt", "incarnation", "hash_seed")
HEX_BYTES_SHOWN = 32
HEADER_MEANINGS = {
    "version": "version of the layout",
    "checksum": "CRC-32C of the whole record with this field zero",
    "owner": "uuid of what it belongs to",
    "address": "its own block number",
    "generation": "only grows (R7)",
}


def structures() -> dict[bytes, type[Record]]:
    """All structures of a filesystem's area, and the label, by magic."""
    found: dict[bytes, type[Record]] = {Label.MAGIC: Label}
    for module in pkgutil.iter_modules(matrixfs.ondisk.__path__):
        names = vars(importlib.import_module(f"matrixfs.ondisk.{module.name}"))
        found |= {kind.MAGIC: kind for kind in names.values() if _is_structure(kind)}
    return found


def _is_structure(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Record) and value is not Record


def verdict(kind: type[Record], data: bytes, owner: bytes | None, address: int) -> str:
    """What is wrong with a structure in a block; "" when nothing is."""
    try:
        kind.decode_untrusted(data, "", owner=owner, address=address)
    except CorruptRecord as error:
        return reason(error)
    return ""


def fields_of(kind: type[Record], data: bytes) -> dict[str, Any]:
    """All fields as they lie in the block: integers, bytes, text with damaged characters replaced, lists."""
    _, version, _, checksum, owner, address, generation = HEADER.unpack_from(data)
    found: dict[str, Any] = {
        "version": version, "checksum": checksum, "owner": owner, "address": address, "generation": generation,
    }  # fmt: skip
    for name, field in kind.FIELDS.items():
        found[name] = _value(field, data)
    return found


def _value(field: Field, data: bytes) -> Any:
    code = f"<{field.count}{field.code}" if field.kind == "array" else f"<{field.code}"
    values = struct.unpack_from(code, data, field.at)
    if field.kind == "array":
        return list(values)
    if field.kind == "text":
        return values[0].rstrip(b"\0").decode(errors="replace")
    return values[0]


def show(
    kind: type[Record],
    data: bytes,
    title: str,
    *,
    owner: bytes | None,
    address: int,
    blocks_total: int,
    full: bool = True,
) -> Item:
    """A structure, and with ``full`` what its field of bytes holds."""
    fields = fields_of(kind, data)
    wrong = verdict(kind, data, owner, address)
    lines = [printable(f"{title}: {kind.__name__} {kind.MAGIC.decode()}, {'DAMAGED' if wrong else 'sound'}".encode())]
    for name, value in fields.items():
        meaning = kind.FIELDS[name].doc if name in kind.FIELDS else HEADER_MEANINGS[name]
        letters = _letters(value) if kind is InodeRecord and name == "flags" else ""
        lines.append(row(name, _text(name, value) + letters, meaning))
    content = content_of(kind, data, fields, blocks_total) if full else None
    document: dict[str, Any] = {
        "kind": "structure", "title": title, "structure": kind.__name__, "block": address, "sound": not wrong,
        "fields": {name: _plain(name, value) for name, value in fields.items()},
    }  # fmt: skip
    problems = [f"{title}: {wrong}"] if wrong else []
    if content is not None:
        lines += content.lines()
        document |= content.document()
        problems += [f"{title}: {text}" for text in content.problems]
    return Item(lines, document, problems)


def _text(name: str, value: Any) -> str:
    """A value for people."""
    if name in SECRETS:
        return "(secret: not shown)"
    if isinstance(value, bytes):
        if len(value) == 16:
            return str(uuid.UUID(bytes=value))
        used = value.rstrip(b"\0")
        more = "..." if len(used) > HEX_BYTES_SHOWN // 2 else ""
        return f"{len(used)} bytes {used[: HEX_BYTES_SHOWN // 2].hex()}{more}"
    if isinstance(value, str):
        return printable(value.encode(errors="replace"))
    if isinstance(value, list):
        return " ".join(str(each) for each in value if each) or "0"
    if name.endswith("_ns") and value:
        return f"{value} {time_text(value)}"
    if name == "mode":
        return f"{value:#o} {stat.filemode(value & 0xFFFF)}"
    return f"{value:#x}" if value and (name.startswith(IN_HEX) or name == "checksum") else str(value)


def _letters(flags: int) -> str:
    """Those of chattr(1) for the flags of an inode."""
    found = "".join(letter for flag, letter in FLAG_LETTERS.items() if flags & flag)
    return f" {found}" if found else ""


def time_text(ns: int) -> str:
    """A time on the disk, in UTC."""
    try:
        return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "(no date)"


def _plain(name: str, value: Any) -> Any:
    """A value for JSON."""
    if name in SECRETS:
        return None
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value)) if len(value) == 16 else value.rstrip(b"\0").hex()
    return value
