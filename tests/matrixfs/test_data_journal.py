"""Data through the journal (``data_journal``, DJ1 to DJ5): read back, crashed, revoked, replayed."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from matrixfs.fs import attributes, data, data_journal, extents, namespace, ranges, remap
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.opening import check_may_journal_data
from matrixfs.fs.ranges import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from matrixfs.fs.scrub import Scrub
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.inode import FLAG_JOURNAL_DATA
from matrixfs.ondisk.journal import FrameRecord
from matrixfs.ondisk.superblock import JOURNALLED_DATA, ROOT_INODE
from membership.errors import OperatorError
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, Local, mounted, small_disk
from tests.matrixfs.test_data import content, random_steps
from tests.sim.checkers import assert_clean
from tests.sim.disk import SimDisk, Write

OLD, NEW, OTHER = (letter * BLOCK_BYTES for letter in (b"o", b"n", b"x"))


@asynccontextmanager
async def journalling(disk: SimDisk | None = None, *, clean: bool = False, **options: int) -> AsyncIterator[Local]:
    """A mount with data=journal; cut off at the end."""
    async with mounted(disk, clean=clean, **options) as mount:
        mount.volume.journal_data = True
        yield mount


async def file_of(mount: Local, name: bytes, contents: bytes) -> int:
    """A new file, in place, with nothing of it in the log."""
    ino = (await mount.file(name)).ino
    await data.write(mount.volume, ino, 0, contents)
    await mount.give_up(ino)
    await mount.volume.journal.rest()
    mount.disk.mark()
    return ino


async def put(mount: Local, ino: int, offset: int, piece: bytes) -> None:
    """Write and fsync."""
    await data.write(mount.volume, ino, offset, piece)
    await data.fsync(mount.volume, ino, False)


async def places(mount: Local, ino: int) -> list[int]:
    """Where a file's blocks lie."""
    with Held(mount.volume) as held:
        inode = await held.shared(ino)
        pieces = await extents.pieces(mount.volume, inode, 0, -(-inode.size // BLOCK_BYTES))
    return [piece.physical + at for piece in pieces for at in range(piece.length)]


async def in_place(mount: Local, block: int) -> bytes:
    return await mount.disk.read(block * BLOCK_BYTES, BLOCK_BYTES)


async def found_after_crash(disk: SimDisk, name: bytes = b"f") -> bytes:
    """A file's bytes when the power went now, and the journals were replayed; the filesystem must be sound."""
    image = disk.crash_image(len(disk.log))
    async with mounted(image) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, name)
        assert found is not None
        contents = await content(mount, found.ino)
    await assert_clean(image, mount.volume.superblock)
    return contents


# --- through the log ---------------------------------------------------------------------------------------------


async def test_a_synced_overwrite_is_one_write_to_the_log_and_is_read_from_there() -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 3)
        block = (await places(mount, ino))[1]
        await put(mount, ino, BLOCK_BYTES + 5, b"new")
        writes = [entry for entry in mount.disk.log if isinstance(entry, Write)]
        assert [write.length // BLOCK_BYTES for write in writes] == [1, 3]  # the header, and a frame of two images
        assert len(mount.disk.log) == 2, "no flush"
        expected = OLD + b"ooooonew".ljust(BLOCK_BYTES, b"o") + OLD
        assert await in_place(mount, block) == OLD
        assert await content(mount, ino) == expected
        await put(mount, ino, BLOCK_BYTES, b"NEW")  # partly over what lies in the log only
        expected = OLD + b"NEWoonew".ljust(BLOCK_BYTES, b"o") + OLD
        assert await content(mount, ino) == expected
        assert await found_after_crash(mount.disk) == expected
        await mount.volume.journal.checkpoint()
        assert await in_place(mount, block) == expected[BLOCK_BYTES : 2 * BLOCK_BYTES]
        assert not mount.volume.journal.data.of(ino), "trimmed, so it is read from its place"
        assert await content(mount, ino) == expected


async def test_an_append_is_in_the_transaction_that_makes_the_file_longer() -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD + b"o" * 100)
        await put(mount, ino, BLOCK_BYTES + 100, NEW)
        assert [type(entry) for entry in mount.disk.log] == [Write, Write], "the header, and one frame"
        before = mount.disk.crash_image(1)
        expected = OLD + b"o" * 100 + NEW
        assert await found_after_crash(mount.disk) == expected
        assert await found_after_crash(before) == expected[: BLOCK_BYTES + 100]


