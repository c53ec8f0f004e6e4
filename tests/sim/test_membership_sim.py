"""Random histories of a cluster of matrixds, and proof that the checkers see what they are there for (R2, R4)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from membership.areas.quorum import Areas
from membership.errors import Fenced
from membership.fence.lease import LeaseFence
from membership.label import BLOCK_BYTES, HEADER_BLOCK
from membership.lease.core import LeaseCore
from membership.san.fence import FenceResult
from membership.san.header import make_header, write_header
from membership.san.records import ballot_block, ballot_image, empty_ballot
from membership.san.roles import Role
from tests.sim.disk import Write
from tests.sim.membership.scenario import MembershipScenario, run_seed
from tests.sim.membership.world import World

pytestmark = pytest.mark.seed("002-12", "002-16", "002-22", "002-38", "002-40", "002-41", "002-45")

SEEDS_FILE = Path(__file__).with_name("membership_seeds.txt")
KNOWN = [int(line.split("#")[0]) for line in SEEDS_FILE.read_text().splitlines() if line.split("#")[0].strip()]


@pytest.mark.parametrize("seed", range(7000, 7008))
def test_random_histories(seed):
    run_seed(seed)


@pytest.mark.parametrize("seed", KNOWN)
def test_seeds_that_found_a_bug(seed):
    run_seed(seed)


def test_equal_seeds_are_equal_histories():
    digests = set()
    for _ in range(2):
        scenario = MembershipScenario(7008, steps=12)
        scenario.run()
        digests.add(scenario.digest)
    assert len(digests) == 1


async def test_an_administrator_stopped_between_the_two_writes_of_a_header_never_ends_it(autojump_clock):
    """S5: it would put itself back on the header after it was called dead."""
    async with World(6, one_machine=False, writing=True) as world:
        await _cluster(world, 3)
        (first,) = world.administrators()

        def stop(block: int) -> None:
            if block == HEADER_BLOCK:
                first.paths[0].trip = None
                first.freeze()

        first.paths[0].trip = stop
        await world.start(4, wait=False)  # who asks to join makes it write
        await world.until(lambda: first.freezer.is_frozen, 10)
        instance = (first.node.node_id, first.node.incarnation)
        await world.until(lambda: instance in world.checkers.dead_nodes, 30)
        first.thaw()
        await world.until(lambda: not first.running, 10)
        assert isinstance(first.error, Fenced)
        assert world.checkers.went_back == 0


async def test_an_administrator_overtaken_while_it_writes_acts_only_in_the_next_generation(autojump_clock):
    """A8: somebody begins a later ballot while the header is on its way."""
    async with World(7) as world:
        machine = await world.start(1)
        before = world.checkers.newest.generation
        rival = empty_ballot(63, world.label.owner, before + 3)
        rival.promised = 64 + 63

        def overtake(block: int) -> None:
            if block == HEADER_BLOCK:
                machine.paths[0].trip = None
                at = ballot_block(63) * BLOCK_BYTES
                world.disk.media.write(Write(at, ballot_image(rival), durable=True))

        machine.paths[0].trip = overtake
        await world.start(2)
        assert world.checkers.newest.generation >= before + 3
        headers = [e["text"] for e in machine.node.book.events if e["kind"] == "generation"]
        assert any(f"generation {before + 1}:" in text for text in headers)  # it landed, and stood for nothing
        await world.until(lambda: len(world.administrators()) == 1, 5)
        await world.mount(2)


# -- planted bugs: what the checkers must find ---------------------------------------------------------------------


async def _cluster(world: World, nodes: int) -> None:
    for number in range(1, nodes + 1):
        await world.start(number)
    await world.until(lambda: len(world.administrators()) == 1, 30)
    for number in range(1, nodes + 1):
        await world.mount(number)


def _expect(world: World, code: str) -> None:
    found, world.broken = world.broken, []
    assert any(f" {code}: " in text for text in found), found


async def test_a_hasty_fence_is_found(autojump_clock, monkeypatch):
    """C4, C5: called dead while its lease holds, and with writes in flight."""

    async def hasty(self, target, evicted_at):
        await self._clock.sleep(0.01)
        return FenceResult(True, "hasty", "")

    monkeypatch.setattr(LeaseFence, "fence", hasty)
    async with World(1, one_machine=False, writing=True) as world:
        await _cluster(world, 3)
        node = world.machines["n3"].node.node_id
        world.net.partition({m.node.node_id for m in world.machines.values()} - {node}, {node})
        world.machines["n3"].paths[0].hang()  # it does not see that it is evicted
        await world.until(lambda: world.broken, 30)
        _expect(world, "C4")


async def test_a_lease_counted_from_the_end_of_the_renewal_is_found(autojump_clock, monkeypatch):
    """C3."""
    original = LeaseCore.finished

    def late(self, start, now, **rest):
        original(self, start if start < 0 else now + 0.01, now, **rest)

    monkeypatch.setattr(LeaseCore, "finished", late)
    async with World(2) as world:
        await world.start(1)
        _expect(world, "C3")


async def test_a_second_header_of_one_generation_is_found(autojump_clock):
    """C1."""
    async with World(3) as world:
        machine = await world.start(1)
        newest = world.checkers.newest
        twin = make_header(newest.owner, newest.generation, members={}, fencing=newest.members)
        await write_header(machine.port, twin)
        _expect(world, "C1")


async def test_two_administrators_of_one_generation_are_found(autojump_clock):
    """C2."""
    async with World(3) as world:
        await _cluster(world, 2)
        (first,) = world.administrators()
        other = next(machine for machine in world.machines.values() if machine is not first)
        other.node.core.admin.role = Role.ADMIN
        await world.until(lambda: world.broken, 5)
        _expect(world, "C2")


async def test_a_minority_that_acts_is_found(autojump_clock, monkeypatch):
    """C6."""
    monkeypatch.setattr("membership.san.admin.may_act", lambda *_: True)
    async with World(4, one_machine=False) as world:
        await _cluster(world, 3)
        await trio.sleep(20)
        ids = {m.name: m.node.node_id for m in world.machines.values()}
        world.net.partition({ids["n1"]}, {ids["n2"], ids["n3"]})
        await world.until(lambda: world.broken, 30)
        _expect(world, "C6")


async def test_a_header_that_forgets_a_member_is_found(autojump_clock, monkeypatch):
    """C7: what a header in which nobody looked at the one before it would do."""
    original = Areas.put_header

    async def forget(self, header, *args, **rest):
        header.member_incarnations = tuple(
            i if node == header.administrator else 0 for node, i in enumerate(header.member_incarnations)
        )
        header.fencing_incarnations = ()
        return await original(self, header, *args, **rest)

    async with World(5) as world:
        await _cluster(world, 2)
        monkeypatch.setattr(Areas, "put_header", forget)
        await world.start(3, wait=False)
        await world.until(lambda: world.broken, 30)
        _expect(world, "C7")
