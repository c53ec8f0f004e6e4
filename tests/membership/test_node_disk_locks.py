"""Disk locks of commands through whole simulated nodes: asked for, told, given up, lost; a stop waits (002-24)."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio

from membership.errors import Fenced, OperatorError, PeerError
from membership.label import timing_of
from membership.own_answers import own_answer
from membership.san.disk_lock_agent import DiskLockGranted, DiskLockLost, DiskLockQueued, DiskLockRefused
from tests.sim.membership.world import LABEL, World

pytestmark = pytest.mark.seed("002-24")

TIMING = timing_of(LABEL)


async def started(world: World, nodes: int = 2) -> list:
    """The nodes, the administrator first."""
    for number in range(1, nodes + 1):
        await world.start(number, wait=False)
    await world.until(lambda: all(m.is_member for m in world.machines.values()), 10, "all are members")
    await world.until(lambda: len(world.administrators()) == 1, 5, "one administrator")
    await world.until(lambda: all(m.node.membership.naming.version for m in world.machines.values()), 5, "all named")
    first = world.administrators()[0]
    return [first, *(m for m in world.machines.values() if m is not first)]


def asked(machine, *, wait: bool = True, exclusive: bool = True, disk: str = "d1"):
    return machine.node.disk_locks.asked(disk, f"job on {machine.name}", exclusive=exclusive, wait=wait)


async def hears(events, kind: type, seconds: float = 5):
    with trio.fail_after(seconds):
        event = await events.receive()
    assert isinstance(event, kind), event
    return event


def rows(machine) -> list[tuple[str, str, str]]:
    (piece,) = own_answer(machine.node, "node.disk-locks")
    return [(row["disk"], row["owner"], row["state"]) for row in piece["rows"]]


@pytest.mark.parametrize("holder_administrates", [True, False])
async def test_one_holds_the_other_waits_and_the_administrator_shows_both(
    autojump_clock, holder_administrates: bool
) -> None:
    async with World(30) as world:
        machines = await started(world)
        holder, other = machines if holder_administrates else reversed(machines)
        with asked(holder) as events:
            await hears(events, DiskLockGranted)
            with asked(other, wait=False) as refused:
                refusal = await hears(refused, DiskLockRefused)
            assert refusal.reason == (
                f"the disk is held exclusively by node {holder.node.node_id} (job on {holder.name})"
            )
            await world.until(other.node.disk_locks.is_quiet, 2, "the refused one is forgotten everywhere")
            waiting = asked(other)
            others = waiting.__enter__()
            assert (await hears(others, DiskLockQueued)).reason == refusal.reason
            assert rows(machines[0]) == [
                ("d1", f"job on {holder.name}", "held"), ("d1", f"job on {other.name}", "waiting"),
            ]  # fmt: skip
            assert rows(machines[1]) == []
        await hears(others, DiskLockGranted)
        waiting.__exit__(None, None, None)
        await world.until(lambda: rows(machines[0]) == [], 2, "given up")


async def test_a_stop_is_refused_while_one_is_wanted_and_waits_until_it_is_given_up(autojump_clock) -> None:
    async with World(31) as world:
        first, second = await started(world)
        with asked(second) as events:
            await hears(events, DiskLockGranted)
            with pytest.raises(OperatorError, match=r"disks are locked or waited for here \(d1 by job on n\d\)"):
                await second.node.stop()
            with asked(first) as waits:  # who only waits keeps its node, too
                await hears(waits, DiskLockQueued)
                with pytest.raises(OperatorError, match="locked or waited for here"):
                    await first.node.stop()
        assert not second.node.disk_locks.is_quiet()  # the administrator does not know yet
        await second.node.stop()
        assert rows(first) == []
        await world.until(lambda: not second.running, 5, "it left")
        assert second.error is None
        with pytest.raises(PeerError, match="not a member"), asked(second):
            pytest.fail("after it left")


async def test_it_is_lost_with_the_lease_and_once_only(autojump_clock) -> None:
    async with World(32) as world:
        first, second = (await started(world, 3))[:2]
        with asked(second) as events:
            await hears(events, DiskLockGranted)
            second.paths[0].cut("the store does not answer")
            lost = await hears(events, DiskLockLost, TIMING.lease + 1)
            assert lost.reason == "the lease of this node is over"
            assert trio.current_time() <= second.node.lease_deadline + TIMING.heartbeat + 0.1
            said = [event["text"] for event in second.node.status()["events"] if event["kind"] == "disk"]
            assert said == [f"the lock on d1 of job on {second.name} is lost: the lease of this node is over"]
            with pytest.raises(PeerError, match="not a member of the cluster just now"), asked(second):
                pytest.fail("it has no lease")
            with asked(first) as others:
                await hears(others, DiskLockQueued)  # until it is fenced, or says that it gave it up
                await hears(others, DiskLockGranted, 15)
            await world.until(lambda: not second.running or second.is_member, 30, "it is evicted, or back")
            assert events.statistics().current_buffer_used == 0


async def test_it_is_lost_when_the_node_loses_its_right(autojump_clock) -> None:
    async with World(33) as world:
        first, second = await started(world)
        with ExitStack() as stack:
            held = stack.enter_context(asked(second))
            await hears(held, DiskLockGranted)
            waits = stack.enter_context(asked(second))
            await hears(waits, DiskLockQueued)
            second.node.lose("evicted by the operator")
            for events in (held, waits):
                assert (await hears(events, DiskLockLost)).reason == "evicted by the operator"
            await world.until(lambda: not second.running, 5, "it ended")
            assert isinstance(second.error, Fenced)
        with asked(first) as events:
            await hears(events, DiskLockQueued)
            await hears(events, DiskLockGranted, TIMING.dead + 5)


async def test_what_can_not_be_asked_for(autojump_clock) -> None:
    async with World(34) as world:
        first, _ = await started(world)
        with pytest.raises(OperatorError, match="no disk of the cluster is called 'd9'"), asked(first, disk="d9"):
            pytest.fail("there is no d9")
        assert own_answer(first.node, "counters") is None
        assert first.node.disk_locks.is_quiet()


async def test_events_carry_their_node_and_number_and_come_in_pieces(autojump_clock) -> None:
    async with World(35) as world:
        first, _ = await started(world)
        for number in range(300):
            first.node.book.log("test", f"{number} " + "\N{SNOWMAN}" * 2000)
        pieces = own_answer(first.node, "node.events")
        found = [event for piece in pieces for event in piece]
        assert (len(pieces), len(found)) == (8, 200)
        assert [event["seq"] for event in found] == list(range(first.node.book.total - 199, first.node.book.total + 1))
        last = found[-1]
        assert (last["node"], last["name"], last["incarnation"]) == (
            first.node.node_id, first.name, first.node.incarnation,
        )  # fmt: skip
        assert last["text"].startswith("299 ")
        assert len(last["text"]) == 1000
