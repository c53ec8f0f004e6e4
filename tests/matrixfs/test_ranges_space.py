"""Ranges of a file where space, an old format or a lock is the point (decision 0019)."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable

import pytest
import trio

from matrixfs.fs import attributes, data, extents, namespace, ranges
from matrixfs.fs.extents import GROUPS_PER_STEP
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode
from matrixfs.fs.ranges import KEEP_SIZE, ZERO_RANGE
from matrixfs.ondisk.extent import UNWRITTEN
from matrixfs.ondisk.inode import FLAG_TRUNCATING, TAIL_BYTES
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, Local, eventually, mounted, small_disk
from tests.matrixfs.test_ranges import PUNCH, content, data_blocks, dirty_disk, mapped, without_feature
from tests.sim.checkers import assert_clean, fsck


async def refused(call: Awaitable[object]) -> str:
    with pytest.raises(OSError) as caught:
        await call
    return errno.errorcode[caught.value.errno or 0]


async def fill(mount: Local, leave: int = 0) -> None:
    """Take all space but some ``leave`` blocks."""
    made = await mount.file(b"filler")
    await mount.volume.write_back.all()
    await mount.volume.journal.commit()
    at = 0
    for size in (1024, 64, 1):
        while (await attributes.statfs(mount.volume)).free > leave + size:
            try:
                await ranges.fallocate(mount.volume, made.ino, 0, at, size * BLOCK_BYTES)
            except OSError:
                break
            at += size * BLOCK_BYTES


async def no_group(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_what_does_not_fit_changes_nothing(autojump_clock: trio.abc.Clock) -> None:
    """RG3."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 5000)
        await data.fsync(mount.volume, made.ino, False)
        before = (await attributes.statfs(mount.volume)).free
        for mode in (0, KEEP_SIZE, ZERO_RANGE):
            assert await refused(ranges.fallocate(mount.volume, made.ino, mode, 0, 1 << 40)) == "ENOSPC"
        assert (made.size, made.blocks, (await attributes.statfs(mount.volume)).free) == (5000, 2, before)
        assert await content(mount, made.ino) == b"x" * 5000
        assert mount.volume.allocator.promises.total == 0


@pytest.mark.parametrize("mode", [0, KEEP_SIZE])
async def test_a_write_into_reserved_space_never_fails(autojump_clock: trio.abc.Clock, mode: int) -> None:
    """RG2, on a filesystem that is full to the last block."""
    async with mounted(await dirty_disk()) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"a" * 5000)
        await ranges.fallocate(mount.volume, made.ino, mode, 0, 300 * BLOCK_BYTES)
        other = await mount.file(b"other")
        await fill(mount)
        assert await refused(data.write(mount.volume, other.ino, 0, b"x" * MIB)) == "ENOSPC"
        rng = random.Random(1)
        model = bytearray(b"a" * 5000).ljust(300 * BLOCK_BYTES, b"\0")
        for block in rng.sample(range(300), 200):  # so scattered that the map must grow
            await data.write(mount.volume, made.ino, block * BLOCK_BYTES + 7, b"y" * 100)
            model[block * BLOCK_BYTES + 7 : block * BLOCK_BYTES + 107] = b"y" * 100
        await data.fsync(mount.volume, made.ino, False)
        await mount.give_up(made.ino)
        assert await content(mount, made.ino) == model[: made.size]
        assert not mount.volume.write_back.errors
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


