"""Who has a request done, and what that may leave of a file's privileges (``matrixfs.fs.privileges.Changer``).

A kernel with FUSE_HANDLE_KILLPRIV_V2 says so with WRITE, with OPEN that truncates and with SETATTR.  For what it
doesn't tell, and for who is in which group, /proc is asked, and only where a file has set-id bits.  Who has ended by
then, or lives in another process or user namespace, is granted nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from matrixfs.fuse import libfuse
from matrixfs.fuse.libfuse import pyfuse3

if TYPE_CHECKING:
    from matrixfs.fuse.api import Inode
    from matrixfs.fuse.kernel_caches import KernelCaches

CAP_FSETID = 4
_EFFECTIVE = b"CapEff:"


class Caller:
    """See the module.  Made before the handler's first checkpoint: after it the extension tells of another request.

    Args:
        caches: told when a file lost privileges.
        ctx: the request's last argument: its context, where pyfuse3 gives one.
    """

    __slots__ = ("_caches", "_gid", "_keeps", "_pid", "direct", "of_pages")

    def __init__(self, caches: KernelCaches, ctx: Any = None) -> None:
        self._keeps, self.of_pages, self.direct, self._pid, self._gid = libfuse.caller()
        self._caches = caches
        self._pid = getattr(ctx, "pid", self._pid)
        self._gid = getattr(ctx, "gid", self._gid)

    @property
    def takes_part(self) -> bool:
        """Whether a write may be answered with less than all; for the pages of a mapping the kernel takes it for all.

        And direct ones it may have cut in pieces, all under way: where one is short it says EIO.
        """
        return not (self.of_pages or self.direct)

    def of_setattr(self, fields: Any) -> Caller | None:
        """Whose SETATTR takes privileges away, if it does.

        One without any field is chown(-1, -1), or comes before what is about to take them away: set-id bits go.
        """
        owner_or_size = fields.update_uid or fields.update_gid or fields.update_size
        if not (owner_or_size or fields.update_mode or fields.update_atime or fields.update_mtime):
            self._keeps = False
            return self
        return self if owner_or_size else None

    def keeps_set_id(self) -> bool:
        """See ``Changer``."""
        return has_capability(self._pid, CAP_FSETID) if self._keeps is None else self._keeps

    def is_member(self, gid: int) -> bool:
        """See ``Changer``."""
        return self.is_in(gid) or has_capability(self._pid, CAP_FSETID)

    def is_in(self, gid: int) -> bool:
        """Whether the caller is in a group."""
        if gid == self._gid:
            return True
        try:
            return gid in pyfuse3.get_sup_groups(self._pid)
        except (OSError, RuntimeError):
            return False

    def took_away(self, inode: Inode) -> None:
        """See ``Changer``: the kernel doesn't ask for the mode after a write, and would execute the file by the old."""
        self._caches.attributes_changed(inode.ino)


def has_capability(pid: int, number: int) -> bool:
    """Whether a process, or thread, has a capability in our user namespace."""
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            return False
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    held = next((int(line[len(_EFFECTIVE) :], 16) for line in lines if line.startswith(_EFFECTIVE)), 0)
    return bool(held >> number & 1)
