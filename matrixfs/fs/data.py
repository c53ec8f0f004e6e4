"""Reading and writing file contents."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from matrixfs.fs import data_journal, extents, file_flags, privileges
from matrixfs.fs.dirty import DirtyRanges
from matrixfs.fs.held import Held
from matrixfs.fs.inode import Inode, no_extents
from matrixfs.fs.parallel import for_each
from matrixfs.locks.modes import EX, PR
from matrixfs.locks.resources import INODE, Resource
from matrixfs.ondisk.extent import LOGICAL_MAX, Extent
from matrixfs.ondisk.inode import FLAG_TRUNCATING, TAIL_BYTES
from membership.errors import NO_ROOM, ToldLate
from membership.label import BLOCK_BYTES
from membership.seams import Buffer

if TYPE_CHECKING:
    from matrixfs.fs.volume import Volume

READS_AT_ONCE = 16
SIZE_MAX = min(LOGICAL_MAX * BLOCK_BYTES, (1 << 63) - 1)  # bytes


async def read(volume: Volume, ino: int, offset: int, length: int) -> bytes:
    """At most ``length`` bytes from ``offset``; fewer only at the end of the file.

    Raises:
        OSError: ESTALE, EISDIR, EINVAL.
        CorruptionError, DeviceError, Fenced: the data can't be had.
    """
    lock = volume.inode_lock(ino)
    if not lock.try_hold(PR):
        await lock.hold(PR)
    try:
        inode = lock.subject or await volume.load(lock)
        check_regular(inode)
        end = min(offset + length, inode.size)
        if offset >= end:
            return b""
        return await content(volume, inode, offset, end)
    finally:
        lock.drop(PR)


async def content(volume: Volume, inode: Inode, offset: int, end: int) -> bytes:
    """The bytes [offset, end) of a held inode, all below its size."""
    if inode.dirty is not None:
        found = inode.dirty.slice(offset, end - offset)
        if found is not None:
            return found
    if isinstance(inode.root, bytes):
        inline = inode.root[offset:end]
        if inode.dirty is None and len(inline) == end - offset:
            return inline
        buffer = bytearray(end - offset)
        buffer[: len(inline)] = inline
    else:
        first = offset // BLOCK_BYTES
        count = -(-end // BLOCK_BYTES) - first
        pieces = await extents.pieces(volume, inode, first, count)
        skip = offset - first * BLOCK_BYTES
        if len(pieces) == 1 and inode.dirty is None:
            if not pieces[0].written:
                return bytes(end - offset)
            data = await volume.journal.data.read(volume.device, pieces[0].physical, count)
            return data if len(data) == end - offset else data[skip : skip + end - offset]
        buffer = bytearray(count * BLOCK_BYTES)
        await _read_pieces(volume, first, pieces, buffer)
        del buffer[skip + end - offset :]
        del buffer[:skip]
    if inode.dirty is not None:
        inode.dirty.overlay(offset, buffer)
    return bytes(buffer)


async def _read_pieces(volume: Volume, first: int, pieces: list[Extent], buffer: bytearray) -> None:
    async def one(piece: Extent) -> None:
        at = (piece.logical - first) * BLOCK_BYTES
        data = await volume.journal.data.read(volume.device, piece.physical, piece.length)
        buffer[at : at + len(data)] = data

    await for_each([piece for piece in pieces if piece.written], one, workers=READS_AT_ONCE)


async def write(
    volume: Volume,
    ino: int,
    offset: int,
    data: Buffer,
    append: bool = False,
    changer: privileges.Changer | None = None,
    overwrites: bool = True,
    partly: bool = False,
) -> int:
    """Write all of ``data``; with ``append`` at the end of the file, wherever that is now (coherence.md, point 7).

    ``changer``: who writes, for what the file loses by that; None for pages of a mapping.  ``overwrites``: the
    descriptor may change what is there where the file is append-only, being older than that.  ``partly``: where there
    is no room for all, write what there is room for.  Returns the number of bytes.

    Raises:
        OSError: ESTALE, EISDIR, EINVAL, EFBIG, ENOSPC, EPERM.
        CorruptionError, DeviceError, Fenced: the file's metadata can't be read.
    """
    lock = volume.inode_lock(ino)
    await volume.changes.enter()
    held = False
    try:
        held = lock.try_hold(EX, True) or await lock.hold(EX, True)
        inode: Inode = lock.subject or await volume.load(lock)
        check_regular(inode)
        if inode.flags:
            file_flags.check_write(inode, appends=append or overwrites)
        if changer is not None:
            await privileges.take_away(volume, inode, changer)
        work = _write_what_fits if partly else write_held
        written = await work(volume, inode, inode.size if append else offset, data)
        if inode.flags:
            await file_flags.keep(volume, inode)
        return written
    finally:
        if held:
            lock.drop(EX, True)
        volume.changes.leave()


def version(volume: Volume, ino: int) -> int | None:
    """The version of a file's data, if it is cached here: after ``write`` returned, and before any checkpoint, its."""
    lock = volume.locks.find(Resource(INODE, ino))
    inode: Inode | None = lock.subject if lock is not None else None
    return None if inode is None else inode.data_version