@pytest.mark.parametrize("call", ["write", "punch", "zero"])
async def test_no_block_for_the_tree(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """RG3: where an extent can't be cut, zeros are written instead."""
    async with mounted(await dirty_disk()) as mount:
        made = await mount.file(b"f")
        for number in range(160):  # the root is full
            await ranges.fallocate(mount.volume, made.ino, 0, number * 4 * BLOCK_BYTES, 3 * BLOCK_BYTES)
        expected = bytearray(639 * BLOCK_BYTES)
        if call != "write":
            await data.write(mount.volume, made.ino, 0, b"z" * (3 * BLOCK_BYTES))
            expected[: 3 * BLOCK_BYTES] = b"z" * (3 * BLOCK_BYTES)
        await data.fsync(mount.volume, made.ino, False)
        assert (len(made.root), made.depth) == (160, 0)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(mount.volume.allocator, "hold", no_group)
            if call == "write":
                await data.write(mount.volume, made.ino, BLOCK_BYTES, b"y" * BLOCK_BYTES)
                expected[BLOCK_BYTES : 2 * BLOCK_BYTES] = b"y" * BLOCK_BYTES
            else:
                mode = PUNCH if call == "punch" else ZERO_RANGE
                await ranges.fallocate(mount.volume, made.ino, mode, BLOCK_BYTES, BLOCK_BYTES)
                expected[BLOCK_BYTES : 2 * BLOCK_BYTES] = bytes(BLOCK_BYTES)
            await data.fsync(mount.volume, made.ino, False)
        await mount.give_up(made.ino)
        assert await content(mount, made.ino) == expected
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_no_block_for_the_tree_at_the_end_of_the_file(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of an extent becomes written then, but nothing behind the end of the file, whenever the power goes."""
    disk = await dirty_disk()
    async with mounted(disk, clean=False) as mount:
        made = await mount.file(b"f")
        for number in range(160):  # the root is full
            await ranges.fallocate(mount.volume, made.ino, KEEP_SIZE, number * 4 * BLOCK_BYTES, 3 * BLOCK_BYTES)
        await data.fsync(mount.volume, made.ino, False)
        with monkeypatch.context() as patch:
            patch.setattr(mount.volume.allocator, "hold", no_group)
            await data.write(mount.volume, made.ino, (159 * 4 + 1) * BLOCK_BYTES, b"y" * 100)
            await data.fsync(mount.volume, made.ino, False)
        superblock = mount.volume.superblock
    for k in range(len(disk.log) + 1):
        image = disk.crash_image(k, "keep-some", seed=k)
        async with mounted(image) as mount:
            found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
            whole = (await content(mount, found.ino)).rstrip(b"\0") if found is not None else b""
            assert whole in (b"", bytes((159 * 4 + 1) * BLOCK_BYTES) + b"y" * 100)
        await assert_clean(image, superblock, notes=False)
    assert whole


async def test_space_behind_the_end_stays_until_it_is_truncated(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        before = (await attributes.statfs(mount.volume)).free
        await data.write(mount.volume, made.ino, 0, b"abc")
        await ranges.fallocate(mount.volume, made.ino, KEEP_SIZE, 0, 10 * BLOCK_BYTES)
        assert (made.size, made.blocks512) == (3, 80)
        disk, superblock = mount.disk, mount.volume.superblock
    assert not (await fsck(disk, superblock)).kept, "not even a note"
    async with mounted(disk) as mount:
        again = await attributes.getattr(mount.volume, made.ino)
        assert (again.size, again.blocks512, await content(mount, made.ino)) == (3, 80, b"abc")
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=3))
        assert again.blocks512 == 8
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=0))
        await mount.volume.journal.commit()
        assert (await attributes.statfs(mount.volume)).free == before
    await assert_clean(disk, superblock, notes=False)


async def test_a_file_of_holes_alone_takes_no_space(autojump_clock: trio.abc.Clock) -> None:
    """As stat(2) tells it; a file that lies in its inode takes some, or tar(1) would take it for a hole."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"abc")
        await data.fsync(mount.volume, made.ino, False)
        assert (made.inline, made.blocks512) == (True, 8)
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=10 * MIB))
        await data.write(mount.volume, made.ino, MIB, b"x" * BLOCK_BYTES)
        await ranges.fallocate(mount.volume, made.ino, PUNCH, 0, 2 * MIB)
        assert (made.size, made.blocks512) == (10 * MIB, 0)
        sparse = await mount.file(b"g")
        await attributes.setattr(mount.volume, sparse.ino, attributes.Changes(size=10 * MIB))
        assert (sparse.size, sparse.blocks512) == (10 * MIB, 0)


