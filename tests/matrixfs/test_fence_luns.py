"""Which reservations a store has: a LUN's, a kernel device's, none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from matrixfs.blockstore import open_store
from matrixfs.blockstore.device.direct import DirectDevice
from matrixfs.blockstore.device.engine import Kind, Operation
from matrixfs.blockstore.fencing.luns import VOUCHED_FOR, looks_through, lun_of
from membership.errors import DeviceError, Fenced
from membership.fence.reservations import LunTraits
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
