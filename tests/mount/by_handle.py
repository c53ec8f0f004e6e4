"""name_to_handle_at(2) and open_by_handle_at(2)."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_HANDLE_BYTES = 128
_HEADER = struct.Struct("Ii")  # struct file_handle: length, type; the bytes follow
AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(path: Path) -> bytes:
    """struct file_handle, the mount id left out."""
    buffer = ctypes.create_string_buffer(_HEADER.pack(_HANDLE_BYTES, 0), _HEADER.size + _HANDLE_BYTES)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return buffer.raw[: _HEADER.size + _HEADER.unpack_from(buffer.raw)[0]]


def open_handle(anywhere: Path, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file; ``anywhere``: in its filesystem."""
    mount = os.open(anywhere, os.O_RDONLY)
    try:
        opened: int = _libc.open_by_handle_at(mount, ctypes.create_string_buffer(handle, len(handle)), flags)
    finally:
        os.close(mount)
    if opened < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return opened


def with_number(handle: bytes, node: int) -> bytes:
    """The same for another node id; as fs/fuse/inode.c has it: node id, high word first, then the generation."""
    high, low, generation = struct.unpack_from("III", handle, _HEADER.size)
    assert (high, low) != (node >> 32, node & 0xFFFFFFFF)
    return handle[: _HEADER.size] + struct.pack("III", node >> 32, node & 0xFFFFFFFF, generation)
