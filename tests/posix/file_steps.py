"""The steps of the cases that work on an open file: read, write, cut, map.  See ``steps``."""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import hashlib
import mmap
import os
from typing import Any

SHOWN_MAX = 64  # bytes of content that a trace shows as they are
libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of libc; OSError where it returns -1."""
    result: int = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def shown(data: bytes) -> object:
    """Content as a trace has it."""
    return data if len(data) <= SHOWN_MAX else (len(data), hashlib.sha256(data).hexdigest())


def content(path: str) -> object:
    """What a file holds."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        data = b""
        while piece := os.read(opened, min(1 << 20, os.fstat(opened).st_size + 1)):
            data += piece
    finally:
        os.close(opened)
    return shown(data)


class FileSteps:
    """Open files by a key, and mappings."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.maps: dict[str, mmap.mmap] = {}

    def open(self, path: str, flags: int, mode: int = 0o644, key: str = "f") -> str:
        self.close_if(key)
        self.files[key] = os.open(path, flags, mode)
        return "opened"

    def open_close(self, path: str, flags: int, mode: int = 0o644) -> str:
        """Whether it can be opened; a fifo never waits."""
        os.close(os.open(path, flags | os.O_NONBLOCK, mode))
        return "opened"

    def close_if(self, key: str) -> None:
        if key in self.files:
            os.close(self.files.pop(key))

    def close(self, key: str = "f") -> None:
        os.close(self.files.pop(key))

    def put(self, path: str, data: bytes) -> None:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
        try:
            os.write(opened, data)
        finally:
            os.close(opened)

    def content(self, path: str) -> object:
        return content(path)

    def read(self, key: str, count: int) -> object:
        return shown(os.read(self.files[key], count))

    def pread(self, key: str, count: int, offset: int) -> object:
        return shown(os.pread(self.files[key], count, offset))

    def preadv(self, key: str, lengths: tuple[int, ...], offset: int) -> object:
        buffers = [bytearray(length) for length in lengths]
        return os.preadv(self.files[key], buffers, offset), [shown(bytes(each)) for each in buffers]

    def write(self, key: str, data: bytes) -> int:
        return os.write(self.files[key], data)

    def pwrite(self, key: str, data: bytes, offset: int) -> int:
        return os.pwrite(self.files[key], data, offset)

    def pwritev(self, key: str, pieces: tuple[bytes, ...], offset: int, flags: int = 0) -> int:
        return os.pwritev(self.files[key], list(pieces), offset, flags)

    def direct_write(self, key: str, length: int, offset: int, skew: int = 0) -> object:
        return self.direct(key, length, offset, skew, write=True)

    def direct(self, key: str, length: int, offset: int, skew: int = 0, *, write: bool = False) -> object:
        """Direct I/O from or into a buffer ``skew`` bytes off a page."""
        with mmap.mmap(-1, length + mmap.PAGESIZE) as area:
            area[skew : skew + length] = b"D" * length if write else bytes(length)
            view = memoryview(area)[skew : skew + length]
            try:
                function = os.pwritev if write else os.preadv
                done = function(self.files[key], [view], offset)
                return done if write else (done, shown(bytes(view[:done])))
            finally:
                view.release()

    def set_flags(self, key: str, flags: int) -> None:
        """fcntl(F_SETFL)."""
        fcntl.fcntl(self.files[key], fcntl.F_SETFL, flags)

    def lseek(self, key: str, offset: int, whence: int = 0) -> int:
        return os.lseek(self.files[key], offset, whence)

    def truncate(self, path: str, size: int) -> None:
        call("truncate", os.fsencode(path), ctypes.c_long(size))

    def ftruncate(self, key: str, size: int) -> None:
        call("ftruncate", self.files[key], ctypes.c_long(size))

    def fsync(self, key: str) -> None:
        os.fsync(self.files[key])

    def fdatasync(self, key: str) -> None:
        os.fdatasync(self.files[key])

    def path_of(self, key: str) -> bool:
        """Whether the kernel says that the open file has been deleted."""
        return os.readlink(f"/proc/self/fd/{self.files[key]}").endswith(" (deleted)")

    def sparse(self, path: str) -> bool:
        """Whether it takes less than half of what its size says."""
        found = os.stat(path)
        return found.st_blocks * 512 < found.st_size // 2

    def execute(self, path: str) -> object:
        """Run it as a program; its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [path, "0"], {}), 0)[1])

    def program(self, path: str, source: str) -> None:
        """A program of its own: a copy of the system's."""
        with open(os.path.realpath(source), "rb") as file:
            self.put(path, file.read())
        os.chmod(path, 0o755)

    def sendfile(self, target: str, source: str, offset: int, count: int) -> int:
        return os.sendfile(self.files[target], self.files[source], offset, count)

    def splice(self, target: str, source: str, count: int, offset: int) -> object:
        """From file to file through a pipe."""
        read_end, write_end = os.pipe()
        try:
            taken = os.splice(self.files[source], write_end, count, offset_src=offset)
            given = os.splice(read_end, self.files[target], taken, offset_dst=0) if taken else 0
        finally:
            os.close(read_end)
            os.close(write_end)
        return taken, given

    # ---- mappings ----

    def map(self, key: str, length: int, *, shared: bool = True, write: bool = False) -> str:
        """Map a file; Python's own check that it is long enough is on ours, too."""
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        self.maps[key] = mmap.mmap(self.files[key], length, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, protection)
        return "mapped"

    def map_w(self, key: str, length: int) -> str:
        return self.map(key, length, write=True)

    def map_private(self, key: str, length: int) -> str:
        return self.map(key, length, shared=False, write=True)

    def map_read(self, key: str, offset: int, count: int) -> object:
        return shown(self.maps[key][offset : offset + count])

    def map_write(self, key: str, offset: int, data: bytes) -> None:
        self.maps[key][offset : offset + len(data)] = data

    def map_sync(self, key: str) -> None:
        self.maps[key].flush()

    def unmap(self, key: str) -> None:
        self.maps.pop(key).close()

    def map_do(self, key: str, at: int, data: bytes) -> object:
        """Change what lies within the file by a mapping."""
        size = os.fstat(self.files[key]).st_size
        if at >= size:
            return "beyond"
        with mmap.mmap(self.files[key], size) as mapped:
            mapped[at : at + len(data)] = data[: size - at]
            mapped.flush()
        return min(len(data), size - at)

    def map_look(self, key: str, at: int, count: int) -> object:
        size = os.fstat(self.files[key]).st_size
        if at >= size:
            return "beyond"
        with mmap.mmap(self.files[key], size, prot=mmap.PROT_READ) as mapped:
            return shown(mapped[at : at + count])

    def map_past_end(self, key: str, write_at: int, data: bytes) -> object:
        """Write into the last page of a file, past its end, by libc's mmap: a mapping has whole pages."""
        length = -(-(write_at + len(data)) // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, self.files[key], 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        before = ctypes.string_at(address + write_at, len(data))
        ctypes.memmove(address + write_at, data, len(data))
        call("msync", ctypes.c_void_p(address), length, 4)
        call("munmap", ctypes.c_void_p(address), length)
        return before

    def map_beyond(self, key: str, at: int) -> object:
        """Touch a whole page past the end of the file: the signal that ends a process which does."""
        pid = os.fork()
        if pid == 0:
            faulthandler.disable()
            libc.mmap.restype = ctypes.c_void_p
            address = libc.mmap(None, at + 1, mmap.PROT_READ, mmap.MAP_SHARED, self.files[key], 0)
            ctypes.string_at(address + at, 1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
