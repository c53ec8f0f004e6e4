"""File contents against a bytearray: buffered, written back, given up to a peer, remounted, crashed."""

from __future__ import annotations

import contextlib
import errno
import os
import random

import pytest
import trio
import trio.lowlevel

from matrixfs.fs import attributes, data, namespace, promises, writeback
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.ondisk.inode import TAIL_BYTES, TIME_MAX_NS, TIME_MIN_NS
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import DeviceError, ToldLate
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.disk import SimDisk

EDGES = (0, 1, 100, TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, 4095, 4096, 4097, 8192, 12_000, 50_000)


async def truncate(mount: Local, ino: int, size: int) -> Inode:
    return await attributes.setattr(mount.volume, ino, attributes.Changes(size=size))


async def content(mount: Local, ino: int) -> bytes:
    inode = await attributes.getattr(mount.volume, ino)
    found = await data.read(mount.volume, ino, 0, 1 << 30)
    assert len(found) == inode.size
    return found


async def random_steps(mount: Local, ino: int, model: bytearray, rng: random.Random, count: int) -> None:
    """Write, append, truncate, read, write back, give up the lock; ``model`` is what the file must hold."""
    volume = mount.volume
    for _ in range(count):
        offset = max(0, rng.choice(EDGES) + rng.randint(-3, 3))
        piece = rng.randbytes(rng.choice((1, 10, 4096, 9000)))
        step = rng.choice(("write", "write", "append", "truncate", "read", "fsync", "flush", "give up"))
        if step == "append":
            offset = len(model)
        if step in ("write", "append"):
            assert await data.write(volume, ino, offset, piece, append=step == "append") == len(piece)
            model.extend(bytes(max(0, offset - len(model))))
            model[offset : offset + len(piece)] = piece
        elif step == "truncate":
            await truncate(mount, ino, offset)
            del model[offset:]
            model.extend(bytes(offset - len(model)))
        elif step == "read":
            assert await data.read(volume, ino, offset, len(piece)) == model[offset : offset + len(piece)]
        elif step == "fsync":
            await data.fsync(volume, ino, False)
        elif step == "flush":
            await volume.write_back.all()
        else:
            await mount.give_up(ino)
        inode = await attributes.getattr(volume, ino)
        assert inode.size == len(model), step


@pytest.mark.parametrize("seed", range(25))
async def test_against_a_bytearray(autojump_clock: trio.abc.Clock, seed: int) -> None:
    rng = random.Random(seed)
    async with mounted(seed=seed) as mount:
        made = await mount.file(b"f")
        model = bytearray()
        await random_steps(mount, made.ino, model, rng, 60)
        assert await content(mount, made.ino) == model
        await mount.give_up(made.ino)
        assert await content(mount, made.ino) == model, "a peer must see it"
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)
    async with mounted(disk) as mount:
        assert await content(mount, made.ino) == model


