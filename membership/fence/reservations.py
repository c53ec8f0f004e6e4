"""Persistent reservations of one LUN: the seam, and what a probe found that the LUN can do (002-31, 002-38; R4).

Reservations are SCSI's (SPC-4 5.13) or NVMe's: who has registered a key may write while a reservation "write exclusive,
registrants only" is in place; everybody may read.  Taking a key away (*preempt*) stops its owner at the device.

Invariants of what implements ``Reservations``:
    V1. It retries what only tells news (unit attentions), within bounds; a command that reports success was done.
    V2. A conflict is told apart by reading the keys: ``Conflict`` means that our own key is gone, ``Refused`` that it
        is there and something else was in the way (somebody holds the reservation, the victim is gone already).
    V3. Registration covers all paths of this process; ``reset_lun`` returns when the LUN has ended all commands.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from membership.errors import CorruptRecord, DeviceError, Fenced

if TYPE_CHECKING:
    from collections.abc import Iterable

REGISTRANTS_ONLY = 5  # write exclusive, registrants only: one of them holds it
ALL_REGISTRANTS = 7  # write exclusive, all registrants: each of them holds it
KIND_NAMES = {0: "none", REGISTRANTS_ONLY: "registrants only", ALL_REGISTRANTS: "all registrants"}

FenceForm: TypeAlias = Literal["preempt-and-abort", "preempt+reset", "none"]


class Conflict(Fenced):
    """Our own registration is gone: somebody preempted or cleared it.  Final for this process."""


class Refused(DeviceError):
    """The LUN refused a reservation command although our key is registered."""


class Unsupported(DeviceError):
    """The LUN does not know this command."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The reservation in place: the holder's key (0 when all registrants hold it) and its kind (SPC-4 type)."""

    key: int
    kind: int


class Reservations(Protocol):
    """One LUN as the nexus of one process (all its paths) sees it.  All methods raise DeviceError."""

    @property
    def name(self) -> str:
        """How messages name the LUN."""
        ...

    async def register(self, key: int) -> None:
        """Register ``key`` whatever was registered before (REGISTER AND IGNORE EXISTING KEY)."""
        ...

    async def unregister(self, key: int) -> None:
        """Take back our own registration of ``key``; no error when there is none."""
        ...

    async def reserve(self, key: int, kind: int) -> None:
        """Reserve as the registrant ``key``.  Raises Conflict, or Refused when another one holds it."""
        ...

    async def release(self, key: int, kind: int) -> None:
        """Give the reservation back if we hold it.  Raises Conflict."""
        ...

    async def read_keys(self) -> list[int]:
        """All registered keys, one for each nexus: a key may be there more than once."""
        ...

    async def read_reservation(self) -> Reservation | None:
        """The reservation in place."""
        ...

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        """Take ``victim``'s registrations away, and with ``abort`` end its commands first.

        When the victim holds the reservation it becomes ours, of ``kind``, with no moment in between.

        Raises:
            Conflict: our own key is gone.
            Refused: the victim's key was not there (some LUNs call that success).
            Unsupported: ``abort`` is not known.
        """
        ...

    async def reset_lun(self) -> None:
        """LOGICAL UNIT RESET: end all commands of everybody; registrations stay.  Raises Unsupported."""
        ...

    async def clear(self, key: int) -> None:
        """Take all registrations and the reservation away (destroying a cluster).  Raises Conflict."""
        ...


class Leak(enum.IntFlag):
    """Commands with which a nexus that is not registered got through the reservation."""

    WRITE_SAME = 1
    ORWRITE = 2
    WRITE_AND_VERIFY = 4
    UNMAP = 8
    COMPARE_AND_WRITE = 16
    WRITE_10 = 32


_FLAGS = (
    "preempt_and_abort", "lun_reset", "compare_and_write", "keeps_over_login", "keeps_over_power_loss",
    "outlives_holder", "keys_are_true", "abort_stops", "reset_stops",
)  # fmt: skip
# No part of the rule "may write only who is registered": an unregistered WRITE (10) is a LUN without reservations.
_FATAL_LEAKS = Leak.WRITE_10
_NO_LEAK = Leak(0)
_LEAKS_KNOWN = sum(Leak)


