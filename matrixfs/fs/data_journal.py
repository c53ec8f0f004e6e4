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

A step is one transaction, with the size.  Where it fills several holes they get unwritten blocks first.  It is not one
where space is in pieces, where the tree finds no block, and once in the life of a file that outgrows its inode.
More than ``LOGGED_BLOCKS_MAX`` new blocks that lie together are written to their place before they are named (J4): a
crash shows the same of them, and they are written once instead of twice.

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
    """Bring what is buffered of an exclusively held inode into transactions, one for each step.

    Returns the images that are left for the last one: the caller admits and stages them, and the size with them.

    Raises:
        OSError: ENOSPC; what is not written stays buffered.
        DeviceError, Fenced: the mount withdraws.
    """
    assert inode.dirty is not None
    steps = list(_steps(inode.dirty.block_runs(volume.journal.large), volume.journal.large))
    left: Images = []
    for runs in steps:
        if left:
            await volume.journal.admit()
            stage(volume, inode, left)
        left = await _Step(volume, inode, is_last=runs is steps[-1]).write(runs)
    return left


def _steps(runs: Iterable[tuple[int, int]], blocks_max: int) -> Iterator[list[tuple[int, int]]]:
    """The (first, count) runs in portions of at most so many blocks."""
    step: list[tuple[int, int]] = []
    for run in runs:
        if step and sum(count for _, count in step) + run[1] > blocks_max:
            yield step
            step = []
        step.append(run)
    if step:
        yield step


class _Step:
    """Buffered blocks that are written in one transaction."""

    def __init__(self, volume: Volume, inode: Inode, *, is_last: bool) -> None:
        self._volume = volume
        self._inode = inode
        self._is_last = is_last
        self._images: Images = []

    async def write(self, runs: list[tuple[int, int]]) -> Images:
        """Do it, if any blocks are new; else return the images."""
        volume, inode = self._volume, self._inode
        new: list[Extent] = []
        for first, count in runs:
            for piece in (
                [Extent(first, 0, count)] if inode.inline else await extents.pieces(volume, inode, first, count)
            ):
                if piece.written:
                    self._images += _images(piece, await volume.write_back.content(inode, piece))
                else:
                    new.append(piece)
        if inode.inline and len(new) > 1:  # what lies in the inode moves out with the first block, and no sooner
            await self._name(new.pop(0), and_the_rest=False)
        if not new:
            return self._images
        if len(new) == 1 and not new[0].physical:
            await self._name(new[0], and_the_rest=True)
        else:
            await self._mark([extent for piece in new for extent in await self._reserved(piece)])
        return []

    async def _name(self, hole: Extent, *, and_the_rest: bool) -> None:
        """Give new blocks to the file in the change that fills them."""
        volume, inode = self._volume, self._inode

        async def fill(extent: Extent) -> None:
            if not _for_log(volume, extent):
                await volume.write_back.write_in_place(inode, extent)

        def named(extent: Extent) -> None:
            if _for_log(volume, extent):
                stage(volume, inode, self._new_images(extent))
            if and_the_rest and extent.end == hole.end:
                self._finish(extent.end)

        await new_blocks.allocate(volume, inode, hole, 0, fill, named)

    async def _reserved(self, piece: Extent) -> list[Extent]:
        """Blocks for a piece, unwritten."""
        if piece.physical:
            return [piece]
        await new_blocks.allocate(self._volume, self._inode, piece, 0, None)
        return await extents.pieces(self._volume, self._inode, piece.logical, piece.length)

    async def _mark(self, reserved: list[Extent]) -> None:
        """Fill unwritten blocks, and say in one change that they are written."""
        volume, inode = self._volume, self._inode
        over = len(self._images)
        for extent in reserved:
            if _for_log(volume, extent):
                self._images += self._new_images(extent)
            else:
                await volume.write_back.write_in_place(inode, extent)
        try:
            await remap.set_flags_of_all(volume, inode, reserved, 0)
        except OSError as error:  # no blocks for the tree
            if error.errno != errno.ENOSPC:
                raise
            del self._images[over:]
            for extent in reserved:
                await volume.write_back.write_reserved(inode, extent)
        # No checkpoint since the change.
        self._finish(reserved[-1].end)

    def _new_images(self, extent: Extent) -> Images:
        return _images(extent, self._volume.write_back.new_content(self._inode, extent))

    def _finish(self, end: int) -> None:
        """All of the step is in the running transaction with this.  Part of the change."""
        stage(self._volume, self._inode, self._images)
        new_blocks.size_follows(self._volume, self._inode, end)
        if self._is_last:  # also by bytes in blocks that the file had
            self._inode.size_on_disk = self._inode.size


def _for_log(volume: Volume, extent: Extent) -> bool:
    """Whether these new blocks are few enough for the log."""
    return extent.length <= min(LOGGED_BLOCKS_MAX, volume.journal.large // 2)


def _images(extent: Extent, content: Buffer) -> Images:
    """Blocks of a file and their places."""
    return [
        (extent.physical + at, bytes(content[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])) for at in range(extent.length)
    ]
