"""The journal's invariants J1 to J7 of matrixfs/fs/journal.py, each by itself, with the product's own replay."""

from __future__ import annotations

import random

import pytest
import trio
import trio.lowlevel

from matrixfs.fs.journal import COMMIT_INTERVAL
from matrixfs.fs.replay import read_journal_header
from matrixfs.ondisk.journal import CLEAN, DIRTY, IMAGES_MAX, REVOKES_ALONE_MAX
from membership.errors import DeviceError, Fenced
from membership.label import BLOCK_BYTES
from tests.matrixfs.journal_bench import Bench, bench_of, frames
from tests.sim.disk import Flush, SimDisk, Write

# --- J1: transactions hold whole operations -----------------------------------------------------------------


async def test_j1_a_commit_has_what_was_added_before_it_and_nothing_later() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    bench.change(1, 1)

    async def meanwhile() -> None:
        """Changes the same blocks as soon as the first write is under way."""
        while not bench.disk.in_flight:
            await trio.lowlevel.checkpoint()
        bench.change(0, 2)
        bench.change(1, 2)

    bench.disk.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.journal.commit)
        await meanwhile()
        bench.disk.resume()
    assert await bench.after_crash([0, 1]) == [1, 1]
    await bench.journal.commit()
    assert await bench.after_crash([0, 1]) == [2, 2]


@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
async def test_j1_power_lost_at_any_write_leaves_all_of_an_operation_or_nothing(mode: str) -> None:
    bench = await bench_of()
    acknowledged: list[tuple[int, int]] = []
    rng = random.Random(5)
    for number in range(1, 31):
        for offset in range(4):
            bench.change(offset, number)  # one operation
        bench.change(10 + number, number)
        if rng.random() < 0.6:
            await bench.journal.commit()
            acknowledged.append((len(bench.disk.log), number))
        if rng.random() < 0.2:
            await bench.journal.checkpoint()
    for at in range(len(bench.disk.log) + 1):
        values = await bench.after_crash([0, 1, 2, 3], mode, at)
        assert len(set(values)) == 1, f"power lost at {at}: {values}"
        least = max((number for position, number in acknowledged if position <= at), default=0)
        assert (values[0] or 0) >= least, f"power lost at {at}: {values[0]} after {least} was acknowledged"


async def test_j1_a_change_again_in_one_transaction_is_one_image() -> None:
    bench = await bench_of()
    for content in range(10):
        bench.change(0, content)
    assert bench.notes[0].generation == 1
    await bench.journal.commit()
    assert bench.journal.statistics["blocks_logged"] == 1
    bench.change(0, 10)
    assert bench.notes[0].generation == 2, "R7: the generation grows with every transaction"


async def test_a_large_transaction_is_in_parts_that_count_together() -> None:
    bench = await bench_of(512)
    count = IMAGES_MAX + 5
    for offset in range(count):
        bench.change(offset, 7)
    await bench.journal.commit()
    _, head, tail = bench.disk.writes  # the header first (J7)
    assert (head.length, tail.length) == ((IMAGES_MAX + 1) * BLOCK_BYTES, 6 * BLOCK_BYTES)
    assert await bench.after_crash([0, count - 1], at=2) == [None, None]
    assert await bench.after_crash([0, count - 1], at=3) == [7, 7]


async def test_more_revokes_than_a_frame_holds() -> None:
    bench = await bench_of()
    bench.journal.running.revokes.update(range(1000, 1000 + REVOKES_ALONE_MAX + 1))
    await bench.journal.commit()
    assert frames(bench) == [1, 2]
    assert await bench.after_crash([0]) == [None]


async def test_group_commit_many_waiters_one_frame() -> None:
    bench = await bench_of()

    async def operation(offset: int) -> None:
        bench.change(offset, offset)
        await bench.journal.commit()

    async with trio.open_nursery() as nursery:
        for offset in range(30):
            nursery.start_soon(operation, offset)
    assert bench.journal.statistics["commits"] <= 2
    assert await bench.after_crash(list(range(30))) == list(range(30))


async def test_commit_of_nothing_writes_nothing() -> None:
    bench = await bench_of()
    await bench.journal.commit()
    await bench.journal.sync()
    await bench.journal.checkpoint()
    assert bench.disk.log == []


# --- J2, J6: in place, and trimming -------------------------------------------------------------------------


async def test_j2_nothing_is_in_place_before_it_is_in_the_log() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    await bench.journal.checkpoint()
    assert bench.disk.log == [], "not committed, so not to be placed"
    await bench.journal.commit()
    assert await bench.in_place(0) is None
    await bench.journal.checkpoint()
    assert await bench.in_place(0) == 1