@dataclass(frozen=True, slots=True)
class LunTraits:
    """What the probe of a LUN proved (``matrixfs/blockstore/scsi/probe.py``); all False: nothing proved."""

    kind: int = 0  # of reservation that holds: REGISTRANTS_ONLY, ALL_REGISTRANTS or 0
    preempt_and_abort: bool = False  # knows the command
    lun_reset: bool = False  # knows the task management function
    compare_and_write: bool = False  # atomic, by a race
    keeps_over_login: bool = False  # a session that comes back is registered still
    keeps_over_power_loss: bool = False  # APTPL accepted
    outlives_holder: bool = False  # the reservation holds on when its holder's session ends
    keys_are_true: bool = False  # after a preempt the other keys are listed, and still name the same nexuses
    abort_stops: bool = False  # nothing in flight at PREEMPT AND ABORT landed after it
    reset_stops: bool = False  # nothing in flight at PREEMPT landed after LUN RESET
    leaks: Leak = _NO_LEAK

    @property
    def fence(self) -> FenceForm:
        """The sequence that stops a node for certain."""
        if not (self.kind and self.outlives_holder and self.keys_are_true) or self.leaks & _FATAL_LEAKS:
            return "none"
        if self.preempt_and_abort and self.abort_stops:
            return "preempt-and-abort"
        return "preempt+reset" if self.lun_reset and self.reset_stops else "none"

    def to_words(self) -> tuple[int, int, int]:
        """(kind, flags, leaks) as three u32 for the label of the disk."""
        flags = sum(1 << bit for bit, name in enumerate(_FLAGS) if getattr(self, name))
        return self.kind, flags, int(self.leaks)

    @classmethod
    def from_words_untrusted(cls, kind: int, flags: int, leaks: int) -> LunTraits:
        """The traits in a label.

        Raises:
            CorruptRecord: no such kind, or a bit that this version does not know.
        """
        if kind not in KIND_NAMES:
            raise CorruptRecord("traits of a LUN", "kind of reservation", sorted(KIND_NAMES), kind)
        if not 0 <= flags < 1 << len(_FLAGS):
            raise CorruptRecord("traits of a LUN", "flags", f"below {1 << len(_FLAGS)}", flags)
        if leaks & ~_LEAKS_KNOWN:
            raise CorruptRecord("traits of a LUN", "leaks", f"of {_LEAKS_KNOWN}", leaks)
        return cls(kind, **{name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS)}, leaks=Leak(leaks))

    @property
    def complaints(self) -> list[str]:
        """What is wrong with it, for people."""
        return [text for wrong, text in self._complaints() if wrong]

    def describe(self) -> list[str]:
        """Lines for people: what it is worth, and what is wrong with it."""
        lines = [f"fence by reservations: {self.fence}" + (f", {KIND_NAMES[self.kind]}" if self.kind else "")]
        lines += self.complaints
        if self.leaks:
            names = ", ".join(str(leak.name).replace("_", " ") for leak in Leak if leak in self.leaks)
            lines.append(f"a fenced node gets through with {names}: never sent by MatrixFS to this LUN")
        lines.append(f"compare and write: {'atomic' if self.compare_and_write else 'not usable'}")
        return lines

    def _complaints(self) -> Iterable[tuple[bool, str]]:
        if not self.kind:
            yield True, "no reservation keeps an unregistered node from writing"
            return
        yield not self.outlives_holder, "the reservation ends with the session of its holder"
        yield not self.keys_are_true, "its list of keys is wrong after a preempt: nobody can tell who was fenced"
        yield not self.preempt_and_abort, "no PREEMPT AND ABORT"
        yield self.preempt_and_abort and not self.abort_stops, "writes land after PREEMPT AND ABORT"
        yield not self.lun_reset, "no LUN RESET"
        yield self.lun_reset and not self.reset_stops, "writes land after PREEMPT and LUN RESET"
        yield not self.keeps_over_login, "a session that comes back must register again"
        yield not self.keeps_over_power_loss, "registrations are lost with its power"


@dataclass(frozen=True, slots=True)
class Lun:
    """One cluster disk, for fencing."""

    name: str
    reservations: Reservations | None  # None: it has none, or can't be reached
    traits: LunTraits
    nexus_per_process: bool = True  # False through a kernel device: all processes of the host share one registration

    @property
    def usable(self) -> Reservations | None:
        """Its reservations, if they fence anybody for certain."""
        return self.reservations if self.traits.fence != "none" else None


async def refusal(lun: Reservations, own: int, what: str) -> Conflict | Refused:
    """The error for a command that was answered with a reservation conflict (V2)."""
    if own in await lun.read_keys():
        return Refused(f"{lun.name}: {what} refused: somebody else was quicker, or holds the reservation")
    return Conflict(f"{lun.name}: {what} refused: our registration is gone, so this node was fenced")
