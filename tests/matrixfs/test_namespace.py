"""Names on one node: create, link, unlink, rmdir, and their errors."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import Awaitable

import pytest
import trio

from matrixfs.fs import attributes, namespace, readdir
from matrixfs.fs.allocation import NUMBERS_PASSED_MAX
from matrixfs.fs.volume import NoKernelCaches
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, eventually, mounted, small_disk
from tests.sim.checkers import assert_clean


async def code_of(operation: Awaitable[object]) -> int:
    with pytest.raises(OSError) as caught:
        await operation
    return caught.value.errno or 0


async def names(mount: Local, ino: int = ROOT_INODE) -> list[bytes]:
    return sorted(name for _, name, _ in await readdir.entries(mount.volume, ino, 0, 10_000))


async def test_create_and_look_up() -> None:
    async with mounted() as mount:
        made = await namespace.create(mount.volume, ROOT_INODE, b"f", stat.S_IFREG | 0o640, 1000, 100)
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
        assert found is made
        assert (found.mode, found.nlink, found.uid, found.gid, found.size) == (stat.S_IFREG | 0o640, 1, 1000, 100, 0)
        assert found.mtime_ns == found.ctime_ns == found.btime_ns > 0
        assert await namespace.lookup(mount.volume, ROOT_INODE, b"g") is None


@pytest.mark.parametrize("known", [3, 100], ids=["some", "more than are looked at"])
async def test_a_new_inode_rather_has_no_number_under_which_the_kernel_knows_a_directory(known: int) -> None:
    """Another node removed that, and it may be in use here: the kernel would break it for the new inode."""

    class Knows(NoKernelCaches):
        def knows_directory(self, ino: int) -> bool:
            return first < ino <= first + known

    async with mounted() as mount:
        first = (await mount.file(b"before")).ino
        mount.volume.kernel = Knows()
        available = mount.volume.allocator.available
        numbers = [(await mount.file(b"%d" % i)).ino for i in range(3)]
        avoided = known < NUMBERS_PASSED_MAX
        assert all((number > first + known) == avoided for number in numbers)
        assert mount.volume.allocator.available == available - 3, "what was passed over is free"
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_special_files() -> None:
    async with mounted() as mount:
        for number, kind in enumerate((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)):
            await namespace.create(mount.volume, ROOT_INODE, b"%d" % number, kind | 0o600, 0, 0, rdev=77)
        disk = mount.disk
    async with mounted(disk) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"2")
        assert found is not None
        assert (stat.S_ISCHR(found.mode), found.rdev) == (True, 77)
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_directories_count_links_and_names() -> None:
    async with mounted() as mount:
        a = await mount.directory(b"a")
        b = await mount.directory(b"b", a.ino)
        await mount.file(b"f", a.ino)
        assert (a.nlink, a.children, b.nlink, b.parent) == (3, 2, 2, a.ino)
        assert await code_of(namespace.rmdir(mount.volume, ROOT_INODE, b"a")) == errno.ENOTEMPTY
        await namespace.rmdir(mount.volume, a.ino, b"b")
        await namespace.unlink(mount.volume, a.ino, b"f")
        assert (a.nlink, a.children, a.size) == (2, 0, 0)
        await namespace.rmdir(mount.volume, ROOT_INODE, b"a")
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_set_group_id_is_handed_down() -> None:
    async with mounted() as mount:
        parent = await namespace.mkdir(mount.volume, ROOT_INODE, b"p", 0o2775, 0, 50)
        child = await namespace.mkdir(mount.volume, parent.ino, b"d", 0o755, 0, 0)
        made = await namespace.create(mount.volume, parent.ino, b"f", stat.S_IFREG | 0o644, 0, 0)
        assert (child.gid, bool(child.mode & stat.S_ISGID), made.gid) == (50, True, 50)


async def test_errors() -> None:
    async with mounted() as mount:
        volume = mount.volume
        made = await mount.file(b"f")
        directory = await mount.directory(b"d")
        create, unlink, rmdir, link = namespace.create, namespace.unlink, namespace.rmdir, namespace.link
        mode = stat.S_IFREG | 0o600
        assert await code_of(create(volume, ROOT_INODE, b"f", mode, 0, 0)) == errno.EEXIST
        assert await code_of(create(volume, made.ino, b"g", mode, 0, 0)) == errno.ENOTDIR
        assert await code_of(create(volume, 5_000_000, b"g", mode, 0, 0)) == errno.ESTALE
        assert await code_of(namespace.lookup(volume, made.ino, b"g")) == errno.ENOTDIR
        assert await code_of(unlink(volume, ROOT_INODE, b"g")) == errno.ENOENT
        assert await code_of(unlink(volume, ROOT_INODE, b"d")) == errno.EISDIR
        assert await code_of(rmdir(volume, ROOT_INODE, b"f")) == errno.ENOTDIR
        assert await code_of(link(volume, directory.ino, ROOT_INODE, b"g")) == errno.EPERM
        assert await code_of(link(volume, directory.ino, directory.ino, b"g")) == errno.EPERM
        assert await code_of(link(volume, made.ino, ROOT_INODE, b"d")) == errno.EEXIST
        assert await code_of(namespace.symlink(volume, ROOT_INODE, b"s", b"x" * 4096, 0, 0)) == errno.ENAMETOOLONG
        assert await names(mount) == [b"d", b"f"]
        disk, superblock = mount.disk, volume.superblock
    await assert_clean(disk, superblock, notes=False)


async def test_a_failed_operation_changes_nothing() -> None:
    async with mounted() as mount:
        await mount.file(b"f")
        await mount.volume.sync()
        free = (await attributes.statfs(mount.volume)).free
        for _ in range(5):
            await code_of(mount.file(b"f"))
            await code_of(namespace.unlink(mount.volume, ROOT_INODE, b"g"))
        assert mount.volume.journal.running.empty
        assert (await attributes.statfs(mount.volume)).free == free


async def test_hard_links() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        directory = await mount.directory(b"d")
        await namespace.link(mount.volume, made.ino, directory.ino, b"g")
        assert made.nlink == 2
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        assert (made.nlink, made.orphaned_by) == (1, 0)
        assert await namespace.lookup(mount.volume, directory.ino, b"g") is made
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock, notes=False)


async def test_a_removed_directory_takes_no_names() -> None:
    async with mounted() as mount:
        directory = await mount.directory(b"d")
        made = await mount.file(b"f")
        await namespace.rmdir(mount.volume, ROOT_INODE, b"d")
        assert await code_of(mount.file(b"x", directory.ino)) in (errno.ENOENT, errno.ESTALE)
        assert await code_of(namespace.link(mount.volume, made.ino, directory.ino, b"x")) in (
            errno.ENOENT,
            errno.ESTALE,
        )


async def test_what_is_deleted_is_stale() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        await eventually(lambda: mount.volume.opens.deleted)
        assert await code_of(attributes.getattr(mount.volume, made.ino)) == errno.ESTALE


async def test_the_links_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "LINKS_MAX", 4)
    monkeypatch.setattr(namespace, "DIRECTORY_LINKS_MAX", 4)
    async with mounted() as mount:
        made = await mount.file(b"f")
        for number in range(3):
            await namespace.link(mount.volume, made.ino, ROOT_INODE, b"l%d" % number)
        assert await code_of(namespace.link(mount.volume, made.ino, ROOT_INODE, b"l9")) == errno.EMLINK
        await mount.directory(b"d0")
        await mount.directory(b"d1")
        assert await code_of(mount.directory(b"d2")) == errno.EMLINK


async def test_a_flipped_bit_is_an_error_of_that_object_alone(autojump_clock: trio.abc.Clock) -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made = [await mount.file(b"f%d" % number) for number in range(3)]
        await mount.volume.sync()
        for one in made:
            await mount.give_up(one.ino)
        disk.corrupt(made[1].ino * BLOCK_BYTES + 70)
        with pytest.raises(CorruptRecord, match=f"block {made[1].ino} "):
            await attributes.getattr(mount.volume, made[1].ino)
        for number in (0, 2):
            await attributes.getattr(mount.volume, made[number].ino)
        assert await names(mount) == [b"f0", b"f1", b"f2"], "the name stays visible"
        disk.corrupt(made[1].ino * BLOCK_BYTES + 70)


@pytest.mark.parametrize("seed", range(6))
async def test_random_operations_against_a_model(autojump_clock: trio.abc.Clock, seed: int) -> None:
    """One node, a tree of directories, a dict as model; in the end fsck, and the same tree after a remount."""
    rng = random.Random(seed)
    async with mounted(seed=seed) as mount:
        model: dict[int, dict[bytes, int]] = {ROOT_INODE: {}}  # directory -> name -> inode
        parents = {ROOT_INODE: ROOT_INODE}

        def above(ino: int) -> set[int]:
            found = {ino}
            while ino != ROOT_INODE:
                ino = parents[ino]
                found.add(ino)
            return found

        for _ in range(300):
            parent, other = rng.choice(list(model)), rng.choice(list(model))
            name, new = b"n%d" % rng.randrange(8), b"n%d" % rng.randrange(8)
            there, target = model[parent].get(name), model[other].get(new)
            step = rng.choice(("create", "create", "mkdir", "unlink", "rmdir", "rename", "rename", "link"))
            try:
                if step == "create":
                    made = await mount.file(name, parent)
                    assert there is None
                    model[parent][name] = made.ino
                elif step == "mkdir":
                    made = await mount.directory(name, parent)
                    assert there is None
                    model[parent][name] = made.ino
                    model[made.ino], parents[made.ino] = {}, parent
                elif step == "link":
                    files = [i for directory in model.values() for i in directory.values() if i not in model]
                    if files:
                        ino = rng.choice(files)
                        await namespace.link(mount.volume, ino, parent, name)
                        assert there is None
                        model[parent][name] = ino
                elif step in ("unlink", "rmdir"):
                    await getattr(namespace, step)(mount.volume, parent, name)
                    assert there is not None
                    assert (step == "rmdir") == (there in model)
                    assert not model.get(there)
                    del model[parent][name]
                    model.pop(there, None)
                else:
                    await namespace.rename(mount.volume, parent, name, other, new)
                    assert there is not None
                    if target != there:
                        assert there not in above(other), "into itself"
                        assert target is None or (target in model) == (there in model)
                        assert not model.get(target or 0), "over a directory with names"
                        model.pop(target or 0, None)
                        del model[parent][name]
                        model[other][new] = there
                        if there in model:
                            parents[there] = other
            except OSError as error:
                assert error.errno in (
                    errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL,
                ), (step, error)  # fmt: skip
        for ino, directory in model.items():
            assert await names(mount, ino) == sorted(directory)
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)
    async with mounted(disk) as mount:
        for ino, directory in model.items():
            assert await names(mount, ino) == sorted(directory)
        assert await names(mount, ORPHANS_START + 1) == []