async def write_held(volume: Volume, inode: Inode, offset: int, data: Buffer) -> int:
    """``write`` to an exclusively held regular file.  Raises as it does."""
    end = offset + len(data)
    if end > SIZE_MAX:
        raise OSError(errno.EFBIG, "file too large")
    await finish_truncation(volume, inode)
    if data_journal.wanted(volume, inode):
        await data_journal.make_room(volume, inode, len(data))
    if isinstance(inode.root, bytes) and inode.dirty is None and end <= TAIL_BYTES:
        await _put(volume, inode, offset, data)
    else:
        with await volume.write_back.admit(inode, offset, len(data)):
            await _put(volume, inode, offset, data)
    if volume.write_back.pressing(inode):
        await volume.write_back.relieve(inode)
    return len(data)


async def _write_what_fits(volume: Volume, inode: Inode, offset: int, data: Buffer) -> int:
    """``write_held``, but up to the end of some block where there is no room for all (write(2)).

    What has room is found by halves.
    """
    try:
        return await write_held(volume, inode, offset, data)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        refused = error
    written, step = 0, max(len(data) // 2, BLOCK_BYTES)
    while step >= BLOCK_BYTES:
        at = offset + written
        end = (at + step) // BLOCK_BYTES * BLOCK_BYTES
        fits = end < offset + len(data)
        if fits:
            try:
                written += await write_held(volume, inode, at, bytes(data[written : end - offset]))
            except OSError:
                fits = False
        if not fits:
            step //= 2
    if not written:
        raise refused
    return written


async def _put(volume: Volume, inode: Inode, offset: int, data: Buffer) -> None:
    zero_tail = offset > inode.size and await tail_is_written(volume, inode)
    await volume.journal.admit()
    put(volume, inode, offset, data, zero_tail=zero_tail)


async def finish_truncation(volume: Volume, inode: Inode) -> None:
    """Finish what a crash left of one, before the old blocks come into reach."""
    if inode.flags & FLAG_TRUNCATING:
        await extents.truncate(volume, inode, -(-inode.size // BLOCK_BYTES))


def put(volume: Volume, inode: Inode, offset: int, data: Buffer, *, zero_tail: bool) -> None:
    """Change the bytes of an exclusively held inode in memory.  No checkpoint.

    ``zero_tail``: it grows with a gap, and ``tail_is_written``.
    """
    end = offset + len(data)
    if zero_tail:
        _zero_tail(volume, inode, offset)
    if isinstance(inode.root, bytes) and inode.dirty is None and end <= TAIL_BYTES:
        old = inode.root
        gap = bytes(max(0, offset - len(old)))
        inode.root = b"".join((old[:offset], gap, data, old[end:]))
        inode.size = inode.size_on_disk = len(inode.root)
    else:
        buffer(volume, inode, offset, data)
    volume.touch(inode, data=True)


async def tail_is_written(volume: Volume, inode: Inode) -> bool:
    """Whether the store holds the last block of an exclusively held file, of which the file has only a part."""
    if isinstance(inode.root, bytes) or not inode.size % BLOCK_BYTES:
        return False
    last = inode.size // BLOCK_BYTES
    return (await extents.piece(volume, inode, last, last + 1)).written


def _zero_tail(volume: Volume, inode: Inode, end: int) -> None:
    """Before the file grows to ``end`` with a gap: the rest of its last block must read as zeros.

    What lies there on the store is of no file: a truncation, or a crash while the file grew, may have left anything.
    """
    tail = -inode.size % BLOCK_BYTES
    if tail:
        buffer(volume, inode, inode.size, bytes(min(tail, end - inode.size)))


def buffer(volume: Volume, inode: Inode, offset: int, data: Buffer) -> None:
    """Note bytes of an exclusively held inode for write-back, the admission to which was asked for.  No checkpoint."""
    if inode.dirty is None:
        inode.dirty = DirtyRanges()
    before = inode.dirty.length
    inode.dirty.write(offset, data)
    inode.size = max(inode.size, offset + len(data))
    volume.write_back.noted(inode, inode.dirty.length - before)


async def resize(volume: Volume, inode: Inode, size: int) -> None:
    """Truncate or extend an exclusively held regular file.

    Raises:
        OSError: EFBIG; ENOSPC, EDQUOT where it outgrows its inode.
        CorruptionError, DeviceError, Fenced: its extents can't be read.
    """
    if size > SIZE_MAX:
        raise OSError(errno.EFBIG, "file too large")
    await finish_truncation(volume, inode)
    if size > inode.size:
        if isinstance(inode.root, bytes) and inode.root and inode.dirty is None and size > TAIL_BYTES:
            with await volume.write_back.admit(inode, 0, len(inode.root)):
                extend(volume, inode, size, zero_tail=False)
        else:
            extend(volume, inode, size, zero_tail=await tail_is_written(volume, inode))
    elif size < inode.size or not inode.inline:  # blocks reserved behind the end go too
        await _shrink(volume, inode, size)
    volume.touch(inode, data=True)


async def _shrink(volume: Volume, inode: Inode, size: int) -> None:
    # No checkpoint up to the mark of a truncation under way.
    if inode.dirty is not None:
        before = inode.dirty.length
        inode.dirty.cut(size, SIZE_MAX + 1)
        volume.write_back.shrunk(inode, before)
        if not inode.dirty:
            volume.write_back.drop(inode)
    inode.size = size
    inode.size_on_disk = size if inode.dirty is None else min(inode.size_on_disk, size)
    if isinstance(inode.root, bytes):
        inode.root = inode.root[:size]
        if inode.dirty is None and len(inode.root) < size:  # what is cut was all that made it longer than its inode's
            inode.size = inode.size_on_disk = len(inode.root)
            extend(volume, inode, size, zero_tail=False)
    else:
        inode.flags |= FLAG_TRUNCATING  # a commit may come before its first step, which waits for groups
        volume.journal.add(inode)
        await extents.truncate(volume, inode, -(-size // BLOCK_BYTES))
        if size == 0:
            inode.root = b""


def extend(volume: Volume, inode: Inode, size: int, *, zero_tail: bool) -> None:
    """Let an exclusively held file grow with a hole; ``zero_tail``: ``tail_is_written``.  No checkpoint."""
    if isinstance(inode.root, bytes):
        if inode.dirty is None and size <= TAIL_BYTES:
            inode.root += bytes(size - len(inode.root))
            inode.size = inode.size_on_disk = size
            return
        if inode.dirty is not None or inode.root:
            # What lies in the inode moves out with the next write-back, and the new size with it.
            if inode.dirty is None:
                buffer(volume, inode, 0, inode.root)
            inode.size = size
            return
        inode.root = no_extents()
    if zero_tail:
        _zero_tail(volume, inode, size)
    inode.size = size
    if inode.dirty is None:
        inode.size_on_disk = size


def check_regular(inode: Inode) -> None:
    """Raises OSError: EISDIR, EINVAL."""
    if not stat.S_ISREG(inode.mode):
        raise OSError(errno.EISDIR if inode.is_directory else errno.EINVAL, "no regular file")


async def fsync(volume: Volume, ino: int, datasync: bool) -> None:  # noqa: ARG001 - a commit costs the same for both
    """Return when the file's data and metadata are durable (R10): what other nodes did to it, too.

    Raises:
        OSError: ENOSPC or EIO that an earlier write-back met; ESTALE.
        DeviceError, Fenced: nothing is promised.
    """
    lock = volume.inode_lock(ino)
    inode: Inode | None = lock.subject
    if lock.mode >= EX and inode is not None and inode.dirty is not None:  # what was, was flushed on surrender
        with Held(volume) as held:
            inode = await held.exclusive(ino)
            await volume.write_back.flush(inode)
    elif lock.mode < PR:  # it may be dirty elsewhere: before we get the lock it is durable (R8, decision 0022)
        await lock.hold(PR)
        lock.drop(PR)
    await volume.journal.sync()
    _report(volume, ino)


async def flush(volume: Volume, ino: int) -> None:
    """close(2): report what an earlier write-back met.  Durability is fsync's business."""
    _report(volume, ino)


def _report(volume: Volume, ino: int) -> None:
    code = volume.write_back.errors.pop(ino, 0)
    if code:
        raise ToldLate(code, "buffered data could not be written")