async def test_many_new_blocks_are_written_once_and_few_twice() -> None:
    async with journalling(journal_blocks=1024, size=64 * MIB) as mount:
        ino = await file_of(mount, b"f", b"")
        before = mount.volume.journal.statistics["blocks_logged"]
        await put(mount, ino, 0, NEW * (data_journal.LOGGED_BLOCKS_MAX + 1))
        assert mount.volume.journal.statistics["blocks_logged"] - before < 10
        assert await found_after_crash(mount.disk) == NEW * (data_journal.LOGGED_BLOCKS_MAX + 1)
        await put(mount, ino, 1 << 20, OTHER * data_journal.LOGGED_BLOCKS_MAX)
        assert mount.volume.journal.statistics["blocks_logged"] - before > data_journal.LOGGED_BLOCKS_MAX
        assert (await found_after_crash(mount.disk))[1 << 20 :] == OTHER * data_journal.LOGGED_BLOCKS_MAX


async def test_the_flag_of_a_file_does_it_too() -> None:
    async with mounted(clean=False) as mount:
        ino, plain = await file_of(mount, b"f", OLD * 2), await file_of(mount, b"plain", OLD * 2)
        (await attributes.getattr(mount.volume, ino)).flags |= FLAG_JOURNAL_DATA
        await put(mount, ino, 0, NEW)
        await put(mount, plain, 0, NEW)
        assert len(mount.volume.journal.data.of(ino)) == 1
        assert not mount.volume.journal.data.of(plain)


async def test_a_filesystem_without_the_feature_writes_to_the_place() -> None:
    async with journalling() as mount:
        mount.volume.superblock.features_incompatible &= ~JOURNALLED_DATA
        with pytest.raises(OperatorError, match="t was made without room for data in its journals"):
            check_may_journal_data(mount.volume.superblock)
        ino = await file_of(mount, b"f", OLD)
        await put(mount, ino, 0, NEW)
        assert not mount.volume.journal.data.of(ino)
        assert await in_place(mount, (await places(mount, ino))[0]) == NEW


@pytest.mark.parametrize("piece", [FrameRecord.MAGIC, b"\0" * 8, FrameRecord.MAGIC[:7] + b"!"])
async def test_data_that_looks_like_the_head_of_a_frame(piece: bytes) -> None:
    """Even a copy of a frame that is valid where it comes to lie is no frame."""
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD)
        await put(mount, ino, 0, piece)
        frame = next(entry for entry in mount.disk.log if isinstance(entry, Write) and entry.length > BLOCK_BYTES)
        for at in range(BLOCK_BYTES, frame.length, BLOCK_BYTES):
            assert not frame.data[at:].startswith(FrameRecord.MAGIC)
        expected = piece + OLD[len(piece) :]
        assert await content(mount, ino) == expected
        assert await found_after_crash(mount.disk) == expected
        await mount.volume.journal.checkpoint()
        assert await in_place(mount, (await places(mount, ino))[0]) == expected


# --- DJ1: readers ------------------------------------------------------------------------------------------------


async def test_dj1_a_read_that_a_checkpoint_overtakes(autojump_clock: trio.abc.Clock) -> None:
    """The store answers with the old bytes, and the image is in place and forgotten before the reader goes on."""
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 4)
        await put(mount, ino, BLOCK_BYTES, NEW)
        read, found = mount.disk.read, []

        async def slow(offset: int, length: int) -> bytes:
            answer = await read(offset, length)
            await mount.volume.journal.checkpoint()
            return answer

        mount.disk.read = slow  # type: ignore[method-assign, assignment]
        found.append(await content(mount, ino))
        mount.disk.read = read  # type: ignore[method-assign]
        assert not mount.volume.journal.data.of(ino)
        assert found == [OLD + NEW + OLD * 2]


