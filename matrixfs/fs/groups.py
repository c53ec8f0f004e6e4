"""An allocation group in memory: its bitmap, and its free blocks as runs.

A block is in one of four states: *used* (bit set), *free* (in a run, or in a window that is kept for a file that
grows: ``windows``), *taken* (in no run, bit still clear:
file data is being written to it and no metadata names it yet), *resting* (bit clear, in no run: freed, but
not yet safe to give out again, J5).  The lock of a group is not given up while blocks are taken.

A group says itself how many blocks it has.  The last one of a filesystem that was grown has fewer than there is room
for, until somebody takes its lock: what lies behind is free (fs/grow.py, G4).
"""

from __future__ import annotations

from sortedcontainers import SortedDict

from matrixfs.fs.blocks import Block
from matrixfs.fs.windows import Windows
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.seams import Buffer

SCAN_MAX = 64  # runs looked at for a good fit before a bad one is taken


class Group(Block):
    """See the module."""

    __slots__ = ("_runs", "_windows", "available", "bitmap", "blocks", "free", "generation_floor", "index", "taken")

    def __init__(self, record: GroupRecord) -> None:
        super().__init__(record.address, record.generation)
        self.index = record.index
        self.blocks = record.blocks
        self.free = record.free
        self.generation_floor = record.generation_floor
        self.bitmap = bytearray(record.bitmap)
        self._runs: SortedDict[int, int] = SortedDict(free_runs(record.bitmap, record.blocks))
        self._windows = Windows()
        self.available = sum(self._runs.values())
        self.taken = 0

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        return GroupRecord(
            owner=owner,
            address=self.address,
            generation=self.generation,
            index=self.index,
            blocks=self.blocks,
            free=self.free,
            generation_floor=self.generation_floor,
            bitmap=bytes(self.bitmap),
        ).encode()

    # --- taking: no metadata changes yet ---------------------------------------------------------------

    def take(self, count: int, near: int = 0, owner: int = 0) -> tuple[int, int]:
        """Take a run of at most ``count`` free blocks, near or after block ``near``; (first block, length).

        At least one block must be available.  ``owner``: the file, if it has just grown up to ``near`` and may go on.
        """
        assert self.available > 0
        found = self._windows.take(owner, near - self.address, count)
        if found is None:
            if not self._runs:
                self._close_windows()
            size = self._windows.size(owner, count, self.available - count) if owner else 0
            found = self._cut(count, near - self.address, size)
            if size > 0:
                self._keep(owner, sum(found), size)
        at, taken = found
        self.available -= taken
        self.taken += taken
        return self.address + at, taken

    def _cut(self, count: int, near: int, behind: int) -> tuple[int, int]:
        """Take from a run, best from one that has ``behind`` more blocks."""
        start, length = self._choose(count + behind, near)
        at = max(start, near) if start < near < start + length else start
        taken = min(count, start + length - at)
        del self._runs[start]
        if at > start:
            self._runs[start] = at - start
        if at + taken < start + length:
            self._runs[at + taken] = start + length - at - taken
        return at, taken

    def _keep(self, owner: int, at: int, size: int) -> None:
        """Keep what is free at ``at`` for the owner."""
        length = self._runs.pop(at, 0)
        kept = min(size, length)
        if length > kept:
            self._runs[at + kept] = length - kept
        for run in self._windows.open(owner, at, kept, size):
            self._insert(*run)

    def _close_windows(self) -> None:
        for run in self._windows.close_all():
            self._insert(*run)

    def _choose(self, count: int, near: int) -> tuple[int, int]:
        """The run to cut from: the one at ``near``, else the first long enough after it, else the longest seen."""
        runs = self._runs
        at = runs.bisect_right(near) - 1
        if at >= 0:
            start, length = runs.peekitem(at)
            if start <= near < start + length:
                return start, length
        best = (0, 0)
        for offset in range(min(SCAN_MAX, len(runs))):
            start, length = runs.peekitem((at + 1 + offset) % len(runs))
            if length >= count:
                return start, length
            if length > best[1]:
                best = (start, length)
        return best

    def untake(self, start: int, length: int) -> None:
        """Give back taken blocks: nothing came of it."""
        self.taken -= length
        self.reuse(start, length)

    # --- changing the bitmap: in the same step as the metadata that names the blocks (J1) ------------------

    def use(self, start: int, length: int) -> None:
        """Taken blocks are named by metadata now."""
        self._mark(start - self.address, length, True)
        self.taken -= length
        self.free -= length

    def release(self, start: int, length: int) -> None:
        """Blocks are named no more; they rest until ``reuse``."""
        self._mark(start - self.address, length, False)
        self.free += length

    def reuse(self, start: int, length: int) -> None:
        """Blocks may be taken again."""
        self.available += length
        self._insert(start - self.address, length)

    def _insert(self, at: int, length: int) -> None:
        """Add free blocks to the runs."""
        runs = self._runs
        position = runs.bisect_left(at)
        if position < len(runs):
            after, after_length = runs.peekitem(position)
            if at + length == after:
                del runs[after]
                length += after_length
        if position > 0:
            before, before_length = runs.peekitem(position - 1)
            if before + before_length == at:
                at, length = before, before_length + length
        runs[at] = length

    def next_free(self, first: int, end: int, least: int) -> tuple[int, int] | None:
        """(first block, length) of the next free run in [first, end): of at least ``least``, or the rest of one."""
        low, high = first - self.address, end - self.address
        runs = self._runs
        for at in range(max(0, runs.bisect_right(low) - 1), len(runs)):
            start, length = runs.peekitem(at)
            if start >= high:
                break
            begin, over = max(start, low), min(start + length, high)
            if over > begin and (length >= least or start < low):
                return self.address + begin, over - begin
        return None

    def longest(self) -> tuple[int, int]:
        """(first block, length) of the longest run that is free; length 0 when none is."""
        self._close_windows()
        start, length = max(self._runs.items(), key=lambda run: run[1], default=(0, 0))
        return self.address + start, length

    def claim(self, start: int, length: int) -> bool:
        """The superblock says that these blocks are in use; whether the bitmap did not know it.  Part of a change."""
        at = start - self.address
        mask = ((1 << length) - 1) << at
        if int.from_bytes(self.bitmap, "little") & mask:
            return False
        self._close_windows()
        taken = self.take(length, start)
        assert taken == (start, length), f"group {self.index}: blocks {at}+{length}"
        self.use(start, length)
        return True

    def enlarge(self, blocks: int) -> None:
        """The filesystem was grown behind this group: it has ``blocks`` blocks now.  Part of a change."""
        before, self.blocks = self.blocks, blocks
        bits = int.from_bytes(self.bitmap, "little") & ~((1 << blocks) - (1 << before))
        self.bitmap[:] = bits.to_bytes(BITMAP_BYTES, "little")
        self.free += blocks - before
        self.reuse(self.address + before, blocks - before)

    def are_used(self, mask: int) -> bool:
        """Whether the blocks of the bits in ``mask`` may be released: all in use, the bitmap's own not among them."""
        return not mask & 1 and int.from_bytes(self.bitmap, "little") & mask == mask

    def _mark(self, at: int, length: int, used: bool) -> None:
        """Set or clear bits that must all be clear or set: anything else is a double use, our own bug."""
        bits = int.from_bytes(self.bitmap, "little")
        mask = ((1 << length) - 1) << at
        assert at > 0, f"group {self.index}: block {at}"
        assert bits & mask == (0 if used else mask), f"group {self.index}: blocks {at}+{length}"
        bits = bits | mask if used else bits & ~mask
        self.bitmap[:] = bits.to_bytes(BITMAP_BYTES, "little")


def free_runs(bitmap: bytes, blocks: int) -> list[tuple[int, int]]:
    """(first bit, length) of every run of clear bits below ``blocks``."""
    runs: list[tuple[int, int]] = []
    inverted = ~int.from_bytes(bitmap, "little") & ((1 << blocks) - 1)
    at = 0
    while inverted:
        skip = (inverted & -inverted).bit_length() - 1
        at += skip
        inverted >>= skip
        length = (~inverted & (inverted + 1)).bit_length() - 1
        runs.append((at, length))
        at += length
        inverted >>= length
    return runs


def decode_group_untrusted(data: Buffer, superblock: Superblock, index: int) -> Group:
    """The group whose bitmap block was read.  Raises CorruptRecord."""
    address = superblock.group_block(index)
    where = f"block {address} (group {index})"
    found = GroupRecord.decode_untrusted(data, where, owner=superblock.owner, address=address)
    found.check_untrusted(where)
    size = superblock.group_size(index)
    if found.index != index or not 2 <= found.blocks <= size:
        raise CorruptRecord(where, "group size", size, found.blocks)
    group = Group(found)
    if group.available != found.free or not found.bitmap[0] & 1:
        raise CorruptRecord(where, "free count", group.available, found.free)
    return group
