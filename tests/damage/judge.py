"""What fsck and a mount may do with any image at all: end, in bounds, with errors that have a name (R11, issue 5).

- V1. ``fsck -n``, then ``-y``, then ``-n`` end with an exit code of fsck(8), and after ``-y`` what is left is what
  ``-n`` finds: nothing more, and nothing when ``-y`` said so.
- V2. They read at most ``READS_PER_BLOCK`` blocks for each block of the image and round.
- V3. A mount opens or refuses; everything in it is looked at, changed and removed; only MatrixError and OSError are
  ever raised, in operations or in background tasks.
- V4. Nothing waits for ever: virtual time ends (``WAIT_SECONDS_MAX``), and reads are counted.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Iterator
from typing import Any

import trio

from matrixfs.fs import attributes, data, namespace, readdir, rename
from matrixfs.fs.volume import Volume
from matrixfs.fsck.run import ROUNDS_MAX, Mode, Outcome, run_fsck
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import MatrixError
from membership.label import BLOCK_BYTES
from tests.damage.fuzz import area_disk
from tests.damage.volume import FixedClock
from tests.matrixfs.local import mounted
from tests.sim.disk import SimDisk

READS_PER_BLOCK = 4
WAIT_SECONDS_MAX = 600
DIRECTORIES_MAX = 200
NAMES_AT_ONCE = 50
CHANGED_MAX = 4  # of a directory's first and last names, all of which are looked at
CODES = {0, 1, 4, 8}


class Silent:
    """A Reporter that formats what it is told: a finding without a sentence is a bug."""

    def report(self, stage: str, done: int, total: int) -> None:
        assert done >= 0

    def say(self, line: str) -> None:
        assert line.isprintable()

    def replayed(self, journal: int, report: Any, *, in_memory: bool) -> None:
        assert journal >= 0

    def found(self, findings: Any) -> None:
        assert all(finding.text.isprintable() for finding in findings.kept)

    def ask(self, fixable: int) -> bool:
        return True


class Counted(SimDisk):
    """A disk that ends who reads without end (V2)."""

    budget = 0

    async def read(self, offset: int, length: int, **options: Any) -> bytes:
        self.budget -= -(-length // BLOCK_BYTES)
        if self.budget < 0:
            raise AssertionError("reads without end")
        return await super().read(offset, length, **options)


def counted(disk: SimDisk, rounds: int) -> Counted:
    twin = Counted(disk.size_bytes, disk.sector_bytes)
    twin.restore(disk.snapshot())
    twin.budget = READS_PER_BLOCK * rounds * disk.size_bytes // BLOCK_BYTES
    return twin


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error


def is_named(error: BaseException) -> bool:
    return all(isinstance(leaf, MatrixError | OSError) for leaf in leaves(error))


async def fsck(disk: SimDisk, mode: Mode) -> tuple[int, Outcome | None]:
    """Exit code and outcome, as the command has them (V1, V4)."""
    with trio.fail_after(WAIT_SECONDS_MAX):
        try:
            outcome = await run_fsck(disk, mode, FixedClock(), random.Random(1), Silent())
        except BaseException as error:
            if not is_named(error):
                raise
            return 8, None
    return outcome.exit_code, outcome


async def judge_fsck(disk: SimDisk) -> tuple[SimDisk, int]:
    """V1 and V2; return the repaired disk and the exit code of ``-y``."""
    looked = counted(disk, 1)
    code, seen = await fsck(looked, Mode.LOOK)
    assert code in CODES
    assert looked.log == [], "-n writes nothing"
    repaired = counted(disk, ROUNDS_MAX)
    repair_code, outcome = await fsck(repaired, Mode.REPAIR)
    assert repair_code in CODES
    assert code == 8 or repair_code != 8 or seen is None or not seen.left.fixable, "-n could look, -y could not"
    again_code, again = await fsck(counted(repaired, 1), Mode.LOOK)
    if outcome is not None:
        assert again is not None
        assert again_code == (4 if outcome.left.errors else 0), "after -y it is clean, or says what is left"
        assert set(again.found.counts) == set(outcome.left.counts)
    return repaired, repair_code


async def judge_mount(disk: SimDisk) -> None:
    """V3 and V4, for the data area of a store."""
    area = area_disk(disk)
    with trio.fail_after(WAIT_SECONDS_MAX):
        try:
            async with mounted(area, clean=False) as local:
                try:
                    await use(local.volume)
                    await quietly(local.volume.close())
                finally:
                    assert all(is_named(failure) for failure in local.failures), local.failures
                    local.failures.clear()
        except BaseException as error:
            if not is_named(error):
                raise


async def quietly(work: Awaitable[Any]) -> Any:
    """What the work returns; None when it raises what an operation may."""
    try:
        return await work
    except (MatrixError, OSError):
        return None


async def use(volume: Volume) -> None:
    """Look at everything, then change it, then remove it."""
    await quietly(attributes.statfs(volume))
    directories = [ROOT_INODE]
    names: list[tuple[int, bytes, int]] = []
    for directory in directories:  # grows while it is walked
        found = await look(volume, directory)
        for at, (name, ino, mode) in enumerate(found):
            if min(at, len(found) - at) < CHANGED_MAX:
                names.append((directory, name, ino))
            if stat.S_ISDIR(mode) and ino not in directories and len(directories) < DIRECTORIES_MAX:
                directories.append(ino)
    for directory in directories:
        await change(volume, directory)
    for directory, name, ino in reversed(names):
        await quietly(attributes.setattr(volume, ino, attributes.Changes(mode=0o600, size=5)))
        await quietly(data.write(volume, ino, 70_000, b"x" * 5000))
        await quietly(rename.rename(volume, directory, name, ROOT_INODE, b"moved"))
        for parent, old in ((ROOT_INODE, b"moved"), (directory, name)):
            await quietly(namespace.unlink(volume, parent, old))
            await quietly(namespace.rmdir(volume, parent, old))
    await quietly(volume.sync())
    await trio.sleep(10)  # background work


async def look(volume: Volume, directory: int) -> list[tuple[bytes, int, int]]:
    """(name, inode, mode) of what is in a directory, each read."""
    found: list[tuple[bytes, int, int]] = []
    cookie = 0
    while True:
        listed = await quietly(readdir.entries(volume, directory, cookie, NAMES_AT_ONCE))
        if not listed:
            return found
        assert listed[0][0] > cookie, "a listing goes on"
        cookie = listed[-1][0]
        for _, name, inode in listed:
            found.append((name, inode.ino, inode.mode))
            await quietly(namespace.lookup(volume, directory, name))
            await quietly(attributes.getattr(volume, inode.ino))
            await quietly(attributes.readlink(volume, inode.ino))
            for at in (0, max(0, min(inode.size, 1 << 62) - 5000)):
                await quietly(data.read(volume, inode.ino, at, 1 << 20))


async def change(volume: Volume, directory: int) -> None:
    made = await quietly(namespace.create(volume, directory, b"made", stat.S_IFREG | 0o644, 0, 0))
    if made is not None:
        await quietly(data.write(volume, made.ino, 10_000, b"y" * 20_000))
        await quietly(data.fsync(volume, made.ino, datasync=False))
        await quietly(namespace.link(volume, made.ino, directory, b"linked"))
        await quietly(namespace.unlink(volume, directory, b"linked"))
    await quietly(namespace.unlink(volume, directory, b"made"))
    await quietly(namespace.mkdir(volume, directory, b"under", 0o755, 0, 0))
    await quietly(namespace.rmdir(volume, directory, b"under"))
