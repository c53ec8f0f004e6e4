"""Processes that lock a file as they are told, line by line: for the tests of file locks."""

from __future__ import annotations

import fcntl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38

_PROGRAM = """
import errno, fcntl, os, signal, sys
from tests.mount.lockers import *
signal.signal(signal.SIGUSR1, lambda number, frame: None)
fd = os.open(sys.argv[1], os.O_RDWR)
EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB
class Signal(Exception): pass
def interrupt(number, frame): raise Signal
signal.signal(signal.SIGINT, interrupt)
for line in sys.stdin:
    try:
        result = eval(line)
    except OSError as error:
        result = errno.errorcode[error.errno]
    except Signal:
        result = "interrupted"
    print(result, flush=True)
"""


def record(descriptor: int, command: int, kind: int, start: int = 0, length: int = 0) -> tuple[int, int, int, int]:
    """fcntl(2) with a struct flock: type, start, length and pid of the answer."""
    found = FLOCK.unpack(fcntl.fcntl(descriptor, command, FLOCK.pack(kind, 0, start, length, 0)))
    return found[0], found[2], found[3], found[4]


class Locker:
    """One process with the file open for reading and writing as ``fd``."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path)],
            cwd=Path(__file__).resolve().parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.heard()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def lockers(*paths: Path) -> Iterator[list[Locker]]:
    """One process for each path."""
    made = [Locker(path) for path in paths]
    try:
        yield made
    finally:
        for each in made:
            each.end()
