"""The fence by reservations on real targets: a frozen process with writes in flight is fenced, and thawed (002-38)."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.fencing.luns import comes_back, looks_through, lun_of
from membership.clock import SystemClock
from membership.errors import Fenced
from membership.fence.keys import key_of
from membership.fence.registration import State
from membership.fence.reservations import LunTraits
from membership.fence.scsi_pr import ScsiPrFence
from membership.fence.storage_access import StorageAccess, clear_lun
from membership.lease.records import HeartbeatSlot, slot_block
from tests.san.lab import Target, san
from tests.san.victim import AREAS, AT, MIB
from tests.sim.lun import ISTGT, TGT, traits_of

VICTIM = 4
KEY = key_of(VICTIM, 0x40)
# istgt's list of keys goes wrong after a preempt (that is why the probe finds that it can't fence), but not when the
# last in the list is taken: one preempt, and the rest of it can be tried.
TRAITS = {"tgtd": traits_of(TGT), "istgt": replace(traits_of(ISTGT), keys_are_true=True)}


@contextlib.contextmanager
def victim(url: str, traits: LunTraits) -> Iterator[subprocess.Popen[str]]:
    words = ",".join(map(str, traits.to_words()))
    command = [sys.executable, "-m", "tests.san.victim", url, "victim", f"{KEY:x}", words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


class Node:
    """A node that fences: matrixd's pieces on one LUN."""

    def __init__(self, device: IscsiDevice, traits: LunTraits) -> None:
        self.device = device
        self.lun = lun_of(device, traits)
        self.lost: list[str] = []
        self.is_allowed = True
        clock = SystemClock()
        self.access = StorageAccess(lambda: [self.lun], clock, allowed=self.allowed, lost=self.lost.append)
        self.fence = ScsiPrFence(lambda: [self.lun], lambda: self.access.key, self.read_slot, clock)
        comes_back(device, self.lun, self.access)

    async def allowed(self) -> bool:
        await looks_through(self.device, self.lun).read(4096, 4096)  # where the SAN header is
        return self.is_allowed

    async def read_slot(self, node: int) -> HeartbeatSlot:
        return slot()

    async def admit(self, node: int) -> None:
        await self.access.claim(node)
        await self.access.admit(node, node, heir=True)


def slot() -> HeartbeatSlot:
    return HeartbeatSlot(
        owner=b"C" * 16, address=slot_block(VICTIM), incarnation=0x40, counter=1, hears=0, boot_id=b"", machine_id=b"",
        flags=0, pid=1, start_time=1, port=1, name="v", host="h",
        mount_pids=(), mount_starts=(), mount_incarnations=(),
    )  # fmt: skip


async def areas(device: IscsiDevice) -> list[bytes]:
    return [await device.read(AT + i * MIB, MIB) for i in range(AREAS)]


async def start(target: Target, opened, index: int) -> Node:
    node = Node(await opened(target.url(index)), TRAITS[target.program])
    await clear_lun(node.lun.reservations, 1)
    await node.admit(1)
    return node


