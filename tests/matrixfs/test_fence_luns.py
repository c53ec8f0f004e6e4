"""Which reservations a store has: a LUN's, a kernel device's, none."""

from __future__ import annotations

import errno
import math
from contextlib import nullcontext
from pathlib import Path

import pytest

from matrixfs.blockstore import FencingGate, PatientDevice, Window, open_store
from matrixfs.blockstore.device.direct import DirectDevice
from matrixfs.blockstore.device.engine import Kind, Operation
from matrixfs.blockstore.fencing.luns import VOUCHED_FOR, discard_of, looks_through, lun_of
from membership.clock import SystemClock
from membership.errors import DeviceError, Fenced
from membership.fence.reservations import REGISTRANTS_ONLY, Leak, LunTraits
from tests.contract.stores import loop_device, make_file
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, traits_of


async def test_a_file_and_a_loop_device_have_none(tmp_path: Path) -> None:
    path = make_file(str(tmp_path / "store"), 8 << 20)
    file = open_store(path)
    lun = lun_of(file, traits_of(CONFORMING))
    assert (lun.name, lun.reservations, lun.traits, lun.usable) == (path, None, LunTraits(), None)
    assert looks_through(file, lun) is file
    file.close_unused()
    with loop_device(path, 4096) as name:
        block = open_store(name)
        lun = lun_of(block, VOUCHED_FOR)
        assert (lun.reservations, lun.usable, lun.nexus_per_process) == (None, None, False)
        block.close_unused()
    assert lun_of(SimDisk(1 << 20), traits_of(CONFORMING)).reservations is None


async def test_a_conflict_through_the_kernel_is_a_fence(tmp_path: Path) -> None:
    """The block layer passes a RESERVATION CONFLICT on as EBADE."""
    store = open_store(make_file(str(tmp_path / "store"), 8 << 20))
    assert isinstance(store, DirectDevice)
    operation = Operation(Kind.WRITE, -1, 0, memoryview(bytearray(4096)), 0)
    operation.result = -errno.EBADE
    with pytest.raises(Fenced, match="reservation conflict"):
        store._is_unfinished(operation)
    operation.result = -errno.EIO
    with pytest.raises(DeviceError):
        store._is_unfinished(operation)
    store.close_unused()


def test_what_an_operator_vouches_for() -> None:
    """It fences, and nothing that may leak is ever sent."""
    assert VOUCHED_FOR.fence == "preempt-and-abort"
    assert LunTraits.from_words_untrusted(*VOUCHED_FOR.to_words()) == VOUCHED_FOR
    assert not VOUCHED_FOR.compare_and_write
    assert "WRITE SAME" in "\n".join(VOUCHED_FOR.describe())


@pytest.mark.parametrize(
    ("traits", "allowed"),
    [
        (LunTraits(), True), (LunTraits(kind=REGISTRANTS_ONLY), True),
        (LunTraits(kind=REGISTRANTS_ONLY, leaks=Leak.ORWRITE), True),
        (LunTraits(kind=REGISTRANTS_ONLY, leaks=Leak.UNMAP), False),
        (LunTraits(kind=REGISTRANTS_ONLY, leaks=Leak.WRITE_SAME | Leak.ORWRITE), False), (VOUCHED_FOR, False),
    ],
)  # fmt: skip
async def test_a_discard_that_a_reservation_would_not_hold_back_is_not_sent(traits: LunTraits, allowed: bool) -> None:
    disk = SimDisk(16 << 20, 4096)
    gate = FencingGate(disk, SystemClock())
    gate.extend(math.inf, 1)
    area = Window(disk, 1 << 20, 8 << 20)
    discard = discard_of(PatientDevice(gate), area, traits, 1 << 20)
    with nullcontext() if allowed else pytest.raises(DeviceError, match="reservations"):
        await discard(4096, 8192)
    assert disk.discards == ([((1 << 20) + 4096, 8192)] if allowed else [])
    with pytest.raises(DeviceError, match="outside"):
        await discard((8 << 20) - 4096, 8192)
    gate.fence("a test")
    with pytest.raises((Fenced, DeviceError)):
        await discard(0, 4096)
    assert len(disk.discards) == allowed
