"""The crash matrix: the power is lost after every single write of a recorded workload (R10, J1 to J6; style.md 3.6).

For each of these stores: replay, fsck finds nothing, what was fsynced is there, a renamed file has its old name or
its new one, never both or neither; and the replay itself may be cut at any of its writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from matrixfs.fs import attributes, data, namespace
from matrixfs.fs.inode import Inode
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.replay import replay
from matrixfs.fs.volume import Volume
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.matrixfs.local import Local, mounted, small_disk
from tests.sim.checkers import assert_clean
from tests.sim.disk import Mode, SimDisk

Check = Callable[[Volume], object]


@dataclass
class Recording:
    """A run: the disk with its log, and from which entry of the log on each promise holds."""

    disk: SimDisk
    fsynced: list[tuple[int, bytes, bytes]] = field(default_factory=list)  # entry, name, least content
    gone: list[tuple[int, bytes]] = field(default_factory=list)  # entry, name that must not come back
    pairs: list[tuple[int, bytes, bytes]] = field(default_factory=list)  # entry, two names: exactly one is there
    versions: list[tuple[int, int]] = field(default_factory=list)  # entry, version of "current" that is safe

    def now(self) -> int:
        """The entry that comes next."""
        return len(self.disk.log)


async def fsync_root(mount: Local) -> None:
    """Make all names durable."""
    await data.fsync(mount.volume, ROOT_INODE, False)


async def record() -> Recording:
    """Create, write, append, truncate, rename, replace and remove, with an fsync here and there."""
    disk = await small_disk(journal_blocks=64, seed=11)
    run = Recording(disk)
    rng = random.Random(11)
    async with mounted(disk, clean=False) as mount:
        await _record_files(mount, run, rng)
        await _record_renames(mount, run)
        await _record_versions(mount, run)
        await _record_removals(mount, run, rng)
    return run


async def _record_files(mount: Local, run: Recording, rng: random.Random) -> None:
    for number in range(8):
        name, content = b"file%d" % number, rng.randbytes(rng.choice((100, 5000, 30_000)))
        made = await mount.file(name)
        await data.write(mount.volume, made.ino, 0, content)
        if number % 2:
            await data.fsync(mount.volume, made.ino, False)
            run.fsynced.append((run.now(), name, content))
    log, content = await mount.file(b"log"), b""
    for number in range(12):
        piece = b"%03d" % number + rng.randbytes(700)
        await data.write(mount.volume, log.ino, 0, piece, append=True)
        content += piece
        if number % 3 == 0:
            await data.fsync(mount.volume, log.ino, False)
            run.fsynced.append((run.now(), b"log", content))


async def _record_renames(mount: Local, run: Recording) -> None:
    volume = mount.volume
    directory = await mount.directory(b"dir")
    moved = await mount.file(b"ping")
    await data.write(volume, moved.ino, 0, b"moved")
    await data.fsync(volume, moved.ino, False)
    run.pairs.append((run.now(), b"ping", b"pong"))
    for old, new in ((b"ping", b"pong"), (b"pong", b"ping")) * 4:
        await namespace.rename(volume, ROOT_INODE, old, ROOT_INODE, new)
        await volume.journal.commit()
    await namespace.rename(volume, ROOT_INODE, b"dir", ROOT_INODE, b"dir2")
    await namespace.rename(volume, ROOT_INODE, b"ping", directory.ino, b"inside")
    await namespace.rename(volume, directory.ino, b"inside", ROOT_INODE, b"pong")
    await volume.journal.commit()
    await namespace.rename(volume, ROOT_INODE, b"pong", ROOT_INODE, b"ping")


async def _record_versions(mount: Local, run: Recording) -> None:
    """Write to a new file, fsync it, rename it over the old one: how editors save."""
    volume = mount.volume
    for version in range(8):
        made = await mount.file(b"new")
        await data.write(volume, made.ino, 0, b"version %d " % version + bytes(5000))
        await data.fsync(volume, made.ino, False)
        await namespace.rename(volume, ROOT_INODE, b"new", ROOT_INODE, b"current")
        if version % 2:
            await fsync_root(mount)
            run.versions.append((run.now(), version))


async def _record_removals(mount: Local, run: Recording, rng: random.Random) -> None:
    volume = mount.volume
    large = await mount.file(b"large")
    await data.write(volume, large.ino, 0, rng.randbytes(200_000))
    await data.fsync(volume, large.ino, False)
    await attributes.setattr(volume, large.ino, attributes.Changes(size=4096 + 17))
    await attributes.setattr(volume, large.ino, attributes.Changes(size=100_000))
    await data.fsync(volume, large.ino, False)
    many = await mount.directory(b"many")
    for number in range(60):
        await mount.file(b"a rather long name of a file, so that a leaf is soon full %d" % number, many.ino)
    for number in range(0, 60, 2):
        name = b"a rather long name of a file, so that a leaf is soon full %d" % number
        await namespace.unlink(volume, many.ino, name)
    await namespace.unlink(volume, ROOT_INODE, b"large")
    await fsync_root(mount)
    run.gone.append((run.now(), b"large"))
    for _ in range(3):
        await volume.allocator.settle()
        reused = await mount.file(b"reused")
        await data.write(volume, reused.ino, 0, bytes([0xAA]) * 50_000)
        await data.fsync(volume, reused.ino, False)
        await namespace.unlink(volume, ROOT_INODE, b"reused")
    await volume.sync()
    await volume.journal.checkpoint()


async def content_of(volume: Volume, name: bytes) -> bytes | None:
    inode: Inode | None = await namespace.lookup(volume, ROOT_INODE, name)
    return None if inode is None else await data.read(volume, inode.ino, 0, 1 << 20)


async def check(run: Recording, image: SimDisk, entry: int) -> None:
    """What holds on ``image``, made by a power loss after ``entry`` entries of the log."""
    await assert_clean(image, await read_superblock(image))
    async with mounted(image, clean=False) as mount:
        volume = mount.volume
        newest = {name: content for at, name, content in run.fsynced if at <= entry}
        for name, content in newest.items():
            found = await content_of(volume, name)
            assert found is not None, f"{name!r} was fsynced and is gone"
            assert found.startswith(content), f"{name!r} was fsynced and is other or shorter"
        for at, name in run.gone:
            assert at > entry or await content_of(volume, name) is None, f"{name!r} came back"
        for at, one, other in run.pairs:
            if at <= entry:
                present = [await content_of(volume, one), await content_of(volume, other)]
                directory = await namespace.lookup(volume, ROOT_INODE, b"dir2")
                if directory is not None:
                    inside = await namespace.lookup(volume, directory.ino, b"inside")
                    present.append(await data.read(volume, inside.ino, 0, 100) if inside is not None else None)
                assert sorted(map(str, present)) == sorted(["None"] * (len(present) - 1) + ["b'moved'"]), present
        safe = max((version for at, version in run.versions if at <= entry), default=-1)
        current = await content_of(volume, b"current")
        if current is not None or safe >= 0:
            assert current is not None
            assert int(current.split()[1]) >= safe, "an older version came back"
            assert len(current) == 5010, "the new name before its data"


@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
async def test_power_lost_at_every_write(mode: Mode) -> None:
    run = await record()
    assert len(run.disk.log) > 150
    for entry in range(run.now() + 1):
        try:
            await check(run, run.disk.crash_image(entry, mode, seed=entry), entry)
        except AssertionError as error:
            raise AssertionError(f"power lost after {entry} of {run.now()} entries: {error}") from error


@pytest.mark.seed("002-30", "002-32")
@pytest.mark.parametrize("mode", ["drop", "tear"])
async def test_power_lost_again_during_the_replay(mode: Mode) -> None:
    """Every write of the replay, for every 7th crash: the second replay ends as the first would have."""
    run = await record()
    superblock = await read_superblock(run.disk)
    interrupted = 0
    for entry in range(0, run.now() + 1, 7):
        image = run.disk.crash_image(entry, mode, seed=entry)
        await replay(image, superblock, 0, expect=None)
        replayed = len(image.log)
        for second in {0, 1, replayed // 2, replayed - 2, replayed - 1} & set(range(replayed)):
            again = image.crash_image(second, mode, seed=second)
            await check(run, again, entry)
            interrupted += 1
    assert interrupted > 50


async def test_a_clean_unmount_needs_no_replay_and_loses_nothing() -> None:
    disk = await small_disk()
    async with mounted(disk) as mount:
        made = await mount.file(b"f")
        await data.write(mount.volume, made.ino, 0, b"x" * 10_000)
        await namespace.unlink(mount.volume, ROOT_INODE, b"f")
        kept = await mount.file(b"g")
        await data.write(mount.volume, kept.ino, 0, b"y" * 10_000)
    image = disk.crash_image(len(disk.log), "drop")
    superblock = await read_superblock(image)
    assert (await replay(image, superblock, 0, expect=None)).frames == 0
    await assert_clean(image, superblock)
    async with mounted(image) as mount:
        assert await content_of(mount.volume, b"g") == b"y" * 10_000
        assert await content_of(mount.volume, b"f") is None