@pytest.mark.parametrize("first", [10, 3000, 3840, 3841, 5000])
@pytest.mark.parametrize("second", [0, 3500, 3839, 4000, 4096, 6000])
async def test_grow_in_memory_then_shrink(autojump_clock: trio.abc.Clock, first: int, second: int) -> None:
    """A byte far behind a small file, cut off again before it was written: everybody must see the new size."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * first)
        await data.write(mount.volume, made.ino, 9000, b"y")
        await truncate(mount, made.ino, second)
        expected = (b"x" * first)[:second].ljust(second, b"\0")
        assert await content(mount, made.ino) == expected
        await mount.give_up(made.ino)
        assert await content(mount, made.ino) == expected


@pytest.mark.parametrize("mode", ["drop", "keep-all", "keep-some", "tear"])
async def test_r10_what_lies_behind_the_end_never_comes_back(autojump_clock: trio.abc.Clock, mode: str) -> None:
    """Truncated, or grown and crashed: when the file grows again, the gap reads as zeros, whatever is on the store."""
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"s" * 20_000)
        await data.fsync(mount.volume, made.ino, False)
        await truncate(mount, made.ino, 5000)
        await data.fsync(mount.volume, made.ino, False)
        disk.mark()
        await data.write(mount.volume, made.ino, 5000, b"lost" * 4000)
        await mount.volume.write_back.all()  # on the store, but the size is not in the journal
        await mount.volume.journal.commit()
        entries = len(disk.log)
    for entry in range(entries + 1):
        image = disk.crash_image(entry, mode, seed=entry)  # type: ignore[arg-type]
        async with mounted(image) as mount:
            size = (await attributes.getattr(mount.volume, made.ino)).size
            assert size >= 5000
            before = await content(mount, made.ino)
            await truncate(mount, made.ino, size + 6000)
            assert await content(mount, made.ino) == before + bytes(6000)
            await data.write(mount.volume, made.ino, size + 10_000, b"z")
            await mount.give_up(made.ino)
            assert await content(mount, made.ino) == before + bytes(10_000) + b"z"
        await assert_clean(image, mount.volume.superblock, notes=False)


async def test_a_crash_never_leaves_blocks_behind_the_end(autojump_clock: trio.abc.Clock) -> None:
    """The size is committed with the blocks: fsck has nothing even to note, at any write."""
    disk = await small_disk(journal_blocks=64)
    async with mounted(disk, clean=False) as mount:
        made = await mount.file(b"f")
        await mount.volume.sync()
        for number in range(6):
            await data.write(mount.volume, made.ino, number * 100_000, bytes([number + 1]) * 60_000)
            await mount.volume.write_back.all()
            if number % 2:
                await mount.volume.journal.commit()
        await mount.volume.journal.commit()
        superblock = mount.volume.superblock
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry, "drop")
        await assert_clean(image, superblock, notes=False)


@pytest.mark.seed("002-08")
async def test_buffered_data_is_written_once_and_read_back_from_memory() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        mount.disk.mark()
        for number in range(100):
            await data.write(mount.volume, made.ino, number * 1000, b"x" * 1000)
        assert mount.disk.log == []
        reads = mount.disk.operations["read"]
        assert await data.read(mount.volume, made.ino, 500, 50_000) == b"x" * 50_000
        assert mount.disk.operations["read"] == reads
        await data.fsync(mount.volume, made.ino, False)
        big = [write for write in mount.disk.writes if write.length == 25 * BLOCK_BYTES]
        assert len(big) == 1, "one write for all of it"
        assert mount.volume.write_back.length == 0
        assert mount.volume.allocator.promises.total == 0


async def test_small_files_live_in_their_inode() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * TAIL_BYTES)
        await mount.volume.sync()
        assert (made.blocks, made.inline) == (0, True)
        await data.write(mount.volume, made.ino, TAIL_BYTES, b"y")
        await mount.volume.sync()
        assert (made.blocks, made.inline) == (1, False)
        await truncate(mount, made.ino, 0)
        assert (made.blocks, made.inline) == (0, True)


async def test_holes_take_no_space() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 1 << 40, b"end")
        await mount.volume.sync()
        assert made.blocks == 1
        assert await data.read(mount.volume, made.ino, (1 << 40) - 5, 100) == bytes(5) + b"end"
        assert await data.read(mount.volume, made.ino, 1 << 39, 10) == bytes(10)


@pytest.mark.parametrize("end", [1 << 63, (1 << 63) + 5])
async def test_too_large(end: int) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        for attempt in (
            lambda: data.write(mount.volume, made.ino, end - 2, b"xxx"),
            lambda: truncate(mount, made.ino, end),
        ):
            with pytest.raises(OSError) as caught:
                await attempt()
            assert caught.value.errno == errno.EFBIG
        assert made.size == 0


async def test_wrong_types() -> None:
    async with mounted() as mount:
        link = await namespace.symlink(mount.volume, ROOT_INODE, b"s", b"target", 0, 0)
        for ino, code in ((ROOT_INODE, errno.EISDIR), (link.ino, errno.EINVAL)):
            for attempt in (
                data.read(mount.volume, ino, 0, 1),
                data.write(mount.volume, ino, 0, b"x"),
                truncate(mount, ino, 0),
            ):
                with pytest.raises(OSError) as caught:
                    await attempt
                assert caught.value.errno == code


@pytest.mark.parametrize("length", [1, 100, TAIL_BYTES, TAIL_BYTES + 1, 4095])
async def test_symlinks_of_any_length(autojump_clock: trio.abc.Clock, length: int) -> None:
    target = b"x" * length
    async with mounted(clean=False) as mount:
        made = await namespace.symlink(mount.volume, ROOT_INODE, b"s", target, 0, 0)
        await mount.volume.journal.commit()
        image = mount.disk.crash_image(len(mount.disk.log))
        await mount.give_up(made.ino)
        assert await attributes.readlink(mount.volume, made.ino) == target
    async with mounted(image) as mount:
        assert await attributes.readlink(mount.volume, made.ino) == target
    await assert_clean(image, mount.volume.superblock)


async def test_a_long_symlink_is_whole_or_not_there_after_a_crash() -> None:
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        await mount.volume.sync()
        disk.mark()
        await mount.file(b"something else to commit")

        async def commits() -> None:
            """Others commit all the time."""
            for _ in range(50):
                await mount.volume.journal.commit()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commits)
            made = await namespace.symlink(mount.volume, ROOT_INODE, b"s", b"x" * 4000, 0, 0)
        await mount.volume.journal.commit()
    for entry in range(len(disk.log) + 1):
        image = disk.crash_image(entry)
        await assert_clean(image, mount.volume.superblock)
        async with mounted(image) as again:
            if await namespace.lookup(again.volume, ROOT_INODE, b"s") is not None:
                assert await attributes.readlink(again.volume, made.ino) == b"x" * 4000


async def test_the_time_of_change_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """coherence.md 2: the kernel tells by it whether its pages are good, so each change must move it."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        monkeypatch.setattr(type(mount.volume.clock), "wall_ns", lambda self: 5)
        stamps = []
        for number in range(5):
            await data.write(mount.volume, made.ino, 0, b"x")
            stamps.append((made.mtime_ns, made.data_version))
        await truncate(mount, made.ino, 0)
        stamps.append((made.mtime_ns, made.data_version))
        assert stamps == sorted(set(stamps))
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(mtime_ns=3))
        assert made.mtime_ns == 3
        await data.write(mount.volume, made.ino, 0, b"x")
        assert made.mtime_ns > 3


