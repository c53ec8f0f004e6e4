"""The programs of one node: each operation of the product, and what the history notes of it.

Every method is one system call.  Errors pass through, with nothing noted: an operation that fails changes nothing.
"""

from __future__ import annotations

import stat
import struct

from matrixfs.fs import attributes, data, fileattr, namespace, ranges, xattrs
from matrixfs.fs.inode import Inode
from matrixfs.fs.rename import RENAME_EXCHANGE
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.inode import FLAGS_OF_USERS
from matrixfs.ondisk.xattr import ACL_ACCESS
from tests.crash.history import FLAGS, SECTOR, History, Key, Thing, Value

_TAG = struct.Struct("<IIQ")


def tagged(thing: Thing, serial: int, offset: int, length: int) -> bytes:
    """Bytes for [offset, offset + length) of a file: every sector says whose it is, from which write, and where."""
    first, end = offset // SECTOR, -(-(offset + length) // SECTOR)
    content = b"".join(_TAG.pack(thing, serial, at) * (SECTOR // _TAG.size) for at in range(first, end))
    skip = offset - first * SECTOR
    return content[skip : skip + length]


def overlaid(content: bytes, offset: int, piece: bytes) -> bytes:
    """``content`` after a write."""
    return content[:offset].ljust(offset, b"\0") + piece + content[offset + len(piece) :]


def flags_of(inode: Inode) -> bytes | None:
    """Flags and project as the history has them: an extended attribute of a name that none can have."""
    found = inode.flags & FLAGS_OF_USERS, inode.project
    return b"%d %d" % found if any(found) else None


class Application:
    """See the module."""

    def __init__(self, volume: Volume, node: int, history: History) -> None:
        self.volume = volume
        self.node = node
        self.history = history

    # --- names -----------------------------------------------------------------------------------------------

    async def create(self, parent: Thing, name: bytes, mode: int = 0o644) -> Thing:
        inode = await namespace.create(self.volume, self.history.inodes[parent], name, stat.S_IFREG | mode, 0, 0)
        return self._made(parent, name, inode, b"")

    async def mkdir(self, parent: Thing, name: bytes) -> Thing:
        inode = await namespace.mkdir(self.volume, self.history.inodes[parent], name, 0o755, 0, 0)
        return self._made(parent, name, inode, None)

    async def symlink(self, parent: Thing, name: bytes, target: bytes) -> Thing:
        inode = await namespace.symlink(self.volume, self.history.inodes[parent], name, target, 0, 0)
        return self._made(parent, name, inode, target)

    def _made(self, parent: Thing, name: bytes, inode: Inode, content: bytes | None) -> Thing:
        history = self.history
        directory = history.living[history.inodes[parent]]
        thing = history.made(inode, content)
        links = 0 if inode.is_directory else 1
        self._described(inode, links, {("name", directory, name): thing})
        return thing

    def _described(self, inode: Inode, links: int, names: dict[Key, Value]) -> None:
        """All of an inode, new or named for the first time, and its names."""
        thing = self._identity(inode)
        extended = inode.extended.entries if inode.extended is not None else {}
        assert extended or inode.bare
        changes: dict[Key, Value] = {("extended", thing, name): value for name, value in extended.items()}
        self.history.changed(self.node, {**names, **changes, ("attributes", thing): (inode.mode, inode.uid, links)})

    async def tmpfile(self, parent: Thing) -> Thing:
        """open(2) with O_TMPFILE; it is open until ``close``."""
        inode = await namespace.tmpfile(self.volume, self.history.inodes[parent], 0o600, 0, 0)
        self.volume.opens.opened(inode.ino)
        return self.history.made(inode, b"")

    async def link(self, thing: Thing, parent: Thing, name: bytes) -> None:
        inode = await namespace.link(self.volume, self.history.inodes[thing], self.history.inodes[parent], name)
        thing = self._identity(inode)
        names: dict[Key, Value] = {("name", self._alive(parent), name): thing}
        if self.history.now.get(("attributes", thing)) is None:  # it had no name
            self._described(inode, inode.nlink, names)
        else:
            self._named(names)

    async def unlink(self, parent: Thing, name: bytes) -> None:
        await namespace.unlink(self.volume, self.history.inodes[parent], name)
        self._named({("name", self._alive(parent), name): None})

    async def rmdir(self, parent: Thing, name: bytes) -> None:
        await namespace.rmdir(self.volume, self.history.inodes[parent], name)
        self._named({("name", self._alive(parent), name): None})

    async def rename(self, parent: Thing, name: bytes, new_parent: Thing, new_name: bytes, flags: int = 0) -> None:
        inodes = self.history.inodes
        await namespace.rename(self.volume, inodes[parent], name, inodes[new_parent], new_name, flags)
        old: Key = ("name", self._alive(parent), name)
        new: Key = ("name", self._alive(new_parent), new_name)
        moved, replaced = self.history.now.get(old), self.history.now.get(new)
        if moved != replaced:  # else two names of one file: nothing is done
            self._named({old: replaced if flags & RENAME_EXCHANGE else None, new: moved})

    def _alive(self, thing: Thing) -> Thing:
        """What has the inode number of ``thing`` now: that is what the operation met."""
        return self.history.living[self.history.inodes[thing]]

    def _identity(self, inode: Inode) -> Thing:
        return self.history.identities[inode.ino, inode.incarnation]

    def _named(self, names: dict[Key, Value]) -> None:
        """Names changed, and with them the link counts of what they meant and mean."""
        now = self.history.now
        changes = dict(names)
        counts: dict[Thing, int] = {}
        for key, value in names.items():
            for thing, step in ((now.get(key), -1), (value, 1)):
                if isinstance(thing, int):
                    counts[thing] = counts.get(thing, 0) + step
        for thing, step in counts.items():
            mode, uid, links = now["attributes", thing]  # type: ignore[misc]
            if step and (stat.S_ISDIR(mode) or links + step == 0):
                changes.update(dict.fromkeys(self.history.known_of(thing)))
            elif step:
                changes["attributes", thing] = (mode, uid, links + step)
        self.history.changed(self.node, changes)

    # --- attributes ------------------------------------------------------------------------------------------

    async def chmod(self, thing: Thing, mode: int, uid: int) -> None:
        inode = await attributes.setattr(
            self.volume, self.history.inodes[thing], attributes.Changes(mode=mode, uid=uid)
        )
        lists = {} if inode.extended is None else inode.extended.entries
        self._attribute(inode, ACL_ACCESS, lists.get(ACL_ACCESS))

    async def set_attribute(self, thing: Thing, name: bytes, value: bytes) -> None:
        """setxattr(2); access control lists too, which set the mode."""
        self._attribute(await xattrs.put(self.volume, self.history.inodes[thing], name, value, 0), name, value)

    async def remove_attribute(self, thing: Thing, name: bytes) -> None:
        self._attribute(await xattrs.remove(self.volume, self.history.inodes[thing], name), name, None)

    async def set_flags(self, thing: Thing, numbers: int, project: int) -> None:
        """chattr(1) with a project."""
        ino = self.history.inodes[thing]
        inode = await fileattr.set_project(self.volume, ino, numbers, project, 0, lambda _: True)
        self._attribute(inode, FLAGS, flags_of(inode))

    def _attribute(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """An extended attribute changed, and with it mode and owner perhaps."""
        thing = self._identity(inode)
        now = self.history.now.get(("attributes", thing))
        if now is not None:  # else it has no name
            _, _, links = now  # type: ignore[misc]
            self.history.changed(
                self.node, {("extended", thing, name): value, ("attributes", thing): (inode.mode, inode.uid, links)}
            )

    async def access(self, thing: Thing) -> None:
        """Have it read, as the mount notes it."""
        inode = await attributes.getattr(self.volume, self.history.inodes[thing])
        self.volume.atimes.note(inode.ino)
        thing = self._identity(inode)
        self.history.used(self.node, thing)
        self.history.accessed(thing, self.volume.atimes.shown(inode))

    # --- contents ------------------------------------------------------------------------------------------

    def content(self, thing: Thing) -> bytes:
        """What a file holds now."""
        return self.history.contents[thing][-1].data

    async def write(self, thing: Thing, offset: int, length: int) -> None:
        await self._write(thing, offset, length, append=False)

    async def append(self, thing: Thing, length: int) -> None:
        await self._write(thing, len(self.content(thing)), length, append=True)

    async def write_many(self, thing: Thing, places: list[tuple[int, int]]) -> None:
        """Many writes, (offset, length) each, noted as one change: a file's past is kept whole for every change."""
        begun, content = self.history.time, bytearray(self.content(thing))
        for offset, length in places:
            piece = tagged(thing, next(self.history.serials), offset, length)
            await data.write(self.volume, self.history.inodes[thing], offset, piece)
            content.extend(bytes(max(0, offset + length - len(content))))
            content[offset : offset + length] = piece
        self.history.wrote(self.node, thing, begun, bytes(content))

    async def _write(self, thing: Thing, offset: int, length: int, *, append: bool) -> None:
        begun = self.history.time
        piece = tagged(thing, next(self.history.serials), offset, length)
        await data.write(self.volume, self.history.inodes[thing], offset, piece, append=append)
        thing = self._alive(thing)
        before = self.content(thing)
        place = len(before) if append else offset
        self.history.wrote(self.node, thing, begun, overlaid(before, place, piece))

    async def truncate(self, thing: Thing, size: int) -> None:
        begun = self.history.time
        await attributes.setattr(self.volume, self.history.inodes[thing], attributes.Changes(size=size))
        thing = self._alive(thing)
        self.history.wrote(self.node, thing, begun, self.content(thing)[:size].ljust(size, b"\0"))

    async def fallocate(self, thing: Thing, mode: int, offset: int, length: int) -> None:
        begun = self.history.time
        await ranges.fallocate(self.volume, self.history.inodes[thing], mode, offset, length)
        thing, end = self._alive(thing), offset + length
        content = self.content(thing)
        if mode & (ranges.PUNCH_HOLE | ranges.ZERO_RANGE):
            content = content[:offset] + bytes(len(content[offset:end])) + content[end:]
        if not mode & ranges.KEEP_SIZE:
            content = content.ljust(end, b"\0")
        self.history.wrote(self.node, thing, begun, content)

    async def copy(self, source: Thing, at: int, target: Thing, to: int, length: int) -> None:
        """copy_file_range(2), in steps; ``to`` lies in its sector as ``at`` does, so each sector is of one step."""
        begun, inodes = self.history.time, self.history.inodes
        done = await ranges.copy(self.volume, inodes[source], at, inodes[target], to, length)
        source, target = self._alive(source), self._alive(target)
        self.history.used(self.node, source)
        if done:
            content = overlaid(self.content(target), to, self.content(source)[at : at + done])
            self.history.wrote(self.node, target, begun, content, in_steps=True)

    async def read(self, thing: Thing) -> None:
        """All of it; it must be what was written."""
        found = await data.read(self.volume, self.history.inodes[thing], 0, 1 << 30)
        thing = self._alive(thing)
        assert found == self.content(thing), f"file {thing} reads otherwise than written, and no power was lost"
        self.history.used(self.node, thing)

    # --- durability, opening ---------------------------------------------------------------------------------

    async def fsync(self, thing: Thing) -> None:
        """fsync(2); of a directory too."""
        sync = self.history.fsync_begins(self.node, self._alive(thing))
        await data.fsync(self.volume, self.history.inodes[thing], False)
        self.history.synced(sync)

    async def sync(self) -> None:
        """sync(2) on this node."""
        sync = self.history.sync_begins(self.node)
        await self.volume.sync()
        self.history.synced(sync)

    async def open(self, thing: Thing) -> None:
        """Keep it open: it outlives its names."""
        ino = self.history.inodes[thing]
        self.volume.opens.opened(ino)
        try:
            await attributes.getattr(self.volume, ino)
        except OSError:
            self.volume.opens.closed(ino)
            raise

    def close(self, thing: Thing) -> None:
        """The end of ``open``."""
        self.volume.opens.closed(self.history.inodes[thing])
