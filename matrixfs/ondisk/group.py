"""An allocation group's block: a bitmap of its blocks, bit set = in use (bit 0 is this block itself)."""

from __future__ import annotations

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES
from membership.records import GENERATION_MAX, Record, raw, record, u32, u64

BITMAP_BYTES = 2048


@record(magic=b"MXFSGRUP", size=BLOCK_BYTES)
class GroupRecord(Record):
    """``address`` is the group's first block."""

    index: int = u32(48, "number of the group")
    blocks: int = u32(52, "blocks it has, this one included")
    free: int = u32(56, "clear bits among them")
    generation_floor: int = u64(64, "greatest generation of a metadata block freed here: new ones start above it (R7)")
    bitmap: bytes = raw(128, BITMAP_BYTES, "bit i of byte i // 8: block address + i is in use")

    def check_untrusted(self, where: str) -> None:
        """Check what no other field contradicts.  Raises CorruptRecord."""
        if self.generation_floor > GENERATION_MAX:
            raise CorruptRecord(where, "generation floor", f"at most {GENERATION_MAX}", self.generation_floor)
