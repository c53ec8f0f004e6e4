"""What an operation of the filesystem costs by itself: store I/O, bytes, and microseconds of our own code.

    PYTHONPATH=. .venv/bin/python -m tests.matrixfs.costs

One mount on a simulated disk, so without FUSE, locks of peers and a real device.  Each row does its operation many
times, then everything is made durable and brought home; all of that is counted, and divided.  The microseconds are
processor time, the simulated disk's included; beside them stands what a ``stat`` of a local file takes in the same run.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from matrixfs.fs import attributes, data, namespace
from matrixfs.ondisk.superblock import ROOT_INODE
from tests.matrixfs.local import MIB, Local, mounted, small_disk
from tests.sim.disk import Write

COUNT = 200
LARGE = 8  # operations of 1 MiB
BUDGETS_US = {"lookup, cached": 10, "getattr": 5, "create": 150}  # of the design, section 8


@dataclass(frozen=True)
class Cost:
    """Of one operation, on the average."""

    reads: float
    writes: float
    written_bytes: float
    flushes: float
    microseconds: float


async def cost(local: Local, operation: Callable[[int], Awaitable[object]], count: int = COUNT) -> Cost:
    """Do it ``count`` times, then bring everything home."""
    await home(local)
    disk = local.disk
    before, logged = dict(disk.operations), len(disk.log)
    began = time.process_time()
    for number in range(count):
        await operation(number)
    spent = time.process_time() - began
    await home(local)
    reads, writes, flushes = ((disk.operations[kind] - before[kind]) / count for kind in ("read", "write", "flush"))
    written = sum(entry.length for entry in disk.log[logged:] if isinstance(entry, Write))
    return Cost(reads, writes, written / count, flushes, spent / count * 1e6)


async def home(local: Local) -> None:
    """All is durable and in place."""
    await local.volume.sync()
    await local.volume.allocator.settle()
    await local.volume.journal.checkpoint()


async def table(local: Local) -> dict[str, Cost]:
    """All rows."""
    volume = local.volume
    found: dict[str, Cost] = {}
    large = (await local.file(b"large")).ino
    piece = bytes(MIB)
    found["write 1 MiB"] = await cost(local, lambda n: data.write(volume, large, n * MIB, piece), LARGE)
    found["read 1 MiB"] = await cost(local, lambda n: data.read(volume, large, n * MIB, MIB), LARGE)
    top = (await local.directory(b"top")).ino
    mode = stat.S_IFREG | 0o644
    numbers: list[int] = []

    async def create(n: int) -> None:
        numbers.append((await namespace.create(volume, top, b"%d" % n, mode, 0, 0)).ino)

    async def lookup_cold(n: int) -> None:
        assert await namespace.lookup(volume, top, b"%d" % n) is not None

    found["create"] = await cost(local, create)
    found["lookup, cached"] = await cost(local, lookup_cold)
    found["getattr"] = await cost(local, lambda n: attributes.getattr(volume, numbers[n]))
    for ino in numbers:
        await local.give_up(ino)
    found["lookup, cold"] = await cost(local, lookup_cold)
    for name, journal_data in ((", data=journal", True), ("", False)):
        volume.journal_data = journal_data
        found[f"append 4 KiB and fsync{name}"] = await cost(local, lambda n: append(local, numbers[0]))
        found[f"overwrite 4 KiB and fsync{name}"] = await cost(local, lambda n: overwrite(local, numbers[0], n))
    found["append 4 KiB"] = await cost(local, lambda n: data.write(volume, numbers[1], 0, b"x" * 4096, True))
    found["rename"] = await cost(local, lambda n: namespace.rename(volume, top, b"%d" % n, ROOT_INODE, b"%d" % n, 0))
    found["unlink"] = await cost(local, lambda n: namespace.unlink(volume, ROOT_INODE, b"%d" % n))
    return found


async def append(local: Local, ino: int) -> None:
    await data.write(local.volume, ino, 0, b"x" * 4096, True)
    await data.fsync(local.volume, ino, False)


async def overwrite(local: Local, ino: int, number: int) -> None:
    await data.write(local.volume, ino, number * 7919 % COUNT * 4096, b"x" * 4096)
    await data.fsync(local.volume, ino, False)


async def measured() -> dict[str, Cost]:
    """The rows, on a new disk."""
    async with mounted(await small_disk(size=64 * MIB, journal_blocks=1024)) as local:
        return await table(local)


def main() -> None:
    """Print the table."""
    rows = trio.run(measured)
    began = time.process_time()
    for _ in range(COUNT):
        os.stat(__file__)
    reference = (time.process_time() - began) / COUNT * 1e6
    print(f"{'':40}{'reads':>8}{'writes':>8}{'bytes written':>15}{'flushes':>9}{'us':>8}{'budget':>8}{'stat(2)s':>9}")
    for name, row in rows.items():
        counts = f"{row.reads:8.2f}{row.writes:8.2f}{row.written_bytes:15,.0f}{row.flushes:9.2f}{row.microseconds:8.1f}"
        print(f"{name:40}{counts}{BUDGETS_US.get(name, '-'):>8}{row.microseconds / reference:9.1f}")
    print(f"one stat(2) of a local file, from Python: {reference:.1f} us")


if __name__ == "__main__":
    main()
