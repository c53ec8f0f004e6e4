"""A plain file as the shared store: on one box, or on a shared filesystem that honours O_DIRECT (architecture.md 1)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from matrixfs.blockstore.device.direct import DirectDevice
from membership.errors import OperatorError

_SECTORS = (512, 4096)
_STATX_DIOALIGN = 0x2000
_STATX_BYTES = 256
_AT_EMPTY_PATH = 0x1000
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)


class FileDevice(DirectDevice):
    """A SectorDevice in a regular file.

    Args:
        fd: open with O_DIRECT; the device owns it, also when this raises.
        name: its path.

    Raises:
        OperatorError: its filesystem does no direct I/O.
    """

    def __init__(self, fd: int, name: str) -> None:
        try:
            sector_bytes = _sector_bytes(fd, name)
            size_bytes = os.fstat(fd).st_size
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, name, sector_bytes, size_bytes)

    def _discard_now(self, offset: int, length: int) -> None:
        """``DirectDevice``: the file gets a hole."""
        if _libc.fallocate(self.fileno(), _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def enlarge(self, size_bytes: int) -> None:
        """Make the file so long, sparse; one that is as long already stays as it is.  ``measure`` then finds it.

        Raises OperatorError: its filesystem does not take such a file.
        """
        try:
            if os.fstat(self.fileno()).st_size < size_bytes:
                os.ftruncate(self.fileno(), size_bytes)
        except OSError as error:
            raise OperatorError(f"{self.name}: can't make it {size_bytes} bytes long: {error.strerror}") from None


def _sector_bytes(fd: int, name: str) -> int:
    """512 or 4096: what the filesystem takes for direct I/O.  It says so from Linux 6.1 on; else try reads."""
    alignment = _announced_alignment(fd)
    if alignment is not None:
        fitting = [sector for sector in _SECTORS if alignment and sector % alignment == 0]
    else:
        fitting = [sector for sector in _SECTORS if _can_read(fd, sector)]
    if not fitting:
        raise OperatorError(f"{name}: its filesystem does no direct I/O; keep the store on ext4, xfs or a block device")
    return fitting[0]


def _announced_alignment(fd: int) -> int | None:
    """Alignment of offsets by statx(2); 0 = no direct I/O on this file, None = this kernel or filesystem doesn't say.

    Worth asking: some filesystems take an O_DIRECT descriptor and then quietly go through the page cache.
    """
    try:
        statx = _libc.statx
    except AttributeError:  # C library before 2.28
        return None
    answer = (ctypes.c_uint32 * (_STATX_BYTES // 4))()
    if statx(ctypes.c_int(fd), b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, ctypes.byref(answer)) != 0:
        return None
    mask, alignment = answer[0], answer[39]  # stx_mask, stx_dio_offset_align: struct statx is stable ABI
    return int(alignment) if mask & _STATX_DIOALIGN else None


def _can_read(fd: int, length: int) -> bool:
    """Try a direct read of ``length`` bytes."""
    buffer = mmap.mmap(-1, max(length, mmap.PAGESIZE))
    try:
        with memoryview(buffer) as whole, whole[:length] as view:
            os.preadv(fd, [view], 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    finally:
        buffer.close()
    return True
