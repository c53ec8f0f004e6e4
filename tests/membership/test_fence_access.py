"""A process's own registration: before the first write, after a lost session, on the way out (002-22, 002-31)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from membership.errors import DeviceError, Fenced
from membership.fence.keys import CLAIMANT, key_of
from membership.fence.registration import State
from membership.fence.reservations import REGISTRANTS_ONLY, Conflict, Lun
from membership.fence.storage_access import GRACE_SECONDS, StorageAccess, clear_lun
from tests.sim.disk import SimDisk
from tests.sim.lun import CONFORMING, ISTGT, TGT, Plan, Quirks, SimLun, traits_of
from tests.sim.network import SimClock

FORMS = pytest.mark.parametrize("quirks", [CONFORMING, TGT], ids=["abort", "reset"])


class Process:
    """One process with an access of its own to shared LUNs."""

    def __init__(self, name: str, luns: list[SimLun]) -> None:
        self.nexuses = [lun.nexus(name) for lun in luns]
        self.luns = [
            Lun(lun.disk.media_name, n, traits_of(lun.quirks)) for lun, n in zip(luns, self.nexuses, strict=True)
        ]
        self.is_allowed: bool | Exception = True
        self.looks = 0
        self.lost: list[str] = []
        self.access = StorageAccess(lambda: self.luns, SimClock(), allowed=self.allowed, lost=self.lost.append)

    async def allowed(self) -> bool:
        await trio.lowlevel.checkpoint()
        self.looks += 1
        if isinstance(self.is_allowed, Exception):
            raise self.is_allowed
        return self.is_allowed

    async def writes(self, i: int = 0) -> bool:
        try:
            await self.nexuses[i].write(0, bytes(4096))
        except Fenced:
            return False
        return True


def make_luns(quirks: Quirks, n: int = 1) -> list[SimLun]:
    return [SimLun(SimDisk(8 << 20, seed=i, latency=(0.001, 0.002), name=f"lun{i}"), quirks) for i in range(n)]


async def member(name: str, node: int, incarnation: int, luns: list[SimLun]) -> Process:
    process = Process(name, luns)
    await process.access.claim(incarnation)
    await process.access.admit(node, incarnation, heir=True)
    return process


@FORMS
async def test_from_claim_to_member(quirks, autojump_clock):
    luns = make_luns(quirks, 2)
    a = Process("a", luns)
    assert (a.access.key, a.access.state) == (0, State.UNREGISTERED)
    await a.access.claim(0xA1)
    assert a.access.key == key_of(CLAIMANT, 0xA1)
    for lun in luns:
        assert (lun.keys, lun.kind) == ([key_of(CLAIMANT, 0xA1)], REGISTRANTS_ONLY)
    assert await a.writes(0)
    assert await a.writes(1)
    assert a.looks == 0
    await a.access.admit(3, 0xA1, heir=True)
    assert a.looks == 1
    assert all(lun.keys == [key_of(3, 0xA1)] for lun in luns)
    mount = Process("a-mount", luns)
    assert not await mount.writes()
    await mount.access.admit(3, 0xA2, heir=False)
    assert await mount.writes()
    assert all(sorted(lun.keys) == [key_of(3, 0xA1), key_of(3, 0xA2)] for lun in luns)
    await a.access.admit(3, 0xA1, heir=False)  # again: nothing to do
    assert not a.lost
    assert not mount.lost


@FORMS
async def test_an_heir_takes_the_keys_of_its_predecessors(quirks, autojump_clock):
    luns = make_luns(quirks)
    old, other = await member("old", 3, 0xA1, luns), await member("other", 4, 0xB1, luns)
    mount = Process("old-mount", luns)
    await mount.access.admit(3, 0xA2, heir=False)
    heir = await member("new", 3, 0xA3, luns)
    assert sorted(luns[0].keys) == [key_of(3, 0xA3), key_of(4, 0xB1)]
    assert luns[0].holder == heir.nexuses[0].login  # moved from ``old``, with no gap
    assert [await p.writes() for p in (old, mount, other, heir)] == [False, False, True, True]


@FORMS
async def test_two_claimants_of_one_slot_leave_each_other_alone(quirks, autojump_clock):
    luns = make_luns(quirks)
    a, b = Process("a", luns), Process("b", luns)
    await a.access.claim(0xA1)
    await b.access.claim(0xB1)
    await a.access.admit(3, 0xA1, heir=True)  # won the slot
    assert await b.writes()
    await b.access.admit(4, 0xB1, heir=True)
    assert sorted(luns[0].keys) == [key_of(3, 0xA1), key_of(4, 0xB1)]


async def test_registered_then_looked(autojump_clock):
    """A2: who is evicted when it looks takes its key back, and is lost for good."""
    luns = make_luns(CONFORMING)
    await member("other", 4, 0xB1, luns)
    late = Process("late-mount", luns)
    late.is_allowed = False
    with pytest.raises(Fenced, match="no longer lists"):
        await late.access.admit(3, 0xA2, heir=False)
    assert luns[0].keys == [key_of(4, 0xB1)]
    assert late.lost == ["the SAN header no longer lists it"]
    assert (late.access.key, late.access.state) == (0, State.LOST)
    late.is_allowed = True
    with pytest.raises(Fenced, match="only a new start"):
        await late.access.admit(3, 0xA2, heir=False)
    with pytest.raises(Fenced):
        await late.access.reconnected("lun0")
    assert luns[0].keys == [key_of(4, 0xB1)]


async def test_a_look_that_fails_is_no_permission(autojump_clock):
    luns = make_luns(CONFORMING)
    await member("other", 4, 0xB1, luns)
    late = Process("late-mount", luns)
    late.is_allowed = DeviceError("header not read")
    with pytest.raises(DeviceError, match="header not read"):
        await late.access.admit(3, 0xA2, heir=False)
    assert luns[0].keys == [key_of(4, 0xB1)]
    late.is_allowed = True
    await late.access.admit(3, 0xA2, heir=False)  # it may try again: nobody evicted it
    assert await late.writes()
    assert not late.lost


@FORMS
async def test_a_session_that_comes_back(quirks, autojump_clock):
    luns = make_luns(quirks)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    await b.nexuses[0].relogin()
    assert await b.writes() is quirks.follows_nexus
    await b.access.reconnected("lun0")
    assert await b.writes()
    assert not b.lost
    await a.nexuses[0].relogin()  # the holder
    await a.access.reconnected("lun0")
    assert await a.writes()
    assert await b.writes()
    assert luns[0].kind == REGISTRANTS_ONLY


@pytest.mark.parametrize("quirks", [CONFORMING, TGT, replace(CONFORMING, power_loss=False)])
async def test_fenced_while_the_session_was_lost(quirks, autojump_clock):
    luns = make_luns(quirks)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    b.nexuses[0].drop()
    b.is_allowed = False  # the header without it is durable, then:
    await a.nexuses[0].preempt(a.access.key, b.access.key, REGISTRANTS_ONLY, abort=quirks.preempt_and_abort)
    luns[0].commands.clear()
    await b.nexuses[0].relogin()
    with pytest.raises(Fenced):
        await b.access.reconnected("lun0")
    assert luns[0].keys == [a.access.key]
    assert ("b", "register") not in luns[0].commands
    assert not await b.writes()
    assert len(b.lost) == 1


@pytest.mark.parametrize("quirks", [TGT, replace(CONFORMING, power_loss=False)])
async def test_a_target_that_forgot_everything_fences_nobody(quirks, autojump_clock):
    """A restart without APTPL: the members come back, and the LUN is locked again."""
    luns = make_luns(quirks)
    nodes = [await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)]
    luns[0].power_cycle()
    for node in nodes:
        await node.nexuses[0].relogin()
        await node.access.reconnected("lun0")
    assert sorted(luns[0].keys) == [key_of(3, 0xA1), key_of(4, 0xB1)]
    assert luns[0].kind == REGISTRANTS_ONLY
    assert [await node.writes() for node in nodes] == [True, True]
    assert not nodes[0].lost
    assert not nodes[1].lost


async def test_evicted_between_look_and_registration(autojump_clock):
    """The narrow race of A3: the first look says yes, the eviction comes, then the registration; the second says no."""
    luns = make_luns(TGT)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    await b.nexuses[0].relogin()
    key = b.access.key

    def evicted() -> None:
        b.is_allowed = False
        luns[0].preempt(a.nexuses[0].login, a.access.key, key, REGISTRANTS_ONLY, abort=False)

    luns[0].plans.append(Plan("before", "register", evicted, by="b"))
    with pytest.raises(Fenced):
        await b.access.reconnected("lun0")
    assert ("b", "register") in luns[0].commands
    assert luns[0].keys == [a.access.key]
    assert not await b.writes()


async def test_a_reconnection_that_failed_is_tried_again(autojump_clock):
    luns = make_luns(TGT)
    await member("a", 3, 0xA1, luns)
    b = await member("b", 4, 0xB1, luns)
    await b.nexuses[0].relogin()
    luns[0].plans.append(Plan("before", "register", DeviceError("lost again"), by="b"))
    with pytest.raises(DeviceError, match="lost again"):
        await b.access.reconnected("lun0")
    await b.access.reconnected("lun0")
    assert await b.writes()
    await b.access.reconnected("no such LUN")
    await Process("new", luns).access.reconnected("lun0")  # not admitted yet: nothing to do


async def test_a_conflict_is_final(autojump_clock):
    luns = make_luns(CONFORMING)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    key = b.access.key
    await a.nexuses[0].preempt(a.access.key, key, REGISTRANTS_ONLY, abort=True)
    b.access.conflict("write refused")
    b.access.conflict("another")
    assert b.lost == ["write refused"]
    for attempt in (
        b.access.claim(0xB1), b.access.admit(4, 0xB1, heir=True), b.access.keep([], []), b.access.disown(1),
    ):  # fmt: skip
        with pytest.raises(Fenced):
            await attempt
    assert luns[0].keys == [a.access.key]


async def test_a_conflict_found_by_itself(autojump_clock):
    luns = make_luns(CONFORMING)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    await a.nexuses[0].preempt(a.access.key, b.access.key, REGISTRANTS_ONLY, abort=True)
    with pytest.raises(Conflict):
        await b.access.disown(key_of(4, 0xB2))
    assert len(b.lost) == 1
    assert b.access.state is State.LOST


async def test_lost_while_it_registers(autojump_clock):
    luns = make_luns(CONFORMING)
    await member("other", 4, 0xB1, luns)
    a = Process("a", luns)
    luns[0].plans.append(Plan("after", "register", lambda: a.access.conflict("meanwhile"), by="a"))
    with pytest.raises(Fenced, match="meanwhile"):
        await a.access.admit(3, 0xA1, heir=True)
    assert luns[0].keys == [key_of(4, 0xB1)]


@FORMS
async def test_the_holder_leaves_no_gap(quirks, autojump_clock):
    """A4: its key stays until a successor takes it, and with it the reservation."""
    luns = make_luns(quirks)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    zombie = luns[0].nexus("zombie")
    lines = await a.access.withdraw()
    assert len(lines) == 1
    assert "stays registered" in lines[0]
    await a.nexuses[0].aclose()
    with pytest.raises(Fenced):
        await zombie.write(0, bytes(4096))
    assert (a.access.state, a.lost) == (State.LOST, [])
    for _ in range(2):
        assert await b.access.keep([4], []) == []
        await trio.sleep(GRACE_SECONDS)
    assert luns[0].keys == [b.access.key]
    assert luns[0].holder == b.nexuses[0].login
    with pytest.raises(Fenced):
        await zombie.write(0, bytes(4096))


@FORMS
async def test_others_just_leave_and_the_last_locks_up(quirks, autojump_clock):
    luns = make_luns(quirks)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    assert await b.access.withdraw() == []
    assert await b.access.withdraw() == []
    assert luns[0].keys == [a.access.key]
    key = a.access.key
    assert len(await a.access.withdraw()) == 1
    await a.nexuses[0].aclose()
    assert (luns[0].keys, luns[0].kind) == ([key], REGISTRANTS_ONLY)
    assert not await b.writes()
    heir = await member("a2", 3, 0xA2, luns)
    assert luns[0].keys == [heir.access.key]
    assert await heir.writes()


async def test_leaving_a_lun_that_is_gone(autojump_clock):
    luns = make_luns(CONFORMING, 2)
    a = await member("a", 3, 0xA1, luns)
    await member("b", 4, 0xB1, luns)
    a.nexuses[0].drop()
    lines = await a.access.withdraw()
    assert len(lines) == 2
    assert "key not taken back" in lines[0]
    assert "stays registered" in lines[1]


@pytest.mark.seed("002-31")
@FORMS
async def test_strangers_are_fenced_at_once_and_told(quirks, autojump_clock):
    luns = make_luns(quirks, 2)
    a = await member("a", 3, 0xA1, luns)
    stranger = luns[1].nexus("backup-server")
    await stranger.register(0x123ABC)
    await stranger.write(0, b"x" * 4096)
    resets = luns[1].resets
    alerts = await a.access.keep([3], [])
    assert len(alerts) == 1
    assert "0x0000000000123abc of somebody else was registered by no node of this cluster: fenced" in alerts[0]
    with pytest.raises(Fenced):
        await stranger.write(0, b"y" * 4096)
    assert await a.access.keep([3], []) == []
    assert luns[1].resets - resets == (1 if quirks is TGT else 0)


async def test_who_joins_is_left_alone_and_who_never_does_is_not(autojump_clock):
    luns = make_luns(CONFORMING)
    a = await member("a", 3, 0xA1, luns)
    joining, gone, claimant = Process("joining", luns), Process("gone", luns), Process("claimant", luns)
    await joining.access.admit(5, 0xB1, heir=False)
    await gone.access.admit(6, 0xC1, heir=False)
    await claimant.access.claim(0xD1)
    mount = Process("mount", luns)
    await mount.access.admit(3, 0xA2, heir=False)
    assert await a.access.keep([3], [5]) == []
    await trio.sleep(GRACE_SECONDS - 1)
    assert await a.access.keep([3], [5]) == []
    assert len(luns[0].keys) == 5
    await trio.sleep(1)
    assert await a.access.keep([3], [5]) == []  # ours: no alert, it is just tidied up
    assert sorted(luns[0].keys) == sorted([key_of(3, 0xA1), key_of(3, 0xA2), key_of(5, 0xB1)])


async def test_the_age_of_a_stray_begins_anew(autojump_clock):
    """It was accounted for meanwhile: a node that is evicted starts its grace then."""
    luns = make_luns(CONFORMING)
    a, b = await member("a", 3, 0xA1, luns), await member("b", 4, 0xB1, luns)
    await a.access.keep([3], [])
    await trio.sleep(GRACE_SECONDS)
    await a.access.keep([3, 4], [])
    await trio.sleep(GRACE_SECONDS)
    await a.access.keep([3], [])
    assert await b.writes()


async def test_a_reservation_that_is_gone_is_made_again_and_told(autojump_clock):
    luns = make_luns(CONFORMING)
    a = await member("a", 3, 0xA1, luns)
    luns[0].kind, luns[0].holder = 0, None
    assert await a.access.keep([3], []) == ["lun0: the reservation was gone and was made again"]
    assert luns[0].kind == REGISTRANTS_ONLY
    assert await a.access.keep([3], []) == []


async def test_one_bad_lun_does_not_hide_the_others(autojump_clock):
    luns = make_luns(CONFORMING, 2)
    a = await member("a", 3, 0xA1, luns)
    a.nexuses[0].drop()
    stranger = luns[1].nexus("stranger")
    await stranger.register(0x123ABC)
    alerts = await a.access.keep([3], [])
    assert len(alerts) == 2
    assert "reservations not kept" in alerts[0]
    assert luns[1].keys == [a.access.key]


@FORMS
async def test_disown_proves_that_nothing_of_a_dead_mount_lands(quirks, autojump_clock):
    luns = make_luns(quirks, 2)
    a = await member("a", 3, 0xA1, luns)
    mount = Process("mount", luns)
    await mount.access.admit(3, 0xA2, heir=False)
    luns[0].disk.latency = (5.0, 5.0)
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            with pytest.raises((DeviceError, Conflict)):  # ended; a reset makes it try again, and it is refused
                await mount.nexuses[0].write(0, b"z" * 4096)

        nursery.start_soon(write)
        await trio.sleep(1)
        luns[0].disk.latency = (0.001, 0.002)
        assert await a.access.disown(key_of(3, 0xA2)) is True
        writes = len(luns[0].disk.writes)
        await trio.sleep(20)
        assert len(luns[0].disk.writes) == writes
    assert all(lun.keys == [a.access.key] for lun in luns)
    assert await a.access.disown(key_of(3, 0xA2)) is True  # again: it was certain already


async def test_disown_knows_when_it_proves_nothing(autojump_clock):
    luns = make_luns(CONFORMING, 2)
    a = await member("a", 3, 0xA1, luns)
    a.luns[1] = replace(a.luns[1], nexus_per_process=False)
    assert await a.access.disown(key_of(3, 0xA2)) is False
    a.luns[1] = replace(a.luns[1], nexus_per_process=True, reservations=None)
    assert await a.access.disown(key_of(3, 0xA2)) is False
    a.luns.clear()
    assert await a.access.disown(key_of(3, 0xA2)) is False


async def test_luns_that_cannot_fence_are_left_alone(autojump_clock):
    luns = make_luns(ISTGT)
    a = await member("a", 3, 0xA1, luns)
    assert luns[0].keys == []
    assert await a.writes()
    assert await a.access.keep([3], []) == []
    assert await a.access.withdraw() == []


async def test_a_lun_that_came_later(autojump_clock):
    """Figure 12 adds a disk: the next admission registers there, and nowhere twice."""
    luns = make_luns(CONFORMING, 2)
    a = Process("a", luns)
    later = a.luns.pop()
    await a.access.claim(0xA1)
    await a.access.admit(3, 0xA1, heir=True)
    luns[0].commands.clear()
    a.luns.append(later)
    await a.access.admit(3, 0xA1, heir=True)
    assert luns[1].keys == [a.access.key]
    assert ("a", "register") not in luns[0].commands


async def test_a_foreign_reservation_is_no_nodes_business(autojump_clock):
    """Only an administrator takes over from strangers; who starts says what is wrong."""
    luns = make_luns(CONFORMING)
    stranger = luns[0].nexus("stranger")
    await stranger.register(0x123ABC)
    luns[0].kind, luns[0].holder = 1, stranger.login
    a = Process("a", luns)
    with pytest.raises(DeviceError, match=r"reserved in another way \(type 1\) by key 0x0000000000123abc of somebody"):
        await a.access.claim(0xA1)


@FORMS
async def test_clearing_for_a_new_cluster(quirks, autojump_clock):
    luns = make_luns(quirks)
    await member("a", 3, 0xA1, luns)
    await clear_lun(luns[0].nexus("mkfs"), 0xF1)
    assert (luns[0].keys, luns[0].kind) == ([], 0)