async def test_dj1_a_copy_takes_what_lies_in_the_log() -> None:
    async with journalling() as mount:
        ino, other = await file_of(mount, b"f", OLD * 3), await file_of(mount, b"g", b"")
        await put(mount, ino, BLOCK_BYTES, NEW)
        assert await ranges.copy(mount.volume, ino, 0, other, 0, 3 * BLOCK_BYTES) == 3 * BLOCK_BYTES
        assert await content(mount, other) == OLD + NEW + OLD


# --- DJ2: the lock goes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3, 7])
async def test_dj2_what_another_node_writes_after_the_lock_has_gone_stays(blocks: int) -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 8)
        await put(mount, ino, 0, NEW * blocks)
        await data.write(mount.volume, ino, 0, b"buffered")
        await mount.give_up(ino)
        block = (await places(mount, ino))[0]
        assert await in_place(mount, block) == b"buffered" + NEW[8:]
        assert not mount.volume.journal.data.of(ino)
        await mount.disk.write(block * BLOCK_BYTES, OTHER, durable=True)  # another node, with the lock in EX
        assert await found_after_crash(mount.disk) == OTHER + NEW * (blocks - 1) + OLD * (8 - blocks)


async def test_dj2_a_file_in_quarantine() -> None:
    """Its lock may go at any time, and nobody asks then what is cached under it."""
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 2)
        await put(mount, ino, 0, NEW)
        block = (await places(mount, ino))[0]
        await Scrub(mount.volume, lambda _: None, read_data=True)._quarantine(ino)
        assert await in_place(mount, block) == NEW
        assert not mount.volume.journal.data.of(ino)


# --- DJ3: blocks are freed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["unlink", "truncate", "punch"])
async def test_dj3_the_next_owner_of_a_block_keeps_what_it_wrote(autojump_clock: trio.abc.Clock, how: str) -> None:
    async with journalling() as mount:
        volume = mount.volume
        ino = await file_of(mount, b"old", OLD * 6)
        await put(mount, ino, 0, NEW * 6)
        mine = set(await places(mount, ino))
        if how == "unlink":
            await namespace.unlink(volume, ROOT_INODE, b"old")
            await trio.sleep(3)  # deleted in the background
        elif how == "truncate":
            await attributes.setattr(volume, ino, attributes.Changes(size=0))
        else:
            await ranges.fallocate(volume, ino, PUNCH_HOLE | KEEP_SIZE, 0, 6 * BLOCK_BYTES)
        await volume.journal.commit()
        assert not volume.journal.data.of(ino)
        volume.journal_data = False
        next_one = (await mount.file(b"f")).ino
        size = 0
        with suppress(OSError):  # until the disk is full
            while True:
                size += await data.write(volume, next_one, size, OTHER * 16)
        await data.fsync(volume, next_one, False)
        assert mine & set(await places(mount, next_one)), "it has blocks that the other had"
        assert await found_after_crash(mount.disk) == OTHER * (size // BLOCK_BYTES)


async def test_dj3_not_while_its_image_is_on_its_way_to_its_place() -> None:
    async with journalling() as mount:
        journal = mount.volume.journal
        ino = await file_of(mount, b"f", OLD * 2)
        await put(mount, ino, 0, NEW)
        block = (await places(mount, ino))[0]
        reused: list[int] = []
        async with trio.open_nursery() as nursery:
            mount.disk.hang()
            nursery.start_soon(journal.checkpoint)
            await trio.testing.wait_all_tasks_blocked()
            assert block in journal._placing
            journal.free_data(block, 1, lambda: reused.append(block))
            journal._committed(journal.running, [], [journal._frames[0]])  # durable meanwhile
            journal.running = type(journal.running)()
            assert not reused
            mount.disk.resume()
        assert reused == [block], "after that write has landed"


# --- DJ4: written in place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [True, False])
async def test_dj4_what_goes_to_the_place_later_is_not_undone(sync: bool) -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 3)
        await put(mount, ino, 0, NEW)
        if not sync:
            await data.write(mount.volume, ino, 0, NEW)
            await mount.volume.write_back.all()  # in the running transaction
        mount.volume.journal_data = False
        await put(mount, ino, 0, OTHER)
        assert not mount.volume.journal.data.of(ino)
        assert await found_after_crash(mount.disk) == OTHER + OLD * 2
        mount.volume.journal_data = True
        await put(mount, ino, 0, NEW)
        assert await found_after_crash(mount.disk) == NEW + OLD * 2


