"""Directories that another node removed while this node's kernel still knows them.

The kernel knows them as a working directory, by ``O_PATH``, or because it still knows something below them; ``rm -rf``
of one tree on several nodes meets them all the time.  Nobody told the other node, so it has deleted them (decision
0012).  On a local filesystem such a directory has no links and no names, takes none, and ".." still leads out of it,
which the kernel sees to.  So it is here, by what was last told of it.

Invariants:
    G1  A directory is removed for good when its incarnation is no more in its block, looked at under its lock.  No
        later request needs that lock, and none may use it: the number may by then be another directory's.
    G2  That is remembered with the node: until the kernel forgets it, or is told of another inode of that number.
"""

from __future__ import annotations

import errno
import functools
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from matrixfs.fuse.api import Attributes, Inode, Volume
    from matrixfs.fuse.handles import Node, NodeTable

_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


@dataclass(slots=True)
class Told:
    """What the kernel was last told of a directory, as the ``Inode`` that it is when it was removed."""

    ino: int
    incarnation: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    parent: int
    removed: bool = False
    nlink: ClassVar[int] = 0
    size: ClassVar[int] = 0
    blocks512: ClassVar[int] = 0
    rdev: ClassVar[int] = 0
    data_version: ClassVar[int] = 0
    readable: ClassVar[bool] = True
    bare: ClassVar[bool] = True

    def change(self, changes: Any) -> None:
        """As setattr does; it lasts as long as the kernel knows the directory."""
        if changes.mode is not None:
            self.mode = stat.S_IFMT(self.mode) | changes.mode
        for name in ("uid", "gid", "atime_ns", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(self, name, value)


class RemovedDirectories:
    """See the module.

    Args:
        nodes: what the kernel knows.
        attributes: to look whether a directory is still there.
        volume: for that.
    """

    def __init__(self, nodes: NodeTable, attributes: Attributes, volume: Volume) -> None:
        self._nodes = nodes
        self._attributes = attributes
        self._volume = volume

    def tell(self, node: Node, inode: Inode | Told) -> None:
        """The reply about to be written tells of this inode."""
        if not stat.S_ISDIR(inode.mode) or not inode.readable:
            node.told = None
        elif not isinstance(inode, Told):
            node.told = Told(
                inode.ino, inode.incarnation, inode.mode, inode.uid, inode.gid,
                inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.btime_ns, inode.parent,
            )  # fmt: skip

    def known(self, ino: int) -> Told | None:
        """What there is to tell of an inode if it is a directory that is known to be removed."""
        node = self._nodes.get(ino)
        return node.told if node is not None and node.told is not None and node.told.removed else None

    def judged(self, ino: int, error: OSError) -> Told | None:
        """The same, after a look at just this inode ended so, without a checkpoint since (G1)."""
        node = self._nodes.get(ino)
        if error.errno != errno.ESTALE or node is None or node.told is None:
            return None
        node.told.removed = True
        return node.told

    async def instead(self, ino: int, ask: Callable[[], Awaitable[Any]]) -> Any:
        """The inode that ``ask`` finds, or what there is to tell of a removed directory.

        Raises OSError ESTALE for what else is removed, or is another inode than the kernel asks about.
        """
        told = self.known(ino)
        if told is None:
            try:
                inode = await ask()
                self._nodes.check(ino, inode.incarnation)
            except OSError as error:
                told = self.judged(ino, error)
                if told is None:
                    raise
            else:
                return inode
        return told

    async def look(self, ino: int) -> bool:
        """Whether it is a directory that was removed."""
        node = self._nodes.get(ino)
        if node is None or node.told is None:
            return False
        await self.instead(ino, lambda: self._attributes.getattr(self._volume, ino))
        return self.known(ino) is not None


def names_in(*directories: int) -> Callable[[_Handler], _Handler]:
    """For a handler of names, below ``upcall``: in a directory that was removed there is none, and none is made.

    Args:
        directories: positions of the arguments that are directories.
    """

    def decorate(method: _Handler) -> _Handler:
        @functools.wraps(method)
        async def in_living_ones(self: Any, *arguments: Any) -> Any:
            removed: RemovedDirectories = self._removed
            for position in directories:
                if removed.known(arguments[position]) is not None:
                    raise OSError(errno.ENOENT, "the directory was removed")
            try:
                return await method(self, *arguments)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
                for position in directories:
                    if await removed.look(arguments[position]):
                        raise OSError(errno.ENOENT, "the directory was removed") from error
                raise

        return in_living_ones  # type: ignore[return-value]

    return decorate
