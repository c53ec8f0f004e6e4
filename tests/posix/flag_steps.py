"""The steps of the cases about flags and projects of files: ioctl(2) as chattr(1) and xfs_io(8) use it."""

from __future__ import annotations

import array
import fcntl
import os
import struct

from tests.posix.file_steps import FileSteps, call

GET, SET, GET_PROJECT, SET_PROJECT, GET_VERSION = 0x80086601, 0x40086602, 0x801C581F, 0x401C5820, 0x80087601
NUMBERS = {  # FS_..._FL and FS_XFLAG_..., by the letter of chattr(1)
    "S": (0x8, 0x20), "i": (0x10, 0x8), "a": (0x20, 0x10), "d": (0x40, 0x80), "A": (0x80, 0x40), "j": (0x4000, 0),
    "D": (0x10000, 0), "P": (0x20000000, 0x200),
}  # fmt: skip
PROJECT = struct.Struct("=IIII12x")


def letters(number: int, numbering: int) -> str:
    """The flags that MatrixFS knows too."""
    return "".join(letter for letter, numbers in NUMBERS.items() if number & numbers[numbering])


def number_of(flags: str, numbering: int = 0) -> int:
    return sum(NUMBERS[letter][numbering] for letter in flags)


def ioctl(path: str, command: int, argument: bytes) -> bytes:
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(opened, command, argument)
    finally:
        os.close(opened)


class FlagSteps(FileSteps):
    """Flags of paths, and what they forbid."""

    def flags(self, path: str) -> str:
        (number,) = struct.unpack_from("=I", ioctl(path, GET, bytes(8)))
        return letters(number, 0)

    def set_flags_to(self, path: str, flags: str, more: int = 0) -> None:
        """As chattr(1) with "=": all others of ours go, those that only ext4 has stay."""
        (number,) = struct.unpack_from("=I", ioctl(path, GET, bytes(8)))
        kept = number & ~number_of("".join(NUMBERS))
        ioctl(path, SET, struct.pack("=II", kept | number_of(flags) | more, 0))

    def project(self, path: str) -> object:
        number, hint, _, project = PROJECT.unpack(ioctl(path, GET_PROJECT, bytes(PROJECT.size)))
        return letters(number, 1), hint, project

    def set_project(self, path: str, flags: str, project: int, more: int = 0) -> None:
        ioctl(path, SET_PROJECT, PROJECT.pack(number_of(flags, 1) | more, 0, 0, project))

    def version(self, path: str) -> object:
        """Whether it has a number that tells it from others; and that an int is written, though a long is said."""
        found = array.array("I", [7, 7])
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            fcntl.ioctl(opened, GET_VERSION, found)
        finally:
            os.close(opened)
        return found[0] != 7, found[1]

    def other_ioctl(self, path: str, command: int) -> object:
        return ioctl(path, command, bytes(64))

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(path, name, value)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name)

    def fallocate(self, key: str, mode: int, offset: int, length: int) -> None:
        call("fallocate64", self.files[key], mode, *(offset, length))

    def copy(self, source: str, target: str, count: int) -> int:
        return os.copy_file_range(self.files[source], self.files[target], count, 0, 0)

    def tmpfile(self, path: str) -> str:
        os.close(os.open(path, os.O_RDWR | os.O_TMPFILE, 0o644))
        return "opened"

    flags_here = flags
