"""The steps of the cases that work on ranges of open files, and on mappings that stay while others change the file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

from tests.posix.file_steps import FileSteps, call, libc, shown

MS_SYNC = 4
KEPT_BYTES = 4 << 20
MAP_FAILED = ctypes.c_void_p(-1).value


class RangeSteps(FileSteps):
    """Kept mappings are as long as a file may become: only what lies within it is ever touched."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[str, int] = {}  # addresses

    def fallocate(self, key: str, mode: int, at: int, length: int) -> None:
        call("fallocate", self.files[key], mode, ctypes.c_long(at), ctypes.c_long(length))

    def blocks(self, path: str) -> int:
        """The space that stat(2) tells of, where filesystems have no choice."""
        return os.stat(path).st_blocks

    def copy_range(self, source: str, target: str, count: int, at: int, to: int) -> int:
        """All of it, in as many calls as the kernel makes of it."""
        done = 0
        while done < count:
            os.fstat(self.files[source])  # the kernel cuts a copy at the size it knows
            copied = os.copy_file_range(self.files[source], self.files[target], count - done, at + done, to + done)
            if not copied:
                break
            done += copied
        return done

    def read_by_splice(self, key: str, count: int, at: int) -> object:
        """Through a pipe, as sendfile reads: the kernel takes the pages it has."""
        os.fstat(self.files[key])
        read_end, write_end = os.pipe()
        try:
            taken = os.splice(self.files[key], write_end, min(count, 65536), offset_src=at)
            return shown(os.read(read_end, taken)) if taken else b""
        finally:
            os.close(read_end)
            os.close(write_end)

    def holes_are_zero(self, key: str) -> bool:
        """Whether what SEEK_HOLE calls a hole reads as zeros; where holes are is each filesystem's own business."""
        opened = self.files[key]
        size, at = os.fstat(opened).st_size, 0
        while at < size:
            hole = os.lseek(opened, at, os.SEEK_HOLE)
            try:
                at = os.lseek(opened, hole, os.SEEK_DATA) if hole < size else size
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                at = size
            if any(os.pread(opened, at - hole, hole)):
                return False
        return True

    # ---- mappings that are kept ----

    def kept_write(self, key: str, at: int, data: bytes) -> int:
        address, count = self._within(key, at, len(data))
        if count:
            ctypes.memmove(address + at, data, count)
            start = address + at - at % mmap.PAGESIZE
            call("msync", ctypes.c_void_p(start), address + at + count - start, MS_SYNC)
        return count

    def kept_read(self, key: str, at: int, count: int) -> object:
        address, count = self._within(key, at, count)
        return shown(ctypes.string_at(address + at, count))

    def _within(self, key: str, at: int, count: int) -> tuple[int, int]:
        """The address of the key's mapping, made if need be, and how many bytes of the file there are at ``at``.

        The size is asked for by the same mount: a page fault asks nobody, so the kernel knows of what other nodes have
        added only then.
        """
        opened = self.files[key]
        if key not in self._kept:
            libc.mmap.restype = ctypes.c_void_p
            address = libc.mmap(
                None, KEPT_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, opened, ctypes.c_long(0)
            )
            if address == MAP_FAILED:
                raise OSError(ctypes.get_errno(), "mmap")
            self._kept[key] = address
        return self._kept[key], max(0, min(count, os.fstat(opened).st_size - at))

    def close_if(self, key: str) -> None:
        if key in self._kept:
            call("munmap", ctypes.c_void_p(self._kept.pop(key)), KEPT_BYTES)
        super().close_if(key)

    def unkeep_all(self) -> None:
        for key in tuple(self._kept):
            self.close_if(key)