async def test_j2_the_image_in_place_is_the_committed_one() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    await bench.journal.commit()
    bench.change(0, 2)
    await bench.journal.checkpoint()
    assert await bench.in_place(0) == 1


async def test_j6_the_log_is_trimmed_after_the_flush_and_only_what_is_in_place() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    await bench.journal.commit()
    bench.disk.mark()
    await bench.journal.checkpoint()
    kinds = [type(entry) for entry in bench.disk.log]
    assert kinds == [Write, Flush, Write], "block in place, flush, header"
    assert bench.disk.log[0].offset == bench.notes[0].address * BLOCK_BYTES
    assert bench.disk.log[2].offset == bench.superblock.journal_block(0) * BLOCK_BYTES
    assert bench.disk.log[2].durable


async def test_j6_a_small_log_goes_round_many_times() -> None:
    """Wrap-around: every committed state is there after a crash at any entry, on a log of 64 blocks."""
    bench = await bench_of(64)
    rng = random.Random(3)
    acknowledged: list[tuple[int, list[int]]] = []
    values = [0] * 40
    for number in range(1, 90):
        for offset in rng.sample(range(40), rng.randint(1, 12)):
            bench.change(offset, number)
            values[offset] = number
        await bench.journal.commit()
        acknowledged.append((len(bench.disk.log), list(values)))
    positions = frames(bench)
    assert sum(b < a for a, b in zip(positions, positions[1:], strict=False)) > 5, "it went round"
    for at, expected in acknowledged[::4]:
        found = await bench.after_crash(list(range(40)), at=at)
        assert [value or 0 for value in found] == expected


@pytest.mark.parametrize("length", [64, 65, 66, 67])
async def test_the_largest_transaction_fits_an_empty_log(length: int) -> None:
    """Whatever its parity: a transaction that may be written finds room at once."""
    bench = await bench_of(length)
    blocks = (length - 1) // 2 - 2  # images; the head and one block for parts come on top
    for offset in range(blocks):
        bench.change(offset, 1)
    with trio.fail_after(5):
        await bench.journal.commit()
    assert await bench.after_crash([blocks - 1]) == [1]


async def test_a_log_that_is_full_makes_room_by_itself() -> None:
    bench = await bench_of(64)
    for number in range(1, 40):
        for offset in range(12):
            bench.change(offset, number)
        await bench.journal.commit()
    assert bench.journal.statistics["checkpoints"] > 3
    assert await bench.after_crash([0, 11]) == [39, 39]


