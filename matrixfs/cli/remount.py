"""``mount -o remount``: the options of a mounted tree that the kernel enforces by itself; its process goes on.

R1. What the mount process goes by stays: ``localflocks``, ``noatime``, ``discard``, ``data=``, ``state=``. Asking for
    another one is refused.
R2. A tree that was mounted read-only stays so: its process writes nothing. One remounted read-only may go back.

mount(8) passes the options that hold now, and then those that are asked for: the last word counts.

Source: mount(2), MS_REMOUNT; mount(8), "remount".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Sequence

from matrixfs.fuse import registry
from matrixfs.options import MountOptions

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT, MS_DIRSYNC = 1, 2, 4, 8, 16, 32, 128
_SET = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
}  # fmt: skip
_CLEARED = {
    "rw": MS_RDONLY, "suid": MS_NOSUID, "dev": MS_NODEV, "exec": MS_NOEXEC, "async": MS_SYNCHRONOUS,
    "defaults": MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_SYNCHRONOUS,
}  # fmt: skip
_OTHER_ATIMES = ("atime", "relatime", "strictatime")


def flags_of(options: Sequence[str]) -> int:
    """The flags of mount(2) that options of mount(8) come to."""
    flags = 0
    for option in options:
        flags = flags & ~_CLEARED.get(option, 0) | _SET.get(option, 0)
    return flags


def served_with(mount: registry.Mount) -> list[str] | None:
    """The arguments that a mount's process was started with; None when it is gone."""
    server = registry.read(mount.device)
    if server is None:
        return None
    with contextlib.suppress(OSError), open(f"/proc/{server.pid}/cmdline", "rb") as file:
        words = os.fsdecode(file.read()).split("\0")[:-1]
        return words[words.index(mount.source) :] if mount.source in words else None
    return None


def problem(options: Sequence[str], serving: MountOptions) -> str:
    """What of the options asks for another mount process than the one there is (R1, R2); "" when nothing does."""
    atimes = [option for option in options if option == "noatime" or option in _OTHER_ATIMES]
    noatime = "noatime" in serving.kernel_options
    if serving.read_only and not flags_of(options) & MS_RDONLY:
        return "it was mounted read-only"
    if atimes and (atimes[-1] == "noatime") != noatime:
        return f"it was mounted with {'noatime' if noatime else 'access times'}"
    if "localflocks" in options and not serving.local_locks:
        return "it was mounted without localflocks"
    discards = [option for option in options if option in ("discard", "nodiscard")]
    if discards and (discards[-1] == "discard") != serving.discard:
        return f"it was mounted with{'' if serving.discard else 'out'} discard"
    modes = [option for option in options if option.startswith("data=")]
    if modes and (modes[-1] == "data=journal") != serving.journal_data:
        return f"it was mounted with data={'journal' if serving.journal_data else 'ordered'}"
    return ""


def remount(path: str, options: Sequence[str]) -> None:
    """Give what is mounted at ``path`` other flags.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(MS_REMOUNT | flags_of(options))
    if libc.mount(None, os.fsencode(path), None, flags, None):
        code = ctypes.get_errno()
        raise OSError(code, "files are open for writing" if code == errno.EBUSY else os.strerror(code))