async def test_a_time_set_far_ahead_comes_back_with_a_write() -> None:
    """touch -d tomorrow, then a write: it is of today."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        now = mount.volume.clock.wall_ns()
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(mtime_ns=now + 10**15))
        await data.write(mount.volume, made.ino, 0, b"x")
        assert abs(made.mtime_ns - now) < 10**10


@pytest.mark.parametrize("seconds", [1 << 40, -(1 << 40), (1 << 63) - 1, -(1 << 63)])
async def test_times_beyond_what_an_inode_holds_are_cut(seconds: int) -> None:
    """utimensat(2) takes any: writing the inode must not fail of it, which would end the mount."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        changes = attributes.Changes(atime_ns=seconds * 10**9, mtime_ns=seconds * 10**9)
        await attributes.setattr(mount.volume, made.ino, changes)
        await data.write(mount.volume, made.ino, 0, b"x")
        await mount.volume.sync()
        disk = mount.disk
    async with mounted(disk) as again:
        found = await attributes.getattr(again.volume, made.ino)
        assert found.atime_ns == (TIME_MAX_NS if seconds > 0 else TIME_MIN_NS)


# --- space --------------------------------------------------------------------------------------------------


async def fill(mount: Local, leave: int) -> None:
    """Use blocks until writing fails, then give back ``leave``."""
    made = await mount.file(b"filler")
    offset = 0
    for piece in (100 * BLOCK_BYTES, BLOCK_BYTES):
        with contextlib.suppress(OSError):
            while True:
                await data.write(mount.volume, made.ino, offset, b"f" * piece)
                offset += piece
    await data.fsync(mount.volume, made.ino, False)
    assert await data.read(mount.volume, made.ino, 0, 1 << 26) == b"f" * offset, "what was accepted found room"
    assert (await attributes.statfs(mount.volume)).free < 16 * (promises.TREE_BLOCKS_MAX + 2)
    await truncate(mount, made.ino, offset - leave * BLOCK_BYTES)
    await mount.volume.journal.commit()