async def test_what_is_written_in_order_stays_one_extent(autojump_clock: trio.abc.Clock) -> None:
    """Both ways, and next to what was written without being reserved."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await ranges.fallocate(mount.volume, made.ino, 0, 0, 30 * BLOCK_BYTES)
        for block in (10, 11, 12, 9, 8, 20, 14, 13):
            await data.write(mount.volume, made.ino, block * BLOCK_BYTES, b"x" * BLOCK_BYTES)
            await data.fsync(mount.volume, made.ino, False)
        found = await mapped(mount, made.ino, 0, 30)
        assert [(piece.logical, piece.length, piece.flags) for piece in found] == [
            (0, 8, UNWRITTEN), (8, 7, 0), (15, 5, UNWRITTEN), (20, 1, 0), (21, 9, UNWRITTEN),
        ]  # fmt: skip
        for block in range(30):
            await data.write(mount.volume, made.ino, block * BLOCK_BYTES, b"y" * BLOCK_BYTES)
        assert len(await mapped(mount, made.ino, 0, 30)) == 1


async def test_a_hole_over_many_groups(autojump_clock: trio.abc.Clock) -> None:
    """More groups than one step frees, and leaves that empty."""
    async with mounted(await dirty_disk(size=48 * MIB)) as mount:
        volume = mount.volume
        made = await mount.file(b"f")
        await data.write(volume, made.ino, 0, b"h" * BLOCK_BYTES)
        for number in range(45):
            await ranges.fallocate(volume, made.ino, 0, (1 + number * 200) * BLOCK_BYTES, 199 * BLOCK_BYTES)
            if number % 5 == 0:
                await fill_a_little(mount, number)
        used = {volume.superblock.group_of(piece.physical) for piece in await mapped(mount, made.ino, 1, 9000)
                if piece.physical}  # fmt: skip
        assert len(used) > GROUPS_PER_STEP
        await ranges.fallocate(volume, made.ino, PUNCH, 100, made.size)
        assert (made.blocks, await content(mount, made.ino)) == (1, (b"h" * 100).ljust(made.size, b"\0"))
        disk, superblock = mount.disk, volume.superblock
    await assert_clean(disk, superblock)


async def fill_a_little(mount: Local, number: int) -> None:
    made = await mount.file(b"between %d" % number)
    await ranges.fallocate(mount.volume, made.ino, 0, 0, 7 * BLOCK_BYTES)


@pytest.mark.parametrize("mode", [0, ZERO_RANGE])
async def test_a_filesystem_without_the_feature(autojump_clock: trio.abc.Clock, mode: int) -> None:
    """Reserved by zeros, but not behind the end; nothing that an older version can't read."""
    async with mounted(await without_feature(await dirty_disk())) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 5 * BLOCK_BYTES, b"old" * 3000)
        size = made.size
        call = ranges.fallocate(mount.volume, made.ino, KEEP_SIZE, 0, 30 * BLOCK_BYTES)
        assert await refused(call) == "ENOTSUP"
        await ranges.fallocate(mount.volume, made.ino, mode | KEEP_SIZE, 0, 6 * BLOCK_BYTES)
        await ranges.fallocate(mount.volume, made.ino, mode, 1000, 30 * BLOCK_BYTES)
        old = (bytes(5 * BLOCK_BYTES) + b"old" * 3000) if not mode else b""
        assert await content(mount, made.ino) == old.ljust(1000 + 30 * BLOCK_BYTES, b"\0")
        assert all(piece.written for piece in await mapped(mount, made.ino, 0, 31))
        assert made.size > size
        await ranges.fallocate(mount.volume, made.ino, PUNCH, 0, 4 * BLOCK_BYTES)
        assert 0 not in await data_blocks(mount, made.ino, made.size)
        disk, superblock = mount.disk, mount.volume.superblock
        assert superblock.extent_flags == 0
    await assert_clean(disk, superblock, notes=False)


async def test_a_truncation_that_a_crash_cut_short_is_finished_first(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 50_000)
        await data.fsync(mount.volume, made.ino, False)
        made.size = made.size_on_disk = 4096
        made.flags |= FLAG_TRUNCATING
        await ranges.fallocate(mount.volume, made.ino, 0, 0, 20_000)
        assert (made.flags, await content(mount, made.ino)) == (0, (b"x" * 4096).ljust(20_000, b"\0"))


