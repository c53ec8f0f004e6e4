"""Extended attributes and access control lists: the kernel's requests to ``matrixfs.fs.xattrs``.

The kernel asks for ``security.capability`` before a write(2), once after each renewal of its attributes, or every time
if it has no FUSE_HANDLE_KILLPRIV_V2; and for the access control list of whatever it checks the permission of.  Inodes
without attributes, nearly all, are answered in the extension, without Python, as long as the
lock is held (kernel_caches K7).  The rules are those of ``operations.py``, O1 above all.

It checks permissions itself, but for two things: names of ``trusted.`` are for root to see, and who sets an access
control list without being in the file's group, or having CAP_FSETID, takes away set-group-ID.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeVar

from matrixfs.fuse import libfuse
from matrixfs.fuse.edge import upcall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from matrixfs.fuse.api import Attributes, Inode, Volume, Xattrs
    from matrixfs.fuse.callers import Caller
    from matrixfs.fuse.kernel_caches import KernelCaches
    from matrixfs.fuse.removed import RemovedDirectories

_TRUSTED = b"trusted."
_Found = TypeVar("_Found")


def _split_flags(name: bytes) -> tuple[int, bytes]:
    """The flags that the extension put in front of the name; without it pyfuse3 has acted on them."""
    return (name[0] - 1, name[1:]) if libfuse.available() else (0, name)


class AttributeRequests:
    """A part of ``Operations``."""

    _volume: Volume
    _attributes: Attributes
    _xattrs: Xattrs
    _caches: KernelCaches
    _removed: RemovedDirectories

    def _seen(self, ino: int, inode: Inode) -> None:
        """An inode was just looked at, under its lock: what the extension may answer for it follows (K7).

        Raises OSError ESTALE when the kernel meant an earlier one of that number.
        """
        self._caches.bare(ino, inode.bare)
        self._caches.nodes.check(ino, inode.incarnation)

    async def _of(self, ino: int, nothing: _Found, ask: Callable[[], Awaitable[tuple[Inode, _Found]]]) -> _Found:
        """What ``ask`` finds; ``nothing`` for a removed directory, whose attributes nobody remembers."""
        if self._removed.known(ino) is not None:
            return nothing
        try:
            inode, found = await ask()
            self._seen(ino, inode)
        except OSError as error:
            if self._removed.judged(ino, error) is None:
                raise
            return nothing
        return found

    @upcall(0)
    async def getxattr(self, ino: int, name: bytes, ctx: Any) -> bytes:
        """The value of an attribute; pyfuse3 compares its length with the caller's room."""
        value = await self._of(ino, None, lambda: self._xattrs.get(self._volume, ino, name))
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    @upcall(0)
    async def listxattr(self, ino: int, ctx: Any) -> list[bytes]:
        """The names of all attributes."""
        names: list[bytes] = await self._of(ino, [], lambda: self._xattrs.names(self._volume, ino))
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(_TRUSTED)]

    @upcall(0, caller=True)
    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: Any, caller: Caller) -> None:
        """Set an attribute, or an access control list and the mode with it; the kernel then asks for the mode."""
        flags, name = _split_flags(name)
        inode = await self._xattrs.put(self._volume, ino, name, value, flags, caller.is_member)
        self._seen(ino, inode)

    @upcall(0)
    async def removexattr(self, ino: int, name: bytes, ctx: Any) -> None:
        """Remove an attribute."""
        self._seen(ino, await self._xattrs.remove(self._volume, ino, name))
