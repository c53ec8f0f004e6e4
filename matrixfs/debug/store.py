"""A store opened to be looked at: label, superblock or its copy, and blocks; nothing here refuses for damage alone."""

from __future__ import annotations

from collections.abc import Collection

from matrixfs.blockstore import data_window
from matrixfs.debug.items import Item, problem
from matrixfs.debug.structures import show, structures, verdict
from matrixfs.fsck.alive import NodeWatch
from matrixfs.fsck.area import Area
from matrixfs.fsck.context import reason
from matrixfs.fsck.overlay import Overlay
from matrixfs.fsck.problems import Findings
from matrixfs.fsck.store import replay_journals
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.superblock import INCOMPATIBLE_KNOWN, ROOT_INODE, Superblock
from membership.errors import CorruptRecord, OperatorError
from membership.label import BLOCK_BYTES, DATA_BLOCK, Label, read_label
from membership.records import Record
from membership.seams import Clock, SectorDevice


class Store:
    """What is known of a store after ``open_store``.

    ``notes`` are problems found on the way; ``writers`` the nodes that may be writing (D4).
    """

    def __init__(self, device: SectorDevice) -> None:
        self.device = device
        self.kinds = structures()
        self.label: Label | None = None
        self.notes: list[Item] = []
        self.writers: list[str] = []
        self._area: Area | None = None

    @property
    def area(self) -> Area:
        """The filesystem's area.  Raises OperatorError when neither superblock can be used."""
        if self._area is None:
            raise OperatorError(
                f"{self.device.name}: the superblock and its copy are damaged: only the verbs label and superblock work"
            )
        return self._area

    @property
    def superblock(self) -> Superblock:
        """The sound one of the two.  Raises OperatorError as ``area``."""
        return self.area.superblock

    async def open(self, clock: Clock, *, replay: bool) -> None:
        """Find out what there is.

        Args:
            clock: as ``NodeWatch`` wants it; nobody is waited for.
            replay: replay the journals, in memory: what follows is what a mount would see.

        Raises:
            OperatorError: no cluster disk at all.
            DeviceError: I/O failed.
        """
        try:
            self.label = await read_label(self.device)
        except CorruptRecord as error:
            self.notes.append(problem(f"both labels are damaged ({reason(error)})"))
        else:
            self.writers = await NodeWatch(self.device, self.label, clock).not_left()
        window: SectorDevice = self.window()
        if replay:
            window = Overlay(window)
        for block in (0, window.size_bytes // BLOCK_BYTES - 1):
            superblock = await self._superblock(window, block)
            if superblock is not None:
                self._area = Area(window, superblock)
                break
        if replay:
            findings = Findings()
            await replay_journals(window, self.superblock, findings)
            self.notes += [problem(finding.text) for finding in findings.kept]

    def window(self) -> SectorDevice:
        """The data area: where the label says, or where labels always said."""
        label = self.label or Label(
            data_block=DATA_BLOCK, data_blocks=self.device.size_bytes // BLOCK_BYTES - DATA_BLOCK - 1
        )
        return data_window(self.device, label)

    @property
    def copy_block(self) -> int:
        """Where the superblock's copy is: at the filesystem's end, or if that is not known at the area's."""
        if self._area is not None:
            return self._area.superblock.blocks_total - 1
        return self.window().size_bytes // BLOCK_BYTES - 1

    async def _superblock(self, window: SectorDevice, block: int) -> Superblock | None:
        where = "the superblock's copy" if block else "the superblock"
        try:
            data = await window.read(block * BLOCK_BYTES, BLOCK_BYTES)
            found = Superblock.decode_untrusted(data, "", address=block)
            unknown = found.features_incompatible & ~INCOMPATIBLE_KNOWN
            found.features_incompatible &= INCOMPATIBLE_KNOWN
            found.check_untrusted("", window.size_bytes // BLOCK_BYTES)
            found.features_incompatible |= unknown
        except CorruptRecord as error:
            self.notes.append(problem(f"{where} is damaged ({reason(error)})"))
            return None
        if unknown:
            self.notes.append(
                problem(f"{where} names features {unknown:#x} of a newer version: what follows may be wrong")
            )
        return found

    # --- blocks ---------------------------------------------------------------------------------------------------

    async def read(self, block: int) -> bytes:
        """A block of the area.  Raises OperatorError when there is none."""
        self.check_block(block)
        return await self.area.read(block)

    def check_block(self, block: int) -> None:
        """Raises OperatorError when the area has no such block."""
        blocks = self.area.device.size_bytes // BLOCK_BYTES
        if not 0 <= block < blocks:
            raise OperatorError(f"{block}: no block of the filesystem, which has 0 to {blocks - 1}")

    def journal_blocks(self, index: int) -> range:
        """The blocks of a journal, its header first."""
        start = self.superblock.journal_block(index)
        return range(start, start + self.superblock.journal_length(index))

    async def read_many(self, blocks: Collection[int]) -> dict[int, bytes]:
        """Those of the blocks that there are."""
        end = self.area.device.size_bytes // BLOCK_BYTES
        return await self.area.read_many([block for block in blocks if 0 <= block < end])

    def show(self, kind: type[Record], data: bytes, title: str, block: int, *, full: bool = True) -> Item:
        """A structure of the area."""
        superblock = self.superblock
        return show(
            kind, data, title, owner=superblock.owner, address=block, blocks_total=superblock.blocks_total, full=full
        )

    # --- inodes ---------------------------------------------------------------------------------------------------

    async def inode(self, number: int) -> tuple[InodeRecord | None, str]:
        """(an inode taken as it is, what is wrong with it); None when its block holds no inode at all."""
        if number != ROOT_INODE and not self.superblock.is_inode_number(number):
            return None, f"{number} is no inode number"
        return self.take_inode(number, await self.read(number))

    def take_inode(self, number: int, data: bytes) -> tuple[InodeRecord | None, str]:
        """``inode``, of a block that was read."""
        if data[:8] != InodeRecord.MAGIC:
            return None, f"block {number} holds no inode"
        wrong = verdict(InodeRecord, data, self.superblock.owner, number)
        return lenient(InodeRecord, data), f"inode {number} is damaged ({wrong})" if wrong else ""


def lenient(kind: type[InodeRecord], data: bytes) -> InodeRecord:
    """The fields of a record whose checksum may be wrong."""
    from matrixfs.debug.structures import fields_of

    fields = fields_of(kind, data)
    return kind(**{name: value for name, value in fields.items() if name not in {"version", "checksum"}})