async def test_it_commits_by_itself_after_a_while_and_places(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    bench = await bench_of()
    nursery.start_soon(bench.journal.run)
    bench.change(0, 1)
    await trio.sleep(COMMIT_INTERVAL + 0.1)
    assert await bench.in_place(0) == 1
    nursery.cancel_scope.cancel()


async def test_admit_waits_while_the_transaction_is_too_large() -> None:
    bench = await bench_of(64)
    for offset in range(20):
        await bench.journal.admit()
        bench.change(offset, 1)
    assert bench.journal.statistics["commits"] >= 1


# --- J3: before a lock is given up --------------------------------------------------------------------------


async def test_j3_a_released_block_is_durable_in_place_and_not_replayed() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    bench.change(1, 1)
    await bench.journal.commit()
    await bench.journal.release([note.address])
    assert await bench.after_crash([0, 1]) == [1, 1]
    # Another node takes the block over and gives it to file data, then this one dies.
    await bench.disk.write(note.address * BLOCK_BYTES, b"data".ljust(BLOCK_BYTES), durable=True)
    assert await bench.after_crash([0, 1]) == [None, 1]


async def test_j3_a_block_that_was_trimmed_needs_no_revoke() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    await bench.journal.commit()
    await bench.journal.checkpoint()
    before = bench.journal.statistics["commits"]
    await bench.journal.release([note.address])
    assert bench.journal.statistics["commits"] == before


async def test_j3_a_block_that_comes_back_is_replayed_again() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    await bench.journal.commit()
    await bench.journal.release([note.address])
    bench.change(0, 5)
    await bench.journal.commit()
    assert await bench.after_crash([0]) == [5]


async def test_j3_release_waits_for_an_older_image_on_its_way() -> None:
    """A checkpoint that began earlier must not land its image after the peer's."""
    bench = await bench_of()
    note = bench.change(0, 1)
    await bench.journal.commit()
    async with trio.open_nursery() as nursery:
        bench.disk.hang()
        nursery.start_soon(bench.journal.checkpoint)
        await trio.testing.wait_all_tasks_blocked()
        released = trio.Event()

        async def release() -> None:
            await bench.journal.release([note.address])
            released.set()

        nursery.start_soon(release)
        await trio.testing.wait_all_tasks_blocked()
        assert not released.is_set()
        bench.disk.resume()
    assert released.is_set()


# --- J4: data before metadata -------------------------------------------------------------------------------


async def test_j4_a_commit_flushes_file_data_first() -> None:
    bench = await bench_of()
    data = bench.notes[50].address
    await bench.disk.write(data * BLOCK_BYTES, b"d" * BLOCK_BYTES)
    bench.journal.data_written()
    bench.change(0, 1)
    await bench.journal.commit()
    assert [type(entry) for entry in bench.disk.log] == [Write, Write, Flush, Write]  # the second one: the header (J7)
    assert bench.journal.statistics["flushes"] == 1
    bench.change(0, 2)
    await bench.journal.commit()
    assert bench.journal.statistics["flushes"] == 1, "no data since"


async def test_j4_a_flush_under_way_does_not_count() -> None:
    """R10: a checkpoint's flush has begun and not returned; a commit beside it must flush by itself."""
    bench = await bench_of()
    bench.change(1, 1)
    await bench.journal.commit()
    await bench.journal.checkpoint()
    await bench.disk.write(bench.notes[50].address * BLOCK_BYTES, b"d" * BLOCK_BYTES)
    bench.journal.data_written()
    bench.change(0, 1)
    async with trio.open_nursery() as nursery:
        bench.disk.hang()
        nursery.start_soon(bench.journal._flush)  # as a checkpoint does
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(bench.journal.commit)
        await trio.testing.wait_all_tasks_blocked()
        bench.disk.resume()
    flushed = next(i for i, entry in enumerate(bench.disk.log) if isinstance(entry, Flush) and entry.writes)
    frame = next(i for i, entry in enumerate(bench.disk.log) if isinstance(entry, Write) and entry.durable and i > 2)
    assert flushed < frame
    assert bench.journal.statistics["flushes"] == 3


async def test_j4_data_written_during_a_flush_is_flushed_again() -> None:
    bench = await bench_of()
    bench.journal.data_written()
    async with trio.open_nursery() as nursery:
        bench.disk.hang()
        nursery.start_soon(bench.journal.sync)
        await trio.testing.wait_all_tasks_blocked()
        bench.journal.data_written()
        bench.disk.resume()
    await bench.journal.sync()
    assert bench.journal.statistics["flushes"] == 2


async def test_j4_a_failed_flush_leaves_the_data_unsafe() -> None:
    bench = await bench_of()
    bench.journal.data_written()
    bench.disk.fail("flush", times=1)
    with pytest.raises(DeviceError):
        await bench.journal.sync()
    await bench.journal.sync()
    assert bench.journal.statistics["flushes"] == 2


# --- J5: freed blocks ---------------------------------------------------------------------------------------


async def test_j5_a_freed_block_is_reused_only_when_that_is_durable() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    await bench.journal.commit()
    reused: list[int] = []
    bench.journal.free(note, lambda: reused.append(1))
    bench.journal.free_data(note.address + 1, 1, lambda: reused.append(2))
    assert reused == []
    await bench.journal.commit()
    assert reused == [1, 2]
    await bench.disk.write(note.address * BLOCK_BYTES, b"data".ljust(BLOCK_BYTES), durable=True)
    await bench.journal.checkpoint()
    assert await bench.after_crash([0]) == [None], "neither placed nor replayed over its new content"


async def test_j5_not_while_its_old_content_is_on_its_way() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    await bench.journal.commit()
    reused: list[int] = []
    in_place = note.address * BLOCK_BYTES
    async with trio.open_nursery() as nursery:
        bench.disk.hang()
        nursery.start_soon(bench.journal.checkpoint)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.journal._placing == {note.address}
        bench.journal.free(note, lambda: reused.append(len([w for w in bench.disk.writes if w.offset == in_place])))
        bench.journal._committed(bench.journal.running, [], [bench.journal._frames[0]])  # durable meanwhile
        bench.journal.running = type(bench.journal.running)()
        assert reused == []
        bench.disk.resume()
    assert reused == [1], "after that write has landed"


async def test_j5_a_block_freed_in_the_transaction_that_made_it_never_was() -> None:
    bench = await bench_of()
    note = bench.change(0, 1)
    bench.journal.free(note, lambda: None)
    await bench.journal.commit()
    assert bench.journal.statistics["blocks_logged"] == 0
    assert await bench.after_crash([0]) == [None]


# --- the end ------------------------------------------------------------------------------------------------


async def test_close_leaves_a_clean_log_with_all_in_place() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    await bench.journal.close()
    header = await read_journal_header(bench.disk, bench.superblock, 0)
    assert header.state == CLEAN
    assert await bench.in_place(0) == 1


async def test_close_is_the_last_to_write_the_header() -> None:
    """A checkpoint that is still trimming must not write DIRTY after it."""
    bench = await bench_of()
    bench.change(0, 1)
    await bench.journal.commit()
    bench.disk.latency = (0.0, 0.01)
    for seed in range(8):
        bench.disk.rng.seed(seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.journal.checkpoint)
            while bench.journal._frames:  # up to the header's write
                await trio.lowlevel.checkpoint()
            nursery.start_soon(bench.journal.close)
        header = await read_journal_header(bench.disk, bench.superblock, 0)
        assert header.state == CLEAN
        header.state = DIRTY
        bench.journal._header = header
        bench.change(0, seed)
        await bench.journal.commit()


async def test_a_failed_commit_ends_the_journal() -> None:
    """R9, R10: what it held is lost, so nothing that builds on it may become durable, and no fsync may say yes."""
    bench = await bench_of()
    bench.change(0, 1)
    bench.disk.fail("write", times=1)
    with pytest.raises(DeviceError):
        await bench.journal.commit()
    for _ in range(2):
        with pytest.raises(Fenced):
            await bench.journal.sync()
    bench.change(1, 1)
    with pytest.raises(Fenced):
        await bench.journal.commit()
    assert bench.disk.log == []


async def test_a_cancelled_commit_ends_the_journal_too() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    bench.disk.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.journal.commit)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        bench.disk.resume()
    bench.change(1, 1)
    try:
        await bench.journal.commit()
    except Fenced:
        return
    assert await bench.after_crash([0, 1]) == [1, 1], "if it goes on, nothing was lost"


