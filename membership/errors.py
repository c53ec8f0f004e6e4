"""Error roots of the whole product: every class says who is to blame, and fixes the exit code.

Own bugs are assertions, never one of these.  Commands map ``exit_code`` straight to the shell, the
FUSE edge maps ``errno`` to the kernel (``matrixfs/fuse/errnos.py``).
"""

from __future__ import annotations

import errno


class MatrixError(Exception):
    """Root of all expected errors.  ``str(error)`` is one line an administrator can act on."""

    exit_code = 1
    errno = errno.EIO


class OperatorError(MatrixError):
    """The command, option or configuration is wrong; the line says what to do instead."""

    exit_code = 2
    errno = errno.EINVAL


class PeerError(MatrixError):
    """Another node or process broke the protocol, or can't be reached."""

    exit_code = 3


class BadMessage(PeerError):
    """Bytes from the network that are no valid message (R11).  The only error of ``*_untrusted`` wire decoders."""


class DeviceError(MatrixError):
    """The shared store failed an I/O.

    Args:
        text: one line naming the store, the operation and the offset.
        code: errno of the failed call.
    """

    exit_code = 4

    def __init__(self, text: str, code: int = errno.EIO) -> None:
        super().__init__(text)
        self.errno = code


class CorruptionError(MatrixError):
    """Bytes on the store contradict the format or each other.

    Args:
        where: the block or record, for example ``"block 4711 (inode)"``.
        check: name of the check that failed, for example ``"checksum"``.
        expected: what the check wanted, as text.
        found: what was there, as text.
    """

    exit_code = 5

    def __init__(self, where: str, check: str, expected: object = "", found: object = "") -> None:
        self.where = where
        self.check = check
        self.expected = expected
        self.found = found
        detail = f": expected {expected}, found {found}" if expected != "" else ""
        super().__init__(f"{where}: bad {check}{detail}")


class CorruptRecord(CorruptionError):
    """A fixed-layout record failed to decode.  The only error of ``*_untrusted`` record decoders."""


class Fenced(MatrixError):
    """The node lost its right to the store (lease past, evicted, or withdrawn): nothing may be written (R3)."""

    exit_code = 6
    errno = errno.ENOTCONN


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class ToldLate(OSError):
    """What an earlier call met, told by fsync(2) or close(2): that call was answered, and nothing done again helps."""
