"""The bench's workloads: plain system calls on a directory, the same for MatrixFS and for the local filesystem.

Each returns the seconds of every timed pass or call; what must not be timed (making the files, warming the caches)
happens outside of ``timed``.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import trio

from scripts.bench_counters import BenchError

PAGE = 4096
MIB = 1 << 20
MESSAGE = 64  # bytes, as a lock request has
TREE_FANOUT = 50  # files in each directory of the cold tree
DROP_CACHES = "/proc/sys/vm/drop_caches"
PAGES_ONLY, EVERYTHING = "1", "3"


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def drop_caches(what: str) -> None:
    """Make the kernel forget clean pages, and with EVERYTHING names and inodes too.  Root only."""
    os.sync()
    Path(DROP_CACHES).write_text(what)


# --- small files -------------------------------------------------------------------------------------------------


def paths(top: Path, count: int) -> list[str]:
    """Names of ``count`` files in one directory."""
    return [f"{top}/file-{number}" for number in range(count)]


def create(files: list[str]) -> None:
    """Create each, empty."""
    for path in files:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def write_small(files: list[str]) -> None:
    """Open each, write 4 KiB, close."""
    data = os.urandom(PAGE)
    for path in files:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, data)
        os.close(fd)


def stat_all(files: list[str]) -> None:
    """Attributes of each."""
    for path in files:
        os.stat(path)


def read_small(files: list[str]) -> None:
    """Open each, read 4 KiB, close."""
    for path in files:
        fd = os.open(path, os.O_RDONLY)
        if len(os.read(fd, PAGE)) != PAGE:
            raise BenchError(f"{path}: shorter than what was written")
        os.close(fd)


def unlink(files: list[str]) -> None:
    """Remove each."""
    for path in files:
        os.unlink(path)


# --- one large file, and durable small writes ------------------------------------------------------------------------


def write_large(path: Path, mib: int) -> None:
    """Write a file in calls of 1 MiB, fsync it."""
    data = os.urandom(MIB)
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for _ in range(mib):
        os.write(fd, data)
    os.fsync(fd)
    os.close(fd)


def read_large(path: Path, mib: int) -> None:
    """Read a file in calls of 1 MiB."""
    fd = os.open(path, os.O_RDONLY)
    size = 0
    while data := os.read(fd, MIB):
        size += len(data)
    os.close(fd)
    if size != mib * MIB:
        raise BenchError(f"{path}: {size} bytes, {mib * MIB} were written")


def write_durably(path: Path, count: int) -> None:
    """Append 4 KiB and fsync, ``count`` times."""
    data = os.urandom(PAGE)
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for number in range(count):
        os.pwrite(fd, data, number * PAGE)
        os.fsync(fd)
    os.close(fd)


# --- two mounts -------------------------------------------------------------------------------------------------------


def hand_over(writer: Path, reader: Path, count: int, between: Callable[[], None]) -> list[float]:
    """Write a page through one path, read it through the other; seconds from before the write to after the read.

    ``between`` is called after each, outside of the time: what is to be compared meets the same disk then.
    Both descriptors stay open.  Raises BenchError when a read shows anything but the last write.
    """
    old = struct.pack("<Q", 0) + bytes(PAGE - 8)
    writer.write_bytes(old)
    seconds = []
    with closing(_Descriptor(writer, os.O_WRONLY)) as out, closing(_Descriptor(reader, os.O_RDONLY)) as back:
        for number in range(1, count + 1):
            data = struct.pack("<Q", number) + old[8:]
            began = time.perf_counter()
            os.pwrite(out.fd, data, 0)
            found = os.pread(back.fd, PAGE, 0)
            seconds.append(time.perf_counter() - began)
            if found != data:
                raise BenchError(f"{reader}: stale: round {struct.unpack_from('<Q', found)}, {number} was written")
            between()
    return seconds


def ping_pong(one: Path, two: Path, count: int) -> float:
    """Two processes run after each other around the three bytes of a file; seconds for ``2 * count`` hand-offs.

    Each locks the next byte before it lets go of its own, so it waits for the other at every step (the test is
    ctdb's ping_pong).  No data moves.
    """
    one.write_bytes(bytes(3))
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(ready, 1)
            _run_around(two, count)
            code = 0
        finally:
            os._exit(code)
    began = time.perf_counter()
    os.write(go, b"!")
    _run_around(one, count)
    seconds = time.perf_counter() - began
    _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(go)
    if status:
        raise BenchError(f"{two}: the second process failed")
    return seconds


def _run_around(path: Path, count: int) -> None:
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    for number in range(count):
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, (number + 1) % 3)
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, number % 3)
    os.close(fd)


class _Descriptor:
    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags)

    def close(self) -> None:
        os.close(self.fd)


def make_tree(top: Path, count: int) -> None:
    """``count`` files of 4 KiB in directories of TREE_FANOUT, durable."""
    data = os.urandom(PAGE)
    for number in range(count):
        directory = top / f"d{number // TREE_FANOUT}"
        if number % TREE_FANOUT == 0:
            directory.mkdir(parents=True)
        (directory / f"file-{number}").write_bytes(data)
    fd = os.open(top, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def list_tree(top: Path, count: int) -> None:
    """What ``ls -lR`` asks."""
    found = 0
    for directory, _, files in os.walk(top):
        for name in files:
            os.stat(f"{directory}/{name}")
            found += 1
    if found != count:
        raise BenchError(f"{top}: {found} files of {count}")


def read_tree(top: Path) -> None:
    """What ``cat`` of every file asks."""
    for directory, _, files in os.walk(top):
        read_small([f"{directory}/{name}" for name in files])


def stat_each(files: list[str]) -> list[float]:
    """Seconds of each single stat."""
    return [timed(lambda: os.stat(path)) for path in files]  # noqa: B023 - called at once


# --- the reference for messages ---------------------------------------------------------------------------------------


def round_trips(count: int) -> list[float]:
    """Seconds of each exchange of 64 bytes between two trio processes over TCP on 127.0.0.1, Nagle off."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                trio.run(_echo, listener)
                code = 0
            finally:
                os._exit(code)
        try:
            return trio.run(_exchange, listener.getsockname(), count)
        finally:
            os.waitpid(child, 0)


async def _echo(listener: socket.socket) -> None:
    connection, _ = await trio.SocketListener(trio.socket.from_stdlib_socket(listener)).socket.accept()
    stream = trio.SocketStream(connection)
    while data := await stream.receive_some(MESSAGE):
        await stream.send_all(data)


async def _exchange(address: tuple[str, int], count: int) -> list[float]:
    seconds = []
    async with await trio.open_tcp_stream(*address) as stream:
        for _ in range(count):
            began = time.perf_counter()
            await stream.send_all(bytes(MESSAGE))
            left = MESSAGE
            while left:
                left -= len(await stream.receive_some(left))
            seconds.append(time.perf_counter() - began)
    return seconds