async def test_a_truncation_that_waits_for_a_group_is_marked(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit may come between the new size and the first step: what was cut must not come back with the size."""
    real = Held.groups

    async def slow(held: Held, indexes: set[int]) -> object:
        await held._volume.journal.commit()
        return await real(held, indexes)

    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 50_000)
        await data.fsync(mount.volume, made.ino, False)
        begun = len(disk.log)
        monkeypatch.setattr(Held, "groups", slow)
        await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=5000))
        await data.fsync(mount.volume, made.ino, False)
        superblock = mount.volume.superblock
    for k in range(begun, len(disk.log) + 1):
        async with mounted(disk.crash_image(k)) as mount:
            await assert_clean(mount.disk, superblock, notes=False)
            found = await attributes.getattr(mount.volume, made.ino)
            assert found.size in (5000, 50_000)
            await attributes.setattr(mount.volume, made.ino, attributes.Changes(size=found.size + 30_000))
            content = await data.read(mount.volume, made.ino, 0, MIB)
            assert content == (b"x" * (found.size - 30_000)).ljust(found.size, b"\0")


async def test_arguments(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        volume = mount.volume
        ino = (await mount.file(b"f")).ino
        directory = (await mount.directory(b"d")).ino
        fifo = (await namespace.create(volume, ROOT_INODE, b"p", stat.S_IFIFO | 0o600, 0, 0)).ino
        calls = {
            "EINVAL": [(ino, 0, 0, 0), (ino, 0, -1, 5), (ino, 0, 5, -1), (fifo, 0, 0, 1)],
            "ENOTSUP": [(ino, 2, 0, 1), (ino, 8, 0, 4096), (ino, 32, 0, 4096), (ino, 64, 0, 1), (ino, 128, 0, 1)],
            "EFBIG": [(ino, 0, (1 << 63) - 5, 10), (ino, KEEP_SIZE, 1 << 62, 1 << 62)],
            "EISDIR": [(directory, 0, 0, 1)],
            "ESTALE": [(volume.superblock.group_start + 100, 0, 0, 1)],
        }
        for code, cases in calls.items():
            for case in cases:
                assert await refused(ranges.fallocate(volume, *case)) == code, case
        await data.write(volume, ino, 0, b"x" * 10_000)
        assert await refused(ranges.seek(volume, ino, 10_000, os.SEEK_DATA)) == "ENXIO"
        assert await refused(ranges.seek(volume, ino, -1, os.SEEK_HOLE)) == "ENXIO"
        assert await refused(ranges.seek(volume, ino, 0, os.SEEK_SET)) == "EINVAL"
        assert await refused(ranges.seek(volume, directory, 0, os.SEEK_DATA)) == "EISDIR"
        assert await refused(ranges.copy(volume, ino, 0, ino, 99, 100)) == "EINVAL"
        assert await refused(ranges.copy(volume, ino, 0, ino, (1 << 63) - 50, 100)) == "EFBIG"
        assert await refused(ranges.copy(volume, ino, 0, directory, 0, 100)) == "EISDIR"
        assert await refused(ranges.copy(volume, fifo, 0, ino, 0, 100)) == "EINVAL"
        assert await ranges.copy(volume, ino, 10_000, ino, 0, 100) == 0


# --- copying --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
async def test_copies_keep_holes(autojump_clock: trio.abc.Clock, backwards: bool) -> None:
    """From one file to another, whichever has the lower number; what was in the target's place goes."""
    async with mounted(await dirty_disk()) as mount:
        volume = mount.volume
        source, target = (await mount.file(b"s")).ino, (await mount.file(b"t")).ino
        if backwards:
            source, target = target, source
        await data.write(volume, source, 20 * BLOCK_BYTES, b"in the middle" * 1000)
        await data.write(volume, source, 90 * BLOCK_BYTES, b"buffered")
        await ranges.fallocate(volume, source, 0, 100 * BLOCK_BYTES, 10 * BLOCK_BYTES)
        await data.write(volume, target, 0, b"t" * (40 * BLOCK_BYTES))
        whole = await content(mount, source)
        assert await ranges.copy(volume, source, 0, target, 0, 1 << 40) == len(whole)
        await mount.give_up(target)
        assert await content(mount, target) == whole
        assert await data_blocks(mount, target, len(whole)) == {20, 21, 22, 23, 90}
        assert await ranges.copy(volume, source, 20 * BLOCK_BYTES + 5, target, 3, 5000) == 5000
        assert await content(mount, target) == (
            whole[:3] + whole[20 * BLOCK_BYTES + 5 :][:5000] + whole[5003:]
        )
        disk, superblock = mount.disk, volume.superblock
    await assert_clean(disk, superblock)


async def test_a_copy_that_space_ends(autojump_clock: trio.abc.Clock) -> None:
    """What was copied is told; nothing at all is ENOSPC."""
    async with mounted(size=48 * MIB) as mount:
        source, target = await mount.file(b"s"), await mount.file(b"t")
        await data.write(mount.volume, source.ino, 0, b"s" * (12 * MIB))
        await data.fsync(mount.volume, source.ino, False)
        await fill(mount, leave=2200)
        done = 0
        while True:
            try:
                copied = await ranges.copy(mount.volume, source.ino, done, target.ino, done, 12 * MIB - done)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                break
            assert copied
            done += copied
        assert 0 < done < 12 * MIB
        assert await content(mount, target.ino) == b"s" * done


# --- files without a name --------------------------------------------------------------------------------------


async def made_nameless(mount: Local) -> Inode:
    made = await namespace.tmpfile(mount.volume, ROOT_INODE, 0o600, 5, 6)
    mount.volume.opens.opened(made.ino)
    return made


async def orphans(mount: Local) -> int:
    return (await attributes.getattr(mount.volume, ORPHANS_START)).children


async def test_a_nameless_file_gets_a_name(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        volume = mount.volume
        made = await made_nameless(mount)
        assert (made.nlink, made.uid, made.gid, made.mode, await orphans(mount)) == (0, 5, 6, stat.S_IFREG | 0o600, 1)
        await data.write(volume, made.ino, 0, b"x" * 9000)
        await namespace.link(volume, made.ino, ROOT_INODE, b"f")
        await namespace.link(volume, made.ino, ROOT_INODE, b"g")
        assert (made.nlink, made.orphaned_by, await orphans(mount)) == (2, 0, 0)
        volume.opens.closed(made.ino)
        await mount.give_up(made.ino)
        found = await namespace.lookup(volume, ROOT_INODE, b"f")
        assert found is not None
        assert await content(mount, found.ino) == b"x" * 9000
        disk, superblock = mount.disk, volume.superblock
    await assert_clean(disk, superblock, notes=False)


async def test_a_nameless_file_goes_with_its_last_close(autojump_clock: trio.abc.Clock) -> None:
    async with mounted() as mount:
        before = (await attributes.statfs(mount.volume)).free
        made = await made_nameless(mount)
        await data.write(mount.volume, made.ino, 0, b"x" * 90_000)
        mount.volume.opens.closed(made.ino)
        await eventually(lambda: mount.volume.opens.deleted == 1)
        await mount.volume.allocator.settle()
        assert (await attributes.statfs(mount.volume)).free == before
        assert await orphans(mount) == 0


async def test_a_removed_file_gets_no_name(autojump_clock: trio.abc.Clock) -> None:
    """Neither one that was made without one, had one, and lost it."""
    async with mounted() as mount:
        volume = mount.volume
        removed, nameless = await mount.file(b"f"), await made_nameless(mount)
        volume.opens.opened(removed.ino)
        await namespace.link(volume, nameless.ino, ROOT_INODE, b"g")
        for made, name in ((removed, b"f"), (nameless, b"g")):
            await namespace.unlink(volume, ROOT_INODE, name)
            assert await refused(namespace.link(volume, made.ino, ROOT_INODE, b"again")) == "ENOENT"
            volume.opens.closed(made.ino)


@pytest.mark.parametrize("named", [False, True])
async def test_a_crash_frees_a_nameless_file_or_finds_its_name(autojump_clock: trio.abc.Clock, named: bool) -> None:
    """Power loss after every write: the file is one of the orphans, has its name, or was never made."""
    disk = await small_disk()
    async with mounted(disk, clean=False) as mount:
        made = await made_nameless(mount)
        await data.write(mount.volume, made.ino, 0, b"x" * 9000)
        if named:
            await data.fsync(mount.volume, made.ino, False)
            await namespace.link(mount.volume, made.ino, ROOT_INODE, b"f")
        await data.fsync(mount.volume, made.ino, False)
        superblock = mount.volume.superblock
    for k in range(len(disk.log) + 1):
        image = disk.crash_image(k, "tear", seed=k)
        async with mounted(image) as mount:
            found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
            left = await mount.volume.opens.adopt(0)
            assert left == 0 or found is None
            await eventually(lambda left=left, mount=mount: mount.volume.opens.deleted == left)
            if k == len(disk.log):
                assert (found is not None, left) == (named, not named)
        await assert_clean(image, superblock, notes=False)


async def test_extents_after_the_end_are_told_from_a_truncation(autojump_clock: trio.abc.Clock) -> None:
    """fsck: reserved blocks behind the end are sound, written ones are worth a note."""
    async with mounted() as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * (TAIL_BYTES + 20_000))
        await ranges.fallocate(mount.volume, made.ino, KEEP_SIZE, 0, MIB)
        disk, superblock = mount.disk, mount.volume.superblock
    assert not (await fsck(disk, superblock)).kept
    async with mounted(disk) as mount:
        inode = await attributes.getattr(mount.volume, made.ino)
        inode.size = inode.size_on_disk = 4096
        mount.volume.journal.add(inode)
    assert [finding.problem.code for finding in (await fsck(disk, superblock)).kept] == ["extent-past-eof"]
    assert await extents_left(disk) == 256


async def extents_left(disk: object) -> int:
    async with mounted(disk) as mount:  # type: ignore[arg-type]
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
        assert found is not None
        pieces = await extents.pieces(mount.volume, found, 0, 300)
        return sum(piece.length for piece in pieces if piece.physical)
