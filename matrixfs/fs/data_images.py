"""The blocks of file data whose images the log holds, or will hold: in place may lie older ones (data_journal, DJ1).

A block is known here from the change that adds it to a transaction until its images are trimmed from the log or
revoked.  The log bounds how many there are.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from matrixfs.fs.blocks import Block
from membership.label import BLOCK_BYTES
from membership.seams import SectorDevice


class DataBlock(Block):
    """A block of file data on its way through the log; ``inode`` is the file's number, ``content`` the newest."""

    __slots__ = ("content", "inode")

    def __init__(self, address: int, inode: int) -> None:
        super().__init__(address, 0)
        self.inode = inode
        self.content = b""

    def encode(self, owner: bytes) -> bytes:
        """See ``Block.encode``."""
        return self.content


class DataImages:
    """Those of one journal, by address and by file."""

    def __init__(self) -> None:
        self._blocks: dict[int, DataBlock] = {}
        self._of: dict[int, dict[int, DataBlock]] = {}

    def put(self, address: int, inode: int, content: bytes) -> DataBlock:
        """The block with new content; the caller adds it to the journal."""
        block = self._blocks.get(address)
        if block is None or block.inode != inode:
            self.forget(address)  # of another file: a damaged filesystem gives a block to two
            block = self._blocks[address] = DataBlock(address, inode)
            self._of.setdefault(inode, {})[address] = block
        block.content = content
        return block

    def of(self, inode: int) -> list[DataBlock]:
        """Those of a file."""
        return list(self._of.get(inode, {}).values())

    def within(self, start: int, length: int) -> list[DataBlock]:
        """Those among some blocks of the store."""
        blocks = self._blocks
        if length < len(blocks):
            return [blocks[address] for address in range(start, start + length) if address in blocks]
        return [block for address, block in blocks.items() if start <= address < start + length]

    def forget(self, address: int) -> None:
        """No image of it is to be had any more, or none that counts."""
        block = self._blocks.pop(address, None)
        if block is not None:
            mine = self._of[block.inode]
            del mine[address]
            if not mine:
                del self._of[block.inode]

    def settle(self, logged: Container[int], addresses: Iterable[int] | None = None) -> None:
        """Forget which of ``addresses``, or of all, are neither ``logged`` nor in a transaction under way."""
        for address in list(self._blocks if addresses is None else addresses):
            block = self._blocks.get(address)
            if block is not None and address not in logged and (block.transaction is None or block.transaction.done):
                self.forget(address)

    async def read(self, device: SectorDevice, start: int, length: int) -> bytes:
        """The newest bytes of blocks of file data; the lock that covers them is held."""
        # What is known is taken first: during the read it may be put in place and forgotten (DJ1).
        known = self.within(start, length) if self._blocks else []
        if not known:
            return await device.read(start * BLOCK_BYTES, length * BLOCK_BYTES)
        images = [(block.address - start, block.content) for block in known]
        buffer = bytearray(length * BLOCK_BYTES)
        if len(images) < length:
            buffer[:] = await device.read(start * BLOCK_BYTES, length * BLOCK_BYTES)
        for at, content in images:
            buffer[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] = content
        return bytes(buffer)
