"""Reservations on real targets: the contract, and what the probe finds; tgt and istgt are wrong in different places."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from matrixfs.blockstore.scsi.address import identity_of, parse_address
from matrixfs.blockstore.scsi.probe import SCRATCH_BLOCK, SCRATCH_BLOCKS
from matrixfs.blockstore.scsi.probe_nexus import IscsiProbeNexus, probe_iscsi
from membership.errors import OperatorError
from membership.fence.keys import key_of
from tests.contract.reservations import CHECKS, Subject
from tests.san.lab import Target
from tests.sim.lun import ISTGT, TGT, traits_of

QUIRKS = {"tgtd": TGT, "istgt": ISTGT}
_runs = itertools.count()


@pytest.fixture
async def nexus(target: Target) -> AsyncIterator[Callable[[str], Awaitable[IscsiProbeNexus]]]:
    """``await nexus(name)``: a nexus, of another node for each name; the LUN has no registrations.

    One that lives still is given again: istgt takes a second for each login.
    """
    run = next(_runs)
    opened: dict[str, IscsiProbeNexus] = {}

    async def make(name: str) -> IscsiProbeNexus:
        if name not in opened or not opened[name].is_alive:
            who = identity_of(f"run {run}", name, {})
            opened[name] = await IscsiProbeNexus.open(parse_address(target.url(), {}), who)
        return opened[name]

    yield make
    for each in opened.values():
        each.drop()


async def clean(nexus: Callable[[str], Awaitable[IscsiProbeNexus]]) -> None:
    cleaner = await nexus("cleaner")
    await cleaner.register(1)
    await cleaner.clear(1)
    await cleaner.write(650 * 4096, bytes(4096))


async def test_contract(target: Target, nexus) -> None:
    for check in CHECKS:
        await clean(nexus)
        try:
            await check(Subject(nexus, traits_of(QUIRKS[target.program])))
        except BaseException as error:
            error.add_note(f"in {check.__name__}")
            raise


async def test_the_probe_finds_what_they_are_worth(target: Target, nexus) -> None:
    """And leaves them as they were: no registration, zeros in the scratch blocks, nothing else touched."""
    await clean(nexus)
    a = await nexus("a")
    rng = random.Random(1)
    around = [SCRATCH_BLOCK - 1, SCRATCH_BLOCK + SCRATCH_BLOCKS]
    for block in around:
        await a.write(block * 4096, rng.randbytes(4096))
    before = [await a.read(block * 4096, 4096) for block in around]
    lines: list[str] = []
    traits = await probe_iscsi(parse_address(target.url(), {}), "host", {}, "test", progress=lines.append)
    print("\n".join(lines))
    expected = traits_of(QUIRKS[target.program])
    if target.program == "istgt":  # at a LUN RESET it drops all sessions of that initiator name, and so the probe's
        expected = replace(expected, lun_reset=False, reset_stops=False)
    assert traits == expected
    assert await a.read_keys() == []
    assert await a.read_reservation() is None
    assert [await a.read(block * 4096, 4096) for block in around] == before
    scratch = await a.read(SCRATCH_BLOCK * 4096, SCRATCH_BLOCKS * 4096)
    assert scratch == bytes(len(scratch))


async def test_the_probe_refuses_a_lun_in_use(target: Target, nexus) -> None:
    await clean(nexus)
    a = await nexus("a")
    await a.register(key_of(7, 1))
    with pytest.raises(OperatorError, match=r"in use: key 0x4d58070000000001 \(node 7\)"):
        await probe_iscsi(parse_address(target.url(), {}), "host", {}, "test")
    assert await a.read_keys() == [key_of(7, 1)]
