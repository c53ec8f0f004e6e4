"""Numbers to paths and back, for people: what is sure, what is only remembered, what nobody knows."""

from __future__ import annotations

import pytest

from matrixfs.fs import namespace, paths, readdir
from matrixfs.fs.paths import Found, Path
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import OperatorError
from tests.matrixfs.local import mounted


async def test_created_looked_up_listed_renamed_linked() -> None:
    async with mounted() as mount:
        volume = mount.volume
        a = await mount.directory(b"a")
        b = await mount.directory(b"b", a.ino)
        f = await mount.file(b"f", b.ino)
        assert paths.path_of(volume, ROOT_INODE) == Path(b"/", True)
        assert paths.path_of(volume, b.ino) == Path(b"/a/b", True)
        assert paths.path_of(volume, f.ino) == Path(b"/a/b/f", True)
        await namespace.rename(volume, b.ino, b"f", a.ino, b"g", 0)
        assert paths.path_of(volume, f.ino) == Path(b"/a/g", True)
        await namespace.rename(volume, a.ino, b"b", ROOT_INODE, b"c", 0)
        assert paths.path_of(volume, b.ino) == Path(b"/c", True)
        await namespace.link(volume, f.ino, b.ino, b"h")
        assert paths.path_of(volume, f.ino) == Path(b"/c/h", True)
        await namespace.unlink(volume, b.ino, b"h")
        assert paths.path_of(volume, f.ino) is None, "a name that is gone is not told"
        await namespace.lookup(volume, a.ino, b"g")
        assert paths.path_of(volume, f.ino) == Path(b"/a/g", True)
        volume.inode_lock(f.ino).hint = volume.inode_lock(b.ino).hint = None
        await readdir.entries(volume, a.ino, 0, 10)
        assert paths.path_of(volume, f.ino) == Path(b"/a/g", True)
        assert paths.path_of(volume, b.ino) == Path(b"/c", True), "a directory is found in its parent"
        assert paths.path_of(volume, 12345) is None


async def test_a_directory_that_a_peer_has_is_remembered_but_not_sure() -> None:
    async with mounted() as mount:
        volume = mount.volume
        a = await mount.directory(b"a")
        f = await mount.file(b"f", a.ino)
        kept = volume.inode_lock(a.ino)  # somebody here waits for it, so it is not forgotten
        await mount.give_up(a.ino)
        assert paths.path_of(volume, f.ino) in (Path(b"/a/f", False), None)
        assert kept.hint == (ROOT_INODE, b"a")


async def test_a_path_becomes_a_number() -> None:
    async with mounted() as mount:
        volume = mount.volume
        a = await mount.directory(b"a")
        f = await mount.file(b"f", a.ino)
        await namespace.symlink(volume, a.ino, b"s", b"f", 0, 0)
        assert await paths.resolve(volume, b"") == Found(ROOT_INODE, b"")
        assert await paths.resolve(volume, b"/a//./f") == Found(f.ino, b"")
        assert (await paths.resolve(volume, b"a/s")).ino not in (f.ino, a.ino)
        for bad, said in ((b"b", "no such"), (b"a/f/x", "no such"), (b"a/s/x", "symbolic"), (b"a/\xff", "no such")):
            with pytest.raises(OperatorError, match=said):
                await paths.resolve(volume, bad)


async def test_a_directory_whose_lock_is_not_to_be_had_is_the_answer() -> None:
    async with mounted() as mount:
        volume = mount.volume
        a = await mount.directory(b"a")
        await mount.file(b"f", a.ino)
        await mount.give_up(a.ino)
        volume.locks._manager.request = lambda _resource, _mode: None  # a peer keeps it
        volume.locks._manager.cancel = lambda _resource: None
        assert await paths.resolve(volume, b"a/f/g") == Found(a.ino, b"f/g")
        assert not volume.inode_lock(a.ino).waiters
