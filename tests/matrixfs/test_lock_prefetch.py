"""Several locks in one request (003-42), and the inodes of a listing in few reads (``fs/prefetch.py``)."""

from __future__ import annotations

import pytest
import trio

from dlm.modes import EX, NL, PR
from dlm.names import Resource
from matrixfs.fs import prefetch, readdir
from matrixfs.locks.cache import AROUND, LISTED_MIN
from matrixfs.locks.turns import CONTENDED
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.matrixfs.local import MIB, mounted, small_disk
from tests.matrixfs.lock_bench import A, B, Bench, Clock, Manager, held, settle

C = Resource(2, 102)


@pytest.fixture
async def bench(nursery: trio.Nursery, autojump_clock: Clock) -> Bench:
    bench = Bench(nursery, Manager())
    await nursery.start(bench.cache.run)
    return bench


@pytest.mark.seed("003-42")
async def test_one_request_for_all_and_no_wait_for_a_peer(bench: Bench, autojump_clock: Clock) -> None:
    locks = [bench.lock(resource) for resource in (A, B, C)]
    done = trio.Event()

    async def fetch() -> None:
        await bench.cache.prefetch(locks, PR)
        done.set()

    bench.nursery.start_soon(fetch)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR, (101, 102))]
    bench.manager.grant(A, PR)
    bench.cache.denied(B)
    await settle()
    assert not done.is_set()
    bench.manager.grant(C, PR)
    await settle()
    assert done.is_set()
    assert [lock.mode for lock in locks] == [PR, NL, PR]
    assert all(lock.idle for lock in locks)
    assert bench.cache.find(B) is None
    found = bench.cache.statistics()["types"]["inode"]
    assert (found["prefetched"], found["prefetch_denied"], found["waits"]) == (2, 1, 0)


async def test_what_is_cached_or_asked_for_is_not_named(bench: Bench, autojump_clock: Clock) -> None:
    lock = await held(bench, PR)
    lock.drop(PR)
    bench.start(bench.lock(B), EX)
    await settle()
    bench.manager.take_log()
    await bench.cache.prefetch([lock, bench.lock(B)], PR)
    assert bench.manager.log == []


@pytest.mark.parametrize("granted", [True, False])
async def test_who_comes_meanwhile_waits_for_the_answer(bench: Bench, autojump_clock: Clock, granted: bool) -> None:
    lock = bench.lock()
    bench.nursery.start_soon(bench.cache.prefetch, [lock, bench.lock(B)], PR)
    await settle()
    reader = bench.start(lock, PR)
    await settle()
    assert bench.manager.take_log() == [("request", 100, PR, (101,))]
    if granted:
        bench.manager.grant(A, PR)
    else:
        bench.cache.denied(A)
    await settle()
    assert reader.result is (True if granted else None)
    assert bench.manager.take_log() == ([] if granted else [("request", 100, PR)]), "now properly"


async def test_a_time_out_does_not_take_the_request_of_the_others_back(bench: Bench, autojump_clock: Clock) -> None:
    lock = bench.lock()
    bench.nursery.start_soon(bench.cache.prefetch, [lock, bench.lock(B)], PR)
    await settle()
    impatient = bench.start(lock, EX, timeout=0.1)
    await trio.sleep(0.2)
    assert impatient.result is False
    assert bench.manager.log == [("request", 100, PR, (101,))]
    bench.manager.grant(A, PR)
    bench.cache.denied(B)
    await settle()
    assert lock.mode == PR


async def test_a_peer_may_want_it_back_at_once(bench: Bench, autojump_clock: Clock) -> None:
    bench.nursery.start_soon(bench.cache.prefetch, [bench.lock()], PR)
    await settle()
    bench.manager.grant(A, PR, NL)
    await settle()
    assert bench.manager.log == [("request", 100, PR, ()), ("release", 100, NL)]


async def test_a_listing_peer_gets_what_lies_around_too(bench: Bench, autojump_clock: Clock) -> None:
    bench.manager.at_once = True
    numbers = range(1000, 1000 + 3 * AROUND)
    for number in (*numbers, 5000):
        lock = bench.lock(Resource(2, number))
        await lock.hold(EX)
        lock.drop(EX)
    busy = bench.lock(Resource(2, 1000))
    assert busy.try_hold(EX)
    await trio.sleep(CONTENDED)
    bench.manager.take_log()
    for number in range(1001, 1001 + LISTED_MIN):
        assert bench.manager.log == [], "a few are nothing to conclude from"
        bench.cache.revoke(Resource(2, number), PR)
    await settle()
    last = 1000 + LISTED_MIN
    assert sorted(bench.manager.log) == [("release", number, PR) for number in range(1001, last + AROUND)]
    assert busy.mode == EX
    assert bench.cache.statistics()["types"]["inode"]["shared_ahead"] == AROUND


# --- the inodes ---------------------------------------------------------------------------------------------


@pytest.mark.seed("003-42")
async def test_a_cold_listing_reads_neighbours_together(autojump_clock: Clock) -> None:
    disk = await small_disk(size=32 * MIB)
    async with mounted(disk) as mount:
        made = [await mount.file(b"%d" % number) for number in range(200)]
        await mount.volume.sync()
        for one in made:
            await mount.give_up(one.ino)
        reads = disk.operations["read"]
        listed = await readdir.entries(mount.volume, ROOT_INODE, 0, 10)
        assert disk.operations["read"] - reads <= 10
        assert len(listed) == 10
        reads, cookie, names = disk.operations["read"], 0, 0
        while batch := await readdir.entries(mount.volume, ROOT_INODE, cookie, 10):
            cookie, names = batch[-1][0], names + len(batch)
        assert names == 200
        assert disk.operations["read"] == reads, "the first reply fetched for those that follow"


async def test_runs_take_in_small_gaps_and_end_at_large_ones(bench: Bench) -> None:
    numbers = [10, 11, 11 + prefetch.GAP_MAX, 20 + 2 * prefetch.GAP_MAX, *range(1000, 1000 + 2 * prefetch.RUN_MAX)]
    runs = prefetch.runs_of([bench.lock(Resource(2, number)) for number in numbers])
    assert [lock.number for run in runs for lock in run] == numbers
    assert [len(run) for run in runs] == [3, 1, prefetch.RUN_MAX, prefetch.RUN_MAX]


async def test_nonsense_and_damage_are_left_to_whoever_asks(autojump_clock: Clock) -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        good, bad = await mount.file(b"good"), await mount.file(b"bad")
        await mount.volume.sync()
        for one in (good, bad):
            await mount.give_up(one.ino)
        await disk.write(bad.ino * 4096, bytes(4096), durable=True)
        await prefetch.inodes(mount.volume, [good.ino, bad.ino, bad.ino, 0, 1 << 60])
        assert mount.volume.inode_lock(good.ino).subject is not None
        assert mount.volume.inode_lock(bad.ino).subject is None
        assert mount.volume.inode_lock(bad.ino).idle
