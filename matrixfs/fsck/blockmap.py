"""Which blocks are claimed, and which of them are inodes: two bits per block (F6)."""

from __future__ import annotations

CHUNK = 1 << 16  # blocks handled at once: big integers are fast, but not without end


class BlockMap:
    """Claims of ``blocks`` blocks."""

    def __init__(self, blocks: int) -> None:
        self._used = bytearray((blocks + 7) // 8)
        self._inodes = bytearray((blocks + 7) // 8)
        self.claimed = 0

    def claim(self, start: int, length: int = 1) -> int | None:
        """Claim blocks; return the first that was claimed before, or None."""
        first: int | None = None
        end = start + length
        while start < end:
            count = min(CHUNK, end - start)
            conflict = self._claim(start, count)
            if first is None:
                first = conflict
            start += count
        return first

    def _claim(self, start: int, length: int) -> int | None:
        shift = start & 7
        low, high = start >> 3, (start + length + 7) >> 3
        window = int.from_bytes(self._used[low:high], "little")
        mask = ((1 << length) - 1) << shift
        conflict = window & mask
        self._used[low:high] = (window | mask).to_bytes(high - low, "little")
        self.claimed += length
        if not conflict:
            return None
        self.claimed -= conflict.bit_count()
        return start - shift + (conflict & -conflict).bit_length() - 1

    def is_claimed(self, block: int) -> bool:
        """Whether anything claimed the block."""
        return bool(self._used[block >> 3] >> (block & 7) & 1)

    def mark_inode(self, block: int) -> None:
        """The claimed block is an inode that was checked."""
        self._inodes[block >> 3] |= 1 << (block & 7)

    def is_inode(self, block: int) -> bool:
        """Whether ``mark_inode`` was called for it."""
        return bool(self._inodes[block >> 3] >> (block & 7) & 1)

    def bits(self, start: int, length: int) -> int:
        """Claims of blocks from ``start``, a multiple of 8, as an integer with bit 0 for the first."""
        assert start & 7 == 0
        window = int.from_bytes(self._used[start >> 3 : (start + length + 7) >> 3], "little")
        return window & ((1 << length) - 1)
