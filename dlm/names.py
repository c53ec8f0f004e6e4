"""Resource names: (domain, object, start, length), the only thing the DLM knows of what it locks.

Two names are the same resource only when all four are equal; ranges do not overlap-check here (byte-range
locks are built above).  Domains keep users apart that must recover in order: stripes before files (R5).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from msgspec import Meta

U64 = Annotated[int, Meta(ge=0)]  # MessagePack itself ends at 64 bits


class Resource(NamedTuple):
    """One lockable thing.  A plain tuple, because it is hashed on every call of the hot path."""

    domain: Annotated[int, Meta(ge=0, le=255)]  # who uses it (``matrixfs.locks`` numbers them)
    object: U64  # for example an inode number, which is a block address
    start: U64 = 0  # first unit of the range
    length: U64 = 0  # units; 0 is the whole object

    def __str__(self) -> str:
        name = f"{self.domain}:{self.object:x}"
        return f"{name}[{self.start}+{self.length}]" if self.length else name
