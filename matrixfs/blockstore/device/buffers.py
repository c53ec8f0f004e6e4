"""Page-aligned buffers for direct I/O, pooled by size class (ecosystem.md 4: O_DIRECT refuses a bytearray).

Buffers are cut from slabs of one huge page each: to the kernel a transfer of 1 MiB then is one piece of memory, not
256.  Measured here, 1 MiB ``preadv``: 30 us of CPU and 340 us in all, against 95 us and 935 us in small pages;
``pwritev``: 30 us and 170 us, against 82 us and 300 us.  So it pays to copy (20 us) even what the caller has in aligned
memory of its own, and a caller may reuse its memory at once.

Invariants:
    B1  A buffer is in the pool, or held by exactly one operation from ``take`` until ``give``; nobody gives
        back a buffer the kernel may still touch (``Engine.run`` returns only when that is over).
    B2  At most ``RETAINED_BYTES`` of buffers lie idle.  A slab is unmapped when the last of its buffers is let go.
    B3  A child process gets no slab: a ``fork`` must not turn a page under I/O into a copy.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import mmap
from typing import Final

SLAB_BYTES: Final = 2 << 20  # a huge page where the base page is 4 KiB; elsewhere just a size
TRANSFER_BYTES_MAX: Final = 1 << 20  # one operation moves at most this; longer requests are split
RETAINED_BYTES: Final = 64 << 20
_CLASSES: Final = (4 << 10, 16 << 10, 64 << 10, 256 << 10, TRANSFER_BYTES_MAX)


class AlignedBuffer:
    """One page-aligned piece of memory; ``view`` covers all of it and keeps it mapped."""

    __slots__ = ("address", "size", "view")

    def __init__(self, view: memoryview, address: int) -> None:
        self.view = view
        self.address = address
        self.size = view.nbytes


class BufferPool:
    """Buffers of 4 KiB .. 1 MiB, the last given first: it is warm in the processor's cache."""

    def __init__(self) -> None:
        self._free: dict[int, list[AlignedBuffer]] = {size: [] for size in _CLASSES}
        self.retained_bytes = 0

    def take(self, length: int) -> AlignedBuffer:
        """A buffer of at least ``length`` bytes (1 .. TRANSFER_BYTES_MAX); its content is arbitrary."""
        assert 0 < length <= TRANSFER_BYTES_MAX, length
        size = _CLASSES[bisect.bisect_left(_CLASSES, length)]
        idle = self._free[size]
        if not idle:
            idle.extend(_cut(size))
            self.retained_bytes += SLAB_BYTES
        self.retained_bytes -= size
        return idle.pop()

    def give(self, buffer: AlignedBuffer) -> None:
        """Return a buffer that no operation uses any more."""
        if self.retained_bytes + buffer.size <= RETAINED_BYTES:
            self.retained_bytes += buffer.size
            self._free[buffer.size].append(buffer)

    def drain(self) -> None:
        """Let go of all idle buffers."""
        for idle in self._free.values():
            idle.clear()
        self.retained_bytes = 0


def _cut(size: int) -> list[AlignedBuffer]:
    """The buffers of a new slab."""
    memory = mmap.mmap(-1, 2 * SLAB_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start = -address % SLAB_BYTES  # what lies before and behind is never touched, so it takes no memory
    memory.madvise(mmap.MADV_DONTFORK)  # B3
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE, start, SLAB_BYTES)
    with memoryview(memory) as whole:
        return [AlignedBuffer(whole[at : at + size], address + at) for at in range(start, start + SLAB_BYTES, size)]
