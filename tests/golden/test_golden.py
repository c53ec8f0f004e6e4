"""Stores made by older versions open, replay and check clean, for ever (R12, style.md 11)."""

from __future__ import annotations

import lzma
import stat
from pathlib import Path

import pytest
import trio

from matrixfs.blockstore import data_window, open_store
from matrixfs.cli.fsck_cmd import run
from matrixfs.fs import attributes, data, namespace, quota_admin, readdir, xattrs
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.replay import replay
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.inode import FLAG_NOATIME, FLAG_NODUMP, FLAG_PROJECT_INHERIT
from matrixfs.ondisk.quota import USER, Limits
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.label import BLOCK_BYTES, DATA_BLOCK, read_label
from tests.golden.make import NAMES, NEW, OLD, SPARSE_AT
from tests.matrixfs.local import mounted
from tests.sim.disk import SimDisk

HERE = Path(__file__).parent
IMAGES = sorted(path.name.removesuffix(".img.xz") for path in HERE.glob("v*.img.xz"))


def image(name: str) -> bytes:
    return lzma.decompress((HERE / f"{name}.img.xz").read_bytes())


def test_there_is_an_image_of_the_present_format() -> None:
    assert {"v1-clean", "v1-crashed"} <= set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_fsck_finds_it_clean(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    store.write_bytes(image(name))
    assert run(["-n", str(store)]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", IMAGES)
def test_its_label_is_read(name: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_bytes(image(name))

    async def main() -> str:
        device = open_store(str(store))
        try:
            label = await read_label(device)
            return (await read_superblock(data_window(device, label))).name
        finally:
            await device.aclose()

    assert trio.run(main) == "golden"


@pytest.mark.parametrize("name", IMAGES)
async def test_everything_in_it_is_read(name: str, autojump_clock: object) -> None:
    content = image(name)[DATA_BLOCK * BLOCK_BYTES : -BLOCK_BYTES]
    disk = SimDisk(len(content), 4096)
    await disk.write(0, content, durable=True)
    superblock = await read_superblock(disk)
    for index in range(superblock.journals):
        await replay(disk, superblock, index, expect=None)
    async with mounted(disk) as local:
        await look(local.volume, crashed="crashed" in name)
        if local.volume.quotas is not None:
            rows = {(row.kind, row.number): row for row in await quota_admin.report(local.volume)}
            assert (rows[USER, 12].inodes, rows[USER, 12].limits) == (1, Limits(512, 256, 100))
        assert (local.volume.quotas is not None) == ("quotas" in name)


async def look(volume: Volume, *, crashed: bool) -> None:
    async def read(name: bytes) -> bytes:
        found = await namespace.lookup(volume, ROOT_INODE, name)
        assert found is not None
        return await data.read(volume, found.ino, 0, found.size)

    small = await namespace.lookup(volume, ROOT_INODE, b"small")
    assert small is not None
    assert (small.mode, small.uid, small.gid, small.nlink) == (stat.S_IFREG | 0o4751, 12, 34, 2)
    assert (small.atime_ns, small.mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert await read(b"small") == await read(b"second name") == b"lies in its inode\n"
    if not small.bare:  # not in version 1
        tagged = await namespace.lookup(volume, ROOT_INODE, b"sparse")
        assert tagged is not None
        assert (await xattrs.get(volume, small.ino, b"user.small"))[1] == b"in the inode"
        assert (await xattrs.get(volume, tagged.ino, b"user.large"))[1] == b"in a chain" * 2000
    if small.flags:  # not in version 1 and 2
        assert small.flags == FLAG_NODUMP | FLAG_NOATIME
        directory = await namespace.lookup(volume, ROOT_INODE, b"many")
        assert directory is not None
        assert (directory.flags, directory.project) == (FLAG_PROJECT_INHERIT, 77)
    sparse = await read(b"sparse")
    assert sparse[:SPARSE_AT] == b"".join(b"%04d" % i * 1024 + bytes(4096) for i in range(200)).ljust(SPARSE_AT, b"\0")
    assert sparse[SPARSE_AT:] == b"the end"
    if await namespace.lookup(volume, ROOT_INODE, b"reserved") is not None:  # not in version 1
        assert await read(b"reserved") == (bytes(8192) + b"in the middle").ljust(SPARSE_AT, b"\0")
    if await namespace.lookup(volume, ROOT_INODE, b"overwritten") is not None:  # not before version 3
        assert await read(b"overwritten") == (NEW + OLD[len(NEW) :] if crashed else OLD)
    many = await namespace.lookup(volume, ROOT_INODE, b"many")
    assert many is not None
    listed = [name for _, name, _ in await readdir.entries(volume, many.ino, 0, 2 * NAMES)]
    assert sorted(listed) == [b"a rather long name so that few fit a block %06d" % i for i in range(NAMES)]
    for name, target in ((b"short link", b"small"), (b"long link", b"x" * 4000)):
        link = await namespace.lookup(volume, ROOT_INODE, name)
        assert link is not None
        assert await attributes.readlink(volume, link.ino) == target
    device = await namespace.lookup(volume, ROOT_INODE, b"device")
    assert device is not None
    assert stat.S_ISCHR(device.mode)
    fifo = await namespace.lookup(volume, ROOT_INODE, b"fifo")
    assert (fifo is None) == crashed
    if crashed:
        assert await read(b"only in the journal") == b"synced\n"
