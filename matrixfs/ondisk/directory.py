"""Directory entries, sorted by key: 55 bits of hash and 7 bits that tell apart equal hashes.

The key of an entry never changes while the name exists, so it serves as the readdir cookie
(``COOKIE_BASE`` + key): positions stay good while others add and remove names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from matrixfs.ondisk.index import BODY_AT, BODY_BYTES
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import Record, raw, record, u16, u64

_ENTRY = struct.Struct("<QQBB")
ENTRY_BYTES = _ENTRY.size
NAME_MAX = 255
DISAMBIGUATION_BITS = 7
KEY_MAX = (1 << 62) - 1
COOKIE_BASE = 3  # cookies 0, 1, 2: start, after ".", after ".."
_NO_NAMES = frozenset((b"", b".", b".."))
_ENDS_NAME = re.compile(rb"[/\0]")
KINDS = frozenset((1, 2, 4, 6, 8, 10, 12))  # DT_FIFO, CHR, DIR, BLK, REG, LNK, SOCK: (mode & S_IFMT) >> 12


class Entry(NamedTuple):
    """One name."""

    key: int
    inode: int
    kind: int  # (mode & S_IFMT) >> 12
    name: bytes

    @property
    def size(self) -> int:
        """Bytes it takes on disk."""
        return ENTRY_BYTES + len(self.name)


@record(magic=b"MXFSDIRL", size=BLOCK_BYTES)
class DirectoryLeafRecord(Record):
    """One leaf of directory entries."""

    inode: int = u64(48, "whose directory it is part of")
    entries: int = u16(58, "entries")
    body: bytes = raw(BODY_AT, BODY_BYTES, "entries of u64 key, u64 inode, u8 kind, u8 name length, name")


def first_key(name: bytes, seed: int) -> int:
    """Smallest key that an entry of this name can have."""
    return (xxhash.xxh3_64_intdigest(name, seed) >> 9) << DISAMBIGUATION_BITS


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """The entries as bytes."""
    parts: list[bytes] = []
    for key, inode, kind, name in entries:
        parts.append(_ENTRY.pack(key, inode, kind, len(name)))
        parts.append(name)
    return b"".join(parts)


def unpack_entries_untrusted(data: bytes, count: int, where: str) -> list[Entry]:
    """``count`` entries, checked for order, kind and names.  Raises CorruptRecord.

    A node that takes over a directory decodes most of its leaves: what can be checked for all entries together is.
    """
    entries: list[Entry] = []
    end = len(data)
    at = 0
    last = -1
    unpack, new = _ENTRY.unpack_from, tuple.__new__
    for _ in range(count):
        if at + ENTRY_BYTES > end:
            raise CorruptRecord(where, "directory entries", f"within {end} bytes", at)
        key, inode, kind, length = unpack(data, at)
        name = data[at + ENTRY_BYTES : (at := at + ENTRY_BYTES + length)]
        if key <= last:
            raise CorruptRecord(where, "directory order", f"above {last}", key)
        last = key
        entries.append(new(Entry, (key, inode, kind, name)))
    if at > end:
        raise CorruptRecord(where, "directory entries", f"within {end} bytes", at)
    if last > KEY_MAX or not KINDS.issuperset([entry[2] for entry in entries]):
        raise CorruptRecord(where, "directory order", f"keys to {KEY_MAX}, known types", last)
    names = [entry[3] for entry in entries]
    if not _NO_NAMES.isdisjoint(names) or _ENDS_NAME.search(b"".join(names)):
        raise CorruptRecord(where, "directory name", "file names", "others")
    return entries
