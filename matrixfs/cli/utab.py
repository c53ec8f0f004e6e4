"""An entry in libmount's utab for a mounted tree, so that plain umount(8) looks for its helper.

umount(8) of util-linux 2.38 asks statfs(2) for the type as long as /run/mount/utab is empty, gets plain "fuse", and so
never finds ``umount.fuse.matrixfs``: it would return before the last flush.  With an entry there it reads mountinfo,
which knows the full type.  umount(8) removes the entry itself.  Format: one line of ``KEY=value``, as by libmount.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

UTAB = "/run/mount/utab"
_ESCAPED = {" ": "\\040", "\t": "\\011", "\n": "\\012", "\\": "\\134"}


def _escape(text: str) -> str:
    return "".join(_ESCAPED.get(character, character) for character in text)


def add(source: str, target: str, *, utab: str = UTAB) -> None:
    """Add an entry.

    Args:
        source: what is mounted.
        target: the mount point, an absolute path.
        utab: the file.

    Raises:
        OSError: /run is not writable.
    """
    line = f"SRC={_escape(source)} TARGET={_escape(target)} ROOT=/ OPTS=uhelper=fuse.matrixfs\n"
    os.makedirs(os.path.dirname(utab), exist_ok=True)
    lock = os.open(utab + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as libmount does
        kept = ""
        with contextlib.suppress(FileNotFoundError), open(utab, encoding="utf-8", errors="surrogateescape") as file:
            kept = "".join(old for old in file if f" TARGET={_escape(target)} " not in old)
        temporary = f"{utab}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(kept + line)
        os.chmod(temporary, 0o644)
        os.replace(temporary, utab)
    finally:
        os.close(lock)
