"""One process of the stress: does operations on one mount as its seed says, and notes each with its times and result.

It works in a directory ``top`` of the tree: names ``d0/n0`` … ``d1/n4``, which files, directories and symbolic links
come and go under, a file ``log`` that all append to, and ``mapped``, whose pages all write, map and read.
Every inode is created with a group id of its own, by which stat(2) tells it from all others (``new_identity``).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.stress.files import SLOT, STAMP, stamp, stamps_in
from tests.stress.history import DIRECTORY, FILE, SYMLINK, Op, new_identity

DIRECTORIES = 2
NAMES = 5  # in each
SLOTS = 6
PAGES = 4
PAGE = 4096
DESCRIPTORS_MAX = 3
LOG_RECORD = 24
BOARD_BYTES = 128  # of each worker's place on the board
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
HOT = new_identity(0, FILE)  # the file that everybody holds open

_libc = ctypes.CDLL(None, use_errno=True)

# Weights of the operations, by kind of round.
_ON_NAMES = {
    "create": 8, "open_create": 4, "mkdir": 3, "symlink": 2, "unlink": 8, "rmdir": 3, "rename": 9, "link": 4,
    "look": 12, "list": 6, "child_create": 2, "child_unlink": 2, "fsync_directory": 1, "getcwd": 2,
}  # fmt: skip
_ON_A_FILE = {"write": 12, "read": 16, "size": 8, "fsync": 2, "sendfile": 2}
_ON_FILES = {"open": 6, "write": 12, "read": 14, "truncate": 4, "size": 8, "fsync": 2, "sendfile": 2, "close": 3}
PROFILES: dict[str, dict[str, int]] = {
    "names": _ON_NAMES,
    "file": {**_ON_A_FILE, "look": 2},
    "sizes": {**_ON_FILES, "open": 2, "look": 3},
    "mixed": {**_ON_NAMES, **_ON_FILES},
    "append": {"append": 10, "read_log": 5, "log_size": 5, "fsync_log": 1},
    "mapped": {"page_write": 6, "page_read": 8, "map_write": 4, "map_read": 6, "held_map_read": 4},
    "locks": {"count_posix": 5, "count_flock": 5},
}


class Board:
    """What every worker does now, in memory shared with the parent: for the watchdog."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * BOARD_BYTES)

    def begin(self, who: int, text: str) -> None:
        """``who`` begins an operation."""
        data = text.encode()[: BOARD_BYTES - 9]
        at = who * BOARD_BYTES
        self._memory[at + 8 : at + 9 + len(data)] = data + b"\0"
        self._memory[at : at + 8] = struct.pack("<q", time.monotonic_ns())

    def end(self, who: int) -> None:
        """It has ended."""
        self._memory[who * BOARD_BYTES : who * BOARD_BYTES + 8] = bytes(8)

    def now(self, who: int) -> tuple[int, str]:
        """(since when, what); (0, ...) when nothing is under way."""
        place = self._memory[who * BOARD_BYTES : (who + 1) * BOARD_BYTES]
        return struct.unpack("<q", place[:8])[0], place[8:].partition(b"\0")[0].decode(errors="replace")


@dataclass(frozen=True)
class Plan:
    """What one worker does in one round."""

    who: int
    node: int
    top: Path
    seed: str
    operations: int
    profile: str


