"""Names of application locks, as the command and the mount process both understand them (004-33).

A lock's number is a hash of its name.  Two names of one hash (64 bits of BLAKE2b) would exclude each other without
need, never the other way round.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

NAME_BYTES_MAX: Final = 1024
BUSY: Final = 124  # exit code of who did not get a lock in time, as timeout(1) has it


def object_of(name: bytes) -> int:
    """The object that stands for a name."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