async def test_no_space_is_told_at_the_write_and_not_later() -> None:
    async with mounted() as mount:
        await fill(mount, 60)
        made = await mount.file(b"f")
        written = 0
        with pytest.raises(OSError) as caught:
            for number in range(100):
                await data.write(mount.volume, made.ino, number * BLOCK_BYTES, b"x" * BLOCK_BYTES)
                written += BLOCK_BYTES
        assert caught.value.errno == errno.ENOSPC
        await data.fsync(mount.volume, made.ino, False)  # all that was accepted found room
        assert await data.read(mount.volume, made.ino, 0, 1 << 20) == b"x" * written
        assert written >= 50 * BLOCK_BYTES
        await namespace.unlink(mount.volume, ROOT_INODE, b"filler")
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_many_writers_on_a_full_store_all_get_an_answer(autojump_clock: trio.abc.Clock) -> None:
    """Each holds its file and looks for space in the others': nobody may wait for somebody who waits for him."""
    async with mounted() as mount:
        await fill(mount, 120)
        files = [await mount.file(b"f%d" % number) for number in range(6)]
        outcomes: list[int] = []

        async def writer(ino: int) -> None:
            offset = 0
            try:
                while True:
                    await data.write(mount.volume, ino, offset, b"x" * 5000)
                    offset += 5000
                    await trio.lowlevel.checkpoint()
            except OSError as error:
                outcomes.append(error.errno or 0)
            await data.fsync(mount.volume, ino, False)
            assert await content(mount, ino) == b"x" * offset

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for made in files:
                    nursery.start_soon(writer, made.ino)
        assert outcomes == [errno.ENOSPC] * 6
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_lost_buffered_data_is_reported_once_at_the_next_fsync(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"safe" * 2000)
        await data.fsync(mount.volume, made.ino, False)
        await data.write(mount.volume, made.ino, 8000, b"lost" * 2000)

        async def no_group(*_: object, **_options: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(mount.volume.allocator, "hold", no_group)
            await mount.give_up(made.ino)
        with pytest.raises(ToldLate) as caught:  # which nobody tries again, and so takes for success
            await data.fsync(mount.volume, made.ino, False)
        assert caught.value.errno == errno.ENOSPC
        await data.fsync(mount.volume, made.ino, False)
        assert await content(mount, made.ino) == (b"safe" * 2000)
        assert (mount.volume.write_back.length, mount.volume.allocator.promises.total) == (0, 0)
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_old_buffered_data_is_written_though_nobody_asks(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 10_000)
        await trio.sleep(writeback.AGE_MAX + 1.5)
        assert made.dirty is None
        await trio.sleep(5)
        image = mount.disk.crash_image(len(mount.disk.log))
    async with mounted(image) as mount:
        assert await content(mount, made.ino) == b"x" * 10_000


async def test_a_writer_writes_back_when_too_much_is_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "FILE_BYTES_MAX", 100_000)
    async with mounted() as mount:
        made = await mount.file(b"f")
        for number in range(30):
            await data.write(mount.volume, made.ino, number * 10_000, b"x" * 10_000)
            assert mount.volume.write_back.length <= 100_000


async def test_a_failed_read_is_an_error_and_not_zeros() -> None:
    disk = await small_disk(size=16 * MIB)
    async with mounted(disk) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 10_000)
        await data.fsync(mount.volume, made.ino, False)
        fault = disk.fail("read")
        with pytest.raises(DeviceError):
            await data.read(mount.volume, made.ino, 0, 10_000)
        disk.faults.remove(fault)
        assert await content(mount, made.ino) == b"x" * 10_000


async def test_readers_beside_a_write_see_the_old_or_the_new(autojump_clock: trio.abc.Clock) -> None:
    disk: SimDisk = await small_disk()
    disk.latency = (0.0, 0.001)
    async with mounted(disk) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"a" * 20_000)
        await data.fsync(mount.volume, made.ino, False)
        seen: set[bytes] = set()

        async def reader() -> None:
            for _ in range(20):
                seen.add(await data.read(mount.volume, made.ino, 0, 20_000))
                await trio.sleep(0.0003)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            for letter in b"bcdef":
                await data.write(mount.volume, made.ino, 0, bytes([letter]) * 20_000)
                await data.fsync(mount.volume, made.ino, False)
        assert all(len(set(one)) == 1 for one in seen)


async def test_load_needs_one_read_for_many_readers() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await mount.volume.sync()
        await mount.give_up(made.ino)
        inodes: list[Inode] = []

        async def look() -> None:
            with Held(mount.volume) as held:
                inodes.append(await held.shared(made.ino))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(look)
        assert len(set(map(id, inodes))) == 1, "one object, whoever read it"
