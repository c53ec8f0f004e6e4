"""Data through the journal (data_journal DJ1 to DJ5): crashes, read back, revokes, replay."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from matrixfs.fs import attributes, data, data_journal, namespace
from matrixfs.ondisk.inode import FLAG_JOURNAL_DATA
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import Local, mounted, small_disk
from tests.matrixfs.test_data import content, random_steps
from tests.sim.checkers import assert_clean
from tests.sim.disk import SimDisk, Write


@asynccontextmanager
async def journalling(
    disk: SimDisk | None = None, *, clean: bool = True, index: int = 0, **options: int
) -> AsyncIterator[Local]:
    """A mount with data=journal."""
    async with mounted(disk, clean=clean, index=index, **options) as mount:
        mount.volume.journal_data = True
        yield mount


def block(letter: bytes) -> bytes:
    return letter * BLOCK_BYTES


async def file_of(mount: Local, name: bytes, contents: bytes) -> int:
    """A new file, durable and in place, with nothing of it in the log."""
    ino = (await mount.file(name)).ino
    await data.write(mount.volume, ino, 0, contents)
    await mount.give_up(ino)
    await mount.volume.journal.rest()
    return ino


async def test_a_synced_overwrite_lies_in_the_log_only_and_is_read_from_there() -> None:
    async with journalling(clean=False) as mount:
        ino = await file_of(mount, b"f", block(b"o") * 3)
        logged = len(mount.disk.log)
        await data.write(mount.volume, ino, BLOCK_BYTES + 5, b"new")
        await data.fsync(mount.volume, ino, False)
        writes = [entry for entry in mount.disk.log[logged:] if isinstance(entry, Write)]
        assert [write.length // BLOCK_BYTES for write in writes] == [1, 3]  # the header, and a frame of two images
        assert len(mount.disk.log) == logged + 2  # no flush
        expected = block(b"o") + b"ooooonew".ljust(BLOCK_BYTES, b"o") + block(b"o")
        assert await content(mount, ino) == expected
    async with mounted(mount.disk) as mount:
        found = await namespace.lookup(mount.volume, ROOT_INODE, b"f")
        assert found is not None
        assert await content(mount, found.ino) == expected
