"""A process with some of root's capabilities, or with all of another user's."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

CAP_FSETID = 4
NOBODY = 65534
_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def done_by(call: Callable[[], object], uid: int = NOBODY, capability: int | None = None) -> None:
    """Do it in a process of that user, and group, that has this one capability; raise the OSError that it met.

    Root without capabilities is root who gave them away.
    """
    pid = os.fork()
    if not pid:
        try:
            _become(uid, capability)
            call()
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        except BaseException:
            os._exit(255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "in the process")


def _become(uid: int, capability: int | None) -> None:
    os.setgroups([])
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kept = 0 if capability is None else 1 << capability
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")
