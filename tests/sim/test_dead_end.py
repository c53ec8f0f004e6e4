"""Who owes a lock and does not give it: slow flushes are waited for, dead ends are complained of (mount_watch.py).

The mounts are the product's own (``fs_world``); beside each runs what its matrixd does: ``MountWatch`` on its pulses.
"""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Awaitable, Callable

import pytest
import trio

from matrixfs.fs import data, namespace
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import DEFAULT_TIMING
from membership.mount_watch import LOOK_SECONDS, OVERDUE, Activity, MountWatch
from membership.orders import Stuck
from tests.sim.fs_world import MIB, SimMount, World, run_world

pytestmark = pytest.mark.seed("002-08", "003-35")
STUCK = DEFAULT_TIMING.stuck


class Watched:
    """A mount and its matrixd's opinion of it."""

    def __init__(self, mount: SimMount) -> None:
        self.mount = mount
        self.complaint: Stuck | None = None
        self.after = 0.0

    async def run(self) -> None:
        watch = MountWatch(DEFAULT_TIMING, trio.current_time(), float("inf"))
        began, calls = trio.current_time(), 0
        counted = self.mount.port
        travel = counted._travel

        async def count(*arguments: object) -> None:
            nonlocal calls
            await travel(*arguments)  # type: ignore[arg-type]
            calls += 1

        counted._travel = count  # type: ignore[method-assign]
        while self.complaint is None:
            pulse = self.mount.member.locks.pulse()
            watch.answered(watch.ping(), dataclasses.replace(pulse, moved=pulse.moved + calls))
            self.complaint = watch.look(Activity("S", 0), trio.current_time())
            self.after = trio.current_time() - began
            await trio.sleep(LOOK_SECONDS)


async def make(mount: SimMount, name: bytes, content: bytes = b"x") -> int:
    inode = await namespace.create(mount.volume, ROOT_INODE, name, stat.S_IFREG | 0o644, 0, 0)
    await data.write(mount.volume, inode.ino, 0, content)
    return inode.ino


def hang_on(mount: SimMount, ino: int) -> None:
    """The surrender of this inode's lock never ends: a bug, or a call into the kernel that does not come back."""
    found = [lock for lock in mount.member.locks._locks.values() if lock.resource[0] == 2 and lock.number == ino]
    (lock,) = found
    callouts = lock.callouts

    class Hanging:
        flushes = callouts.flushes

        async def surrender(self, lock: Lock, mode: int) -> None:
            await trio.sleep_forever()

    lock.callouts = Hanging()


def in_world(body: Callable[[World, trio.Nursery], Awaitable[None]], **options: object) -> None:
    async def limited(world: World) -> None:
        with trio.fail_after(20_000):
            async with trio.open_nursery() as nursery:
                await body(world, nursery)
                nursery.cancel_scope.cancel()

    run_world(7, limited, size=32 * MIB, **options)


def test_a_surrender_that_hangs_is_complained_of_by_name() -> None:
    async def body(world: World, nursery: trio.Nursery) -> None:
        one, two = await world.start(0, 1)
        ino = await make(one, b"f")
        hang_on(one, ino)
        watched = [Watched(one), Watched(two)]
        for each in watched:
            nursery.start_soon(each.run)
        nursery.start_soon(data.read, two.volume, ino, 0, 10)
        await trio.sleep(4 * STUCK)
        assert watched[0].complaint is not None
        assert f"inode {ino}" in watched[0].complaint.reason
        assert STUCK <= watched[0].after < STUCK + 12  # the mount's own background work ends first
        assert watched[1].complaint is None, "who waits is not to blame"

    in_world(body)


def test_one_lock_that_hangs_among_much_work_is_complained_of_after_all() -> None:
    async def body(world: World, nursery: trio.Nursery) -> None:
        one, two = await world.start(0, 1)
        ino = await make(one, b"f")
        other = await make(one, b"g")
        hang_on(one, ino)
        watched = Watched(one)
        nursery.start_soon(watched.run)
        nursery.start_soon(data.read, two.volume, ino, 0, 10)
        while watched.complaint is None:
            await data.write(one.volume, other, 0, b"y")
            await data.fsync(one.volume, other, False)
            await trio.sleep(5)
        assert OVERDUE * STUCK <= watched.after < OVERDUE * STUCK + 15
        assert f"inode {ino}" in watched.complaint.reason

    in_world(body)


@pytest.mark.parametrize("latency", [2.0, 20.0])
def test_a_slow_flush_is_waited_for_however_long_it_takes(latency: float) -> None:
    async def body(world: World, nursery: trio.Nursery) -> None:
        one, two = await world.start(0, 1)
        content = bytes(range(256)) * 8192  # 2 MiB
        ino = await make(one, b"f", content)
        world.disk.latency = (latency, latency)
        watched = [Watched(one), Watched(two)]
        for each in watched:
            nursery.start_soon(each.run)
        began = trio.current_time()
        assert await data.read(two.volume, ino, 0, len(content)) == content
        assert trio.current_time() - began > 3 * latency
        assert [each.complaint for each in watched] == [None, None]

    in_world(body)


def test_who_waits_for_a_dead_end_with_a_lock_in_its_hands_is_spared() -> None:
    """Node 0 holds A and waits for B, which hangs on node 1; node 2 wants A: node 1 is to blame."""

    async def body(world: World, nursery: trio.Nursery) -> None:
        mounts = await world.start(0, 1, 2)
        a = await make(mounts[0], b"a")
        b = await make(mounts[1], b"b")
        hang_on(mounts[1], b)
        watched = [Watched(mount) for mount in mounts]

        async def hold_a_and_wait_for_b() -> None:
            lock = next(x for x in mounts[0].member.locks._locks.values() if x.resource[0] == 2 and x.number == a)
            await lock.hold(EX, exclusive=True)
            await data.read(mounts[0].volume, b, 0, 10)

        nursery.start_soon(hold_a_and_wait_for_b)
        await trio.sleep(1)
        nursery.start_soon(data.read, mounts[2].volume, a, 0, 10)
        for each in watched:
            nursery.start_soon(each.run)
        await trio.sleep(4 * STUCK)
        assert [each.complaint is not None for each in watched] == [False, True, False]

    in_world(body)
