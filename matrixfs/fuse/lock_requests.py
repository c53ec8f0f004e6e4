"""File locks: the kernel's GETLK, SETLK, FLOCK and FLUSH requests to the cluster's lock manager, and back.

The C extension parks each request under a number; here one task a request waits for the answer and gives it.  pyfuse3
plays no part in that, and no worker of its is occupied by a lock that waits (coherence.md 11).

Invariants:
    L1  Every number gets one reply: by its task, also when that is interrupted or the mount ends (ENOTCONN).
    L2  An interrupt ends the wait with EINTR, unless the grant was quicker: then the lock is held and the reply says so
        (coherence.md 8).
    L3  A lock that may exist was recorded here before it was asked for, with the open file it was set through, and the
        extension's filter says so: so the close of a descriptor finds every lock that it has to drop.
    L4  A close drops POSIX locks in FLUSH, which close(2) waits for.  ``flock`` and open-file-description locks go with
        the open file, in RELEASE, which close(2) does not wait for; later tries on this node do (``_File.settled``).

The kernel names owners by 64-bit numbers: the process's files for POSIX locks, the open file for the two others.  It
sends open-file-description locks as POSIX ones, with no word at their end: what is left under a handle at its RELEASE
must be theirs, since a process's own locks went with the FLUSH before.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from matrixfs.fuse import libfuse
from matrixfs.fuse.errnos import judge

if TYPE_CHECKING:
    from matrixfs.fuse.api import ClusterLocks
    from matrixfs.fuse.edge import Edge

log = logging.getLogger(__name__)

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
    """

    def __init__(self, cluster: ClusterLocks, edge: Edge, flush: Callable[..., Awaitable[None]]) -> None:
        self._cluster = cluster
        self._edge = edge
        self._flush = flush
        self._files: dict[int, _File] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    # ---- from the extension ----

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until cancelled; then each that waits gets ENOTCONN."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def request(
        self, operation: int, number: int, node: int, fh: int, owner: int, type_: int, start: int, end: int, pid: int,
        wait: int,
    ) -> None:  # fmt: skip
        """A request was parked; called within pyfuse3's loop."""
        if self._nursery is None:
            libfuse.reply_err(number, errno.ENOTCONN)
            return
        name = _NAMES[operation]
        if operation != FLUSH:  # whose handler counts it
            self._edge.calls[name] = self._edge.calls.get(name, 0) + 1
        ino = self._edge.nodes.ino(node)
        scope = trio.CancelScope()
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
                self._scopes[number] = scope
        self._nursery.start_soon(self._answer, number, name, scope, work)

    def interrupted(self, number: int) -> None:
        """The application got a signal: end the wait.  Never answers itself.

        Only what asks for a lock may wait long.  The end of a lock is not given up half way.
        """
        scope = self._scopes.get(number)
        if scope is not None:
            scope.cancel()

    async def _answer(
        self, number: int, name: str, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]
    ) -> None:
        """Do the work and reply (L1, L2)."""
        code = errno.ENOTCONN  # should the mount end
        try:
            code = await self._outcome(name, scope, work)
        finally:
            self._scopes.pop(number, None)
            refused = libfuse.reply_err(number, code)
            if refused not in (0, errno.ESRCH, errno.ENOENT):  # answered already: GETLK; the caller is gone
                log.debug("%s: reply %d not taken (errno %d)", name, code, refused)

    async def _outcome(self, name: str, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> int:
        done = False
        try:
            with scope:
                await work()
                done = True
        except libfuse.pyfuse3.FUSEError as error:
            return int(error.errno)
        except Exception as error:
            if not judge(error).log:
                return judge(error).code
            translated: Any = self._edge.translate(name, (), error)
            return int(translated.errno)
        return 0 if done else errno.EINTR

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