async def test_dj4_blocks_that_were_zeroed_and_are_written_again() -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 3)
        await put(mount, ino, 0, NEW * 3)
        await ranges.fallocate(mount.volume, ino, ZERO_RANGE, 0, 2 * BLOCK_BYTES)
        await data.fsync(mount.volume, ino, False)
        assert await found_after_crash(mount.disk) == bytes(2 * BLOCK_BYTES) + NEW
        mount.volume.journal_data = False
        await put(mount, ino, 100, b"x")
        assert await found_after_crash(mount.disk) == (bytes(100) + b"x").ljust(2 * BLOCK_BYTES, b"\0") + NEW


async def test_reserved_blocks_get_their_data_and_lose_their_mark_together() -> None:
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD)
        await ranges.fallocate(mount.volume, ino, 0, 0, 6 * BLOCK_BYTES)
        await data.fsync(mount.volume, ino, False)
        for block in await places(mount, ino):
            if block != (await places(mount, ino))[0]:
                await mount.disk.write(block * BLOCK_BYTES, OTHER, durable=True)  # of a file that is gone
        mount.disk.mark()
        await put(mount, ino, BLOCK_BYTES + 7, b"new")
        assert len(mount.disk.log) == 1, "one frame"
        expected = OLD + (bytes(7) + b"new").ljust(5 * BLOCK_BYTES, b"\0")
        assert await content(mount, ino) == expected
        assert await found_after_crash(mount.disk) == expected


# --- DJ5: bounds -------------------------------------------------------------------------------------------------


