"""Extended attributes of one inode: names and values packed one behind the other, sorted by name.

What fits ``INLINE_BYTES`` lies in the inode's own block (an ACL of five entries, a capability); more lies in a chain of
blocks that begins at the inode's ``attributes``, cut wherever a block ends.  Every block but the last is full.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import Record, raw, record, u16, u64

_ENTRY = struct.Struct("<BI")
ENTRY_BYTES = _ENTRY.size
NAME_BYTES_MAX = 255  # XATTR_NAME_MAX
VALUE_BYTES_MAX = 65_536  # XATTR_SIZE_MAX
LIST_BYTES_MAX = 65_536  # XATTR_LIST_MAX: all names, each with its zero, as listxattr(2) tells them
PACKED_BYTES_MAX = 131_072  # all of one inode: its change must fit a transaction of the smallest journal
INLINE_BYTES = 78  # in the inode's block
BODY_AT = 72
BODY_BYTES = BLOCK_BYTES - BODY_AT
CHAIN_BLOCKS_MAX = -(-PACKED_BYTES_MAX // BODY_BYTES)

CAPABILITY = b"security.capability"
ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
SPACES = (b"user.", b"trusted.", b"security.")


@record(magic=b"MXFSXATR", size=BLOCK_BYTES)
class AttributeRecord(Record):
    """One block of a chain."""

    inode: int = u64(48, "whose attributes these are")
    next: int = u64(56, "block that follows; 0 = none")
    used: int = u16(64, "bytes of the body in use")
    body: bytes = raw(BODY_AT, BODY_BYTES, "part of the entries: u8 name length, u32 value length, name, value")

    def check_untrusted(self, where: str, inode: int) -> None:
        """Check what a reader of the chain relies on.  Raises CorruptRecord."""
        if self.inode != inode:
            raise CorruptRecord(where, "inode", inode, self.inode)
        if not 1 <= self.used <= BODY_BYTES or (self.next and self.used != BODY_BYTES):
            raise CorruptRecord(where, "bytes used", f"{BODY_BYTES}, or in the last block 1..{BODY_BYTES}", self.used)


def is_known_name(name: bytes) -> bool:
    """Whether an attribute can have this name: one of the namespaces of Linux, and something behind it."""
    return name in (ACL_ACCESS, ACL_DEFAULT) or any(name.startswith(space) and name != space for space in SPACES)


def list_bytes(names: Mapping[bytes, bytes]) -> int:
    """Bytes of the names as listxattr(2) tells them."""
    return sum([len(name) + 1 for name in names])


def packed_bytes(attributes: Mapping[bytes, bytes]) -> int:
    """Bytes that ``pack_attributes`` makes of them."""
    return sum([ENTRY_BYTES + len(name) + len(value) for name, value in attributes.items()])


def pack_attributes(attributes: Mapping[bytes, bytes]) -> bytes:
    """The attributes as bytes."""
    parts: list[bytes] = []
    for name in sorted(attributes):
        value = attributes[name]
        parts += (_ENTRY.pack(len(name), len(value)), name, value)
    return b"".join(parts)


def unpack_attributes_untrusted(data: bytes, where: str) -> dict[bytes, bytes]:
    """Attributes that fill ``data``, checked for names, order and sizes.  Raises CorruptRecord."""
    found: dict[bytes, bytes] = {}
    last = b""
    at, end = 0, len(data)
    if end > PACKED_BYTES_MAX:
        raise CorruptRecord(where, "attributes", f"at most {PACKED_BYTES_MAX} bytes", end)
    while at < end:
        if at + ENTRY_BYTES > end:
            raise CorruptRecord(where, "attribute entry", f"within {end} bytes", at)
        name_bytes, value_bytes = _ENTRY.unpack_from(data, at)
        at += ENTRY_BYTES + name_bytes + value_bytes
        if value_bytes > VALUE_BYTES_MAX or at > end:
            raise CorruptRecord(where, "attribute entry", f"within {end} bytes", at)
        name = data[at - value_bytes - name_bytes : at - value_bytes]
        if name <= last or not is_known_name(name) or b"\0" in name:
            raise CorruptRecord(where, "attribute name", f"a name behind {last!r}", repr(name))
        found[name] = data[at - value_bytes : at]
        last = name
    if list_bytes(found) > LIST_BYTES_MAX:
        raise CorruptRecord(where, "attribute names", f"at most {LIST_BYTES_MAX} bytes", list_bytes(found))
    return found
