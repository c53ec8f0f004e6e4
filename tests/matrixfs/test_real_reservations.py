"""Reservations on real targets: the contract, and what the probe finds; tgt and istgt are wrong in different places."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from matrixfs.blockstore.scsi.address import identity_of
from matrixfs.blockstore.scsi.probe import SCRATCH_BLOCK, SCRATCH_BLOCKS
from matrixfs.blockstore.scsi.probe_nexus import IscsiProbeNexus, probe_iscsi
from membership.errors import OperatorError
from membership.fence.keys import key_of
from tests.contract.reservations import CHECKS, Subject
from tests.contract.targets import target
from tests.sim.lun import ISTGT, TGT, traits_of

QUIRKS = {"tgt": TGT, "istgt": ISTGT}
COUNTER = itertools.count()


@pytest.fixture(scope="module", params=["tgt", "istgt"])
def san(request, tmp_path_factory):
    with target(request.param, str(tmp_path_factory.mktemp(request.param))) as found:
        yield found


def opener(san):
    run = next(COUNTER)
    opened: list[IscsiProbeNexus] = []

    async def open_nexus(name: str) -> IscsiProbeNexus:
        nexus = await IscsiProbeNexus.open(san.addresses[0], identity_of(f"{run}", name, {}))
        opened.append(nexus)
        return nexus

    return open_nexus, opened


@pytest.mark.parametrize("check", CHECKS)
async def test_contract(check, san) -> None:
    open_nexus, opened = opener(san)
    cleaner = await open_nexus("cleaner")
    await cleaner.register(1)
    await cleaner.clear(1)
    await cleaner.write(650 * 4096, bytes(4096))
    await cleaner.aclose()
    opened.clear()
    try:
        await check(Subject(open_nexus, traits_of(QUIRKS[san.kind])))
    finally:
        for nexus in opened:
            await nexus.aclose()


async def test_the_probe_finds_what_they_are_worth(san) -> None:
    """And leaves them as they were: no registration, zeros in the scratch blocks, nothing else touched."""
    open_nexus, opened = opener(san)
    a = await open_nexus("a")
    await a.register(1)
    await a.clear(1)
    rng = random.Random(1)
    around = [SCRATCH_BLOCK - 1, SCRATCH_BLOCK + SCRATCH_BLOCKS]
    for block in around:
        await a.write(block * 4096, rng.randbytes(4096))
    before = [await a.read(block * 4096, 4096) for block in around]
    lines: list[str] = []
    traits = await probe_iscsi(san.addresses[0], "host", {}, "test", progress=lines.append)
    print("\n".join(lines))
    expected = traits_of(QUIRKS[san.kind])
    if san.kind == "istgt":  # at a LUN RESET it drops all sessions of that initiator name, and so those of the probe
        expected = replace(expected, lun_reset=False, reset_stops=False)
    assert traits == expected
    assert await a.read_keys() == []
    assert await a.read_reservation() is None
    assert [await a.read(block * 4096, 4096) for block in around] == before
    scratch = await a.read(SCRATCH_BLOCK * 4096, SCRATCH_BLOCKS * 4096)
    assert scratch == bytes(len(scratch))
    await a.aclose()


async def test_the_probe_refuses_a_lun_in_use(san) -> None:
    open_nexus, _ = opener(san)
    a = await open_nexus("a")
    await a.register(key_of(7, 1))
    with pytest.raises(OperatorError, match=r"in use: key 0x4d58070000000001 \(node 7\)"):
        await probe_iscsi(san.addresses[0], "host", {}, "test")
    assert await a.read_keys() == [key_of(7, 1)]
    await a.clear(key_of(7, 1))
    await a.aclose()
