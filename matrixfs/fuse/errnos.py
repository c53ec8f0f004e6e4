"""Exceptions to errno: the one place that decides what an application sees (style.md 16).

Expected errors carry their errno (``MatrixError.errno``, ``OSError.errno``).  Everything else is our bug and is EIO.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from membership.errors import CorruptionError, DeviceError, Fenced, MatrixError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about an exception that left a handler."""

    code: int  # errno for the application
    log: bool  # worth a line for the administrator
    trace: bool  # our bug: traceback and arguments too
    withdraw: bool  # an invariant is broken or the right is lost: the mount must stop (R9)


def _leaf(error: BaseException) -> BaseException:
    """The first error inside exception groups: nurseries below wrap what their tasks raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _all(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _all(inner)]
    return [error]


def judge(error: BaseException) -> Verdict:
    """Map an exception to its consequences.  Fenced or a failed assertion anywhere in a group decides."""
    for leaf in _all(error):
        if isinstance(leaf, Fenced):
            return Verdict(leaf.errno, log=True, trace=False, withdraw=True)
        if isinstance(leaf, AssertionError):
            return Verdict(errno.EIO, log=True, trace=True, withdraw=True)
    first = _leaf(error)
    if isinstance(first, CorruptionError | DeviceError):
        return Verdict(first.errno or errno.EIO, log=True, trace=False, withdraw=False)
    if isinstance(first, MatrixError):
        return Verdict(first.errno or errno.EIO, log=False, trace=False, withdraw=False)
    if isinstance(first, OSError) and first.errno:
        return Verdict(first.errno, log=False, trace=False, withdraw=False)
    return Verdict(errno.EIO, log=True, trace=True, withdraw=False)
