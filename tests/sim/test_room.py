"""Space of removed files, before ENOSPC is said (``matrixfs/fs/room.py``; issue 5, "Space")."""

from __future__ import annotations

import errno
import stat

import pytest
import trio

from matrixfs.fs import data, namespace
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.room import REST
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.sim.checkers import assert_clean
from tests.sim.fs_world import MIB, SimMount, World, run_world

SIZE = 8 * MIB
FILE_BYTES = 64 << 10


async def fill(mount: SimMount) -> list[bytes]:
    """Files up to the last block; their names."""
    names: list[bytes] = []
    try:
        while True:
            made = await namespace.create(mount.volume, ROOT_INODE, b"%d" % len(names), stat.S_IFREG | 0o644, 0, 0)
            names.append(b"%d" % len(names))
            await data.write(mount.volume, made.ino, 0, b"x" * FILE_BYTES)
            await data.fsync(mount.volume, made.ino, False)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    return names


async def is_full(mount: SimMount, ino: int) -> bool:
    """Whether a file can't get its bytes, without any further effort."""
    try:
        await data.write(mount.volume, ino, 0, b"y" * FILE_BYTES)
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return True
    return False


async def leave(world: World) -> None:
    for node in list(world.mounts):
        await world.leave(node)
    await assert_clean(world.disk, await read_superblock(world.disk), notes=False)


@pytest.mark.parametrize("remover", [0, 1], ids=["here", "on another node"])
def test_removed_files_give_their_space_before_anybody_hears_of_enospc(remover: int) -> None:

    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        here, there = mounts[0].volume, mounts[remover].volume
        made = await namespace.create(here, ROOT_INODE, b"late", stat.S_IFREG | 0o644, 0, 0)
        names = await fill(mounts[0])
        assert await is_full(mounts[0], made.ino)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(there.opens, "try_delete", lambda _ino: None)  # much waits before them
            for name in names:
                await namespace.unlink(there, ROOT_INODE, name)
        assert await is_full(mounts[0], made.ino), "else this proves nothing"
        assert await here.room.make()
        assert here.opens.deleted == len(names)
        assert not await is_full(mounts[0], made.ino)
        await data.fsync(here, made.ino, False)
        await leave(world)

    run_world(1, body, size=SIZE, journals=2, journal_blocks=64)


@pytest.mark.parametrize("refused_before", [0, 20])
def test_what_another_node_is_about_to_free_is_waited_for(refused_before: int) -> None:
    """However often this node was refused just before."""

    async def body(world: World) -> None:
        mounts = await world.start(0, 1)
        here, there = mounts[0].volume, mounts[1].volume
        made = await namespace.create(here, ROOT_INODE, b"late", stat.S_IFREG | 0o644, 0, 0)
        names = await fill(mounts[0])
        for _ in range(refused_before):
            assert await is_full(mounts[0], made.ino)
            assert not await here.room.make()
        for name in names[:10]:
            await namespace.unlink(there, ROOT_INODE, name)
        assert await here.room.make()
        assert not await is_full(mounts[0], made.ino)
        await leave(world)

    run_world(3, body, size=SIZE, journals=2, journal_blocks=64)


def test_a_removed_file_that_is_open_here_is_no_reason_to_hope() -> None:
    async def body(world: World) -> None:
        (mount,) = await world.start(0)
        volume, names = mount.volume, await fill(mount)
        ino = (await namespace.lookup(volume, ROOT_INODE, names[0])).ino  # type: ignore[union-attr]
        volume.opens.opened(ino)
        await namespace.unlink(volume, ROOT_INODE, names[0])
        assert not await volume.room.make()
        volume.opens.closed(ino)
        assert await volume.room.make()
        await leave(world)

    run_world(4, body, size=SIZE, journals=2, journal_blocks=64)


def test_callers_share_a_round_and_a_full_store_is_not_searched_without_rest() -> None:
    async def body(world: World) -> None:
        (mount,) = await world.start(0)
        names = await fill(mount)
        room, adopt = mount.volume.room, mount.volume.opens.adopt
        found: list[bool] = []
        searched: list[int] = []

        async def adopted(journal: int) -> int:
            searched.append(journal)
            return await adopt(journal)

        mount.volume.opens.adopt = adopted  # type: ignore[method-assign]

        async def one() -> None:
            found.append(await room.make())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert found == [False] * 5
        assert searched == [0, 1]
        begun = trio.current_time()
        for _ in range(10):
            assert not await room.make()
        assert searched == [0, 1] * 11
        assert trio.current_time() - begun > 9.9 * REST
        await namespace.unlink(mount.volume, ROOT_INODE, names[0])
        assert await room.make()
        await leave(world)

    run_world(2, body, size=SIZE, journals=2, journal_blocks=64)