class Worker:
    """See the module."""

    def __init__(self, plan: Plan, board: Board) -> None:
        self.plan = plan
        self.history: list[Op] = []
        self._board = board
        self._rng = random.Random(plan.seed)
        self._made = 0
        self._held: list[tuple[int, int]] = []  # (identity, descriptor)
        self._hot = self._log = -1
        self._pages = -1
        self._map: mmap.mmap | None = None

    def run(self) -> list[Op]:
        """All operations of the plan."""
        os.umask(0)
        os.chdir(self.plan.top / "d0")
        self._log = os.open("../log", os.O_RDWR | os.O_APPEND)
        self._pages = os.open("../mapped", os.O_RDWR)
        self._map = mmap.mmap(self._pages, PAGES * PAGE, prot=mmap.PROT_READ)
        weights = PROFILES[self.plan.profile]
        actions = [getattr(self, kind) for kind, weight in weights.items() for _ in range(weight)]
        self._hot = os.open("../hot", os.O_RDWR)
        for _ in range(self.plan.operations):
            self._rng.choice(actions)()
        while self._held:
            self.close()
        return self.history

    def look_at_everything(self) -> list[Op]:
        """At the end of a round, when nobody works: what everything is."""
        os.chdir(self.plan.top / "d0")
        self._log = os.open("../log", os.O_RDONLY)
        self._pages = os.open("../mapped", os.O_RDONLY)
        for directory in range(DIRECTORIES):
            self.list(directory)
        for at in range(DIRECTORIES * NAMES):
            self.look(at)
            self.open(at, flags=os.O_RDONLY)
            while self._held:
                self.read(whole=True)
                self.close()
        self._hot = os.open("../hot", os.O_RDONLY)
        self.read(whole=True)
        self.size()
        self.read_log()
        for page in range(PAGES):
            self.page_read(page)
        return self.history

    def _do(self, kind: str, args: tuple[Any, ...], action: Callable[[], Any]) -> Any:
        """Do it, note it; the result, -errno for an error."""
        plan = self.plan
        self._board.begin(plan.who, f"{kind}{args!r}")
        start = time.monotonic_ns()
        try:
            result = action()
        except OSError as error:
            result = -(error.errno or 0)
        end = time.monotonic_ns()
        self._board.end(plan.who)
        self.history.append(Op(start, end, plan.node, plan.who, kind, args, result))
        return result

    def _identity(self, kind: int) -> int:
        """Of the inode about to be made."""
        self._made += 1
        identity = new_identity(self._made * 64 + self.plan.who, kind)
        os.setegid(identity)
        return identity

    def _place(self) -> tuple[int, str]:
        at = self._rng.randrange(DIRECTORIES * NAMES)
        return at, path_of(at)

    def _hold(self, descriptor: Any, identity: int | None = None) -> None:
        """Keep what an open returned."""
        if type(descriptor) is int and descriptor >= 0:
            self._held.append((identity or os.fstat(descriptor).st_gid, descriptor))
            while len(self._held) > DESCRIPTORS_MAX:
                self.close()

    # --- names ------------------------------------------------------------------------------------------------

    def create(self) -> None:
        at, path = self._place()
        identity = self._identity(FILE)
        opened: list[int] = []

        def action() -> int:
            opened.append(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
            return 0

        self._do("create", (at, identity), action)
        for descriptor in opened:
            self._hold(descriptor, identity)

    def open_create(self) -> None:
        self.open(flags=os.O_CREAT | os.O_RDWR | self._rng.choice((0, os.O_TRUNC)))

    def open(self, at: int | None = None, flags: int = os.O_RDWR) -> None:
        """Noted: the identity of what was opened."""
        at = self._place()[0] if at is None else at
        path = path_of(at)
        identity = self._identity(FILE) if flags & os.O_CREAT else 0
        opened: list[int] = []

        def action() -> int:
            opened.append(os.open(path, flags | os.O_NOFOLLOW))
            return 0

        self._do("open", (at, identity, flags), action)
        for descriptor in opened:
            found = os.fstat(descriptor).st_gid
            self.history[-1] = self.history[-1]._replace(result=found)
            if found % 4 == DIRECTORY:
                os.close(descriptor)
            else:
                self._hold(descriptor, found)

    def mkdir(self) -> None:
        at, path = self._place()
        self._do("mkdir", (at, self._identity(DIRECTORY)), lambda: os.mkdir(path) or 0)

    def symlink(self) -> None:
        at, path = self._place()
        self._do("symlink", (at, self._identity(SYMLINK)), lambda: os.symlink("nowhere", path) or 0)

    def unlink(self) -> None:
        at, path = self._place()
        self._do("unlink", (at,), lambda: os.unlink(path) or 0)

    def rmdir(self) -> None:
        at, path = self._place()
        self._do("rmdir", (at,), lambda: os.rmdir(path) or 0)

    def rename(self) -> None:
        (old, old_path), (new, new_path) = self._place(), self._place()
        flags = self._rng.choice((0, 0, 0, 1, 2))
        self._do("rename", (old, new, flags), lambda: rename(old_path, new_path, flags))

    def link(self) -> None:
        """Of an open file: linkat(2) by a path would look at two names in two instants."""
        files = [held for held in self._held if held[0] % 4 == FILE]
        if not files:
            return
        identity, descriptor = self._rng.choice(files)
        at, path = self._place()
        self._do("link", (identity, at), lambda: link(descriptor, path))

    def look(self, at: int | None = None) -> None:
        """lstat(2): (identity, number of names, size)."""
        at = self._place()[0] if at is None else at
        path = path_of(at)
        self._do("look", (at,), lambda: shown(os.lstat(path)))

    def list(self, directory: int | None = None) -> None:
        directory = self._rng.randrange(DIRECTORIES) if directory is None else directory
        self._do("list", (directory,), lambda: tuple(sorted(os.listdir(f"../d{directory}"))))

    def _in_a_directory(self, kind: str, action: Callable[[int], Any]) -> None:
        path = self._place()[1]
        try:
            descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return
        try:
            with contextlib.suppress(OSError):  # ESTALE: another node has removed it; open directories aren't kept
                identity = os.fstat(descriptor).st_gid
                self._do(kind, (identity,), lambda: action(descriptor))
        finally:
            os.close(descriptor)

    def child_create(self) -> None:
        def action(descriptor: int) -> int:
            os.close(os.open("child", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=descriptor))
            return 0

        self._in_a_directory("child_create", action)

    def child_unlink(self) -> None:
        self._in_a_directory("child_unlink", lambda descriptor: os.unlink("child", dir_fd=descriptor) or 0)

    def fsync_directory(self) -> None:
        descriptor = os.open("../d0", os.O_RDONLY)
        self._do("fsync", (), lambda: os.fsync(descriptor) or 0)
        os.close(descriptor)

    def getcwd(self) -> None:
        self._do("getcwd", (), lambda: 0 if os.getcwd() == f"{self.plan.top}/d0" else 1)

    # --- one file ---------------------------------------------------------------------------------------------

    def _any_file(self) -> tuple[int, int]:
        """(identity, descriptor): mostly the one that everybody has."""
        return self._rng.choice(self._held) if self._held and self._rng.random() < 0.3 else (HOT, self._hot)

    def write(self) -> None:
        held = self._any_file()
        first = self._rng.randrange(SLOTS)
        count = min(self._rng.choice((1, 1, 2, SLOTS)), SLOTS - first)
        self._made += 1
        value = stamp(self.plan.who, self._made)
        data = value * (count * SLOT // STAMP)

        def action() -> int:
            return 0 if os.pwrite(held[1], data, first * SLOT) == len(data) else 1

        self._do("write", (held[0], first, count, value), action)

    def read(self, *, whole: bool = False) -> None:
        """The stamps of each slot read."""
        held = self._held[0] if whole and self._held else self._any_file()
        first = 0 if whole else self._rng.randrange(SLOTS)
        count = SLOTS if whole else min(self._rng.choice((1, 1, 2, SLOTS)), SLOTS - first)
        result = self._do("read", (held[0], first, count), lambda: os.pread(held[1], count * SLOT, first * SLOT))
        self._noted(result, count)

    def _noted(self, result: Any, count: int) -> None:
        if isinstance(result, bytes):
            slots = tuple(frozenset(stamps_in(result[i * SLOT : (i + 1) * SLOT])) for i in range(count))
            self.history[-1] = self.history[-1]._replace(result=slots)

    def sendfile(self) -> None:
        """Pages by the way of splice(2), which doesn't ask for attributes first."""
        held = self._any_file()
        target = os.memfd_create("copy")
        first = self._rng.randrange(SLOTS)

        def action() -> bytes:
            sent = os.sendfile(target, held[1], first * SLOT, SLOT)
            return os.pread(target, sent, 0)

        self._noted(self._do("sendfile", (held[0], first, 1), action), 1)
        os.close(target)

    def truncate(self) -> None:
        held = self._any_file()
        slots = self._rng.choice((0, *range(SLOTS + 1)))
        self._do("truncate", (held[0], slots), lambda: os.ftruncate(held[1], slots * SLOT) or 0)

    def size(self) -> None:
        held = self._any_file()
        self._do("size", (held[0],), lambda: shown(os.fstat(held[1])))

    def fsync(self) -> None:
        descriptor = self._any_file()[1]
        self._do("fsync", (), lambda: os.fsync(descriptor) or 0)

    def close(self) -> None:
        if self._held:
            descriptor = self._held.pop(0)[1]
            self._do("close", (), lambda: os.close(descriptor) or 0)

    # --- the log ----------------------------------------------------------------------------------------------

    def append(self) -> None:
        self._made += 1
        record = b"%04d.%018d\n" % (self.plan.who, self._made)
        self._do("append", (record,), lambda: 0 if os.write(self._log, record) == LOG_RECORD else 1)

    def read_log(self) -> None:
        self._do("read_log", (), lambda: os.pread(self._log, 1 << 24, 0))

    def log_size(self) -> None:
        self._do("log_size", (), lambda: os.fstat(self._log).st_size)

    def fsync_log(self) -> None:
        self._do("fsync", (), lambda: os.fsync(self._log) or 0)

    # --- pages of one file, by system calls and by mappings ---------------------------------------------------

    def _page_value(self) -> bytes:
        self._made += 1
        return stamp(self.plan.who, self._made)

    def page_write(self) -> None:
        page, value = self._rng.randrange(PAGES), self._page_value()
        data = value * (PAGE // STAMP)
        self._do("page_write", (page, value), lambda: os.pwrite(self._pages, data, page * PAGE) - PAGE)

    def page_read(self, page: int | None = None) -> None:
        page = self._rng.randrange(PAGES) if page is None else page
        self._do("page_read", (page,), lambda: frozenset(stamps_in(os.pread(self._pages, PAGE, page * PAGE))))

    def map_write(self) -> None:
        """Through a shared mapping made for it, up to the return of msync(2)."""
        page, value = self._rng.randrange(PAGES), self._page_value()

        def action() -> int:
            with mmap.mmap(self._pages, PAGES * PAGE) as mapped:
                mapped[page * PAGE : (page + 1) * PAGE] = value * (PAGE // STAMP)
                mapped.flush(page * PAGE, PAGE)
            return 0

        self._do("map_write", (page, value), action)

    def map_read(self) -> None:
        """Of a file opened and mapped anew."""
        page = self._rng.randrange(PAGES)

        def action() -> frozenset[bytes]:
            descriptor = os.open("../mapped", os.O_RDONLY)
            try:
                with mmap.mmap(descriptor, PAGES * PAGE, prot=mmap.PROT_READ) as mapped:
                    return frozenset(stamps_in(mapped[page * PAGE : (page + 1) * PAGE]))
            finally:
                os.close(descriptor)

        self._do("map_read", (page,), action)

    def held_map_read(self) -> None:
        page, mapped = self._rng.randrange(PAGES), self._map
        assert mapped is not None
        self._do("held_map_read", (page,), lambda: frozenset(stamps_in(mapped[page * PAGE : (page + 1) * PAGE])))

    # --- a counter under a lock -------------------------------------------------------------------------------

    def count_posix(self) -> None:
        self._count("posix", fcntl.lockf)

    def count_flock(self) -> None:
        self._count("flock", fcntl.flock)

    def _count(self, kind: str, lock: Callable[[int, int], Any]) -> None:
        """Noted: what the counter was; the time is that in which the lock was held."""
        descriptor = os.open(f"../counter-{kind}", os.O_RDWR)
        try:
            self._do("lock", (kind,), lambda: lock(descriptor, fcntl.LOCK_EX) or 0)

            def action() -> int:
                value = int(os.pread(descriptor, 32, 0) or b"0")
                os.pwrite(descriptor, b"%020d" % (value + 1), 0)
                return value

            self._do("count", (kind,), action)
            self._do("unlock", (kind,), lambda: lock(descriptor, fcntl.LOCK_UN) or 0)
        finally:
            os.close(descriptor)


def path_of(at: int) -> str:
    """Of a name, from ``d0``, where the workers are."""
    return f"../d{at // NAMES}/n{at % NAMES}"


def shown(found: os.stat_result) -> tuple[int, int, int]:
    """(identity, number of names, size)."""
    return found.st_gid, found.st_nlink, found.st_size


def rename(old: str, new: str, flags: int) -> int:
    """renameat2(2).  Raises OSError."""
    if _libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags):
        raise OSError(ctypes.get_errno(), "rename")
    return 0


def link(descriptor: int, new: str) -> int:
    """linkat(2) of an open file.  Raises OSError."""
    old = f"/proc/self/fd/{descriptor}".encode()
    if _libc.linkat(AT_FDCWD, old, AT_FDCWD, new.encode(), AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), "link")
    return 0


def prepare(top: Path) -> list[Op]:
    """The directory of a round, on any mount.  The file that all hold open begins with zeros in every slot."""
    top.mkdir()
    for directory in range(DIRECTORIES):
        (top / f"d{directory}").mkdir()
    for name in ("log", "hot", "counter-posix", "counter-flock"):
        (top / name).touch()
    (top / "mapped").write_bytes(bytes(PAGES * PAGE))
    os.chown(top / "hot", 0, HOT)
    os.truncate(top / "hot", SLOTS * SLOT)
    return [Op(0, 0, 0, 0, "truncate", (HOT, SLOTS), 0)]
