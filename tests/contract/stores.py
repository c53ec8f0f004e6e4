"""Places to keep a store for tests, on real kernel devices that vanish by themselves.

A loop device is detached right after it was opened, and a filesystem unmounted lazily: the kernel lets go of both when
the last descriptor is closed, so also when the tests are killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def loop_device(backing: str, sector_bytes: int) -> Iterator[str]:
    """A loop device over the file ``backing``; needs root."""
    path = _run("losetup", "-f", "--show", "-b", str(sector_bytes), backing)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        _run("losetup", "-d", path)
    try:
        yield path
    finally:
        os.close(fd)


@contextlib.contextmanager
def directory_with_sectors(backing: str, sector_bytes: int) -> Iterator[str]:
    """A directory in a new ext4 filesystem whose direct I/O needs ``sector_bytes``; needs root."""
    with loop_device(backing, sector_bytes) as device, tempfile.TemporaryDirectory() as place:
        _run("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", device)
        _run("mount", "-t", "ext4", device, place)
        try:
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            _run("umount", "-l", place)
        try:
            yield f"/proc/{os.getpid()}/fd/{fd}"
        finally:
            os.close(fd)


def make_file(path: str, size_bytes: int) -> str:
    """A sparse file."""
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return path
