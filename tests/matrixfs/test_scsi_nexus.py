"""The table of a nexus's states, statuses as errors, and what makes a disk another disk."""

from __future__ import annotations

import dataclasses
import errno
import itertools

import pytest

from matrixfs.blockstore.scsi import libiscsi, status
from matrixfs.blockstore.scsi.address import identity_of
from matrixfs.blockstore.scsi.answers import BlockLimits, Capacity
from matrixfs.blockstore.scsi.nexus import TRANSITIONS, Event, State
from matrixfs.blockstore.scsi.status import Sense
from matrixfs.blockstore.scsi.unit import Unit
from membership.errors import DeviceError, Fenced, OperatorError

BUGS = {
    (State.NEW, Event.LOST),
    (State.NEW, Event.OTHER),
    (State.UP, Event.UP),
    (State.REPLACED, Event.UP),
    (State.FENCED, Event.UP),
    (State.CLOSED, Event.UP),
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_state_and_event(state: State, event: Event) -> None:
    if (state, event) in BUGS:
        assert (state, event) not in TRANSITIONS
        return
    after = TRANSITIONS[state, event]
    if event is Event.CLOSE or state is State.CLOSED:
        assert after is State.CLOSED
    elif event is Event.FENCE or state is State.FENCED:
        assert after is State.FENCED, "final"
    elif event is Event.OTHER or state is State.REPLACED:
        assert after is State.REPLACED
    else:
        assert after is {Event.UP: State.UP, Event.LOST: State.OUTAGE}[event]


def error(code: int, sense: Sense | None = None) -> Exception:
    return status.error_of("the LUN: write", code, sense or Sense())


@pytest.mark.parametrize(
    ("code", "sense", "kind", "number"),
    [
        (0x18, Sense(), status.ReservationConflict, errno.ENOTCONN),
        (0x08, Sense(), status.Busy, errno.EBUSY),
        (0x28, Sense(), status.Busy, errno.EBUSY),
        (0x40, Sense(), status.Busy, errno.EBUSY),
        (0x02, Sense(6, 0x2903), status.UnitAttention, errno.EIO),
        (0x02, Sense(14, 0x1D00), status.Miscompare, errno.EIO),
        (0x02, Sense(5, 0x2500), status.NoSuchUnit, errno.ENXIO),
        (0x02, Sense(5, 0x2000), status.CheckCondition, errno.EOPNOTSUPP),
        (0x02, Sense(5, 0x2100), status.CheckCondition, errno.EINVAL),
        (0x02, Sense(7, 0x2700), status.CheckCondition, errno.EROFS),
        (0x02, Sense(7, 0x2707), status.CheckCondition, errno.ENOSPC),
        (0x02, Sense(3, 0x1100), status.CheckCondition, errno.ENODATA),
        (0x02, Sense(4, 0x4400), status.CheckCondition, errno.EIO),
        (0x0F000001, Sense(), DeviceError, errno.EIO),
    ],
)
def test_statuses_are_errors(code: int, sense: Sense, kind: type[Exception], number: int) -> None:
    found = error(code, sense)
    assert type(found) is kind
    assert found.errno == number  # type: ignore[attr-defined]
    assert str(found).startswith("the LUN: write: ")


def test_a_conflict_is_a_fence() -> None:
    assert isinstance(error(0x18), Fenced)
    assert not isinstance(error(0x18), DeviceError), "nobody may take it for something that passes"


def test_any_sense_has_words() -> None:
    for key, ascq in itertools.product((0, 15, 16, 255, -1), (0, 0xFFFF, 1 << 20, -1)):
        assert str(Sense(key, ascq))


def test_unsupported() -> None:
    assert status.CheckCondition("", Sense(5, 0x2000)).unsupported
    assert status.CheckCondition("", Sense(5, 0x2400)).unsupported
    assert not status.CheckCondition("", Sense(5, 0x2100)).unsupported


DISK = Unit("x", "naa.1", Capacity(1000, 512), BlockLimits(0, 0), None)


def test_another_disk() -> None:
    assert DISK.difference(DISK) is None
    assert DISK.difference(dataclasses.replace(DISK, capacity=Capacity(2000, 512))) is None, "it may grow"
    assert "shrunk" in (DISK.difference(dataclasses.replace(DISK, capacity=Capacity(999, 512))) or "")
    assert "blocks have 4096" in (DISK.difference(dataclasses.replace(DISK, capacity=Capacity(1000, 4096))) or "")
    assert "another disk" in (DISK.difference(dataclasses.replace(DISK, name="naa.2")) or "")


def test_without_a_library_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    libiscsi.load.cache_clear()
    monkeypatch.setattr(libiscsi, "_SONAMES", ("libiscsi.so.none",))
    try:
        with pytest.raises(OperatorError, match="apt install libiscsi7"):
            libiscsi.Context(identity_of("a", "b", {}), "iqn", None, header_digest=False)
        monkeypatch.setattr(libiscsi, "_SONAMES", ("libc.so.6",))
        with pytest.raises(OperatorError, match="this one has no iscsi_create_context"):
            libiscsi.load()
    finally:
        libiscsi.load.cache_clear()