@pytest.mark.seed("002-38")
async def test_a_frozen_process_writes_nothing_after_its_fence(target: Target, opened) -> None:
    """istgt waits for a frozen initiator's data, with the whole LUN: nothing is confirmed then until it is thawed."""
    node = await start(target, opened, 0)
    with victim(target.url(0), TRAITS[target.program]) as process:
        assert await trio.to_thread.run_sync(process.stdout.readline) == "writing\n"
        process.send_signal(signal.SIGSTOP)
        result = await node.fence.fence(slot(), 0.0)
        if not result.confirmed:
            assert target.program == "istgt"
            assert "no answer" in result.detail
            process.send_signal(signal.SIGCONT)
            result = await node.fence.fence(slot(), 0.0)
        assert result.confirmed, result.detail
        for i in range(AREAS):
            await node.device.write(AT + i * MIB, b"winner__" * (MIB // 8))
        process.send_signal(signal.SIGCONT)
        assert await trio.to_thread.run_sync(process.stdout.readline) == "fenced\n"
        assert await trio.to_thread.run_sync(process.wait) == 0
    assert await areas(node.device) == [b"winner__" * (MIB // 8)] * AREAS
    assert await node.lun.reservations.read_keys() == [node.access.key]


async def test_frozen_is_not_stopped(opened) -> None:
    """The test above can fail: without the fence the process goes on writing."""
    with san("tgt") as target:
        node = await start(target, opened, 0)
        with victim(target.url(0), TRAITS[target.program]) as process:
            assert await trio.to_thread.run_sync(process.stdout.readline) == "writing\n"
            process.send_signal(signal.SIGSTOP)
            for i in range(AREAS):
                await node.device.write(AT + i * MIB, b"winner__" * (MIB // 8))
            process.send_signal(signal.SIGCONT)
            with trio.fail_after(20):
                while b"victim__" not in b"".join(await areas(node.device)):
                    await trio.lowlevel.checkpoint()
        await node.device.aclose()


@pytest.mark.seed("002-38")
async def test_killed_with_writes_in_flight(target: Target, opened) -> None:
    """Its exit alone proves nothing: what it had sent is with the target, until the fence."""
    node = await start(target, opened, 1)
    for _ in range(5):
        with victim(target.url(1), TRAITS[target.program]) as process:
            assert await trio.to_thread.run_sync(process.stdout.readline) == "writing\n"
            process.kill()
            assert (await node.fence.fence(slot(), 0.0)).confirmed
            for i in range(AREAS):
                await node.device.write(AT + i * MIB, b"winner__" * (MIB // 8))
        assert await areas(node.device) == [b"winner__" * (MIB // 8)] * AREAS


async def test_a_fence_while_commands_of_our_own_are_under_way(opened) -> None:
    """At a LUN RESET libiscsi gives up what is under way on the session that asks for it (B2)."""
    with san("tgt") as target:
        node = await start(target, opened, 0)
        done = 0

        async def write_on(area: int) -> None:
            nonlocal done
            while True:
                await node.device.write(AT + area * MIB, bytes(MIB))
                done += 1

        async with trio.open_nursery() as nursery:
            for area in range(AREAS):
                nursery.start_soon(write_on, area)
            for _ in range(3):
                result = await node.fence.fence(slot(), 0.0)
                assert result.confirmed, result.detail
                seen = done
                while done < seen + AREAS:  # each goes on
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert not node.lost
        await node.device.aclose()


async def test_a_lost_session_comes_back_registered(target: Target, opened) -> None:
    """On tgt by registering again after a look, on istgt because it remembers the nexus."""
    node = await start(target, opened, 2)
    (await node.device.nexus.session()).drop("the test drops it")
    await node.device.write(AT, bytes(4096))  # waits, then passes
    assert node.device.nexus.reconnects == 1
    assert not node.lost


async def test_who_was_fenced_meanwhile_does_not_come_back(target: Target, opened) -> None:
    node = await start(target, opened, 2)
    other = Node(await opened(target.url(2)), TRAITS[target.program])
    other.is_allowed = True
    await other.access.claim(2)
    await other.access.admit(2, 2, heir=target.program != "istgt")
    key = other.access.key
    other.is_allowed = False  # a header without it is durable
    (await other.device.nexus.session()).drop("the test drops it")
    await node.lun.reservations.preempt(
        node.access.key, key, node.lun.traits.kind, abort=node.lun.traits.preempt_and_abort
    )
    with pytest.raises(Fenced):
        await other.device.write(AT, bytes(4096))
    assert other.access.state is State.LOST
    assert other.lost
    assert key not in await node.lun.reservations.read_keys()
    await node.device.write(AT, bytes(4096))


async def test_the_target_crashes_and_forgets_everything(target: Target, opened) -> None:
    """Neither target keeps registrations over a restart; members register again and the LUN is locked again."""
    node = await start(target, opened, 2)
    target.restart()
    await node.device.write(AT, bytes(4096))
    assert await node.lun.reservations.read_keys() == [node.access.key]
    stranger = await opened(target.url(2))
    with pytest.raises(Fenced):
        await stranger.write(AT, bytes(4096))


@pytest.mark.seed("002-31")
async def test_the_life_of_a_cluster_on_a_lun(opened) -> None:
    """Join, fence, come back as heir, a stranger, a mount that dies, leave without a gap: on tgt, which fences."""
    with san("tgt") as target:
        url = target.url(0)
        a = await start(target, opened, 0)
        b, mount, c = [Node(await opened(url), TRAITS["tgtd"]) for _ in range(3)]
        await b.access.claim(0x40)
        await b.access.admit(VICTIM, 0x40, heir=True)
        await mount.access.admit(VICTIM, 0x41, heir=False)
        await c.access.claim(0x30)
        await c.access.admit(3, 0x30, heir=True)
        for node in (a, b, mount, c):
            await node.device.write(AT, bytes(4096))

        assert (await a.fence.fence(slot(), 0.0)).confirmed
        assert await a.lun.reservations.read_keys() == [a.access.key, c.access.key]
        await c.device.write(AT, bytes(4096))
        for node in (b, mount):
            with pytest.raises(Fenced):
                await node.device.write(AT, bytes(4096))

        heir, heirs_mount = [Node(await opened(url), TRAITS["tgtd"]) for _ in range(2)]
        await heir.access.claim(0x50)
        await heir.access.admit(VICTIM, 0x50, heir=True)
        await heirs_mount.access.admit(VICTIM, 0x51, heir=False)
        await heirs_mount.device.write(AT, bytes(4096))
        assert await heir.access.disown(heirs_mount.access.key)
        with pytest.raises(Fenced):
            await heirs_mount.device.write(AT, bytes(4096))

        stranger = lun_of(await opened(url), TRAITS["tgtd"])
        await stranger.reservations.register(0x123ABC)
        alerts = await c.access.keep([1, 3, VICTIM], [])
        assert len(alerts) == 1
        assert "0x0000000000123abc of somebody else" in alerts[0]

        found = await a.lun.reservations.read_reservation()
        assert found.key == a.access.key
        assert len(await a.access.withdraw()) == 1  # the holder leaves its key
        await a.device.aclose()
        outsider = await opened(url)
        with pytest.raises(Fenced):
            await outsider.write(AT, bytes(4096))
        await c.device.write(AT, bytes(4096))
        await c.lun.reservations.preempt(c.access.key, found.key, found.kind, abort=False)  # as keep does in time
        assert (await c.lun.reservations.read_reservation()).key == c.access.key
        assert sorted(await c.lun.reservations.read_keys()) == sorted([c.access.key, heir.access.key])
        for node in (b, mount, c, heir, heirs_mount):
            assert not node.lost or node in (b, mount, heirs_mount)
            await node.device.aclose()
