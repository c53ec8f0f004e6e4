"""Directories that another node removed, and this node's kernel still knows (matrixfs/fuse/removed.py), kernelless."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace
from typing import Any

import pytest

from matrixfs.fuse.libfuse import pyfuse3
from tests.matrixfs.test_fuse_operations import CALLER, Kernelless, inode

DIRECTORY = stat.S_IFDIR | 0o750


def removed_world(how: str, **functions: Any) -> tuple[Kernelless, list[str]]:
    """The kernel knows directory 100 from a LOOKUP.  Then it is ``gone``, or its number is ``used again``."""
    asked: list[str] = []

    def once_there(name: str) -> Any:
        async def function(*_arguments: Any, **_more: Any) -> Any:
            asked.append(name)
            if how == "gone":
                raise OSError(errno.ESTALE, "deleted")
            return inode(100, DIRECTORY, mtime_ns=99, incarnation=2)

        return function

    async def look_up(*_arguments: Any) -> Any:
        return inode(100, DIRECTORY, uid=7, mtime_ns=5)

    world = Kernelless(
        getattr=once_there("getattr"), create=once_there("create"), unlink=once_there("unlink"),
        **{"lookup": look_up, **functions},
    )  # fmt: skip
    return world, asked


async def code_of(call: Any) -> str:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    return errno.errorcode[caught.value.errno]


@pytest.mark.parametrize("how", ["gone", "used again"])
async def test_a_directory_that_another_node_removed_is_told_as_it_was_without_links(how: str) -> None:
    world, asked = removed_world(how)
    await world.operations.lookup(1, b"d", CALLER)
    reply = await world.operations.getattr(100, CALLER)
    assert (reply.st_mode, reply.st_nlink, reply.st_uid, reply.st_mtime_ns) == (DIRECTORY, 0, 7, 5)
    handle = await world.operations.opendir(100, CALLER)
    assert await code_of(world.operations.readdir(handle, 0, None)) == "ENOENT"
    await world.operations.fsyncdir(handle, False)
    await world.operations.releasedir(handle)
    assert (world.opened, world.closed) == ([], []), "it counts as open nowhere"
    assert await code_of(world.operations.lookup(100, b"x", CALLER)) == "ENOENT"
    assert await code_of(world.operations.mknod(100, b"x", stat.S_IFREG | 0o600, 0, CALLER)) == "ENOENT"
    assert await code_of(world.operations.unlink(100, b"x", CALLER)) == "ENOENT"
    assert await code_of(world.operations.rename(1, b"x", 100, b"x", 0, CALLER)) == "ENOENT"
    assert await code_of(world.operations.getxattr(100, b"user.x", CALLER)) == "ENODATA"
    assert await world.operations.listxattr(100, CALLER) == []
    assert asked == ["getattr"], "its lock is needed no more, and its number may be another's"


async def test_what_meets_a_removed_directory_first_looks_whether_it_is() -> None:
    for first in ("opendir", "unlink", "mknod"):
        world, asked = removed_world("gone")
        await world.operations.lookup(1, b"d", CALLER)
        if first == "opendir":
            await world.operations.releasedir(await world.operations.opendir(100, CALLER))
            assert world.opened == world.closed == [100]
        elif first == "unlink":
            assert await code_of(world.operations.unlink(100, b"x", CALLER)) == "ENOENT"
            assert asked == ["unlink", "getattr"]
        else:
            assert await code_of(world.operations.mknod(100, b"x", stat.S_IFREG, 0, CALLER)) == "ENOENT"


async def test_a_stale_answer_in_a_living_directory_stays_one() -> None:
    """As where a name changed just now: the kernel then walks the path again."""

    async def there(*_arguments: Any) -> Any:
        return inode(100, DIRECTORY)

    async def stale(*_arguments: Any, **_more: Any) -> Any:
        raise OSError(errno.ESTALE, "the name has just changed")

    world = Kernelless(lookup=there, getattr=there, create=stale)
    await world.operations.lookup(1, b"d", CALLER)
    assert await code_of(world.operations.create(100, b"x", 0o600, os.O_RDWR, CALLER)) == "ESTALE"
    assert (await world.operations.getattr(100, CALLER)).st_nlink == 1


async def test_a_removed_file_is_stale_and_so_is_a_directory_that_could_not_be_read_when_it_was_listed() -> None:
    for mode, readable in ((stat.S_IFREG | 0o644, True), (DIRECTORY, False)):

        async def look_up(*_arguments: Any, mode: int = mode, readable: bool = readable) -> Any:
            return inode(100, mode, readable=readable)

        world, _ = removed_world("gone", lookup=look_up)
        await world.operations.lookup(1, b"d", CALLER)
        assert await code_of(world.operations.getattr(100, CALLER)) == "ESTALE"
        assert await code_of(world.operations.opendir(100, CALLER)) == "ESTALE"


async def test_a_directory_found_under_the_number_of_a_removed_one_is_there() -> None:
    world, _ = removed_world("used again")
    await world.operations.lookup(1, b"d", CALLER)
    assert (await world.operations.getattr(100, CALLER)).st_nlink == 0
    world.operations._names.lookup = world.operations._attributes.getattr
    await world.operations.lookup(1, b"d", CALLER)
    reply = await world.operations.getattr(100, CALLER)
    assert (reply.st_nlink, reply.st_mtime_ns) == (1, 99)


async def test_attributes_set_on_a_removed_directory_last_as_long_as_it_is_known() -> None:
    world, _ = removed_world("gone")
    world.operations._attributes.Changes = SimpleNamespace
    await world.operations.lookup(1, b"d", CALLER)
    fields = SimpleNamespace(
        update_mode=True, update_uid=False, update_gid=False, update_size=False, update_atime=False, update_mtime=True
    )
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_mtime_ns = 0o700, 77
    world.operations._attributes.setattr = world.operations._attributes.getattr
    await world.operations.setattr(100, wanted, fields, None, CALLER)
    reply = await world.operations.getattr(100, CALLER)
    assert (reply.st_mode, reply.st_uid, reply.st_mtime_ns) == (stat.S_IFDIR | 0o700, 7, 77)
    assert world.caches.knows_directory(100)
    await world.operations.forget([(100, 1)])
    assert not world.caches.knows_directory(100)
    assert await code_of(world.operations.getattr(100, CALLER)) == "ESTALE"
