"""File locks: the kernel's GETLK, SETLK, FLOCK and FLUSH requests to the cluster's lock manager, and back.

How they come and how they are answered: ``parked``.

Invariants:
    L1  Every request gets one reply (PK1).
    L2  An interrupt ends the wait with EINTR, unless the grant was quicker: then the lock is held and the reply says so
        (PK2).  Only what asks for a lock may wait long; the end of a lock is not given up half way.
    L3  A lock that may exist was recorded here before it was asked for, with the open file it was set through, and the
        extension's filter says so: so the close of a descriptor finds every lock that it has to drop.
    L4  A close drops POSIX locks in FLUSH, which close(2) waits for.  ``flock`` and open-file-description locks go with
        the open file, in RELEASE, which close(2) does not wait for; later tries on this node do (``_File.settled``).

The kernel names owners by 64-bit numbers: the process's files for POSIX locks, the open file for the two others.  It
sends open-file-description locks as POSIX ones, with no word at their end: what is left under a handle at its RELEASE
must be theirs, since a process's own locks went with the FLUSH before.
"""

from __future__ import annotations

import fcntl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from matrixfs.fuse import libfuse

if TYPE_CHECKING:
    from matrixfs.fuse.api import ClusterLocks
    from matrixfs.fuse.edge import Edge
    from matrixfs.fuse.parked import ParkedRequests

# The operations of the extension, in its order.
GETLK, SETLK, FLOCK, FLUSH = range(4)
_NAMES = ("getlk", "setlk", "flock", "flush")


class _File:
    """What this mount knows of one inode's locks: who set any, and through which handles."""

    __slots__ = ("drops", "handles", "settled")

    def __init__(self) -> None:
        self.handles: dict[tuple[Any, int], set[int]] = {}  # by kind and owner
        self.drops = 0  # locks of closed files on their way out
        self.settled: trio.Event | None = None  # somebody waits for that


class LockRequests:
    """See the module.

    Args:
        cluster: the lock manager.
        edge: translates errors and node ids, counts calls.
        flush: what else a FLUSH has to do, by handle; raises FUSEError.
        parked: has the requests answered.
    """

    def __init__(
        self, cluster: ClusterLocks, edge: Edge, flush: Callable[..., Awaitable[None]], parked: ParkedRequests
    ) -> None:
        self._cluster = cluster
        self._edge = edge
        self._flush = flush
        self._parked = parked
        self._files: dict[int, _File] = {}

    # ---- from the extension ----

    def request(
        self, operation: int, number: int, node: int, fh: int, owner: int, type_: int, start: int, end: int, pid: int,
        wait: int,
    ) -> None:  # fmt: skip
        """A request was parked; called within pyfuse3's loop."""
        name = _NAMES[operation]
        if operation != FLUSH:  # whose handler counts it
            self._edge.calls[name] = self._edge.calls.get(name, 0) + 1
        ino = self._edge.nodes.ino(node)
        asks = False
        if operation == GETLK:
            work = partial(self._test, number, ino, owner, type_, start, end)
        elif operation == FLUSH:
            work = partial(self._closed, ino, fh, owner)
        else:
            kind = self._cluster.flock if operation == FLOCK else self._cluster.posix
            if type_ == fcntl.F_UNLCK:
                work = partial(self._unset, kind, ino, owner, start, end)
            else:
                work = partial(
                    self._set, kind, ino, fh, owner, pid, start, end, type_ == fcntl.F_WRLCK, wait=bool(wait)
                )
                asks = True
        self._parked.answer(number, name, work, interruptible=asks)

    # ---- what they ask ----

    async def _set(
        self, kind: Any, ino: int, fh: int, owner: int, pid: int, start: int, end: int, exclusive: bool, *, wait: bool
    ) -> None:
        await self._settled(ino)
        self._record(kind, ino, owner, fh)
        try:
            await self._cluster.locks.set(kind, ino, owner, pid, start, end, exclusive, wait=wait)
        finally:
            self._forget_unless_held(kind, ino, owner)

    async def _unset(self, kind: Any, ino: int, owner: int, start: int, end: int) -> None:
        if self._recorded(kind, ino, owner):
            await self._cluster.locks.unset(kind, ino, owner, start, end)
            self._forget_unless_held(kind, ino, owner)

    async def _test(self, number: int, ino: int, owner: int, type_: int, start: int, end: int) -> None:
        """Who stands in the way.  The kernel knows this node's processes only: for another node's the pid is 0."""
        await self._settled(ino)
        cluster = self._cluster
        found = await cluster.locks.test(cluster.posix, ino, owner, start, end, type_ == fcntl.F_WRLCK)
        if found is None:
            libfuse.reply_lock(number, fcntl.F_UNLCK, start, end, 0)
            return
        pid = found.pid if found.node == cluster.node else 0
        held = fcntl.F_WRLCK if found.exclusive else fcntl.F_RDLCK
        libfuse.reply_lock(number, held, found.start, found.end, pid)

    async def _closed(self, ino: int, fh: int, owner: int) -> None:
        """A process closed a descriptor: its POSIX locks on the file end, whichever descriptor set them."""
        try:
            await self._flush(fh)
        finally:
            await self._drop(self._cluster.posix, ino, owner)

    async def released(self, fh: int, ino: int) -> None:
        """The last descriptor of an open file is gone, and with it the locks that belong to it (L4)."""
        file = self._files.get(ino)
        if file is None:
            return
        for (kind, owner), handles in list(file.handles.items()):
            if fh in handles:
                await self._drop(kind, ino, owner)

    # ---- what is known (L3) ----

    def _recorded(self, kind: Any, ino: int, owner: int) -> bool:
        file = self._files.get(ino)
        return file is not None and (kind, owner) in file.handles

    def _record(self, kind: Any, ino: int, owner: int, fh: int) -> None:
        file = self._files.get(ino)
        if file is None:
            file = self._files[ino] = _File()
            libfuse.count_locks(self._edge.nodes.node_id(ino), 1)
        file.handles.setdefault((kind, owner), set()).add(fh)

    def _forget_unless_held(self, kind: Any, ino: int, owner: int) -> None:
        file = self._files.get(ino)
        if file is not None and not self._cluster.locks.holds(kind, ino, owner):
            file.handles.pop((kind, owner), None)
            self._forget_if_unused(ino, file)

    def _forget_if_unused(self, ino: int, file: _File) -> None:
        if not file.handles and not file.drops and self._files.get(ino) is file:
            del self._files[ino]
            libfuse.count_locks(self._edge.nodes.node_id(ino), -1)

    async def _drop(self, kind: Any, ino: int, owner: int) -> None:
        """End all of an owner's locks on a file."""
        file = self._files.get(ino)
        if file is None or (kind, owner) not in file.handles:
            return
        file.drops += 1
        try:
            await self._cluster.locks.drop(kind, ino, owner)
        finally:
            file.drops -= 1
            self._forget_unless_held(kind, ino, owner)
            if not file.drops and file.settled is not None:
                file.settled.set()
                file.settled = None

    async def _settled(self, ino: int) -> None:
        """Wait for what closes on this node have already given up (L4)."""
        file = self._files.get(ino)
        if file is not None and file.drops:
            if file.settled is None:
                file.settled = trio.Event()
            await file.settled.wait()
