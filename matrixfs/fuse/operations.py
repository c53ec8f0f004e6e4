"""FUSE requests to filesystem calls: translation only, thin (style.md 19).

Rules that every handler holds:
    O1  No checkpoint between the return of the last filesystem call and our return: pyfuse3 then writes the reply at
        once, so a demotion can't come between the answer and the kernel's knowledge of it.  Where an earlier call's
        result is used after a later call's checkpoint, ``KernelCaches.stamp`` tells whether a purge came between; the
        name is then given with no validity.
    O2  What the kernel is told is valid until invalidated: names are recorded with ``handed_out``, inodes with their
        lookup count.
    O3  The kernel checks permissions (``default_permissions``), by access control lists too; the one exception is in
        ``create``, where the name turns out to exist.  The umask it leaves to us, as a directory's default list goes
        before it.

``FUSE_CAP_ATOMIC_O_TRUNC`` is on, so ``open`` truncates; ``create`` never needs to, but for the same exception.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from matrixfs.fuse.attribute_requests import AttributeRequests
from matrixfs.fuse.directory_requests import DirectoryRequests
from matrixfs.fuse.edge import Edge, upcall
from matrixfs.fuse.file_handles import DOTS, by_number
from matrixfs.fuse.flag_requests import FlagRequests
from matrixfs.fuse.kernel_caches import FOREVER
from matrixfs.fuse.libfuse import pyfuse3
from matrixfs.fuse.lock_requests import LockRequests
from matrixfs.fuse.parked import ParkedRequests
from matrixfs.fuse.range_requests import RangeRequests
from matrixfs.fuse.removed import RemovedDirectories, Told, names_in
from matrixfs.fuse.statx_requests import StatxRequests
from membership.errors import MatrixError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matrixfs.fuse.api import ClusterLocks, Filesystem, Inode, Volume
    from matrixfs.fuse.callers import Caller
    from matrixfs.fuse.handles import Handle, HandleTable
    from matrixfs.fuse.kernel_caches import KernelCaches

NAME_BYTES_MAX = 255
NAMELESS = b"/"  # CREATE of this is O_TMPFILE (extension/requests.c)
BLOCK_BYTES = 4096


def _checked(name: bytes) -> bytes:
    if len(name) > NAME_BYTES_MAX:
        raise OSError(errno.ENAMETOOLONG, "name too long")
    return name


def _access(flags: int) -> int:
    """The permission bits that a caller needs to open a file with these flags."""
    access = flags & os.O_ACCMODE
    return (4 if access != os.O_WRONLY else 0) | (2 if access != os.O_RDONLY or flags & os.O_TRUNC else 0)


class Operations(AttributeRequests, DirectoryRequests, pyfuse3.Operations):  # type: ignore[misc]  # pyfuse3 is Any, see libfuse
    """The handlers; each is called by pyfuse3 with the kernel's node ids, see ``edge.upcall``.

    Args:
        volume: the mounted filesystem, passed on to every call.
        filesystem: the modules that work on it.
        caches: told what the kernel learns.
        handles: open files.
        withdraw: see ``Edge``.
        locks: the cluster's file locks; None leaves them to the kernel, for this node alone.
        opened_by_kernel: files are opened and closed without asking us (coherence.md 6): what the kernel knows counts
            as open, and requests come with inode numbers for handles.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False  # coherence.md 3
    enable_acl = True  # the extension has the kernel leave us the umask; without it, it is taken out in any case

    def __init__(
        self,
        volume: Volume,
        filesystem: Filesystem,
        caches: KernelCaches,
        handles: HandleTable,
        withdraw: Callable[[BaseException], None],
        locks: ClusterLocks | None = None,
        *,
        opened_by_kernel: bool = False,
    ) -> None:
        super().__init__()
        self.edge = Edge(caches, handles, withdraw, volume.room.make)
        self._volume = volume
        self._names = filesystem.namespace
        self._attributes = filesystem.attributes
        self._data = filesystem.data
        self._readdir = filesystem.readdir
        self._xattrs = filesystem.xattrs
        self._caches, self._nodes = caches, caches.nodes
        self._removed = RemovedDirectories(self._nodes, self._attributes, volume)
        self._handles = handles
        self._opened_by_kernel = opened_by_kernel
        self.parked = ParkedRequests(self.edge)
        self.lock_requests = None if locks is None else LockRequests(locks, self.edge, self.flush, self.parked)
        self.statx_requests = StatxRequests(self._looked_at, self._told_again, self.edge, self.parked)
        ranges, flags = filesystem.ranges, filesystem.flags
        self.range_requests = None if ranges is None else RangeRequests(volume, ranges, caches, self.edge, self.parked)
        self.flag_requests = None if flags is None else FlagRequests(volume, flags, caches, self.edge, self.parked)

    # ---- replies ----

    def _fill(self, inode: Inode) -> Any:
        self._caches.bare(inode.ino, inode.bare)
        reply = pyfuse3.EntryAttributes()
        reply.st_ino = self._nodes.node_id(inode.ino)
        reply.attr_timeout = FOREVER
        reply.st_mode = inode.mode
        reply.st_nlink = inode.nlink
        reply.st_uid = inode.uid
        reply.st_gid = inode.gid
        reply.st_rdev = inode.rdev
        reply.st_size = inode.size
        reply.st_blocks = inode.blocks512
        reply.st_blksize = BLOCK_BYTES
        reply.st_atime_ns = self._volume.atimes.shown(inode)
        reply.st_mtime_ns = inode.mtime_ns
        reply.st_ctime_ns = inode.ctime_ns
        return reply

    def _entry(self, parent: int, name: bytes, inode: Inode, stamp: int | None = None) -> Any:
        """An entry reply: counts the lookup, records the name.  ``stamp``: taken when the name was found (O1)."""
        overtaken = stamp is not None and stamp != self._caches.stamp
        is_directory = stat.S_ISDIR(inode.mode)
        reply = self._named(inode)
        reply.entry_timeout = 0.0 if overtaken else self._caches.entry_timeout
        self._looked_up(inode)
        if not overtaken:
            self._caches.handed_out(parent, name, is_directory=is_directory)
        return reply

    def _made(self, parent: int, name: bytes, inode: Inode, ctx: Any, stamp: int | None = None) -> Any:
        """An entry reply to what makes a name."""
        reply = self._entry(parent, name, inode, stamp)
        self._caches.gave(inode.ino, ctx.pid)
        return reply

    def _named(self, inode: Inode) -> Any:
        reply = self._fill(inode)
        reply.generation = self._attributes.generation(self._volume, inode)
        return reply

    def _told_again(self, inode: Inode) -> Any:
        """The reply that tells of an inode that the kernel knows."""
        node = self._nodes.get(inode.ino)
        if node is not None:
            self._removed.tell(node, inode)
        return self._fill(inode)

    def _nameless(self, inode: Inode) -> Any:
        """The reply that gives the kernel an inode that it knows by a handle."""
        if inode.ino == self._nodes.root:
            return self._fill(inode)  # generation 0, and not counted
        self._looked_up(inode)
        return self._named(inode)

    def _looked_up(self, inode: Inode) -> None:
        node = self._nodes.looked_up(inode.ino, inode.incarnation)
        self._removed.tell(node, inode)
        if self._opened_by_kernel and inode.readable and not node.kept and stat.S_ISREG(inode.mode):
            node.kept = True
            self._volume.opens.opened(inode.ino)  # its lock is held now, and stands for that (O1)

    def _checked_inode(self, ino: int, inode: Inode) -> Inode:
        self._nodes.check(ino, inode.incarnation)
        return inode

    # ---- names ----

    @upcall(0)
    @names_in(0)
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
        """Find a name; an absent one is told as such, for the kernel to cache."""
        if name in DOTS:
            return self._nameless(await by_number(self._attributes, self._volume, parent, name))
        inode = await self._names.lookup(self._volume, parent, _checked(name))
        if inode is not None:
            return self._entry(parent, name, inode)
        reply = pyfuse3.EntryAttributes()
        reply.st_ino = 0
        reply.entry_timeout = self._caches.entry_timeout
        self._caches.handed_out(parent, name)
        return reply

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel drops references; no reply, so errors can only be logged."""
        for node_id, count in inode_list:
            try:
                self._forget(self._nodes.ino(node_id), count)
            except Exception as error:
                self.edge.translate("forget", (node_id, count), error)

    def _forget(self, ino: int, count: int) -> None:
        node = self._nodes.get(ino)
        if self._nodes.forget(ino, count):
            self._caches.forgotten(ino)
            self._volume.forgotten(ino)
            if node is not None and node.kept:
                self._volume.opens.closed(ino)

    @upcall(0)
    @names_in(0)
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> Any:
        """Create a fifo, device, socket or regular file.

        A kernel that opens files by itself makes them so too, also those that need not be new: where another node was
        quicker, ESTALE has it walk the path again, and it then finds the name, or tells EEXIST by itself.
        """
        try:
            inode = await self._names.create(
                self._volume, parent, _checked(name), mode, ctx.uid, ctx.gid, rdev, umask=ctx.umask
            )
        except (OSError, MatrixError) as error:
            if error.errno == errno.EEXIST and self._opened_by_kernel and stat.S_ISREG(mode):
                raise OSError(errno.ESTALE, "the name has just come up") from error
            raise
        return self._made(parent, name, inode, ctx)

    @upcall(0)
    @names_in(0)
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
        """Create a directory."""
        inode = await self._names.mkdir(self._volume, parent, _checked(name), mode, ctx.uid, ctx.gid, umask=ctx.umask)
        return self._made(parent, name, inode, ctx)

    @upcall(0)
    @names_in(0)
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> Any:
        """Create a symbolic link."""
        inode = await self._names.symlink(self._volume, parent, _checked(name), target, ctx.uid, ctx.gid)
        return self._made(parent, name, inode, ctx)

    @upcall(0, 1)
    @names_in(1)
    async def link(self, ino: int, parent: int, name: bytes, ctx: Any) -> Any:
        """Give an inode a further name."""
        inode = await self._names.link(self._volume, ino, parent, _checked(name))
        return self._made(parent, name, self._checked_inode(ino, inode), ctx)

    @upcall(0)
    @names_in(0)
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """Remove a name; the kernel forgets it by itself."""
        await self._names.unlink(self._volume, parent, _checked(name))

    @upcall(0)
    @names_in(0)
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """Remove an empty directory."""
        await self._names.rmdir(self._volume, parent, _checked(name))

    @upcall(0, 2)
    @names_in(0, 2)
    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: Any) -> None:
        """Rename; ``flags`` may be RENAME_NOREPLACE or RENAME_EXCHANGE.

        The kernel moves its cached entry with its old validity, so the new name counts as handed out (and, exchanged,
        the old one too); as it may be a directory's, it is recorded as one.
        """
        await self._names.rename(self._volume, parent, _checked(name), new_parent, _checked(new_name), flags)
        self._caches.handed_out(new_parent, new_name, is_directory=True)
        if flags & pyfuse3.RENAME_EXCHANGE:
            self._caches.handed_out(parent, name, is_directory=True)

    # ---- attributes ----

    @upcall(0)
    async def getattr(self, ino: int, ctx: Any) -> Any:
        """Attributes, valid until invalidated."""
        return self._told_again(await self._looked_at(ino))

    async def _looked_at(self, ino: int) -> Inode:
        inode: Inode = await self._removed.instead(ino, lambda: self._attributes.getattr(self._volume, ino))
        while self._caches.dropping(ino):  # a read(2) asks us, and takes its pages as good once it has the answer
            await self._caches.dropped(ino)
            inode = await self._removed.instead(ino, lambda: self._attributes.getattr(self._volume, ino))
        self._caches.answered(ino)
        return inode

    @upcall(0, caller=True)
    async def setattr(self, ino: int, attr: Any, fields: Any, fh: int | None, ctx: Any, caller: Caller) -> Any:
        """Change mode, owner, size or times; pyfuse3 has put the present time where "now" was asked for."""
        changes = self._attributes.Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            changer=caller.of_setattr(fields),
            times_are_now=bool(attr.st_rdev),  # the extension says so there
        )
        inode: Inode = await self._removed.instead(ino, lambda: self._attributes.setattr(self._volume, ino, changes))
        if isinstance(inode, Told):
            inode.change(changes)
        reply = self._told_again(inode)
        self._caches.gave(ino, ctx.pid)
        node = self._nodes.get(ino)
        if node is not None and node.pages and node.data_version != inode.data_version:
            # The kernel takes over this mtime without dropping pages of older data, and would trust them from then on.
            reply.attr_timeout = 0.0
            self._caches.drop_pages_later(ino)
        return reply

    @upcall(0)
    async def readlink(self, ino: int, ctx: Any) -> bytes:
        """Target of a symbolic link; the kernel keeps it like a page."""
        target = bytes(await self._attributes.readlink(self._volume, ino))  # pyfuse3 dies of anything else
        self._volume.atimes.note(ino)
        node = self._nodes.get(ino)
        if node is not None:
            node.pages = True
        return target

    @upcall()
    async def statfs(self, ctx: Any) -> Any:
        """Space and the longest name (coherence.md 12)."""
        found = await self._attributes.statfs(self._volume)
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = reply.f_frsize = BLOCK_BYTES
        reply.f_blocks = found.blocks
        reply.f_bfree = reply.f_bavail = found.free
        reply.f_files = found.files
        reply.f_ffree = reply.f_favail = found.files_free
        reply.f_namemax = NAME_BYTES_MAX
        return reply

    # ---- files ----

    @upcall(0, caller=True)
    async def open(self, ino: int, flags: int, ctx: Any, caller: Caller) -> Any:
        """Open a file, truncating it where asked."""
        return self._file(await self._open(ino, flags, caller, named=False), flags)

    async def _open(self, ino: int, flags: int, caller: Caller | None, *, named: bool) -> Inode:
        """Take the open lock, truncate where asked, and read the inode last (O1).

        ``named``: it was found by its name just now, so the kernel's idea of an earlier file of that number, whose
        FORGET is on its way, says nothing about it.
        """
        self._volume.opens.opened(ino)
        try:
            if flags & os.O_TRUNC:
                changes = self._attributes.Changes(size=0, changer=caller)
                inode = await self._attributes.setattr(self._volume, ino, changes)
            else:
                inode = await self._attributes.getattr(self._volume, ino)
            self._attributes.check_open(inode, flags)
            return inode if named else self._checked_inode(ino, inode)
        except BaseException:
            self._volume.opens.closed(ino)
            raise

    def _file(self, inode: Inode, flags: int) -> Any:
        """The reply to an open; the open lock is held.

        The kernel's pages are kept when they are of the version of the data that it has now.  Descriptors opened with
        O_APPEND read and write around the page cache: the kernel sends its own idea of the end (coherence.md 7).
        """
        node = self._nodes.get(inode.ino)
        may_read = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        tells_reads = may_read and self._volume.atimes.would_note(inode)
        keep = node is not None and node.opened(inode.data_version, tells_reads=tells_reads)
        if keep and may_read:
            self._volume.atimes.note(inode.ino)  # the kernel may answer read(2) without us
        handle = self._handles.add(inode.ino, flags)
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep, direct_io=bool(flags & os.O_APPEND))

    @upcall(0, caller=True)
    @names_in(0)
    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any, caller: Caller) -> Any:
        """Create and open in one.  The name may exist after all: another node was quicker."""
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        if name == NAMELESS:
            inode = await self._names.tmpfile(self._volume, parent, mode, ctx.uid, ctx.gid, umask=ctx.umask)
            inode = await self._open(inode.ino, flags, caller, named=True)
            entry = self._made(parent, name, inode, ctx, -1)
            return self._file(inode, flags), entry
        try:
            inode = await self._names.create(
                self._volume, parent, _checked(name), mode, ctx.uid, ctx.gid, umask=ctx.umask
            )
            flags &= ~os.O_TRUNC  # it is empty
        except (OSError, MatrixError) as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            inode = await self._existing(parent, name, flags, ctx.uid, caller)
        stamp = self._caches.stamp
        inode = await self._open(inode.ino, flags, caller, named=True)
        entry = self._made(parent, name, inode, ctx, stamp)
        return self._file(inode, flags), entry

    async def _existing(self, parent: int, name: bytes, flags: int, uid: int, caller: Caller) -> Inode:
        """The regular file of that name, if the caller may open it so (O3).

        For anything else ESTALE makes the kernel walk the path again, now with the name known.
        """
        inode = await self._names.lookup(self._volume, parent, name)
        if inode is None or not stat.S_ISREG(inode.mode):
            raise OSError(errno.ESTALE, "the name has just changed")
        if not await self._attributes.permits(self._volume, inode.ino, _access(flags), uid, caller.is_in):
            raise OSError(errno.EACCES, "permission denied")
        found: Inode = inode
        return found

    @upcall(handle=True)
    async def read(self, handle: Handle, offset: int, length: int) -> Any:
        """Read up to ``length`` bytes."""
        self._nodes.reads(handle.ino)
        data = await self._data.read(self._volume, handle.ino, offset, length)
        if not handle.flags & os.O_NOATIME:
            self._volume.atimes.note(handle.ino)
        if self._opened_by_kernel:
            self._caches.filled(handle.ino)
        return data

    async def _write_partly(self, handle: Handle, offset: int, buf: bytes, caller: Caller) -> int:
        """Write what there is room for, where the kernel can be told."""
        return await self._write(handle, offset, buf, caller, partly=caller.takes_part)

    @upcall(handle=True, caller=True, partly=_write_partly)
    async def write(self, handle: Handle, offset: int, buf: bytes, caller: Caller) -> int:
        """Write, at the true end where the file was opened so."""
        return await self._write(handle, offset, buf, caller, partly=False)

    async def _write(self, handle: Handle, offset: int, buf: bytes, caller: Caller, *, partly: bool) -> int:
        changer = None if caller.of_pages else caller
        written: int = await self._data.write(
            self._volume, handle.ino, offset, buf, handle.append, changer, handle.overwrites, partly
        )
        if not handle.around_pages and (handle.append or self._opened_by_kernel):
            await self._written_in_pages(handle, offset, written)
            return written
        if not handle.around_pages:
            self._nodes.wrote(handle.ino, self._data.version(self._volume, handle.ino))
        if handle.synchronous:
            await self._data.fsync(self._volume, handle.ino, False)
        return written

    async def _written_in_pages(self, handle: Handle, offset: int, written: int) -> None:
        """A write was in the kernel's pages already, an append too: perhaps at a wrong offset (coherence.md 7).

        read(2) then asks for the size and drops them; a mapping would not.
        """
        if handle.append:
            inode = await self._attributes.getattr(self._volume, handle.ino)
            if inode.size != offset + written:
                self._caches.drop_pages_later(handle.ino)
        self._caches.filled(handle.ino)

    @upcall(handle=True)
    async def flush(self, handle: Handle) -> None:
        """A descriptor was closed: the last chance to report an error to the application."""
        await self._data.flush(self._volume, handle.ino)

    @upcall(handle=True)
    async def fsync(self, handle: Handle, datasync: bool) -> None:
        """Return when the file survives any crash (R10)."""
        await self._data.fsync(self._volume, handle.ino, datasync)

    @upcall()
    async def release(self, fh: int) -> None:
        """The last descriptor of an open file was closed."""
        ino = self._handles.remove(fh).ino
        node = self._nodes.get(ino)
        if node is not None and node.opens:
            node.opens -= 1
        self._volume.opens.closed(ino)
        if self.lock_requests is not None:
            await self.lock_requests.released(fh, ino)
