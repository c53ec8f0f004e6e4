"""Directories: the kernel's requests to list them.  The rules are those of ``operations.py``."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from matrixfs.fuse.edge import upcall
from matrixfs.fuse.libfuse import pyfuse3

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.api import Attributes, Data, Inode, Readdir, Volume
    from matrixfs.fuse.handles import Handle, HandleTable, NodeTable
    from matrixfs.fuse.kernel_caches import KernelCaches
    from matrixfs.fuse.removed import RemovedDirectories

ENTRIES_LIMIT_MAX = 256
DOT_COOKIE, DOT_DOT_COOKIE = 1, 2  # the filesystem's cookies begin above (ondisk/directory.py: COOKIE_BASE)


class DirectoryRequests:
    """A part of ``Operations``."""

    _volume: Volume
    _attributes: Attributes
    _data: Data
    _readdir: Readdir
    _caches: KernelCaches
    _nodes: NodeTable
    _handles: HandleTable
    _removed: RemovedDirectories
    _open: Callable[..., Awaitable[Inode]]
    _named: Callable[[Inode], Any]
    _looked_up: Callable[[Inode], None]

    @upcall(0)
    async def opendir(self, ino: int, ctx: Any) -> int:
        """Open a directory; as a file it outlives its name while it is open."""
        if self._removed.known(ino) is None:
            try:
                await self._open(ino, os.O_DIRECTORY, None, named=False)
                return self._handles.add(ino, os.O_DIRECTORY)
            except OSError as error:
                if self._removed.judged(ino, error) is None:
                    raise
        return self._handles.add(ino, os.O_DIRECTORY, removed=True)

    @upcall()
    async def releasedir(self, fh: int) -> None:
        """The last descriptor of an open directory was closed."""
        handle = self._handles.remove(fh)
        self._taken_in(handle)
        if not handle.removed:
            self._volume.opens.closed(handle.ino)

    @upcall(handle=True)
    async def readdir(self, handle: Handle, cookie: int, token: Any) -> None:
        """List entries with their attributes.  One filesystem call per reply (O1); how many fit is learnt.

        Of a removed directory ENOENT, as of local ones: readdir(3) takes that for the end.
        """
        self._taken_in(handle)
        if handle.removed:
            raise OSError(errno.ENOENT, "the directory was removed")
        if cookie < DOT_DOT_COOKIE:
            directory = await self._attributes.getattr(self._volume, handle.ino)
            self._nodes.check(handle.ino, directory.incarnation)
            if not directory.nlink:
                raise OSError(errno.ENOENT, "the directory was removed")
            if not self._dots(directory, cookie, token):
                return
        after = cookie if cookie > DOT_DOT_COOKIE else 0
        entries = await self._readdir.entries(self._volume, handle.ino, after, handle.entries_limit)
        if not handle.flags & os.O_NOATIME:
            self._volume.atimes.note(handle.ino)
        fitted = 0
        for position, name, inode in entries:
            if not self._add(token, handle.ino, name, inode, position):
                break
            fitted += 1
        if fitted:
            handle.listing = self._caches.listed(handle.ino)
        if fitted == handle.entries_limit:
            handle.entries_limit = min(fitted * 2, ENTRIES_LIMIT_MAX)
        elif fitted < len(entries):
            handle.entries_limit = max(fitted, 1)

    def _taken_in(self, handle: Handle) -> None:
        """Who asks again, or closes, has what he was told before."""
        if handle.listing is not None:
            self._caches.taken_in(handle.listing)
            handle.listing = None

    def _add(self, token: Any, parent: int, name: bytes, inode: Inode, next_cookie: int) -> bool:
        reply = self._named(inode)
        reply.entry_timeout = self._caches.entry_timeout
        if not pyfuse3.readdir_reply(token, name, reply, next_cookie):
            return False
        is_directory = stat.S_ISDIR(inode.mode)
        self._looked_up(inode)
        self._caches.handed_out(parent, name, is_directory=is_directory)
        return True

    def _dots(self, directory: Inode, cookie: int, token: Any) -> bool:
        """Add "." and ".."; the kernel takes only their numbers and types, and counts no lookup (H1)."""
        parent = directory.parent or directory.ino
        for name, ino, position in ((b".", directory.ino, DOT_COOKIE), (b"..", parent, DOT_DOT_COOKIE)):
            if cookie < position:
                reply = pyfuse3.EntryAttributes()
                reply.st_ino = self._nodes.node_id(ino)
                reply.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, name, reply, position):
                    return False
        return True

    @upcall(handle=True)
    async def fsyncdir(self, handle: Handle, datasync: bool) -> None:
        """Return when the directory's names survive any crash (R10)."""
        if not handle.removed:
            await self._data.fsync(self._volume, handle.ino, datasync)
