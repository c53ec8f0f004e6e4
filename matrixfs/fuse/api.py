"""The filesystem as the FUSE layer sees it: five modules of functions over one volume, declared as protocols.

``matrixfs.fs`` provides them; tests provide a small one in memory.  Contract for every function here: when it returns,
what it returned is covered by locks this node holds, and the handler replies before the next checkpoint, so a
demotion that comes later finds the answer already in the kernel and invalidates it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from membership.seams import Buffer


class Inode(Protocol):
    """Attributes of one object, as integers."""

    ino: int
    incarnation: int  # tells apart successive files of one number
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks512: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int  # of a directory: the one that holds it
    data_version: int  # changes whenever the file's data does
    readable: bool  # False: a stand-in, in listings, for one that is damaged

    @property
    def bare(self) -> bool:
        """Whether it has no extended attributes."""
        ...


class StatFs(Protocol):
    """Space: blocks of 4096 bytes, and inodes."""

    blocks: int
    free: int
    files: int
    files_free: int


class Opens(Protocol):
    """The cluster-wide open locks, which keep an unlinked file alive."""

    def opened(self, ino: int) -> None:
        """Count an open of an inode that is then read with ``getattr``: from there on it can't be deleted."""
        ...

    def closed(self, ino: int) -> None:
        """Drop one count."""
        ...


class Atimes(Protocol):
    """Access times, which are kept lazily."""

    def note(self, ino: int) -> None:
        """An inode was read."""
        ...

    def would_note(self, inode: Any) -> bool:
        """Whether reading it now would count."""
        ...

    def shown(self, inode: Any) -> int:
        """The access time to tell."""
        ...


class Room(Protocol):
    """What is free in truth, and not to be had yet."""

    async def make(self) -> bool:
        """Make room; whether an operation that found none may do better now."""
        ...


class Volume(Protocol):
    """The mounted filesystem."""

    @property
    def room(self) -> Room:
        """Space."""
        ...

    @property
    def atimes(self) -> Atimes:
        """Access times."""
        ...

    @property
    def opens(self) -> Opens:
        """Open locks."""
        ...

    def forgotten(self, ino: int) -> None:
        """The kernel holds no reference to this inode any more."""
        ...


class Namespace(Protocol):
    """Names.  All take (volume, directory, name, …); modes include the file type."""

    async def lookup(self, volume: Any, parent: int, name: bytes, /) -> Any:  # noqa: D102
        ...

    async def create(  # noqa: D102
        self, volume: Any, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int = 0, *, umask: int
    ) -> Any: ...

    async def tmpfile(self, volume: Any, parent: int, mode: int, uid: int, gid: int, /, *, umask: int) -> Any:  # noqa: D102
        ...

    async def mkdir(  # noqa: D102
        self, volume: Any, parent: int, name: bytes, mode: int, uid: int, gid: int, /, *, umask: int
    ) -> Any: ...

    async def symlink(self, volume: Any, parent: int, name: bytes, target: bytes, uid: int, gid: int, /) -> Any:  # noqa: D102
        ...

    async def link(self, volume: Any, ino: int, parent: int, name: bytes, /) -> Any:  # noqa: D102
        ...

    async def unlink(self, volume: Any, parent: int, name: bytes, /) -> None:  # noqa: D102
        ...

    async def rmdir(self, volume: Any, parent: int, name: bytes, /) -> None:  # noqa: D102
        ...

    async def rename(self, volume: Any, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, /) -> None:  # noqa: D102, E501
        ...


class Attributes(Protocol):
    """Attributes.  ``Changes`` holds mode, uid, gid, size, atime_ns, mtime_ns and changer, None where unchanged."""

    Changes: Any

    async def getattr(self, volume: Any, ino: int, /) -> Any:  # noqa: D102
        ...

    async def by_number(self, volume: Any, ino: int, /) -> Any:
        """``getattr`` of a number that anybody may have made up."""
        ...

    def generation(self, volume: Any, inode: Any, /) -> int:
        """What tells apart successive files of one number in handles; on all nodes the same."""
        ...

    async def setattr(self, volume: Any, ino: int, changes: Any, /) -> Any:  # noqa: D102
        ...

    async def readlink(self, volume: Any, ino: int, /) -> bytes:  # noqa: D102
        ...

    def check_open(self, inode: Any, flags: int, /) -> None:
        """OSError EPERM where it must not be opened so."""
        ...

    async def permits(self, volume: Any, ino: int, wanted: int, uid: int, is_member: Callable[[int], bool], /) -> bool:
        """Whether a caller may do all that is ``wanted`` (4 read, 2 write)."""
        ...

    async def statfs(self, volume: Any, /) -> Any:  # noqa: D102
        ...


class Changer(Protocol):
    """Who changes a file: what that takes away of its privileges."""

    def keeps_set_id(self) -> bool:
        """Whether he may leave set-id bits (CAP_FSETID)."""
        ...

    def is_member(self, gid: int) -> bool:
        """Whether he is in a group, or may do as if."""
        ...

    def took_away(self, inode: Any) -> None:
        """Something went: the kernel doesn't know.  Must not wait."""
        ...


