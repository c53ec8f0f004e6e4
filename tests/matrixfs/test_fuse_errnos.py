"""errnos.py: every kind of error, what the application sees and what follows (R9)."""

from __future__ import annotations

import errno

import pytest

from matrixfs.fuse.errnos import judge
from membership.errors import (
    BadMessage,
    CorruptionError,
    CorruptRecord,
    DeviceError,
    Fenced,
    MatrixError,
    OperatorError,
)


@pytest.mark.parametrize(
    ("error", "code", "log", "trace", "withdraw"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC, False, False, False),
        (FileNotFoundError(errno.ENOENT, "no"), errno.ENOENT, False, False, False),
        (OSError("no number"), errno.EIO, True, True, False),
        (MatrixError("x"), errno.EIO, False, False, False),
        (OperatorError("x"), errno.EINVAL, False, False, False),
        (BadMessage("x"), errno.EIO, False, False, False),
        (DeviceError("store", errno.ENXIO), errno.ENXIO, True, False, False),
        (CorruptionError("block 4", "magic"), errno.EIO, True, False, False),
        (CorruptRecord("block 4", "checksum", 1, 2), errno.EIO, True, False, False),
        (KeyError("bug"), errno.EIO, True, True, False),
        (MemoryError(), errno.EIO, True, True, False),
        (AssertionError("invariant"), errno.EIO, True, True, True),
        (Fenced("lease past"), errno.ENOTCONN, True, False, True),
        (ExceptionGroup("g", [OSError(errno.EROFS, "ro")]), errno.EROFS, False, False, False),
        (ExceptionGroup("g", [KeyError(1), ExceptionGroup("h", [Fenced("x")])]), errno.ENOTCONN, True, False, True),
    ],
)
def test_verdict(error: Exception, code: int, log: bool, trace: bool, withdraw: bool) -> None:
    verdict = judge(error)
    assert (verdict.code, verdict.log, verdict.trace, verdict.withdraw) == (code, log, trace, withdraw)
