"""Sizes that the format promises (issue 5, "Scale"): a directory of a million names, a file of 16 TiB."""

from __future__ import annotations

import pytest

from matrixfs.fs import attributes, data, namespace, readdir
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES
from tests.matrixfs.local import MIB, Local, mounted, small_disk
from tests.sim.disk import SimDisk

NAMES = 1_000_000
NAMES_PER_INODE = 60_000
LISTED_AT_ONCE = 256
TIB = 1 << 40


async def test_a_file_of_16_tib() -> None:
    """Its ends and two places between; what lies there is a hole."""
    ends = (0, 5 * TIB, 16 * TIB - BLOCK_BYTES)
    async with mounted() as local:
        file = await local.file(b"large")
        for offset in ends:
            await data.write(local.volume, file.ino, offset, b"%d" % offset)
        await attributes.setattr(local.volume, file.ino, attributes.Changes(size=16 * TIB))
        await local.volume.sync()
        assert file.blocks == len(ends)
        await local.give_up(file.ino)
        for offset in ends:
            wanted = b"%d" % offset
            assert await data.read(local.volume, file.ino, offset, len(wanted)) == wanted
        assert await data.read(local.volume, file.ino, 3 * TIB, 64) == bytes(64)
        inode = await attributes.setattr(local.volume, file.ino, attributes.Changes(size=6 * TIB))
        assert inode.blocks == 2


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_directory_of_a_million_names() -> None:
    """Made, listed whole by cookies in pieces, every name found, half of them removed, listed again."""
    disk = await small_disk(size=256 * MIB, journal_blocks=1024)
    async with mounted(disk) as local:
        volume = local.volume
        top = await local.directory(b"top")
        ino = 0
        for number in range(NAMES):
            forget_log(disk, number)
            if number % NAMES_PER_INODE == 0:
                ino = (await local.file(b"%d" % number, top.ino)).ino
            else:
                await namespace.link(volume, ino, top.ino, b"%d" % number)
    async with mounted(disk) as local:
        volume = local.volume
        top_found = await namespace.lookup(volume, ROOT_INODE, b"top")
        assert top_found is not None
        assert top_found.children == NAMES
        cookies = await listed(local, top_found.ino)
        assert len(cookies) == NAMES
        for number in range(0, NAMES, 997):
            assert await namespace.lookup(volume, top_found.ino, b"%d" % number) is not None
        assert await namespace.lookup(volume, top_found.ino, b"%d" % NAMES) is None
        for number in range(0, NAMES, 2):
            forget_log(disk, number)
            await namespace.unlink(volume, top_found.ino, b"%d" % number)
        left = await listed(local, top_found.ino)
        assert left == {name: cookie for name, cookie in cookies.items() if int(name) % 2}, "cookies stay"


def forget_log(disk: SimDisk, number: int) -> None:
    """The simulated disk remembers every write, gigabytes here."""
    if number % 1000 == 0:
        disk.mark()


async def listed(local: Local, ino: int) -> dict[bytes, int]:
    """Every name and its cookie, each once."""
    found: dict[bytes, int] = {}
    cookie = 0
    while batch := await readdir.entries(local.volume, ino, cookie, LISTED_AT_ONCE):
        for cookie, name, _ in batch:
            assert name not in found
            found[name] = cookie
    return found
