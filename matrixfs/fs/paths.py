"""Numbers to paths and paths to numbers, for people who look at locks (R14).

- Y1. A number becomes a path from what is cached here and costs no message and no read: a directory knows its parent,
  and a lookup, listing, create or rename leaves the name it went by on the lock (``Lock.hint``).
- Y2. A name that the cached directory confirms is sure.  If the directory is not cached (it may be the very thing
  that is waited for), the path is what this node last saw, and said to be so.  A name that the directory denies is
  forgotten; a file of several names is called by the one used last.
- Y3. A path becomes a number with the locks of its directories, each for a bounded time: who asks what a file waits
  for must not wait for it too.  A directory that can't be had is the answer.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from matrixfs.fs import directories
from matrixfs.fs.blocks import EntryTable, Index
from matrixfs.fs.inode import Inode
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import PR
from matrixfs.locks.resources import INODE, Resource
from matrixfs.ondisk.directory import Entry, first_key
from matrixfs.ondisk.superblock import ROOT_INODE
from membership.errors import OperatorError

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

DEPTH_MAX = 512  # directories; more would be a loop
STEP_SECONDS_MAX = 0.2  # for one directory's lock
NAMES_MAX = 16  # directories that ``resolve`` waits for; the time of all stays below a question's
_LINK = 10  # DT_LNK


class Path(NamedTuple):
    """Where an inode is: the path from the tree's root, and whether all of it was confirmed."""

    path: bytes
    sure: bool


class Found(NamedTuple):
    """What a path means; ``rest`` is what could not be followed, because the directory's lock was not to be had."""

    ino: int
    rest: bytes


def path_of(volume: Volume, ino: int) -> Path | None:
    """The path of an inode, None when this node has no idea (Y1, Y2)."""
    names: list[bytes] = []
    sure = True
    for _ in range(DEPTH_MAX):
        if ino == ROOT_INODE:
            return Path(b"/" + b"/".join(reversed(names)), sure)
        lock = volume.locks.find(Resource(INODE, ino))
        step = _step(volume, lock) if lock is not None else None
        if step is None:
            return None
        ino, name, confirmed = step
        names.append(name)
        sure = sure and confirmed
    return None


def _step(volume: Volume, lock: Lock) -> tuple[int, bytes, bool] | None:
    """One step up: the parent, the name there, and whether the parent confirms it."""
    inode: Inode | None = lock.subject
    parent = inode.parent if inode is not None and inode.is_directory else 0
    if lock.hint is not None and (not parent or lock.hint[0] == parent):
        parent, name = lock.hint
        leaf = _cached_leaf(volume, parent, first_key(name, volume.superblock.hash_seed))
        if leaf is None:
            return parent, name, False
        if any(entry.name == name and entry.inode == lock.number for entry in leaf.entries):
            return parent, name, True
    lock.hint = None
    leaf = _cached_leaf(volume, parent, 0) if parent else None  # a small directory has one leaf; else it stays unknown
    for entry in leaf.entries if leaf is not None else ():
        if entry.inode == lock.number:
            lock.hint = (parent, entry.name)
            return parent, entry.name, True
    return None


def _cached_leaf(volume: Volume, ino: int, key: int) -> EntryTable | None:
    """The leaf of a directory where ``key`` belongs, if all on the way is cached under a lock."""
    lock = volume.locks.find(Resource(INODE, ino))
    directory: Inode | None = lock.subject if lock is not None and lock.mode >= PR else None
    if lock is None or directory is None or not directory.is_directory:
        return None
    node = directory.root
    for _ in range(directory.depth):
        if not isinstance(node, Index):
            return None
        block = lock.blocks.get(node.children[bisect_right(node.keys, key) - 1])
        if block is None:
            return None
        node = block.content
    return node if isinstance(node, EntryTable) else None


async def resolve(volume: Volume, path: bytes) -> Found:
    """What ``path`` means, from the tree's root; symbolic links are not followed (Y3).

    Raises:
        OperatorError: there is no such thing.
        CorruptionError, DeviceError, Fenced: a directory can't be read.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    ino, waits = ROOT_INODE, 0
    for position, name in enumerate(names):
        leaf = _cached_leaf(volume, ino, first_key(name, volume.superblock.hash_seed))
        entry = _entry(leaf, name) if leaf is not None else None
        if entry is None:
            waits += 1
            lock = volume.inode_lock(ino)
            if waits > NAMES_MAX or not await lock.hold(PR, timeout=STEP_SECONDS_MAX):
                return Found(ino, b"/".join(names[position:]))
            try:
                entry = await _look_up(volume, lock, name)
            finally:
                lock.drop(PR)
        shown = b"/".join(names[: position + 1]).decode(errors="replace")
        if entry is None:
            raise OperatorError(f"/{shown}: no such file or directory in this tree")
        if entry.kind == _LINK and position + 1 < len(names):
            raise OperatorError(f"/{shown} is a symbolic link: name what it points to")
        ino = entry.inode
    return Found(ino, b"")


async def _look_up(volume: Volume, lock: Lock, name: bytes) -> Entry | None:
    directory: Inode = lock.subject or await volume.load(lock)
    if not directory.is_directory:
        return None
    return (await directories.locate(volume, directory, name)).entry


def _entry(leaf: EntryTable, name: bytes) -> Entry | None:
    return next((entry for entry in leaf.entries if entry.name == name), None)
