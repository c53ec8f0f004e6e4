"""Operations on ranges of a file: fallocate and copy_file_range (docs/decisions/0019).

Rules:
    RG1 Everything happens under the file's exclusive lock, in steps that are one transaction each.  A crash between two
        leaves bytes of the range as they were or zero, and never another file's.
    RG2 Reserved blocks (``UNWRITTEN``) are the file's: a write into them needs no space.  They may lie behind its end.
    RG3 Space is asked for first: ENOSPC leaves the bytes and the size alone.  What frees or zeroes never fails for lack
        of space: where the tree can't grow, zeros are written.
    RG4 Blocks that a range covers in part are zeroed by bytes, through the write-back buffers.

On a filesystem without UNWRITTEN_EXTENTS space is reserved by writing zeros, and none behind the end of a file.
Collapsing and inserting ranges is nothing that Linux asks a FUSE filesystem for.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from matrixfs.fs import data, extents, file_flags, new_blocks, privileges, remap, seeking
from matrixfs.fs.data import SIZE_MAX
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode, no_extents
from matrixfs.fs.promises import tree_bound
from matrixfs.fs.seeking import seek
from matrixfs.ondisk.extent import UNWRITTEN, Extent
from matrixfs.ondisk.inode import TAIL_BYTES
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

__all__ = ["copy", "fallocate", "seek"]

KEEP_SIZE = 1
PUNCH_HOLE = 2
ZERO_RANGE = 16
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)

STEP_BLOCKS = 4096  # reserved at once
ZEROS = bytes(1 << 20)
COPY_CHUNK = 4 << 20  # bytes read at once
COPY_MAX = 16 << 20  # bytes copied in one call: others wait for the locks, and a signal for the answer


async def fallocate(
    volume: Volume, ino: int, mode: int, offset: int, length: int, changer: privileges.Changer | None = None
) -> None:
    """Reserve, zero or free a range of a file, as fallocate in section 2 of the manual.

    ``changer`` as in ``data.write``.

    Raises:
        OSError: EOPNOTSUPP, EINVAL, EISDIR, EFBIG, ENOSPC, ESTALE, EPERM.
        CorruptionError, DeviceError, Fenced: the file's metadata can't be read.
    """
    if mode not in MODES:
        raise OSError(errno.EOPNOTSUPP, f"no such mode: {mode:#x}")
    if offset < 0 or length <= 0:
        raise OSError(errno.EINVAL, "no range")
    if offset + length > SIZE_MAX:
        raise OSError(errno.EFBIG, "file too large")
    with Held(volume) as held:
        inode = await held.exclusive(ino)
        data.check_regular(inode)
        file_flags.check_write(inode, appends=not mode & ~KEEP_SIZE)
        if changer is not None:
            await privileges.take_away(volume, inode, changer)
        await data.finish_truncation(volume, inode)
        end = offset + length
        if mode & PUNCH_HOLE:
            await _punch(volume, inode, offset, end)
        elif not _lies_in_inode(inode) or end > TAIL_BYTES:
            await _settle(volume, inode)
            await _reserve(volume, inode, mode, offset, end)
        elif mode & ZERO_RANGE:
            await _zero_in_inode(volume, inode, offset, end)
        zero_tail = not mode & KEEP_SIZE and end > inode.size and await data.tail_is_written(volume, inode)
        await volume.journal.admit()
        if not mode & KEEP_SIZE and end > inode.size:
            data.extend(volume, inode, end, zero_tail=zero_tail)
        volume.touch(inode, data=True)
        await file_flags.keep(volume, inode)


def _lies_in_inode(inode: Inode) -> bool:
    """Whether all bytes of a file lie in its inode: they take no space."""
    return inode.inline and inode.dirty is None


async def _zero_in_inode(volume: Volume, inode: Inode, start: int, end: int) -> None:
    await volume.journal.admit()
    # No checkpoint from here (J1).
    root = inode.root
    assert isinstance(root, bytes)
    low, high = min(start, len(root)), min(end, len(root))
    inode.root = b"".join((root[:low], bytes(high - low), root[high:]))
    volume.touch(inode, data=True)


async def _settle(volume: Volume, inode: Inode) -> None:
    """Have all bytes of a file in blocks: what is buffered, and what lies in the inode.  OSError ENOSPC."""
    if isinstance(inode.root, bytes) and inode.root and inode.dirty is None:
        with await volume.write_back.admit(inode, 0, inode.size):
            await volume.journal.admit()
            data.buffer(volume, inode, 0, inode.root)
    await volume.write_back.flush(inode)
    if isinstance(inode.root, bytes):  # empty
        await volume.journal.admit()
        inode.root = no_extents()
        volume.journal.add(inode)


# --- reserving ------------------------------------------------------------------------------------------------


async def _reserve(volume: Volume, inode: Inode, mode: int, offset: int, end: int) -> None:
    """Have blocks for all of a range, and zeros in it if asked so."""
    first, last = offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)
    holes = [piece for piece in await extents.pieces(volume, inode, first, last - first) if not piece.physical]
    wanted = sum(hole.length for hole in holes)
    unwritten = volume.superblock.extent_flags & UNWRITTEN
    if not unwritten and mode & KEEP_SIZE and end > inode.size:
        raise OSError(errno.EOPNOTSUPP, "this filesystem was made without unwritten extents")
    needed = wanted if wanted <= inode.extents_free else wanted + tree_bound(inode.depth, wanted, len(holes))
    with await volume.write_back.make_room(inode, needed if wanted else 0) as claim:

        def named(extent: Extent) -> None:
            claim.used(extent.length)

        if wanted:
            await volume.write_back.ask_quotas_exactly(inode, wanted)
        if unwritten:
            for hole in holes:
                near = 0
                for at in range(hole.logical, hole.end, STEP_BLOCKS):
                    step = hole.part(at, at + STEP_BLOCKS)._replace(physical=0)
                    near = await new_blocks.allocate(volume, inode, step, near, None, named)
    if not unwritten:
        await _reserve_by_zeros(volume, inode, mode, offset, end)
        return
    if mode & ZERO_RANGE:
        await _zero(volume, inode, offset, end)


async def _reserve_by_zeros(volume: Volume, inode: Inode, mode: int, offset: int, end: int) -> None:
    await _write_zeros(volume, inode, offset, end, holes=True, written=bool(mode & ZERO_RANGE))
    await volume.write_back.flush(inode)


async def _zero(volume: Volume, inode: Inode, start: int, end: int) -> None:
    """Have zeros in a range of a file that has nothing buffered there; its blocks stay its own."""
    if not volume.superblock.extent_flags & UNWRITTEN:
        await _write_zeros(volume, inode, start, end, written=True)
        return
    first, last = await _zero_edges(volume, inode, start, end)
    try:
        for piece in await extents.pieces(volume, inode, first, max(0, last - first)):
            if piece.written:
                await remap.set_flags(volume, inode, piece, UNWRITTEN)
    except OSError:  # ENOSPC, no block for the tree
        await _write_zeros(volume, inode, first * BLOCK_BYTES, last * BLOCK_BYTES, written=True)


# --- freeing --------------------------------------------------------------------------------------------------


async def _punch(volume: Volume, inode: Inode, start: int, end: int) -> None:
    """Free the blocks of a range, and zero what it covers in part.  OSError ENOSPC for what was buffered."""
    if _lies_in_inode(inode):
        await _zero_in_inode(volume, inode, start, end)
        return
    await _settle(volume, inode)
    first, last = await _zero_edges(volume, inode, start, end)
    try:
        await remap.remove(volume, inode, first, last)
    except OSError:  # ENOSPC, no block for the tree
        await _write_zeros(volume, inode, first * BLOCK_BYTES, last * BLOCK_BYTES, written=True)


async def _zero_edges(volume: Volume, inode: Inode, start: int, end: int) -> tuple[int, int]:
    """Zero what a range covers in part; from which block to before which it covers them whole."""
    if end >= inode.size:
        end = -(-end // BLOCK_BYTES) * BLOCK_BYTES
    for low, high in _edges(start, end):
        await _write_zeros(volume, inode, low, high, written=True)
    return -(-start // BLOCK_BYTES), end // BLOCK_BYTES


def _edges(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of a range that are no whole blocks."""
    first, last = -(-start // BLOCK_BYTES) * BLOCK_BYTES, end // BLOCK_BYTES * BLOCK_BYTES
    if first > last:
        yield start, end
        return
    if start < first:
        yield start, first
    if last < end:
        yield last, end


async def _write_zeros(
    volume: Volume, inode: Inode, start: int, end: int, *, holes: bool = False, written: bool = False
) -> None:
    """Write zeros over what of a range is a hole, or over what is written, or both.

    What is written is zeroed up to the end of the file only: behind it lies nothing that anybody reads.
    """
    first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
    for piece in await extents.pieces(volume, inode, first, last - first):
        if holes if not piece.physical else written and piece.written:
            high = min(end, piece.end * BLOCK_BYTES)
            at = max(start, piece.logical * BLOCK_BYTES)
            if piece.physical:
                high = min(high, inode.size)
            while at < high:
                at += await data.write_held(volume, inode, at, ZEROS[: high - at])


# --- copying --------------------------------------------------------------------------------------------------


async def copy(
    volume: Volume,
    source: int,
    at: int,
    target: int,
    to: int,
    length: int,
    changer: privileges.Changer | None = None,
    overwrites: bool = True,
) -> int:
    """copy_file_range(2): copy bytes from one file to another, or within one, holes as holes; return how many.

    Fewer than asked for at the source's end, beyond ``COPY_MAX``, or when space ends.  ``overwrites``: as for
    ``data.write``.

    ``changer`` as in ``data.write``.

    Raises:
        OSError: EINVAL for ranges of one file that overlap, EISDIR, EFBIG, ENOSPC, ESTALE, EPERM.
        CorruptionError, DeviceError, Fenced: something can't be read.
    """
    if source == target and abs(at - to) < length:
        raise OSError(errno.EINVAL, "the ranges overlap")
    with Held(volume) as held:
        await held.changing()
        found: dict[int, Inode] = {}
        for ino in sorted({source, target}):  # the lock order
            found[ino] = await (held.exclusive(ino) if ino == target else held.shared(ino))
        reading, writing = found[source], found[target]
        data.check_regular(reading)
        data.check_regular(writing)
        file_flags.check_write(writing, appends=overwrites)
        length = min(length, COPY_MAX, reading.size - at)
        if to + length > SIZE_MAX:
            raise OSError(errno.EFBIG, "file too large")
        if changer is not None and length > 0:
            await privileges.take_away(volume, writing, changer)
        await data.finish_truncation(volume, writing)
        done = 0
        while done < length:
            try:
                done += await _copy_some(volume, reading, at + done, writing, to + done, length - done)
            except OSError:
                if not done:
                    raise
                break
        await file_flags.keep(volume, writing)
        return done


async def _copy_some(volume: Volume, reading: Inode, at: int, writing: Inode, to: int, length: int) -> int:
    """Copy a run of data, or of a hole."""
    is_data, end = await seeking.run(volume, reading, at, at + length)
    if is_data:
        end = min(end, (at // COPY_CHUNK + 1) * COPY_CHUNK)
        return await data.write_held(volume, writing, to, await data.content(volume, reading, at, end))
    length = end - at
    if to < writing.size and _lies_in_inode(writing):
        await _zero_in_inode(volume, writing, to, to + length)
    elif to < writing.size:
        await _settle(volume, writing)
        await _zero(volume, writing, to, min(to + length, writing.size))  # what was reserved there stays so
    await volume.journal.admit()
    if to + length > writing.size:
        await data.resize(volume, writing, to + length)
    else:
        volume.touch(writing, data=True)
    return length