async def test_a_waiter_behind_a_failed_commit_is_told() -> None:
    bench = await bench_of()
    bench.change(0, 1)
    outcomes: list[str] = []

    async def commit() -> None:
        try:
            await bench.journal.commit()
        except (DeviceError, Fenced) as error:
            outcomes.append(type(error).__name__)

    bench.disk.fail("write", times=1)
    async with trio.open_nursery() as nursery:
        bench.disk.hang()
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(commit)
        await trio.testing.wait_all_tasks_blocked()
        bench.disk.resume()
    assert sorted(outcomes) == ["DeviceError", "Fenced"]


# --- J7: the header ------------------------------------------------------------------------------------------


async def state_on(disk: SimDisk, bench: Bench) -> int:
    return (await read_journal_header(disk, bench.superblock, 0)).state


async def test_j7_a_journal_is_clean_until_the_first_commit() -> None:
    bench = await bench_of()
    assert bench.journal.resting
    bench.change(0, 1)
    assert not bench.journal.resting
    assert bench.disk.writes == []
    await bench.journal.commit()
    assert [await state_on(bench.disk.crash_image(at, "drop"), bench) for at in range(3)] == [CLEAN, DIRTY, DIRTY]


async def test_j7_a_journal_that_rests_is_empty_and_goes_on() -> None:
    bench = await bench_of()
    for turn in range(1, 40):  # some laps around the log
        bench.change(turn % 7, turn)
        await bench.journal.commit()
        if turn % 3 == 0:
            await bench.journal.rest()
            assert bench.journal.resting
            before = len(bench.disk.writes)
            await bench.journal.rest()
            assert len(bench.disk.writes) == before, "it rests already"
            image = bench.disk.crash_image(len(bench.disk.log), "drop")
            assert await state_on(image, bench) == CLEAN
            assert await bench.in_place(turn % 7, image) == turn, "in place, without a replay"
        assert (await bench.after_crash([turn % 7])) == [turn]


async def test_j7_what_is_added_while_it_goes_to_rest_is_not_lost() -> None:
    bench = await bench_of()
    bench.disk.latency = (0.0, 0.01)
    for seed in range(12):
        bench.disk.rng.seed(seed)
        bench.change(0, 2 * seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.journal.rest)
            await trio.sleep(bench.disk.rng.uniform(0, 0.03))
            bench.change(1, seed)
            await bench.journal.commit()
        assert await bench.after_crash([0, 1]) == [2 * seed, seed]
