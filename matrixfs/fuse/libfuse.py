"""Loads the C extension, then pyfuse3, in this order; says what is missing when the extension is.

The extension defines ``fuse_session_new`` in front of libfuse's (coherence.md 5).  That works only when it is in the
process's global symbol scope before pyfuse3 is bound, hence the import with ``RTLD_GLOBAL`` here and nowhere else.
Without it a mount works with the request sizes and capabilities of libfuse's defaults, and with names that the kernel
trusts for a tenth of a second instead of for ever: slower, never wrong.  Such a mount is ``nosuid``, because libfuse's
defaults leave the clearing of set-id bits to the filesystem; and the umask narrows new files also where the directory's
default access control list should go before it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _load_extension() -> tuple[Any, str]:
    """The extension and "", or None and what is wrong with it."""
    if "pyfuse3" in sys.modules:
        return None, "pyfuse3 was imported before matrixfs.fuse: import matrixfs.fuse first"
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    try:
        from matrixfs.fuse import _libfuse  # type: ignore[attr-defined,unused-ignore]
    except ImportError as error:
        return None, f"the C extension is not built ({error}): run scripts/install with gcc and libfuse3-dev present"
    finally:
        sys.setdlopenflags(flags)
    if not _libfuse.usable():
        return None, "this libfuse3 has no fuse_session_new@FUSE_3.0: its version is not one MatrixFS knows"
    return _libfuse, ""


_extension, _problem = _load_extension()

import pyfuse3 as _pyfuse3  # noqa: E402  (after the extension, see above)

pyfuse3: Any = _pyfuse3  # Any: its stubs type handlers by NewTypes that would have to be spread over our code

__all__ = [
    "KernelFeatures",
    "available",
    "bare_answers",
    "caller",
    "clear_privileges",
    "count_locks",
    "expire_entry",
    "inc_epoch",
    "kernel_features",
    "lock_counters",
    "missing",
    "open_by_kernel",
    "prune",
    "pyfuse3",
    "reply_err",
    "reply_ioctl",
    "reply_lock",
    "reply_seek",
    "reply_statx",
    "reply_written",
    "serve_flags",
    "serve_locks",
    "serve_ranges",
    "serve_statx",
    "session_fd",
    "set_bare",
]

_CAPABILITIES = {  # bits of libfuse's FUSE_CAP_*, for people
    "async_read": 0,
    "posix_locks": 1,
    "atomic_o_trunc": 3,
    "dont_mask": 6,
    "splice_read": 9,
    "flock_locks": 10,
    "auto_inval_data": 12,
    "readdirplus": 13,
    "async_dio": 15,
    "writeback_cache": 16,
    "no_open_support": 17,
    "parallel_dirops": 18,
    "posix_acl": 19,
    "handle_killpriv": 20,
    "cache_symlinks": 23,
}
_HANDLE_KILLPRIV_V2 = "handle_killpriv_v2"  # no bit of libfuse's: the extension agrees on it with the kernel


@dataclass(frozen=True, slots=True)
class KernelFeatures:
    """What kernel and libfuse agreed on; sizes in bytes, zero before the first request."""

    protocol_minor: int
    max_write: int
    max_readahead: int
    capabilities: frozenset[str]


def available() -> bool:
    """Whether the extension was loaded in front of libfuse; known before the session is made."""
    return _extension is not None


def missing() -> str:
    """Why this session runs without the extension; "" when it has it.  Ask after the session was made."""
    if _problem or _extension is None:
        return _problem
    if _extension.session_fd() < 0:
        return "the session was made without the C extension: another library stands in front of it"
    return ""


def session_fd() -> int:
    """Descriptor of the session's /dev/fuse, -1 without a session or extension."""
    return -1 if _extension is None else int(_extension.session_fd())


def inc_epoch() -> int:
    """Have every name of the mount looked up again on next use; never blocks.  Returns 0 or an errno."""
    return errno.ENOSYS if _extension is None else int(_extension.notify_inc_epoch())


def expire_entry(parent: int, name: bytes) -> int:
    """Have one name looked up again without unhashing it; may block: worker threads only.  Returns 0 or an errno."""
    return errno.ENOSYS if _extension is None else int(_extension.notify_expire_entry(parent, name))


def prune(node: int) -> int:
    """Have the kernel drop the names of an inode that nobody uses, and then forget it.  Returns 0 or an errno."""
    return errno.ENOSYS if _extension is None else int(_extension.notify_prune(node))


def open_by_kernel(wanted: bool) -> None:
    """Before the session is made: whether the kernel opens and closes files without asking (coherence.md 6)."""
    if _extension is not None:
        _extension.set_no_open(wanted)


# ---- set-id bits and capabilities ----


def clear_privileges(wanted: bool) -> None:
    """Before the session is made: False has the kernel clear set-id bits, as those do that can't leave it to us."""
    if _extension is not None:
        _extension.set_clears_privileges(wanted)


