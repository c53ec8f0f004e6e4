"""What statfs(2) answers, and how many groups are read for it (matrixfs/fs/free_counts.py)."""

from __future__ import annotations

import pytest
import trio

from matrixfs.fs import attributes, data, free_counts
from membership.errors import DeviceError
from tests.matrixfs.local import MIB, Local, eventually, mounted, small_disk


async def free(local: Local) -> int:
    return (await attributes.statfs(local.volume)).free


@pytest.fixture
def turns_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_counts, "TURN", 4)


async def test_it_reads_all_at_first_then_in_turns(turns_of_four: None, autojump_clock: trio.testing.MockClock) -> None:
    async with mounted(await small_disk(size=64 * MIB)) as local:
        groups = local.volume.superblock.groups
        assert groups > 8
        before = local.disk.operations["read"]
        found = await free(local)
        assert local.disk.operations["read"] - before >= groups - 2
        before = local.disk.operations["read"]
        for _ in range(10):
            assert await free(local) == found
        assert local.disk.operations["read"] == before, "not at every call"
        for _ in range(3):
            await trio.sleep(free_counts.TURN_SECONDS)
            before = local.disk.operations["read"]
            assert await free(local) == found
            assert local.disk.operations["read"] - before <= 4


async def test_what_this_node_takes_and_frees_is_counted_at_once() -> None:
    async with mounted() as local:
        before = await free(local)
        file = await local.file(b"f")
        await data.write(local.volume, file.ino, 0, b"x" * (40 * 4096))
        await local.volume.sync()
        assert await free(local) == before - 41
        await attributes.setattr(local.volume, file.ino, attributes.Changes(size=0))
        await local.volume.sync()
        assert await free(local) == before - 1


async def test_a_group_that_was_given_up_counts_as_it_was_left() -> None:
    async with mounted() as local:
        before = await free(local)
        file = await local.file(b"f")
        await local.volume.sync()
        group = local.volume.superblock.group_block(local.volume.superblock.group_of(file.ino))
        resource = next(each for each in local.manager.held if each.object == group)
        local.locks.revoke(resource, 0)
        await eventually(lambda: (lock := local.locks.find(resource)) is None or not lock.mode)
        reads = local.disk.operations["read"]
        assert await free(local) == before - 1
        assert local.disk.operations["read"] == reads


async def test_a_store_that_fails_is_asked_again() -> None:
    async with mounted() as local:
        local.disk.fail("read", times=1)
        with pytest.raises(DeviceError):
            await free(local)
        assert await free(local) > 0
