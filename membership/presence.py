"""A mark on the store that stands exactly as long as a process, *or an I/O it left behind*, can touch it.

The process fence kills a node's processes and waits for their exit (architecture.md 4).  That alone proves nothing
under io_uring: the kernel reports the exit at once and finishes operations in flight afterwards.  Seen on Linux 6.18:
a write submitted through io_uring, its store frozen, landed after the pidfd of the killed process had become readable;
a thread inside ``pwritev`` holds the exit up until its write is over.

What does prove it is the descriptor: every operation in flight refers to the open file, so a lock that belongs to
the open file (``F_OFD_SETLK``) goes only with the last of them.  Each opened store takes a shared lock on one byte,
far behind any data, that stands for its process; whoever fences on the same host, or is about to have a dead mount's
journal replayed, asks for that byte until it is free (``Landing``).

An edge module (R1): file locks live here.

Invariants:
    P1  The lock is taken before the first I/O and never given back but by the end of the open file.
    P2  Asking takes no lock, so it disturbs nobody, and is right for a process that is gone (P1).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final, Protocol

from membership.errors import DeviceError

if TYPE_CHECKING:
    from membership.seams import Clock

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid
_FIRST_BYTE: Final = 1 << 62
_POLL_SECONDS_MIN: Final = 0.001  # the kernel tells nobody when it lets go
_POLL_SECONDS_MAX: Final = 0.05

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


class Lands(Protocol):
    """Knows when what a dead process left in flight has reached the store."""

    async def wait(self, pid: int, /) -> None:
        """Return when no I/O of ``pid``, which must be gone, can reach the store.  Raises DeviceError: not known."""
        ...


class Landing:
    """Waiting for the end of what a dead process of this host left in flight."""

    def __init__(self, store_path: str, clock: Clock) -> None:
        """See ``wait``.

        Args:
            store_path: the store, as a path of this host.
            clock: for the waits.
        """
        self._store_path = store_path
        self._clock = clock

    async def wait(self, pid: int) -> None:
        """Return when no I/O of ``pid``, which must be gone, can reach the store any more.

        Raises:
            DeviceError: the store can't be asked; nothing is known then.
        """
        try:
            fd = os.open(self._store_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                pause = _POLL_SECONDS_MIN
                while is_marked(fd, pid):
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, _POLL_SECONDS_MAX)
            finally:
                os.close(fd)
        except OSError as error:
            text = f"{self._store_path}: can't tell whether process {pid} has I/O in flight: {error.strerror}"
            raise DeviceError(text, error.errno or 5) from None
