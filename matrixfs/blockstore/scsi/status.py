"""How a SCSI command ends when it doesn't end well: one error for each thing a caller can do about it.  Pure.

===============================  ==========================================================================
error                            what it means to the caller
===============================  ==========================================================================
``ReservationConflict``          this nexus lost its right to write: a ``Fenced``, nothing may be retried
``SessionLost``                  no answer: the command is of **unknown outcome** until the nexus is reinstated
``UnitAttention``, ``Busy``      not executed; to be sent again
``Miscompare``                   COMPARE AND WRITE found other data; not executed
``NoSuchUnit``                   there is no unit of that number (any more)
``CheckCondition``               executed in part or not at all; the sense data says why
===============================  ==========================================================================

Source: SAM-5 5.3 (status), SPC-4 4.5 (sense), libiscsi's scsi-lowlevel.h (its own status codes).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from membership.errors import DeviceError, Fenced, MatrixError

GOOD: Final = 0x00
CHECK_CONDITION: Final = 0x02
BUSY: Final = 0x08
RESERVATION_CONFLICT: Final = 0x18
TASK_SET_FULL: Final = 0x28
ACA_ACTIVE: Final = 0x30
TASK_ABORTED: Final = 0x40

_MEDIUM_ERROR: Final = 0x03
_ILLEGAL_REQUEST: Final = 0x05
_UNIT_ATTENTION: Final = 0x06
_DATA_PROTECT: Final = 0x07
_MISCOMPARE: Final = 0x0E
_KEYS: Final = (
    "no sense", "recovered error", "not ready", "medium error", "hardware error", "illegal request", "unit attention",
    "data protect", "blank check", "vendor specific", "copy aborted", "aborted command", "reserved", "volume overflow",
    "miscompare", "completed",
)  # fmt: skip
_INVALID_OPERATION: Final = 0x2000
_LBA_OUT_OF_RANGE: Final = 0x2100
_NO_SUCH_UNIT: Final = 0x2500
_WRITE_PROTECTED: Final = 0x2700
_SPACE_ALLOCATION_FAILED: Final = 0x2707
RESERVATIONS_PREEMPTED: Final = 0x2A03
REGISTRATIONS_PREEMPTED: Final = 0x2A05
CAPACITY_CHANGED: Final = 0x2A09


@dataclass(frozen=True, slots=True)
class Sense:
    """Why: key, and additional code and qualifier as one number (0x2A03 is 2Ah/03h)."""

    key: int = 0
    ascq: int = 0

    def __str__(self) -> str:
        return f"{_KEYS[self.key & 0x0F]} {self.ascq >> 8 & 0xFF:02X}/{self.ascq & 0xFF:02X}"


class ReservationConflict(Fenced):
    """The target refused this nexus for its reservation: it is registered no more, or never was."""


class SessionLost(DeviceError):
    """The session ended, or was ended for want of an answer, before the command was answered: outcome unknown."""


class CheckCondition(DeviceError):
    """The target refused or failed the command; ``sense`` says why."""

    def __init__(self, text: str, sense: Sense, code: int = errno.EIO) -> None:
        super().__init__(text, code)
        self.sense = sense

    @property
    def unsupported(self) -> bool:
        """Whether the target doesn't know the command, or a field of it."""
        return self.sense.key == _ILLEGAL_REQUEST and self.sense.ascq in {_INVALID_OPERATION, 0x2400, 0x2600}


class UnitAttention(CheckCondition):
    """Something happened to the unit; the command was not executed."""


class Miscompare(CheckCondition):
    """COMPARE AND WRITE, VERIFY: the data differs."""


class NoSuchUnit(CheckCondition):
    """The target has no unit of that number."""


class Busy(DeviceError):
    """The target has no room just now; the command was not executed."""

    def __init__(self, text: str) -> None:
        super().__init__(text, errno.EBUSY)


_CODES: Final = {
    _LBA_OUT_OF_RANGE: errno.EINVAL,
    _INVALID_OPERATION: errno.EOPNOTSUPP,
    _WRITE_PROTECTED: errno.EROFS,
    _SPACE_ALLOCATION_FAILED: errno.ENOSPC,
}


def error_of(where: str, status: int, sense: Sense) -> MatrixError:
    """The error of a command that was answered with anything but GOOD.

    Args:
        where: names the unit and the command.
        status: as answered.
        sense: with CHECK CONDITION.
    """
    if status == RESERVATION_CONFLICT:
        return ReservationConflict(f"{where}: the store refuses this node (RESERVATION CONFLICT): it has been fenced")
    if status in {BUSY, TASK_SET_FULL, ACA_ACTIVE, TASK_ABORTED}:
        return Busy(f"{where}: the target is busy (status {status:#04x})")
    if status != CHECK_CONDITION:
        return DeviceError(f"{where}: failed with status {status:#04x}")
    text = f"{where}: {sense}"
    if sense.key == _UNIT_ATTENTION:
        return UnitAttention(text, sense)
    if sense.key == _MISCOMPARE:
        return Miscompare(text, sense)
    if sense.key == _ILLEGAL_REQUEST and sense.ascq == _NO_SUCH_UNIT:
        return NoSuchUnit(f"{text} (no such LUN)", sense, errno.ENXIO)
    code = _CODES.get(sense.ascq, errno.EROFS if sense.key == _DATA_PROTECT else errno.EIO)
    return CheckCondition(text, sense, errno.ENODATA if sense.key == _MEDIUM_ERROR else code)
