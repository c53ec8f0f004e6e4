"""What Linux says: the same random calls to the kernel, on a file of this host, and to our client and arbiter.

Owners are open file descriptions (F_OFD_SETLK), and processes (F_SETLK) told what to do over a pipe.  Nothing waits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import subprocess
import sys

import pytest

from dlm.owned.client import Result, Span
from dlm.owned.messages import Conflict, Kind
from dlm.owned.ranges import END_MAX
from tests.sim.owned_world import OwnedWorld

FLOCK_FORMAT = "hhqqi4x"  # type, whence, start, length (0: to the end), pid
BYTES = 12
CHILD = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
print(os.getpid(), flush=True)
for line in sys.stdin:
    command, data = line.split()
    try:
        print(fcntl.fcntl(file, int(command), bytes.fromhex(data)).hex(), flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


class OpenFile:
    """An owner: one open file description."""

    pid = -1
    commands = (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK)

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR)

    def call(self, command, data):
        try:
            return fcntl.fcntl(self.file, command, data)
        except OSError as error:
            return error.errno

    def close(self):
        os.close(self.file)


class Process:
    """An owner: another process."""

    commands = (fcntl.F_SETLK, fcntl.F_GETLK)

    def __init__(self, path):
        pipe = subprocess.PIPE
        self.child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdin=pipe, stdout=pipe, text=True)
        self.pid = int(self.child.stdout.readline())

    def call(self, command, data):
        self.child.stdin.write(f"{command} {data.hex()}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline().strip()
        return int(answer) if len(answer) < 4 else bytes.fromhex(answer)

    def close(self):
        self.child.communicate()


class Ours:
    """The same calls to a lockspace of one node."""

    def __init__(self):
        self.world = OwnedWorld(1, nodes=1, owners=0, fault_rate=0)
        for _ in range(100):
            self.world.step()
        (peer,) = self.world.peers.values()
        self.core = peer.core
        assert self.core.state == "running"

    def answer(self, call):
        self.core.settle()
        answers = self.core.owned.take_events()
        assert answers[-1].call == call
        return answers[-1]

    def lock(self, span, pid, exclusive):
        client = self.core.owned.client
        result = self.answer(client.lock(span, pid, 0.0, exclusive=exclusive, wait=False)).result
        assert result in (Result.GRANTED, Result.AGAIN)
        return 0 if result == Result.GRANTED else errno.EAGAIN

    def unlock(self, span):
        assert self.answer(self.core.owned.client.unlock(span, 0.0)).result == Result.DONE

    def test(self, span, exclusive):
        return self.answer(self.core.owned.client.test(span, 0.0, exclusive=exclusive)).conflict


def flock_of(type_, start, end):
    return struct.pack(FLOCK_FORMAT, type_, os.SEEK_SET, start, 0 if end == END_MAX else end - start + 1, 0)


def conflict_in(data):
    type_, _, start, length, pid = struct.unpack(FLOCK_FORMAT, data)
    if type_ == fcntl.F_UNLCK:
        return None
    return start, start + length - 1 if length else END_MAX, type_ == fcntl.F_WRLCK, pid


@pytest.mark.seed("000-15")
def test_ranges(tmp_path):
    path = str(tmp_path / "file")
    open(path, "w").close()
    owners = [OpenFile(path), OpenFile(path), Process(path), Process(path), OpenFile(path)]
    ours = Ours()
    rng = random.Random(4711)
    seen = {"locked": 0, "refused": 0, "conflict": 0, "free": 0}
    for _ in range(4000):
        i = rng.randrange(len(owners))
        owner = owners[i]
        start = rng.randrange(BYTES)
        end = rng.choice((END_MAX, *[rng.randrange(start, BYTES)] * 5))
        span = Span(Kind.POSIX, 5, i, start, end)
        set_, get = owner.commands
        exclusive = rng.random() < 0.4
        type_ = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        what = rng.choice(("lock", "unlock", "test"))
        if what == "lock":
            theirs = owner.call(set_, flock_of(type_, start, end))
            theirs = 0 if isinstance(theirs, bytes) else theirs
            assert ours.lock(span, owner.pid & 0xFFFFFFFF, exclusive) == theirs
            seen["refused" if theirs else "locked"] += 1
        elif what == "unlock":
            assert isinstance(owner.call(set_, flock_of(fcntl.F_UNLCK, start, end)), bytes)
            ours.unlock(span)
        else:
            theirs = conflict_in(owner.call(get, flock_of(type_, start, end)))
            conflict = ours.test(span, exclusive)
            mine = None
            if conflict is not None:
                assert isinstance(conflict, Conflict)
                pid = -1 if conflict.pid == 0xFFFFFFFF else conflict.pid
                mine = (conflict.start, conflict.end, conflict.exclusive, pid)
            assert mine == theirs
            seen["free" if mine is None else "conflict"] += 1
    for owner in owners:
        owner.close()
    assert min(seen.values()) > 100, seen


def test_flock(tmp_path):
    path = str(tmp_path / "file")
    open(path, "w").close()
    files = [os.open(path, os.O_RDWR) for _ in range(4)]
    ours = Ours()
    rng = random.Random(4712)
    seen = {0: 0, errno.EAGAIN: 0}
    for _ in range(4000):
        i = rng.randrange(len(files))
        span = Span(Kind.FLOCK, 5, i, 0, END_MAX)
        what = rng.choice((fcntl.LOCK_SH, fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))
        try:
            fcntl.flock(files[i], what | fcntl.LOCK_NB)
            theirs = 0
        except OSError as error:
            theirs = error.errno
        if what == fcntl.LOCK_UN:
            ours.unlock(span)
        else:
            assert ours.lock(span, 1, what == fcntl.LOCK_EX) == theirs
            seen[theirs] += 1
    for file in files:
        os.close(file)
    assert min(seen.values()) > 100, seen
