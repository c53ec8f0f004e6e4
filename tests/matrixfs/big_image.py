"""Filesystems of millions of files, written block by block, and what fsck takes for them (issue 5, "Scale").

    python -m tests.matrixfs.big_image make STORE --files 1000000 [--in-directory 1000] [--data-blocks 0]
    python -m tests.matrixfs.big_image check STORE      fsck -n: seconds, reads, greatest resident memory

STORE is a file.  Every inode is a block of 4 KiB, so a million files are 4 GB; their data is a hole of the file, so a
store that is half full costs nothing.  Names lie in the order of their hashes and inodes in that of their making, as in
a filesystem that was used.  ``make`` needs 8 bits for each 8 blocks of the store, and one directory, in memory.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from fastcrc import crc32

from matrixfs.blockstore import open_store
from matrixfs.fs.mkfs import empty_group
from matrixfs.fsck.run import Mode, Outcome, run_fsck
from matrixfs.ondisk.directory import DISAMBIGUATION_BITS, DirectoryLeafRecord, Entry, first_key, pack_entries
from matrixfs.ondisk.extent import Extent, pack_extents
from matrixfs.ondisk.group import BITMAP_BYTES
from matrixfs.ondisk.index import BODY_BYTES, PAIR_BYTES, pack_pairs
from matrixfs.ondisk.inode import INLINE, TAIL_AT, TAIL_BYTES, TREE, InodeRecord
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from membership.clock import SystemClock
from membership.label import BLOCK_BYTES, Label
from membership.records import Record

NOW = 1_700_000_000_000_000_000
FLUSH_BYTES = 8 << 20
BLOCKS_SPARE = 200_000  # label, membership, journals, groups' bitmaps and ends
FILE, DIRECTORY = stat.S_IFREG >> 12, stat.S_IFDIR >> 12
LEAVES_MAX = TAIL_BYTES // PAIR_BYTES  # of a directory here: one level is enough
ADDRESS_AT, CHECKSUM_AT = 32, 12


class BigImage:
    """Fills an empty filesystem from its first group on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)
        label = Label.decode_untrusted(os.pread(self._file, BLOCK_BYTES, 0), "label")
        self._first = label.data_block
        self.superblock = Superblock.decode_untrusted(
            os.pread(self._file, BLOCK_BYTES, self._first * BLOCK_BYTES), "superblock"
        )
        self.superblock.check_untrusted("superblock", label.data_blocks)
        self._used = bytearray(self.superblock.blocks_total // 8 + 1)
        self._next = self.superblock.group_start
        self._buffer, self._buffer_at = bytearray(), 0
        self._file_template = bytearray(
            self._inode(0, stat.S_IFREG | 0o644, nlink=1, layout=INLINE).encode()[:TAIL_AT]
        )

    def fill(self, files: int, in_directory: int, data_blocks: int) -> None:
        """Make so many files, ``in_directory`` in each directory, each with ``data_blocks`` blocks in one extent."""
        top: list[tuple[bytes, int, int]] = []
        for start in range(0, files, in_directory):
            count = min(in_directory, files - start)
            number = self._take()
            names = []
            for at in range(start, start + count):
                extent = Extent(0, self._take(data_blocks), data_blocks) if data_blocks else None
                names.append((b"file-%08d.html" % at, self._file_inode(extent), FILE))
            self._directory(number, ROOT_INODE, names, 2)
            top.append((b"directory-%06d" % (start // in_directory), number, DIRECTORY))
        self._directory(ROOT_INODE, ROOT_INODE, top, 2 + len(top))
        self._groups()
        self._flush()
        os.fsync(self._file)
        os.close(self._file)

    def _take(self, length: int = 1) -> int:
        """Blocks that lie together in one group."""
        group = 1 << self.superblock.group_shift
        if self._next % group + length > group:
            self._next += -self._next % group
        if self._next % group == 0:
            self._next += 1
        start, self._next = self._next, self._next + length
        for block in range(start, self._next):
            self._used[block >> 3] |= 1 << (block & 7)
        return start

    def _file_inode(self, extent: Extent | None) -> int:
        """A file; from a template, because there are millions."""
        number = self._take()
        if extent is not None:
            size = extent.length * BLOCK_BYTES
            inode = self._inode(number, stat.S_IFREG | 0o644, nlink=1, layout=TREE, entries=1, size=size)
            inode.blocks, inode.tail = extent.length, pack_extents([extent])
            self._put(inode)
            return number
        block = self._file_template + bytes(BLOCK_BYTES - TAIL_AT)
        block[ADDRESS_AT : ADDRESS_AT + 8] = number.to_bytes(8, "little")
        block[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
        block[CHECKSUM_AT : CHECKSUM_AT + 4] = crc32.iscsi(bytes(block)).to_bytes(4, "little")
        self._write(number, block)
        return number

    def _inode(self, number: int, mode: int, **fields: Any) -> InodeRecord:
        times = {"atime_ns": NOW, "mtime_ns": NOW, "ctime_ns": NOW, "btime_ns": NOW}
        return InodeRecord(
            owner=self.superblock.owner, address=number, generation=2, mode=mode, incarnation=1, **times, **fields
        )

    def _directory(self, number: int, parent: int, names: Sequence[tuple[bytes, int, int]], nlink: int) -> None:
        seed = self.superblock.hash_seed
        entries = sorted(Entry(first_key(name, seed), ino, kind, name) for name, ino, kind in names)
        inode = self._inode(number, stat.S_IFDIR | 0o755, nlink=nlink, layout=TREE, parent=parent)
        inode.size, inode.children = sum(entry.size for entry in entries), len(entries)
        if inode.size <= TAIL_BYTES:
            inode.tail, inode.entries = pack_entries(entries), len(entries)
        else:
            keys, blocks = [], []
            per_leaf = BODY_BYTES // max(entry.size for entry in entries) * 3 // 4  # as splits leave them
            for at in range(0, len(entries), per_leaf):
                part = entries[at : at + per_leaf]
                keys.append(part[0].key >> DISAMBIGUATION_BITS << DISAMBIGUATION_BITS if at else 0)
                blocks.append(self._take())
                self._put(
                    DirectoryLeafRecord(
                        owner=self.superblock.owner, address=blocks[-1], generation=2,
                        inode=number, entries=len(part), body=pack_entries(part),
                    )
                )  # fmt: skip
            assert len(blocks) <= LEAVES_MAX, "too many names in one directory"
            inode.tail, inode.entries, inode.depth = pack_pairs(keys, blocks), len(blocks), 1
            inode.blocks = len(blocks)
        self._put(inode)

    def _groups(self) -> None:
        for index in range(self.superblock.groups):
            group = empty_group(self.superblock, index)
            first = group.address >> 3
            used = int.from_bytes(self._used[first : first + BITMAP_BYTES], "little") & ((1 << group.blocks) - 1)
            bits = int.from_bytes(group.bitmap, "little") | used
            group.bitmap = bits.to_bytes(BITMAP_BYTES, "little")
            group.free = group.blocks - (bits & ((1 << group.blocks) - 1)).bit_count()
            group.generation_floor = 1
            self._put(group)

    def _put(self, record: Record) -> None:
        self._write(record.address, record.encode())

    def _write(self, block: int, data: bytes | bytearray) -> None:
        """Into place; what follows on the last block waits for more."""
        at = (self._first + block) * BLOCK_BYTES
        if at != self._buffer_at + len(self._buffer) or len(self._buffer) >= FLUSH_BYTES:
            self._flush()
            self._buffer_at = at
        self._buffer += data

    def _flush(self) -> None:
        os.pwrite(self._file, self._buffer, self._buffer_at)
        self._buffer.clear()


def make(path: Path, files: int, in_directory: int, data_blocks: int, size: int) -> None:
    """Make a store and fill it."""
    blocks = files * (1 + data_blocks) + files // 50 + 4 * files // in_directory + BLOCKS_SPARE
    command = ["-n", "big", "-j", "2", "--size", str(max(size, blocks * BLOCK_BYTES)), str(path)]
    subprocess.run([str(Path(sys.executable).with_name("mkfs.matrixfs")), *command], check=True, stdout=sys.stderr)
    BigImage(path).fill(files, in_directory, data_blocks)


class Counting:
    """A device that counts what is read."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.reads = self.bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    async def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.bytes += length
        found: bytes = await self._device.read(offset, length)
        return found


class Silent:
    """A Reporter for nobody."""

    def report(self, stage: str, done: int, total: int) -> None:
        """Nothing to do."""

    def say(self, line: str) -> None:
        print(line)

    def replayed(self, *_: Any, **__: Any) -> None:
        """Nothing to do."""

    def found(self, findings: Any) -> None:
        for finding in findings.kept:
            print(finding.text)

    def ask(self, fixable: int) -> bool:
        return False


async def check(path: Path) -> tuple[Outcome, Counting]:
    """What fsck -n finds, and what it read."""
    device = Counting(open_store(str(path), read_only=True))
    try:
        outcome = await run_fsck(device, Mode.LOOK, SystemClock(), random.Random(1), Silent())
    finally:
        await device.aclose()
    return outcome, device


def main() -> int:
    parser = argparse.ArgumentParser(description="Filesystems of millions of files.")
    parser.add_argument("what", choices=("make", "check"))
    parser.add_argument("store", type=Path)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--in-directory", type=int, default=1000)
    parser.add_argument("--data-blocks", type=int, default=0, help="of each file, in one extent (0)")
    parser.add_argument("--size", type=int, default=0, help="bytes of the store, at least")
    options = parser.parse_args()
    began = time.monotonic()
    if options.what == "make":
        make(options.store, options.files, options.in_directory, options.data_blocks, options.size)
        print(f"made in {time.monotonic() - began:.0f} s")
        return 0
    outcome, device = trio.run(check, options.store)
    seconds, counts = time.monotonic() - began, outcome.counts
    inodes = counts.files + counts.directories
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = time.process_time()
    print(
        f"exit code {outcome.exit_code}, {inodes} inodes, {outcome.blocks_total} blocks: {seconds:.1f} s"
        f" ({cpu / inodes * 1e6:.0f} us of CPU an inode), {device.reads} reads of {device.bytes >> 20} MiB,"
        f" {resident >> 10} MiB resident at most"
    )
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
