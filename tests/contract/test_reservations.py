"""The simulated LUN keeps the contract that real targets keep."""

from __future__ import annotations

import pytest

from tests.contract.reservations import CHECKS, Subject
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, ISTGT, TGT, SimLun, SimNexus, traits_of


@pytest.mark.parametrize("quirks", [CONFORMING, TGT, ISTGT], ids=["conforming", "tgt", "istgt"])
@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check, quirks) -> None:
    lun = SimLun(SimDisk(8 << 20), quirks)

    async def open_nexus(name: str) -> SimNexus:
        return lun.nexus(name)

    await check(Subject(open_nexus, traits_of(quirks)))
