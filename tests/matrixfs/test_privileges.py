"""privileges.py: what whose change takes away (PR1 to PR3)."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable

import pytest

from matrixfs.fs import attributes, data, namespace, privileges, ranges, xattrs
from matrixfs.fs.inode import Inode
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.superblock import ROOT_INODE
from matrixfs.ondisk.xattr import CAPABILITY
from tests.matrixfs.local import Local, mounted
from tests.sim.checkers import assert_clean

GROUP = 7


class Someone:
    """Keeps set-id bits or not, and is in one group or in none."""

    def __init__(self, *, keeps: bool = False, gid: int = 0) -> None:
        self._keeps, self._gid = keeps, gid
        self.told: list[int] = []

    def keeps_set_id(self) -> bool:
        return self._keeps

    def is_member(self, gid: int) -> bool:
        return gid == self._gid

    def took_away(self, inode: Inode) -> None:
        self.told.append(inode.mode & 0o7777)


Change = Callable[[Volume, int, Someone], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "write": lambda volume, ino, who: data.write(volume, ino, 0, b"x", False, who),
    "append": lambda volume, ino, who: data.write(volume, ino, 0, b"x", True, who),
    "truncate": lambda volume, ino, who: attributes.setattr(volume, ino, attributes.Changes(size=0, changer=who)),
    "chown": lambda volume, ino, who: attributes.setattr(volume, ino, attributes.Changes(uid=5, changer=who)),
    "fallocate": lambda volume, ino, who: ranges.fallocate(volume, ino, 0, 0, 10, who),
    "copy": lambda volume, ino, who: ranges.copy(volume, ino, 0, ino, 1000, 10, who),
}


async def made(mount: Local, mode: int) -> Inode:
    inode = await mount.file(b"f")
    await data.write(mount.volume, inode.ino, 0, b"x" * 100)
    return await attributes.setattr(mount.volume, inode.ino, attributes.Changes(mode=mode, gid=GROUP))


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_looks_who_does_it(change: str) -> None:
    async with mounted() as mount:
        inode = await made(mount, 0o6777)
        who = Someone(keeps=True)
        await CHANGES[change](mount.volume, inode.ino, who)
        assert (inode.mode & 0o7777, who.told) == (0o6777, [])
        who = Someone()
        await CHANGES[change](mount.volume, inode.ino, who)
        assert (inode.mode & 0o7777, who.told) == (0o777, [0o777])
        await CHANGES[change](mount.volume, inode.ino, who)
        assert who.told == [0o777]


@pytest.mark.parametrize(
    ("mode", "gid", "left"),
    [
        (0o6777, 0, 0o777), (0o6777, GROUP, 0o777), (0o4600, 0, 0o600), (0o2777, GROUP, 0o777),
        (0o2767, 0, 0o767), (0o2767, GROUP, 0o2767), (0o6767, GROUP, 0o2767), (0o1755, 0, 0o1755),
    ],
)  # fmt: skip
async def test_which_bits_go(mode: int, gid: int, left: int) -> None:
    async with mounted() as mount:
        inode = await made(mount, mode)
        await data.write(mount.volume, inode.ino, 0, b"y", False, Someone(gid=gid))
        assert inode.mode & 0o7777 == left
        assert privileges.without_set_id(stat.S_IFDIR | mode, is_member=False) == stat.S_IFDIR | mode


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("others", [0, 3, 9000])
async def test_capabilities_go_whoever_it_is(change: str, others: int) -> None:
    """And nothing else of the attributes, in the inode or in blocks of their own."""
    async with mounted() as mount:
        inode = await made(mount, 0o4755)
        await xattrs.put(mount.volume, inode.ino, CAPABILITY, b"c" * 20, 0)
        if others:
            await xattrs.put(mount.volume, inode.ino, b"user.x", b"v" * others, 0)
        who = Someone(keeps=True)
        await CHANGES[change](mount.volume, inode.ino, who)
        assert who.told == [0o4755]
        assert inode.bare == (not others)
        await mount.give_up(inode.ino)
        assert (await xattrs.names(mount.volume, inode.ino))[1] == ([b"user.x"] if others else [])
        disk, superblock = mount.disk, mount.volume.superblock
    await assert_clean(disk, superblock)


async def test_pages_of_a_mapping_take_nothing() -> None:
    async with mounted() as mount:
        inode = await made(mount, 0o6777)
        await xattrs.put(mount.volume, inode.ino, CAPABILITY, b"c" * 20, 0)
        await data.write(mount.volume, inode.ino, 0, b"y")
        assert inode.mode & 0o7777 == 0o6777
        assert (await xattrs.names(mount.volume, inode.ino))[1] == [CAPABILITY]


async def test_a_directory_keeps_all_of_it() -> None:
    async with mounted() as mount:
        inode = await namespace.mkdir(mount.volume, ROOT_INODE, b"d", stat.S_IFDIR | 0o777, 0, 0)
        await attributes.setattr(mount.volume, inode.ino, attributes.Changes(mode=0o6777))
        await xattrs.put(mount.volume, inode.ino, CAPABILITY, b"c" * 20, 0)
        await attributes.setattr(mount.volume, inode.ino, attributes.Changes(uid=5, changer=Someone()))
        assert inode.mode & 0o7777 == 0o6777
        assert not inode.bare