async def test_dj5_a_write_that_is_larger_than_the_log() -> None:
    """Over old blocks, so all of it goes through a log of 64 blocks; a crash anywhere leaves whole blocks."""
    async with journalling() as mount:
        count = 200
        ino = await file_of(mount, b"f", OLD * count)
        await data.write(mount.volume, ino, 0, NEW * count)
        await data.fsync(mount.volume, ino, False)
        frames = [entry.length // BLOCK_BYTES for entry in mount.disk.log if isinstance(entry, Write)]
        assert max(frames) <= 3 * mount.volume.journal.large + 5
        assert await content(mount, ino) == NEW * count
    for at in range(0, len(mount.disk.log) + 1, 7):
        found = await found_after_crash(mount.disk.crash_image(at, "tear", seed=at))
        blocks = [found[start : start + BLOCK_BYTES] for start in range(0, len(found), BLOCK_BYTES)]
        assert len(blocks) == count
        assert set(blocks) <= {OLD, NEW}


async def test_dj5_small_writes_are_not_cut_in_two() -> None:
    """Each write of as many blocks as fit is in one transaction, whatever was buffered before it."""
    async with journalling() as mount:
        length = (mount.volume.journal.large - 2) * BLOCK_BYTES
        ino = await file_of(mount, b"f", bytes([0]) * length)
        for number in range(1, 6):
            await data.write(mount.volume, ino, 0, bytes([number]) * length)
            await data.write(mount.volume, ino, 0, bytes([number]) * length)
        await data.fsync(mount.volume, ino, False)
    for at in range(len(mount.disk.log) + 1):
        assert len(set(await found_after_crash(mount.disk.crash_image(at, "tear", seed=at)))) == 1


async def test_what_is_buffered_is_written_in_one_change_with_holes_and_size() -> None:
    """Over old blocks, into holes, into reserved blocks, and behind the end: all of it, or nothing."""
    async with journalling(journal_blocks=256) as mount:
        ino = await file_of(mount, b"f", OLD)
        await data.write(mount.volume, ino, 5 * BLOCK_BYTES, OLD[:100])
        await ranges.fallocate(mount.volume, ino, 0, 3 * BLOCK_BYTES, BLOCK_BYTES)
        await mount.volume.sync()
        mount.disk.mark()
        before = await content(mount, ino)
        for block in (0, 2, 3, 5, 8, 12):
            await data.write(mount.volume, ino, block * BLOCK_BYTES + 50, NEW)
        after = await content(mount, ino)
        await data.fsync(mount.volume, ino, False)
    found = set()
    for at in range(len(mount.disk.log) + 1):
        found.add(await found_after_crash(mount.disk.crash_image(at, "tear", seed=at)))
    assert found == {before, after}


async def test_the_tree_has_no_block_for_the_change() -> None:
    """Then it goes the way that needs none, and nothing is lost."""
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD)
        await ranges.fallocate(mount.volume, ino, 0, 0, 12 * BLOCK_BYTES)
        await mount.volume.sync()
        calls, whole = [], remap.set_flags_of_all

        async def no_space(volume: Volume, inode: Inode, pieces: list[Extent], flags: int) -> None:
            calls.append(len(pieces))
            if len(calls) == 1:
                raise OSError(errno.ENOSPC, "no space left")
            await whole(volume, inode, pieces, flags)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remap, "set_flags_of_all", no_space)
            for block in (0, 2, 5):
                await data.write(mount.volume, ino, block * BLOCK_BYTES + 50, b"new")
            expected = await content(mount, ino)
            await data.fsync(mount.volume, ino, False)
        assert calls == [2, 1, 1]
        assert await content(mount, ino) == expected
        assert await found_after_crash(mount.disk) == expected


# --- everything together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_against_bytearrays(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """Two files; now and then the mode is another, a file is removed, its lock goes, or the power."""
    rng = random.Random(seed)
    disk = await small_disk(seed=seed)
    files: dict[bytes, bytearray] = {}
    for leg in range(3):
        async with journalling(disk) as mount:
            for _ in range(8):
                mount.volume.journal_data = rng.random() < 0.75
                name = rng.choice((b"f", b"g", b"h"))
                found = await namespace.lookup(mount.volume, ROOT_INODE, name)
                if found is None:
                    found, files[name] = await mount.file(name), bytearray()
                await random_steps(mount, found.ino, files[name], rng, 6)
                assert await content(mount, found.ino) == files[name]
                if rng.random() < 0.2:
                    await namespace.unlink(mount.volume, ROOT_INODE, name)
                    del files[name]
                await trio.sleep(rng.choice((0, 0.5, 4)))
            await mount.volume.sync()
        mode = rng.choice(("drop", "keep-all", "keep-some", "tear"))
        disk = disk.crash_image(len(disk.log), mode, seed=100 + 3 * seed + leg)  # each mount has a salt of its own
        async with mounted(disk.crash_image(0)) as mount:
            for name, model in files.items():
                found = await namespace.lookup(mount.volume, ROOT_INODE, name)
                assert found is not None
                assert await content(mount, found.ino) == model
        await assert_clean(mount.disk, mount.volume.superblock)


async def test_freezing_brings_it_home() -> None:
    """A copy of the disk then needs no replay."""
    async with journalling() as mount:
        ino = await file_of(mount, b"f", OLD * 2)
        await put(mount, ino, 0, NEW)
        await data.write(mount.volume, ino, BLOCK_BYTES, OTHER)
        await mount.volume.changes.rest()
        assert [await in_place(mount, block) for block in await places(mount, ino)] == [NEW, OTHER]
        assert mount.volume.journal.resting