def caller() -> tuple[bool | None, bool, bool, int, int]:
    """Of the request whose handler has begun, up to the handler's first checkpoint.

    Whether it keeps set-id bits (None: not told), whether it is pages of a mapping, whether it is a write of
    a descriptor with O_DIRECT, and the caller's pid and gid.
    Without the extension we don't know who it is, and it keeps nothing.
    """
    if _extension is None:
        return False, False, False, 0, 0
    found: tuple[bool | None, bool, bool, int, int] = _extension.caller()
    return found


def requests() -> int:
    """How many requests of the kernel there have been."""
    return 0 if _extension is None else int(_extension.requests())


def asked_since(pid: int, requests: int) -> bool:
    """Whether a thread is known to have sent a request after so many: it has taken in all answers before."""
    return _extension is not None and bool(_extension.asked_since(pid, requests))


# ---- extended attributes ----


def set_bare(node: int, is_bare: bool) -> None:
    """Whether an inode is known to have no extended attributes, until the next call."""
    if _extension is not None:
        _extension.set_bare(node, is_bare)


def bare_answers() -> int:
    """How many questions for extended attributes ``set_bare`` has saved us."""
    return 0 if _extension is None else int(_extension.bare_answers())


# ---- parked requests ----


def serve_locks(request: Callable[..., None] | None, interrupted: Callable[[int], None] | None) -> None:
    """Before the session is made: who answers the kernel's lock requests; None, None: the kernel, for this node alone.

    Args:
        request: told (operation, number, node, handle, owner, type, start, last byte, pid, wait); answers at once or
            later, by ``reply_err`` or ``reply_lock``.
        interrupted: told the number of a request whose application got a signal; must not answer in the call.
    """
    if _extension is not None:
        _extension.set_lock_handlers(request, interrupted)


def serve_ranges(request: Callable[..., None] | None) -> None:
    """Before the session is made: who answers FALLOCATE, LSEEK and COPY_FILE_RANGE; None: nobody.

    ``request`` is told (operation, number, ...); it answers at once or later, by ``reply_err``, ``reply_seek`` or
    ``reply_written``.
    """
    if _extension is not None:
        _extension.set_range_handler(request)


def serve_flags(request: Callable[..., None] | None) -> None:
    """Before the session is made: who answers ioctl(2) for flags and projects of files; None: nobody.

    ``request`` is told (operation, number, node, uid, pid, argument); it answers at once or later, by
    ``reply_ioctl`` or ``reply_err``.
    """
    if _extension is not None:
        _extension.set_flag_handler(request)


def serve_statx(request: Callable[..., None] | None) -> None:
    """Before the session is made: who answers statx(2) where it asks for a time of birth; None: nobody.

    ``request`` is told (0, number, node); it answers at once or later, by ``reply_statx`` or ``reply_err``.
    """
    if _extension is not None:
        _extension.set_statx_handler(request)


def reply_err(number: int, code: int) -> int:
    """Answer a parked request: an errno, 0 for success.  Returns 0, ESRCH if it was answered, or the kernel's errno."""
    return int(_extension.reply_err(number, code))


def reply_lock(number: int, kind: int, start: int, end: int, pid: int) -> int:
    """Answer F_GETLK: F_UNLCK, or the type and range of what stands in the way.  Returns as ``reply_err``."""
    return int(_extension.reply_lock(number, kind, start, end, pid))


def reply_seek(number: int, offset: int) -> int:
    """Answer LSEEK.  Returns as ``reply_err``."""
    return int(_extension.reply_seek(number, offset))


def reply_written(number: int, count: int) -> int:
    """Answer COPY_FILE_RANGE.  Returns as ``reply_err``."""
    return int(_extension.reply_written(number, count))


def reply_ioctl(number: int, answer: bytes) -> int:
    """Answer an ioctl: what it returns.  Returns as ``reply_err``."""
    return int(_extension.reply_ioctl(number, answer))


def reply_statx(number: int, answer: bytes) -> int:
    """Answer STATX by struct fuse_statx_out.  Returns as ``reply_err``."""
    return int(_extension.reply_statx(number, answer))


def count_locks(node: int, change: int) -> None:
    """One (1) more reason, or one (-1) less, to be told when a descriptor of this inode is closed."""
    _extension.count_locks(node, change)


def lock_counters() -> dict[str, int]:
    """``parked``: lock requests to be answered; ``quick_flushes``: closes that needed no Python."""
    return {} if _extension is None else dict(_extension.lock_counters())


def kernel_features() -> KernelFeatures:
    """What kernel and libfuse agreed on; all zero without the extension."""
    raw = {} if _extension is None else _extension.kernel_features()
    wanted = raw.get("want", 0)
    names = {name for name, bit in _CAPABILITIES.items() if wanted >> bit & 1}
    if raw.get("clears_privileges"):
        names.add(_HANDLE_KILLPRIV_V2)
    return KernelFeatures(raw.get("minor", 0), raw.get("max_write", 0), raw.get("max_readahead", 0), frozenset(names))
