"""kernel_caches.py against a kernel that is played (K1-K5); the real one is in tests/mount."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

from matrixfs.fuse.kernel_caches import (
    FOREVER,
    LATE,
    NAMES_MAX,
    PATIENCE,
    REPEAT_MAX,
    SETTLED,
    SHORT,
    KernelCaches,
)
from matrixfs.fuse.listings import LOOK_SECONDS, WAIT_BOUND
from matrixfs.fuse.workers import Workers

ROOT = 64


class PlayedClock:
    """Moves only when slept on or told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wall_ns(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await trio.lowlevel.checkpoint()


class PlayedKernel:
    """Records what it is told; ``blocked`` holds back the calls that may block."""

    def __init__(self, *, has_epoch: bool = True) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.free = threading.Event()
        self.free.set()
        self.unknown = 0  # how many attribute calls still answer ENOENT
        self.epoch_code = 0 if has_epoch else errno.EINVAL
        self.prune_code = 0
        self.bare_nodes: set[int] = set()
        self.request_count = 7
        self.last_request = {1: 7, 2: 7}  # pid -> number

    def attributes(self, node: int) -> int:
        self.told.append(("attributes", node))
        if self.unknown:
            self.unknown -= 1
            return errno.ENOENT
        return 0

    def pages(self, node: int) -> int:
        self.free.wait(30)
        self.told.append(("pages", node))
        return 0

    def name(self, parent: int, name: bytes) -> int:
        self.free.wait(30)
        self.told.append(("name", parent, name))
        return 0

    def name_expired(self, parent: int, name: bytes) -> int:
        self.free.wait(30)
        self.told.append(("expired", parent, name))
        return 0

    def epoch(self) -> int:
        self.told.append(("epoch",))
        return self.epoch_code

    def bare(self, node: int, is_bare: bool, /) -> None:
        (self.bare_nodes.add if is_bare else self.bare_nodes.discard)(node)

    def requests(self) -> int:
        return self.request_count

    def asked_since(self, pid: int, requests: int, /) -> bool:
        return self.last_request.get(pid, 0) > requests

    def prune(self, node: int) -> int:
        self.free.wait(30)
        self.told.append(("prune", node))
        return self.prune_code


class World:
    def __init__(self, *, has_epoch: bool = True) -> None:
        self.clock = PlayedClock()
        self.kernel = PlayedKernel(has_epoch=has_epoch)
        self.caches = KernelCaches(self.clock)
        self.caches.attach(self.kernel, root_ino=ROOT)
        self.kernel.told.clear()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    made.kernel.free.set()
    assert made.caches.stop(30)


async def test_before_the_mount_nothing_is_known() -> None:
    caches = KernelCaches(PlayedClock())
    await caches.purge_inode(100)
    await caches.purge_names(100)
    assert caches.counters()["inodes"] == 0


async def test_a_purge_ends_answers_for_inodes_without_extended_attributes(world: World) -> None:
    """K7: also where the kernel is not known to hold the inode."""
    for ino in (ROOT, 100):
        world.caches.bare(ino, True)
    assert world.kernel.bare_nodes == {1, 100}
    await world.caches.purge_inode(100)
    assert world.kernel.bare_nodes == {1}
    world.caches.bare(ROOT, False)
    assert world.kernel.bare_nodes == set()


async def test_unknown_objects_cost_no_call(world: World) -> None:
    await world.caches.purge_inode(100)
    await world.caches.purge_names(100)
    assert world.kernel.told == []


async def test_attributes_only_when_there_are_no_pages(world: World) -> None:
    world.caches.nodes.looked_up(100, 1)
    await world.caches.purge_inode(100)
    await world.caches.purge_inode(ROOT)
    assert world.kernel.told == [("attributes", 100), ("attributes", 1)]


@pytest.mark.parametrize("opens", [0, 1])
async def test_pages_are_dropped_and_remembered_only_while_open(world: World, opens: int) -> None:
    node = world.caches.nodes.looked_up(100, 1)
    node.pages, node.opens = True, opens
    await world.caches.purge_inode(100)
    assert world.kernel.told == [("attributes", 100), ("pages", 100)]
    assert node.pages == bool(opens)


async def test_a_blocked_page_drop_does_not_hold_the_purge_while_something_local_is_pending(world: World) -> None:
    """K1: the operation may wait for the lock that is being given up."""
    world.caches.nodes.looked_up(100, 1).pages = True
    world.caches.pending.enter(100)
    world.kernel.free.clear()
    await world.caches.purge_inode(100)
    assert world.kernel.told == [("attributes", 100)]  # returned, and the drop still waits
    assert world.caches.counters()["pages_left_behind"] == 1


async def test_answers_wait_for_pages_that_were_left_behind(world: World) -> None:
    """K5: once read(2) has the attributes it asked for, it takes the pages as good."""
    world.caches.nodes.looked_up(100, 1).pages = True
    world.caches.pending.enter(100)
    world.kernel.free.clear()
    await world.caches.purge_inode(100)
    assert world.caches.dropping(100)
    assert not world.caches.dropping(101)
    seen: list[bool] = []

    async def answer() -> None:
        await world.caches.dropped(100)
        seen.append(("pages", 100) in world.kernel.told)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await trio.testing.wait_all_tasks_blocked()
        assert not seen
        world.kernel.free.set()
    assert seen == [True]
    assert not world.caches.dropping(100)
    await world.caches.dropped(100)  # nothing left to wait for
    assert world.caches.counters()["drops_awaited"] == 1


async def test_answers_do_not_wait_for_ever_for_pages(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.caches.nodes.looked_up(100, 1).pages = True
    world.caches.pending.enter(100)
    world.kernel.free.clear()
    await world.caches.purge_inode(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matrixfs.fuse.kernel_caches.DROPPED_BOUND", 0.0)
        await world.caches.dropped(100)
    assert not world.caches.dropping(100)
    assert "not dropped" in caplog.text


async def test_a_page_drop_is_waited_for_when_nothing_is_pending(world: World) -> None:
    world.caches.nodes.looked_up(100, 1).pages = True
    world.kernel.free.clear()
    returned = trio.Event()

    async def purge() -> None:
        await world.caches.purge_inode(100)
        assert ("pages", 100) in world.kernel.told
        returned.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(purge)
        await trio.testing.wait_all_tasks_blocked()
        assert not returned.is_set()
        world.kernel.free.set()
    assert world.caches.counters()["pages_left_behind"] == 0


async def test_one_blocked_drop_does_not_hold_up_others(world: World) -> None:
    for ino in (100, 101):
        world.caches.nodes.looked_up(ino, 1).pages = True
    world.caches.pending.enter(100)
    world.kernel.free.clear()
    await world.caches.purge_inode(100)
    blocked, world.kernel.free = world.kernel.free, threading.Event()
    world.kernel.free.set()
    await world.caches.purge_inode(101)
    assert ("pages", 101) in world.kernel.told
    assert ("pages", 100) not in world.kernel.told
    blocked.set()


async def test_a_reference_still_on_its_way_is_invalidated_when_it_lands(world: World) -> None:
    """K2."""
    world.caches.nodes.looked_up(100, 1)
    world.kernel.unknown = 3
    await world.caches.purge_inode(100)
    assert world.kernel.told == [("attributes", 100)] * 4
    assert len(world.clock.slept) == 3


async def test_repeating_ends_with_the_forget_or_the_epoch(world: World) -> None:
    world.caches.nodes.looked_up(100, 1)
    world.kernel.unknown = 1000
    await world.caches.purge_inode(100)
    assert world.kernel.told.count(("attributes", 100)) == REPEAT_MAX + 1
    assert world.caches.counters()["repeated_in_vain"] == 1
    assert world.kernel.told[-1] == ("epoch",)


async def test_an_inode_that_never_landed_is_invalidated_when_it_does(world: World) -> None:
    """K2: who found it by the reply that is late has it, and doesn't go by its name again."""
    world.caches.nodes.looked_up(100, 1)
    world.kernel.unknown = REPEAT_MAX + 3
    await world.caches.purge_inode(100)
    assert world.caches.unlanded == {100}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.caches.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not world.caches.unlanded
    assert world.kernel.told == [*[("attributes", 100)] * (REPEAT_MAX + 1), ("epoch",), *[("attributes", 100)] * 3]


async def test_few_names_are_dropped_one_by_one_once(world: World) -> None:
    world.caches.handed_out(ROOT, b"a")
    world.caches.handed_out(ROOT, b"b")
    await world.caches.purge_names(ROOT)
    await world.caches.purge_names(ROOT)
    assert world.kernel.told == [("name", 1, b"a"), ("name", 1, b"b")]


@pytest.mark.parametrize("since", [0.0, SETTLED + 0.001])
async def test_directories_are_expired_once_replies_have_settled(world: World, since: float) -> None:
    """K4."""
    world.caches.handed_out(ROOT, b"d", is_directory=True)
    given = world.clock.now
    world.clock.now += since
    await world.caches.purge_names(ROOT)
    assert world.kernel.told == [("expired", 1, b"d")]
    assert world.clock.now >= given + SETTLED
    assert len(world.clock.slept) == (since == 0)


async def test_many_names_or_a_pending_operation_take_the_epoch(world: World) -> None:
    for number in range(NAMES_MAX + 1):
        world.caches.handed_out(100, b"%d" % number)
    await world.caches.purge_names(100)
    world.caches.handed_out(101, b"a")
    world.caches.pending.enter(101)
    await world.caches.purge_names(101)
    assert world.kernel.told == [("epoch",), ("epoch",)]


async def test_blocked_name_drops_give_way_to_the_epoch_and_stop(world: World) -> None:
    """K1, K3: something became pending after we looked."""
    for name in (b"a", b"b", b"c"):
        world.caches.handed_out(100, name)
    world.kernel.free.clear()
    await world.caches.purge_names(100)
    assert world.kernel.told == [("epoch",)]
    world.kernel.free.set()
    assert world.caches.stop(30)
    assert world.kernel.told == [("epoch",), ("name", 100, b"a")]


async def test_an_epoch_step_covers_all_directories(world: World) -> None:
    for directory in (100, 101):
        world.caches.handed_out(directory, b"a")
    world.caches.pending.enter(100)
    await world.caches.purge_names(100)
    await world.caches.purge_names(101)
    assert world.kernel.told == [("epoch",)]


async def test_an_epoch_step_that_a_listing_crosses_is_taken_again(world: World) -> None:
    """L2: the kernel reads the epoch when it takes the listing in, so our step was too early for its names."""
    listing = world.caches.listed(101)
    world.caches.handed_out(101, b"listed")
    world.caches.handed_out(100, b"a")
    world.caches.pending.enter(100)
    await world.caches.purge_names(100)
    assert world.kernel.told == [("epoch",)], "nobody waits for another directory's listing"
    world.caches.taken_in(listing)
    world.caches.taken_in(listing)
    assert world.kernel.told == [("epoch",)] * 2
    world.caches.taken_in(world.caches.listed(101))
    assert world.kernel.told == [("epoch",)] * 2


async def test_names_of_a_listing_stay_recorded_over_an_epoch_step(world: World) -> None:
    """Else its directory's purge would have nothing to do, and its names be trusted for ever."""
    world.caches.listed(101)
    world.caches.handed_out(101, b"listed")
    world.caches.handed_out(100, b"a")
    world.caches.pending.enter(100)
    await world.caches.purge_names(100)
    await world.caches.purge_names(101)
    assert world.kernel.told == [("epoch",), ("name", 101, b"listed"), ("epoch",)]


@pytest.mark.parametrize("ends", ["reader", "probe", "bound"])
async def test_a_purge_waits_for_the_listing_of_its_directory(world: World, ends: str) -> None:
    """L1, K1."""
    listing = world.caches.listed(100)
    world.caches.handed_out(100, b"listed")
    world.caches.pending.enter(100)
    world.kernel.free.clear()

    async def sleep(seconds: float) -> None:
        world.clock.slept.append(seconds)
        if ends == "reader" and len(world.clock.slept) == 3:
            world.caches.taken_in(listing)
        if ends == "probe":
            world.kernel.free.set()
        await trio.sleep(0.001)

    world.clock.sleep = sleep  # type: ignore[method-assign]
    await world.caches.purge_names(100)
    probe = [("name", 100, b"/")] if ends == "probe" else []
    assert world.kernel.told == [*probe, ("epoch",)]
    assert (len(world.clock.slept) == round(WAIT_BOUND / LOOK_SECONDS)) == (ends == "bound")
    world.caches.taken_in(listing)
    world.kernel.free.set()
    assert world.caches.stop(30)
    # The probe steps too: the reader may never ask again.
    after = {"reader": [("name", 100, b"/")], "probe": [], "bound": [("epoch",), ("name", 100, b"/"), ("epoch",)]}
    assert world.kernel.told == [*probe, ("epoch",), *after[ends]]


async def test_an_inode_that_a_listing_may_bring_is_waited_for(world: World) -> None:
    """K2: its old attributes would come behind the step that is to have them asked for again."""
    listing = world.caches.listed(101)
    world.caches.nodes.looked_up(100, 1)
    world.kernel.unknown = 1000

    async def sleep(seconds: float) -> None:
        world.clock.slept.append(seconds)
        if len(world.clock.slept) == REPEAT_MAX + 5:
            world.kernel.told.append(("taken in",))
            world.caches.taken_in(listing)
        await trio.lowlevel.checkpoint()

    world.kernel.free.clear()
    world.clock.sleep = sleep  # type: ignore[method-assign]
    await world.caches.purge_inode(100)
    assert world.kernel.told[-2:] == [("taken in",), ("epoch",)]


@pytest.mark.parametrize(("ago", "asks"), [(0.0, False), (LATE - 0.01, False), (LATE, False), (0.0, True)])
async def test_attributes_that_the_kernel_takes_in_any_case_are_invalidated_once_more(
    world: World, ago: float, asks: bool
) -> None:
    """K2: of SETATTR, for example; not if its caller has asked since, as that throws away what others are told."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.caches.run)
        for ino in (100, 101):
            world.caches.nodes.looked_up(ino, 1)
        world.caches.gave(100, 1)
        world.kernel.last_request[1 if asks else 2] = 8
        given = world.clock.now
        world.clock.now += ago
        for ino in (100, 101):
            await world.caches.purge_inode(ino)
        await trio.testing.wait_all_tasks_blocked()
        again = [("attributes", 100)] if ago < LATE and not asks else []
        assert world.kernel.told == [("attributes", 100), ("attributes", 101), *again]
        assert not again or world.clock.now >= given + LATE
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("answers", [0, 3, 1000])
async def test_one_more_invalidation_waits_for_a_quiet_moment_but_not_for_ever(
    world: World, answers: int, pending: bool
) -> None:
    """Else it throws away answers that are on their way, and their read(2) goes by the old size."""
    left = answers

    async def sleep(seconds: float) -> None:
        nonlocal left
        world.clock.now += seconds
        world.clock.slept.append(seconds)
        if left and not pending:
            world.caches.answered(100)
        if pending and left and left in {1, answers}:
            (world.caches.pending.leave if left == 1 else world.caches.pending.enter)(100)
        left -= left > 0
        await trio.lowlevel.checkpoint()

    world.clock.sleep = sleep  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.caches.run)
        world.caches.nodes.looked_up(100, 1)
        world.caches.gave(100, 1)
        await world.caches.purge_inode(100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert world.kernel.told == [("attributes", 100)] * 2
    assert len(world.clock.slept) == 1 + min(max(0, answers - pending), PATIENCE)


async def test_directories_are_expired_once_more_for_late_replies(world: World) -> None:
    """K4: where a reply was recent; and however often that is put off."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.caches.run)
        world.caches.handed_out(100, b"quiet", is_directory=True)
        world.clock.now += 1
        await world.caches.purge_names(100)
        for name in (b"d", b"e"):
            world.caches.handed_out(100, name, is_directory=True)
            world.caches.handed_out(100, b"file")
            given = world.clock.now
            await world.caches.purge_names(100)
        first = [("expired", 100, b"quiet"), ("expired", 100, b"d"), ("name", 100, b"file")]
        while len(world.kernel.told) < 7:  # noqa: ASYNC110 - told by a thread
            await trio.sleep(0.001)
        assert world.kernel.told[:5] == [*first, ("expired", 100, b"e"), ("name", 100, b"file")]
        assert set(world.kernel.told[5:]) == {("expired", 100, b"d"), ("expired", 100, b"e")}
        assert world.clock.now >= given + LATE
        nursery.cancel_scope.cancel()


async def test_without_epochs_the_last_answer_is_waited_out() -> None:
    world = World(has_epoch=False)
    assert world.caches.entry_timeout == SHORT < FOREVER
    world.caches.handed_out(100, b"a")
    world.clock.now += 0.03
    world.caches.handed_out(100, b"b")
    given = world.clock.now
    world.clock.now += 0.01
    await world.caches.purge_names(100)
    assert world.clock.now > given + SHORT
    assert world.kernel.told == []
    world.caches.handed_out(100, b"c")
    world.clock.now += 1
    slept = len(world.clock.slept)
    await world.caches.purge_names(100)
    assert len(world.clock.slept) == slept


async def test_every_purge_changes_the_stamp(world: World) -> None:
    before = world.caches.stamp
    await world.caches.purge_inode(100)
    await world.caches.purge_names(100)
    assert world.caches.stamp == before + 2


async def test_a_forgotten_directory_is_not_tracked(world: World) -> None:
    world.caches.handed_out(100, b"a")
    world.caches.forgotten(100)
    await world.caches.purge_names(100)
    assert world.kernel.told == []
    assert world.caches.counters()["tracked_directories"] == 0


async def test_workers_start_as_many_threads_as_are_busy_and_stop() -> None:
    workers = Workers(limit=3)
    gate = threading.Event()
    jobs = [workers.submit(lambda _job: gate.wait(30) and None) for _ in range(5)]
    assert len(workers._threads) == 3
    gate.set()
    for job in jobs:
        assert await job.wait(30)
    assert workers.stop(30)
    late: list[int] = []
    job = workers.submit(lambda _job: late.append(1))
    assert await job.wait(30)
    assert late == []


async def test_a_failing_notification_ends_its_job(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers()

    def fail(_job: object) -> None:
        raise ValueError("played")

    assert await workers.submit(fail).wait(30)
    assert "kernel notification failed" in caplog.text
    assert workers.stop(30)


@pytest.mark.parametrize("purge", ["purge_inode", "purge_names"])
async def test_an_unmount_during_a_purge_ends_it(world: World, purge: str) -> None:
    """A kernel without the mount answers ENOENT to all: without ``detach`` each purge would take its repeats."""
    world.caches.nodes.looked_up(100, 1)
    world.caches.handed_out(100, b"sub", is_directory=True)
    world.kernel.unknown = REPEAT_MAX
    slept = world.clock.sleep

    async def unmounted_meanwhile(seconds: float) -> None:
        await slept(seconds)
        world.caches.detach()

    world.clock.sleep = unmounted_meanwhile
    await getattr(world.caches, purge)(100)
    assert len(world.clock.slept) == 1
    told = list(world.kernel.told)
    world.caches.nodes.looked_up(101, 1)
    world.caches.handed_out(101, b"name")
    await world.caches.purge_inode(101)
    await world.caches.purge_names(101)
    assert world.kernel.told == told


async def test_shedding_is_for_mounts_whose_files_the_kernel_opens(world: World) -> None:
    world.caches.nodes.looked_up(100, 1)
    await world.caches.shed(100)
    world.caches.attach(world.kernel, root_ino=ROOT, opened_by_kernel=True)
    world.kernel.told.clear()
    await world.caches.shed(101)  # not known
    assert world.kernel.told == []
    await world.caches.shed(100)
    assert world.kernel.told == [("prune", 100), ("attributes", 100)]
    assert world.caches.counters()["shed_in_vain"] == 1  # the kernel has it still: it is in use


async def test_shedding_waits_for_the_forget(world: World) -> None:
    """K6: unknown to the kernel, and no FORGET: a reply that names the inode may be on its way."""
    world.caches.attach(world.kernel, root_ino=ROOT, opened_by_kernel=True)
    world.caches.nodes.looked_up(100, 1)
    world.kernel.unknown = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.caches.shed, 100)
        while 100 not in world.caches._forgotten:  # noqa: ASYNC110 - nobody sets an event for it
            await trio.lowlevel.checkpoint()
        world.caches.nodes.forget(100, 1)
        world.caches.forgotten(100)
    assert world.caches.counters()["shed_in_vain"] == 0
    world.caches.nodes.looked_up(102, 1)
    world.kernel.unknown = 2
    world.kernel.told.clear()
    await world.caches.shed(102)
    assert world.kernel.told == [("prune", 102), ("attributes", 102)] * 3
    assert world.caches.counters()["shed_in_vain"] == 1


async def test_shedding_never_waits_for_something_local(world: World) -> None:
    """K1."""
    world.caches.attach(world.kernel, root_ino=ROOT, opened_by_kernel=True)
    world.caches.nodes.looked_up(100, 1)
    world.kernel.free.clear()
    await world.caches.shed(100)
    assert world.caches.counters()["shed_in_vain"] == 1


async def test_kernels_that_cannot_prune_are_asked_once(world: World) -> None:
    """And what they know and is removed doesn't count as open: a name of it may stay for long, with nobody using it."""
    world.kernel.prune_code = errno.EINVAL
    world.caches.attach(world.kernel, root_ino=ROOT, opened_by_kernel=True)
    world.caches.nodes.looked_up(100, 1)
    world.kernel.told.clear()
    await world.caches.shed(100)
    assert not world.caches.keep(100)
    assert world.kernel.told == []


async def test_what_is_removed_counts_as_open_until_it_is_forgotten(world: World) -> None:
    """K8."""
    world.caches.nodes.looked_up(100, 1)
    world.caches.nodes.looked_up(101, 1)
    assert [world.caches.keep(ino) for ino in (100, 100, 102)] == [True, False, False]
    assert world.caches.nodes.kept() == [100]
    world.kernel.told.clear()
    await world.caches.shed(101)  # it has names
    assert world.kernel.told == []
    await world.caches.shed(100)
    assert world.kernel.told == [("prune", 100), ("attributes", 100)]
    world.caches.detach()
    assert not world.caches.keep(101)
