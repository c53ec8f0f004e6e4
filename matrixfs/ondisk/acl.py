"""POSIX access control lists as Linux passes them in extended attributes, and as they are stored.

u32 version 2, then entries of u16 tag, u16 permissions, u32 id: the owner, named users, the group, named groups, the
mask, the others, in this order (acl(5)).  There is a mask as soon as anybody is named.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from membership.errors import CorruptRecord

VERSION = 2
ENTRIES_MAX = 1024  # the kernel takes a page of them, which is fewer
NO_ID = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ORDER = (USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER)
_NAMED = (USER, GROUP)

_HEAD = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")


class AclEntry(NamedTuple):
    """Who may do what."""

    tag: int
    permissions: int  # as in a mode: 4 read, 2 write, 1 execute
    id: int = NO_ID  # of a named user or group


def pack_acl(entries: Iterable[AclEntry]) -> bytes:
    """The list as bytes."""
    return _HEAD.pack(VERSION) + b"".join([_ENTRY.pack(*entry) for entry in entries])


def unpack_acl_untrusted(data: bytes, where: str) -> list[AclEntry]:
    """The entries, checked as the kernel does.  Raises CorruptRecord."""
    count, rest = divmod(len(data) - _HEAD.size, _ENTRY.size)
    if rest or not 3 <= count <= ENTRIES_MAX or _HEAD.unpack_from(data) != (VERSION,):
        expected = f"version {VERSION}, 3..{ENTRIES_MAX} entries"
        raise CorruptRecord(where, "access control list", expected, f"{data[:4].hex()}, {len(data)} bytes")
    entries = [AclEntry(*values) for values in _ENTRY.iter_unpack(data[_HEAD.size :])]
    tags = [entry.tag for entry in entries]
    if any(tag not in _ORDER for tag in tags) or tags != sorted(tags, key=_ORDER.index):
        raise CorruptRecord(where, "access control list", "entries in order", tags)
    once = all(tags.count(tag) == 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    if not once or tags.count(MASK) > 1 or (MASK not in tags and not {*_NAMED}.isdisjoint(tags)):
        raise CorruptRecord(where, "access control list", "owner, group, others, and a mask for who is named", tags)
    for tag, permissions, id_ in entries:
        if permissions > 7 or (tag in _NAMED and id_ == NO_ID):
            raise CorruptRecord(where, "access control list entry", "rwx, an id for who is named", (tag, permissions))
    return entries
