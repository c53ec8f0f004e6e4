"""File data through the journal: ``-o data=journal`` of a mount, ``chattr +j`` of a file (FLAG_JOURNAL_DATA).

Buffered bytes are not written to their place but added, as images of whole blocks, to the transaction with the
metadata that belongs to them.  After a crash each block is the old one or the new one, never torn; what a file grew by
is there; and an fsync of a little is one write to the log.  The place is written later, by a checkpoint.

Data has no generation, so replay can't tell which of two contents is newer (replay P4).  The order rests on these:

- **DJ1** Who reads data from the store looks at ``journal.data`` first: what lies in place may be older.
- **DJ2** An image of data that is in the log and not revoked belongs to a file whose INODE lock this node, or its
  ghost, holds in EX: before the lock goes, the images are in place and revoked (J3, ``surrender``).  So nobody else
  writes the block, and no other log has an image of it that counts.
- **DJ3** A block that is freed is revoked by the transaction that frees it, and is given out again when that is
  durable and no write in place is under way (J5, ``Journal.free_data``).  So no image outlives the file's block,
  whatever it becomes: data or metadata, here or elsewhere.
- **DJ4** Who writes data in place (the flag was cleared, the mount is another, many new blocks) first brings home
  and revokes what images there are of these blocks (``withdraw``).  So the newest image in the log is never older than
  what lies in place, and replay may write it whatever lies there, as often as it is cut.
- **DJ5** Images are added in steps of at most ``Journal.large`` blocks, each after ``Journal.admit``, so a transaction
  fits the log.  A write is buffered only beside what fits the same step.

One transaction holds what a step writes over blocks that the file has, the last new blocks of the step, and the size.
Where a step fills several holes, or space is in pieces, new blocks come one transaction each, before that one.  More
than ``LOGGED_BLOCKS_MAX`` new blocks that lie together are written to their place before they are named (J4): a crash
shows the same of them, and they are written once instead of twice.

Source: issue 5, ext4's data=journal; decision 0024.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from matrixfs.fs import extents, new_blocks, remap
from matrixfs.ondisk.extent import Extent
from matrixfs.ondisk.inode import FLAG_JOURNAL_DATA
from membership.label import BLOCK_BYTES
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.blocks import Block
    from matrixfs.fs.inode import Inode
    from matrixfs.fs.volume import Volume

LOGGED_BLOCKS_MAX = 64  # of more new blocks that lie together the log holds no images

Images = list[tuple[int, bytes]]  # (block of the store, content)


def wanted(volume: Volume, inode: Inode) -> bool:
    """Whether this file's data goes through the journal."""
    flagged = volume.journal_data or inode.flags & FLAG_JOURNAL_DATA
    return bool(flagged) and volume.superblock.may_journal_data


async def make_room(volume: Volume, inode: Inode, length: int) -> None:
    """Before ``length`` bytes are buffered: flush what would not fit the same step (DJ5).  Raises as a flush does."""
    dirty = inode.dirty
    if dirty is not None and dirty.blocks_bound() + length // BLOCK_BYTES + 2 > volume.journal.large:
        await volume.write_back.flush(inode)


def stage(volume: Volume, inode: Inode, images: Images) -> None:
    """Add images to the running transaction.  Part of a change, which was admitted."""
    for address, content in images:
        volume.journal.add(volume.journal.data.put(address, inode.ino, content))


async def withdraw(volume: Volume, start: int, length: int) -> None:
    """No image of these blocks counts any more: they may be written in place (DJ4).

    Their file's lock is held, and nobody changes it meanwhile.
    """
    await bring_home(volume, volume.journal.data.within(start, length))


async def bring_home(volume: Volume, blocks: Iterable[Block]) -> None:
    """Have blocks durable, in place, and out of the log; nobody changes them meanwhile (J3)."""
    journal, blocks = volume.journal, list(blocks)
    if any(journal.holds(block) for block in blocks):
        await journal.commit()
    if blocks:
        await journal.release(block.address for block in blocks)


async def write_runs(volume: Volume, inode: Inode) -> Images:
    """Bring what is buffered of an exclusively held inode into transactions.

    Returns the images that are left for the last one: the caller admits and stages them, and the size with them.

    Raises:
        OSError: ENOSPC; what is not written stays buffered.
        DeviceError, Fenced: the mount withdraws.
    """
    assert inode.dirty is not None
    left: Images = []
    for runs in _steps(list(inode.dirty.block_runs(volume.journal.large)), volume.journal.large):
        if left:
            await volume.journal.admit()
            stage(volume, inode, left)
        left = await _write_step(volume, inode, runs)
    return left


def _steps(runs: list[tuple[int, int]], blocks_max: int) -> Iterator[list[tuple[int, int]]]:
    """The (first, count) runs in portions of at most so many blocks."""
    step: list[tuple[int, int]] = []
    for run in runs:
        if step and sum(count for _, count in step) + run[1] > blocks_max:
            yield step
            step = []
        step.append(run)
    if step:
        yield step


async def _write_step(volume: Volume, inode: Inode, runs: list[tuple[int, int]]) -> Images:
    """Give new blocks to what has none; return what goes over old ones, unless it went with the last new ones."""
    new: list[Extent] = []
    over: Images = []
    for first, count in runs:
        for piece in [Extent(first, 0, count)] if inode.inline else await extents.pieces(volume, inode, first, count):
            if piece.written:
                over += _images(piece, await volume.write_back.content(inode, piece))
            else:
                new.append(piece)
    for number, piece in enumerate(new, 1):
        with_it = over if number == len(new) else []
        if piece.physical:
            await _write_reserved(volume, inode, piece, with_it)
        else:
            await _write_new(volume, inode, piece, with_it)
    return [] if new else over


async def _write_new(volume: Volume, inode: Inode, hole: Extent, over: Images) -> None:
    async def fill(extent: Extent) -> None:
        if not _for_log(volume, extent):
            await volume.write_back.write_in_place(inode, extent)

    def named(extent: Extent) -> None:
        if _for_log(volume, extent):
            stage(volume, inode, _images(extent, volume.write_back.new_content(inode, extent)))
        if extent.end == hole.end:
            stage(volume, inode, over)

    await new_blocks.allocate(volume, inode, hole, 0, fill, named)


async def _write_reserved(volume: Volume, inode: Inode, piece: Extent, over: Images) -> None:
    """As ``WriteBack.write_reserved``."""
    in_log = _for_log(volume, piece)
    try:
        if in_log:
            await remap.set_flags(volume, inode, piece, 0)
    except OSError as error:  # no block for the tree
        if error.errno != errno.ENOSPC:
            raise
        in_log = False
    if in_log:  # no checkpoint since the change
        stage(volume, inode, _images(piece, volume.write_back.new_content(inode, piece)))
        new_blocks.size_follows(volume, inode, piece.end)
    else:
        await volume.write_back.write_reserved(inode, piece)
    stage(volume, inode, over)


def _for_log(volume: Volume, extent: Extent) -> bool:
    """Whether these new blocks are few enough for the log."""
    return extent.length <= min(LOGGED_BLOCKS_MAX, volume.journal.large // 2)


def _images(extent: Extent, content: Buffer) -> Images:
    """Blocks of a file and their places."""
    return [
        (extent.physical + at, bytes(content[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])) for at in range(extent.length)
    ]