class Xattrs(Protocol):
    """Extended attributes, access control lists among them; names with their namespace."""

    async def get(self, volume: Any, ino: int, name: bytes, /) -> tuple[Any, bytes | None]:
        """The inode and the value."""
        ...

    async def names(self, volume: Any, ino: int, /) -> tuple[Any, list[bytes]]:
        """The inode and the names."""
        ...

    async def put(
        self, volume: Any, ino: int, name: bytes, value: bytes, flags: int, is_member: Callable[[int], bool], /
    ) -> Any:
        """Set one, by flags as of setxattr(2)."""
        ...

    async def remove(self, volume: Any, ino: int, name: bytes, /) -> Any:  # noqa: D102
        ...


class Data(Protocol):
    """File contents; offsets and lengths in bytes."""

    async def read(self, volume: Any, ino: int, offset: int, length: int, /) -> Buffer:  # noqa: D102
        ...

    async def write(
        self,
        volume: Any,
        ino: int,
        offset: int,
        buf: bytes,
        append: bool,
        changer: Changer | None,
        overwrites: bool,
        partly: bool,
        /,
    ) -> int:
        """Write, at the end of the file if ``append``; ``changer``: who writes, None for pages of a mapping.

        Without ``overwrites`` an append-only file (chattr +a) is written to its end only.  ``partly``: what there is
        room for.
        """
        ...

    def version(self, volume: Any, ino: int, /) -> int | None:
        """Of a file's data; None when it is not known without waiting."""
        ...

    async def fsync(self, volume: Any, ino: int, datasync: bool, /) -> None:  # noqa: D102
        ...

    async def flush(self, volume: Any, ino: int, /) -> None:  # noqa: D102
        ...


class Readdir(Protocol):
    """Directory listings: (cookie, name, inode) after ``cookie`` (0, or 3 and more), without "." and ".."."""

    async def entries(self, volume: Any, ino: int, cookie: int, limit: int, /) -> Sequence[tuple[int, bytes, Any]]:  # noqa: D102
        ...


class Ranges(Protocol):
    """Ranges of files; offsets and lengths in bytes."""

    async def fallocate(  # noqa: D102
        self, volume: Any, ino: int, mode: int, offset: int, length: int, changer: Changer, /
    ) -> None: ...

    async def seek(self, volume: Any, ino: int, offset: int, whence: int, /) -> int:  # noqa: D102
        ...

    async def copy(  # noqa: D102
        self,
        volume: Any,
        source: int,
        at: int,
        target: int,
        to: int,
        length: int,
        changer: Changer,
        overwrites: bool,
        /,
    ) -> int: ...


class Conflict(Protocol):
    """A lock in the way."""

    @property
    def node(self) -> int:
        """Where its holder runs."""
        ...

    @property
    def pid(self) -> int:
        """Which process that is, there."""
        ...

    @property
    def start(self) -> int:
        """First byte."""
        ...

    @property
    def end(self) -> int:
        """Last byte."""
        ...

    @property
    def exclusive(self) -> bool:
        """A write lock."""
        ...


class FileLocks(Protocol):
    """The cluster's locks on files.  All take (kind, inode number, owner, …); an owner is a number of the kernel's.

    Ranges are first and last byte.
    """

    async def set(
        self, kind: Any, ino: int, owner: int, pid: int, start: int, end: int, exclusive: bool, /, *, wait: bool
    ) -> None:
        """Lock.  Cancelled, it returns nevertheless when the lock was granted.  OSError EAGAIN, EDEADLK, ENOLCK."""
        ...

    async def unset(self, kind: Any, ino: int, owner: int, start: int, end: int, /) -> None:
        """Unlock; on return a try of any node succeeds.  OSError ENOLCK."""
        ...

    async def test(self, kind: Any, ino: int, owner: int, start: int, end: int, exclusive: bool, /) -> Conflict | None:
        """What stands in the way of a lock."""
        ...

    async def drop(self, kind: Any, ino: int, owner: int, /) -> None:
        """Unlock all that an owner has on a file."""
        ...

    def holds(self, kind: Any, ino: int, owner: int, /) -> bool:
        """Whether the owner has, or waits for, anything on the file."""
        ...


@dataclass(frozen=True, slots=True)
class ClusterLocks:
    """The cluster's locks, with the names of the two kinds that the kernel knows, and this node's number."""

    locks: FileLocks
    flock: Any
    posix: Any
    node: int


class Flags(Protocol):
    """Flags and projects of files.  Numbers are Linux's: of FS_IOC_SETFLAGS ("ext4") and FS_IOC_FSSETXATTR ("xfs").

    ``has``: whether the caller has a capability, by its number.
    """

    async def show(self, volume: Any, ino: int, /) -> Any:
        """With ``ext4``, ``xfs``, ``project`` and ``version``."""
        ...

    async def set_flags(  # noqa: D102
        self, volume: Any, ino: int, numbers: int, uid: int, has: Callable[[int], bool], /
    ) -> Any: ...

    async def set_project(  # noqa: D102
        self, volume: Any, ino: int, numbers: int, project: int, uid: int, has: Callable[[int], bool], /
    ) -> Any: ...


@dataclass(frozen=True, slots=True)
class Filesystem:
    """The modules together.  Without ``ranges`` and ``flags`` applications are told that there is no such thing."""

    namespace: Namespace
    attributes: Attributes
    data: Data
    readdir: Readdir
    xattrs: Xattrs
    ranges: Ranges | None = None
    flags: Flags | None = None
