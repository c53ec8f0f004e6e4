"""A block device as the shared store: a LUN, a partition, a multi-attach cloud disk, a loop device (R13)."""

from __future__ import annotations

import fcntl
import os
import struct

from matrixfs.blockstore.device.direct import DirectDevice
from membership.errors import OperatorError

_BLKSSZGET = 0x1268  # int: logical block size
_BLKDISCARD = 0x1277  # u64 offset, u64 length
_BLKGETSIZE64 = 0x80081272  # u64: bytes


class BlockDevice(DirectDevice):
    """A SectorDevice on a block device.  Never O_EXCL: the other processes of this host share it.

    Args:
        fd: open with O_DIRECT; the device owns it, also when this raises.
        name: its path.

    Raises:
        OperatorError: its logical blocks are neither 512 nor 4096 bytes.
    """

    def __init__(self, fd: int, name: str) -> None:
        try:
            (sector_bytes,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
            (size_bytes,) = struct.unpack("Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))
            if sector_bytes not in {512, 4096}:
                raise OperatorError(f"{name}: logical blocks of {sector_bytes} bytes; only 512 and 4096 are supported")
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, name, sector_bytes, size_bytes)

    def _discard_now(self, offset: int, length: int) -> None:
        """``DirectDevice``."""
        fcntl.ioctl(self.fileno(), _BLKDISCARD, struct.pack("QQ", offset, length))
