"""A mark on the store that stands exactly as long as a process, *or an I/O it left behind*, can touch it.

The process fence kills a node's processes and waits for their exit (architecture.md 4).  That alone proves nothing
under io_uring: the kernel reports the exit at once and finishes operations in flight afterwards.  Seen on Linux 6.18:
a write submitted through io_uring, its store frozen, landed after the pidfd of the killed process had become readable;
a thread inside ``pwritev`` holds the exit up until its write is over.

What does prove it is the descriptor: every operation in flight refers to the open file, so a lock that belongs to
the open file (``F_OFD_SETLK``) goes only with the last of them.  Each opened store takes a shared lock on one byte,
far behind any data, that stands for its process; whoever fences on the same host asks for that byte.
(``membership/control_inflight.py`` marks mounts likewise, by incarnation, on the bytes below 2**62.)

Invariants:
    P1  The lock is taken before the first I/O and never given back but by the end of the open file.
    P2  Asking takes no lock, so it disturbs nobody, and is right for a process that is gone (P1).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_FIRST_BYTE: Final = 1 << 62

assert _FLOCK.size == 32


def _request(kind: int, pid: int, length: int = 1) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, _FIRST_BYTE + pid, length, 0)


def mark(fd: int) -> None:
    """Mark the open file ``fd`` as this process's.  Raises OSError where the filesystem has no locks."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, os.getpid()))


def is_marked(fd: int, pid: int) -> bool:
    """Whether process ``pid`` of this host, or an operation it left behind, holds the store that ``fd`` is open on.

    Marks made through ``fd`` itself don't count.
    """
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, pid))
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def find_holder(fd: int) -> int | None:
    """Pid of a process of this host that holds the store, other than through ``fd``; None when there is none."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, 0, length=0))  # 0: up to the end
    kind, _, start, _, _ = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else max(0, start - _FIRST_BYTE)
