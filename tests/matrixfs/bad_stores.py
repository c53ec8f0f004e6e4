"""Stores that no command may take: each function makes, or damages, the one at its path (issue 2, "Bad input").

``FOREIGN`` are made from nothing; all others change a copy of a good store of ``SIZE`` bytes.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import xxhash
from fastcrc import crc32

from matrixfs.ondisk.superblock import ORPHANS_START, SYSTEM_BLOCKS
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK

SIZE = 32 << 20
LAST = SIZE // BLOCK_BYTES - 1
HALF = BLOCK_BYTES // 2
VERSION_AT, CHECKSUM_AT, INCOMPATIBLE_AT = 8, 12, 128


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def reseal(path: Path, at: int, size: int, changes: dict[int, bytes]) -> None:
    """Change a record and make its checksum right again: what a newer version would have written."""
    with path.open("r+b") as file:
        file.seek(at)
        image = bytearray(file.read(size))
        for offset, data in changes.items():
            image[offset : offset + len(data)] = data
        image[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
        image[CHECKSUM_AT : CHECKSUM_AT + 4] = crc32.iscsi(image).to_bytes(4, "little")
        file.seek(at)
        file.write(image)


def content(path: Path) -> tuple[int, int, str] | None:
    """Size, mode and a hash of the bytes; None when there is nothing."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    regular = stat.S_ISREG(found.st_mode)
    return found.st_size, found.st_mode, xxhash.xxh3_128_hexdigest(path.read_bytes()) if regular else ""


def data_area(path: Path) -> str:
    """A hash of the filesystem alone: a running matrixd writes to the rest."""
    with path.open("rb") as file:
        file.seek(DATA_BLOCK * BLOCK_BYTES)
        return xxhash.xxh3_128_hexdigest(file.read())


def nothing(path: Path) -> None:
    """No such store."""


def a_directory(path: Path) -> None:
    path.mkdir()


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def an_empty_file(path: Path) -> None:
    path.touch()


def a_small_file(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))


def random_bytes(path: Path) -> None:
    path.write_bytes(os.urandom(SIZE))


def an_ext4_image(path: Path) -> None:
    path.touch()
    os.truncate(path, SIZE)
    if shutil.which("mkfs.ext4", path=os.environ["PATH"] + ":/sbin:/usr/sbin"):
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", str(path)], check=True)
    else:
        patch(path, 1024 + 56, b"\x53\xef")


# Each of these changes a copy of the formatted store.


def unchanged(path: Path) -> None:
    pass


def cut_short(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def both_labels_damaged(path: Path) -> None:
    for block in (0, LAST):
        patch(path, block * BLOCK_BYTES + 70, b"\xff")


def label_of_the_future(path: Path) -> None:
    for block in (0, LAST):
        reseal(path, block * BLOCK_BYTES, BLOCK_BYTES, {VERSION_AT: b"\x03\0"})


def label_with_timing_that_contradicts_itself(path: Path) -> None:
    for block in (0, LAST):
        reseal(path, block * BLOCK_BYTES, BLOCK_BYTES, {196: (100).to_bytes(4, "little")})  # lease below renew


def label_that_promises_more(path: Path) -> None:
    for block in (0, LAST):
        reseal(path, block * BLOCK_BYTES, BLOCK_BYTES, {168: (1 << 40).to_bytes(8, "little")})  # data_blocks


def san_header_damaged(path: Path) -> None:
    patch(path, HEADER_BLOCK * BLOCK_BYTES, b"MXFSSANH" + b"\x01" + bytes(7) + b"\xff" * 100)
    patch(path, HEADER_BLOCK * BLOCK_BYTES + HALF, b"MXFSSANH" + b"\x01" + bytes(7) + b"\xff" * 100)


def superblock_damaged(path: Path) -> None:
    patch(path, DATA_BLOCK * BLOCK_BYTES + 60, b"\xff\xff")


def superblock_of_the_future(path: Path) -> None:
    reseal(path, DATA_BLOCK * BLOCK_BYTES, BLOCK_BYTES, {VERSION_AT: b"\x07\0"})


def superblock_with_an_unknown_feature(path: Path) -> None:
    reseal(path, DATA_BLOCK * BLOCK_BYTES, BLOCK_BYTES, {INCOMPATIBLE_AT: b"\x80"})


def superblock_with_impossible_numbers(path: Path) -> None:
    reseal(path, DATA_BLOCK * BLOCK_BYTES, BLOCK_BYTES, {136: (1 << 50).to_bytes(8, "little")})  # blocks_total


def journal_header_damaged(path: Path) -> None:
    patch(path, (DATA_BLOCK + SYSTEM_BLOCKS) * BLOCK_BYTES + 64, b"\xff")


def orphan_directory_damaged(path: Path) -> None:
    patch(path, (DATA_BLOCK + ORPHANS_START) * BLOCK_BYTES + 64, b"\xff")


Damage = Callable[[Path], None]
FOREIGN: tuple[Damage, ...] = (
    nothing, a_directory, a_fifo, a_dangling_link, an_empty_file, a_small_file, random_bytes, an_ext4_image,
)  # fmt: skip


def make_store(work: Path, formatted: Path, damage: Damage) -> Path:
    path = work / damage.__name__
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if damage not in FOREIGN:
        shutil.copyfile(formatted, path)
        path.chmod(0o600)
    damage(path)
    return path
