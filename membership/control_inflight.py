"""Writes that outlive their process: how matrixd knows when the last one of a dead mount has landed.

The kernel reports a killed process as gone while requests of its io_uring are still queued at the store.
Measured 2026-11-20 on 6.18 (64 KiB O_DIRECT write, cgroup throttled to 16 KiB/s, SIGKILL after 0.5 s): pidfd readable
after 3 ms, old data read back then, the write landed 3.5 s later.  Whoever replays the journal in
between has its blocks overwritten by the dead (R5).  With resident threads the process itself stays until then.

What does stay with the request is the open file it writes through, and with the open file its OFD locks (fcntl(2)):
in the same measurement the lock was let go 15 ms after the data were there.  So a mount process *marks*
the open file of its store with a lock on one byte that nobody else uses, and matrixd waits until the mark is gone.

Invariants:
- I1. A mark is on the open file that all writes of the mount go through, from before its admission.
- I2. Not marked (another kind of device, another device node): its end is waited for by time, ``io_bound`` of R4,
  which is the worst time of a write in flight at the store.

An edge module (R1): file locks live here.  Good for processes of one host, which is where a process's death is known.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from membership.errors import DeviceError

if TYPE_CHECKING:
    from membership.seams import Clock

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid
_OFFSET_MASK: Final = (1 << 62) - 1  # an offset is signed; locks past the end of the file are allowed
_POLL_SECONDS_MIN: Final = 0.001
_POLL_SECONDS_MAX: Final = 0.05


def mark_inflight(store_fd: int, incarnation: int) -> None:
    """Mark the open file ``store_fd`` as that of this mount, until its last descriptor and request are gone (I1).

    Args:
        store_fd: open for writing; every write of the mount goes through it.
        incarnation: the mount's.

    Raises:
        DeviceError: the file can't be locked.
    """
    try:
        fcntl.fcntl(store_fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK, incarnation))
    except OSError as error:
        raise DeviceError(f"can't mark the store for incarnation {incarnation:#x}: {error.strerror}") from None


def _lock(kind: int, incarnation: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, incarnation & _OFFSET_MASK, 1, 0)


class InflightWatch:
    """matrixd's look at one mount's mark."""

    def __init__(self, store_path: str, incarnation: int, io_bound: float, clock: Clock) -> None:
        """Look, once, whether the mount is marked.

        Args:
            store_path: the store, as a path of this host.
            incarnation: the mount's.
            io_bound: seconds, of R4.
            clock: for the waits.
        """
        self._incarnation = incarnation
        self._io_bound = io_bound
        self._clock = clock
        try:
            self._fd = os.open(store_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self.is_marked = self._is_held()

    def _is_held(self) -> bool:
        if self._fd < 0:
            return False
        found = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, self._incarnation))
        kind: int = _FLOCK.unpack(found)[0]
        return kind != fcntl.F_UNLCK

    async def wait_landed(self) -> None:
        """Return when no write of the mount can reach the store any more.  Its process must be gone."""
        if not self.is_marked:
            await self._clock.sleep(self._io_bound)
            return
        pause = _POLL_SECONDS_MIN
        while self._is_held():
            await self._clock.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS_MAX)

    def close(self) -> None:
        """Stop watching.  Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
