"""What a file handle reaches, and how it tells apart files of one number."""

from __future__ import annotations

import errno
import stat

import pytest

from matrixfs.fs import attributes, namespace
from matrixfs.fuse.file_handles import by_number
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE, SYSTEM_BLOCKS
from tests.matrixfs.local import Local, mounted


async def reached(mount: Local, ino: int, name: bytes = b".") -> int:
    return (await by_number(attributes, mount.volume, ino, name)).ino  # type: ignore[arg-type]


async def stale(mount: Local, ino: int, name: bytes = b".") -> bool:
    with pytest.raises(OSError) as caught:
        await reached(mount, ino, name)
    return caught.value.errno == errno.ESTALE


async def test_dots_of_a_number() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        outer = await namespace.mkdir(mount.volume, ROOT_INODE, b"d", stat.S_IFDIR | 0o755, 0, 0)
        inner = await namespace.mkdir(mount.volume, outer.ino, b"e", stat.S_IFDIR | 0o755, 0, 0)
        for ino in (ROOT_INODE, made.ino, outer.ino, inner.ino):
            assert await reached(mount, ino) == ino
        assert [await reached(mount, ino, b"..") for ino in (ROOT_INODE, outer.ino, inner.ino)] == [
            ROOT_INODE, ROOT_INODE, outer.ino,
        ]  # fmt: skip
        assert await stale(mount, made.ino, b"..")
        for ino in (0, ORPHANS_START, SYSTEM_BLOCKS - 1, SYSTEM_BLOCKS, made.ino + 50, 1 << 40, (1 << 64) - 1):
            assert await stale(mount, ino), ino


async def test_a_removed_file_is_reached_no_more_though_it_is_open() -> None:
    async with mounted() as mount:
        made = await mount.file(b"f")
        mount.volume.opens.opened(made.ino)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        assert await stale(mount, made.ino)
        mount.volume.opens.closed(made.ino)
        assert await stale(mount, made.ino)


async def test_a_generation_is_known_to_nodes_only() -> None:
    """It stays, over mounts; another file, a number used again, or another filesystem has another."""
    async with mounted() as mount:
        made, other = await mount.file(b"f"), await mount.file(b"g")
        told = attributes.generation(mount.volume, made)
        assert 0 <= told < 1 << 32
        assert told != attributes.generation(mount.volume, other)
        disk = mount.disk
    async with mounted(disk) as mount:
        again = await attributes.getattr(mount.volume, made.ino)
        assert attributes.generation(mount.volume, again) == told
        again.incarnation ^= 2
        assert attributes.generation(mount.volume, again) != told
        again.incarnation ^= 2
        mount.volume.superblock.hash_seed ^= 1
        assert attributes.generation(mount.volume, again) != told
