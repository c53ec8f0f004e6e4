"""What is on a disk after a power loss: replay, fsck, the whole tree; and whether one can go on working with it.

All of it is the product's own: ``replay``, the checks of fsck, the operations of ``matrixfs.fs`` on a volume that is
mounted alone.  Two disks that are equal outside their journals after the replay are looked at once.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from matrixfs.fs import attributes, data, namespace, readdir, xattrs
from matrixfs.fs.journal import Journal
from matrixfs.fs.promises import TREE_BLOCKS_MAX
from matrixfs.fs.replay import replay
from matrixfs.fs.volume import Volume
from matrixfs.fsck.area import Area
from matrixfs.fsck.check import check_filesystem
from matrixfs.fsck.problems import ORPHAN, Findings
from matrixfs.fsck.store import replay_journals
from matrixfs.locks.cache import LockCache
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from tests.crash.application import flags_of
from tests.crash.history import FLAGS, ROOT, Broken, History, Tree
from tests.matrixfs.local import GrantsAll, eventually, mounted
from tests.sim.checkers import NoProgress
from tests.sim.disk import Media, SimDisk
from tests.sim.network import SimClock, SimRng

NAMES_AT_ONCE = 1 << 20
ROOM = 20  # free blocks that a small file may need, and TREE_BLOCKS_MAX of each group that are kept for trees


@dataclass(slots=True)
class Look:
    """What a replayed disk holds."""

    tree: Tree
    orphans: int
    blocks_used: int


async def replay_all(disk: SimDisk, superblock: Superblock, order: list[int]) -> None:
    """Replay the journals in this order.  Raises CorruptionError."""
    for index in order:
        await replay(disk, superblock, index, expect=None)


def outside_journals(media: Media, superblock: Superblock) -> frozenset[tuple[int, bytes]]:
    """All blocks but those of the journals."""
    end = superblock.journal_start + superblock.journals * superblock.journal_blocks
    return media.content.outside(superblock.journal_start, end)


async def look(disk: SimDisk, superblock: Superblock, history: History) -> Look:
    """fsck, and the tree.  Raises Broken."""
    context_orphans, used = await fsck(disk, superblock, orphans_allowed=True)
    return Look(await read_tree(disk, superblock, history), context_orphans, used)


async def fsck(disk: SimDisk, superblock: Superblock, *, orphans_allowed: bool) -> tuple[int, int]:
    """(orphans, blocks in use) of a disk without a fault.  Raises Broken."""
    findings = Findings()
    if await replay_journals(disk, superblock, findings):
        raise Broken("a journal is dirty after its replay")
    context = await check_filesystem(Area(disk, superblock), findings, NoProgress())
    bad = [one for one in findings.kept if not (orphans_allowed and one.problem is ORPHAN)]
    if bad:
        raise Broken("fsck: " + "; ".join(f"{one.problem.code}: {one.text}" for one in bad[:5]))
    return context.counts.orphans, context.counts.blocks_used


async def read_tree(disk: SimDisk, superblock: Superblock, history: History) -> Tree:
    """Everything below the root.  Raises Broken for what nobody made."""
    clock, manager, failures = SimClock(), GrantsAll(), list[BaseException]()
    locks = LockCache(clock, failures.append)
    locks.attach(manager)
    manager.cache = locks
    journal = Journal(disk, superblock, 0, clock)  # never opened: nothing is changed
    volume = Volume(disk, superblock, locks, journal, clock, SimRng(2), lambda _: True, 0)
    tree = await _walk(volume, history)
    assert not failures and journal.running.empty
    return tree


async def _walk(volume: Volume, history: History) -> Tree:
    tree = Tree()
    stack = [(ROOT, ROOT_INODE)]
    while stack:
        directory, number = stack.pop()
        for _, name, inode in await readdir.entries(volume, number, 0, NAMES_AT_ONCE):
            thing = history.identities.get((inode.ino, inode.incarnation))
            if thing is None:
                raise Broken(f"{name!r} of thing {directory} is inode {inode.ino}, which nobody made")
            tree.values["name", directory, name] = thing
            links = 0 if inode.is_directory else inode.nlink
            tree.values["attributes", thing] = (inode.mode, inode.uid, links)
            tree.accesses[thing] = inode.atime_ns
            if (flags := flags_of(inode)) is not None:
                tree.values["extended", thing, FLAGS] = flags
            for attribute in [] if inode.bare else (await xattrs.names(volume, inode.ino))[1]:
                tree.values["extended", thing, attribute] = (await xattrs.get(volume, inode.ino, attribute))[1]
            if inode.is_directory:
                stack.append((thing, inode.ino))
            elif thing not in tree.contents:
                tree.contents[thing] = history.known(thing, await _content(volume, inode.ino, inode.mode))
    return tree


async def _content(volume: Volume, ino: int, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return await attributes.readlink(volume, ino)
    return await data.read(volume, ino, 0, 1 << 40)


async def work_on(disk: SimDisk, superblock: Superblock, history: History, before: Look) -> None:
    """Mount it, let the orphans go, use it and leave it: then nothing is left to find.  Raises Broken."""
    async with mounted(disk) as mount:
        volume = mount.volume
        found = [await volume.opens.adopt(journal) for journal in range(superblock.journals)]
        if sum(found) != before.orphans:
            raise Broken(f"{found} orphans in the lists, {before.orphans} by fsck")
        await eventually(lambda: volume.opens.deleted == before.orphans)
        await volume.allocator.settle()
        if (await attributes.statfs(volume)).free > ROOM + superblock.groups * TREE_BLOCKS_MAX:
            made = await mount.file(b"made after the crash")
            await data.write(volume, made.ino, 0, b"x" * 20_000)
            await data.fsync(volume, made.ino, False)
            await namespace.unlink(volume, ROOT_INODE, b"made after the crash")
            await eventually(lambda: volume.opens.deleted == before.orphans + 1)
            await volume.allocator.settle()
        free = (await attributes.statfs(volume)).free
    disk.power_loss()
    _, used = await fsck(disk, superblock, orphans_allowed=False)
    if free != superblock.blocks_total - used:
        raise Broken(f"statfs says {free} blocks are free; fsck counts {used} of {superblock.blocks_total} in use")
    after = await read_tree(disk, superblock, history)
    if after != before.tree:
        raise Broken("a mount that only deleted orphans left another tree")
