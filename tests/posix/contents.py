"""Cases about opening, reading, writing, truncating, mapping; and about files that have lost their name."""

from __future__ import annotations

# fmt: off  (tables)
import os
from collections.abc import Iterator

from tests.posix.cases import (
    APPEND,
    CREAT,
    DIRECT,
    DIRECTORY,
    EXCL,
    KINDS,
    NOATIME,
    NOFOLLOW,
    OWNER,
    PATH,
    RW,
    TRUNC,
    Case,
    R,
    W,
    as_user,
    case,
    make,
)

FLAGS: dict[str, int] = {
    "r": R, "w": W, "rw": RW, "neither": 3, "creat": W | CREAT, "excl": W | CREAT | EXCL, "excl-alone": RW | EXCL,
    "trunc": W | TRUNC, "trunc-r": R | TRUNC, "creat-trunc": RW | CREAT | TRUNC, "append": W | APPEND,
    "append-trunc": W | APPEND | TRUNC, "nofollow": R | NOFOLLOW, "creat-nofollow": W | CREAT | NOFOLLOW,
    "directory": R | DIRECTORY, "directory-w": W | DIRECTORY, "creat-directory": R | CREAT | DIRECTORY,
    "path": PATH, "path-nofollow": PATH | NOFOLLOW, "path-directory": PATH | DIRECTORY, "path-w": PATH | W | TRUNC,
    "noatime": R | NOATIME, "sync": W | os.O_SYNC, "dsync": W | os.O_DSYNC, "nonblock": RW | os.O_NONBLOCK,
    "noctty": R | os.O_NOCTTY, "cloexec": R | os.O_CLOEXEC, "async": R | os.O_ASYNC, "creat-r": R | CREAT,
    "excl-trunc": RW | CREAT | EXCL | TRUNC, "direct": RW | DIRECT,
}


def opening() -> Iterator[Case]:
    for how, flags in FLAGS.items():
        for kind in (*KINDS, "absent"):
            yield case(f"open/{how}/{kind}", *(make(kind, "x") if kind != "absent" else []),
                       ("open_close", "x", flags), ("mark_if", "x"), ("open_close", "x", flags))
        for mode in (0o400, 0o200, 0o666):
            yield case(f"open-user/{how}/{mode:o}", ("put", "x", b"content"), ("chmod", "x", mode),
                       ("chown", "x", OWNER, 0), *as_user(OWNER, ("open_close", "x", flags)),
                       *as_user(5, ("open_close", "x", flags)))
    yield case("open/creat-mode-0", *as_user(OWNER, ("open", "x", CREAT | EXCL | RW, 0), ("write", "f", b"still"),
                                             ("lseek", "f", 0), ("read", "f", 9), ("open_close", "x", R)))
    yield case("open/path-uses", ("put", "x", b"x"), ("open", "x", PATH), ("fstat", "f"), ("read", "f", 1),
               ("write", "f", b"y"), ("fchmod", "f", 0), ("fchown", "f", 1, 1), ("ftruncate", "f", 0), ("fsync", "f"),
               ("lseek", "f", 0), ("link_file", "f", "y"))
    yield case("open/read-only-uses", ("put", "x", b"content"), ("open", "x", R), ("write", "f", b"y"),
               ("ftruncate", "f", 0), ("pwrite", "f", b"z", 0), ("fsync", "f"), ("fdatasync", "f"))
    yield case("open/write-only-uses", ("put", "x", b"content"), ("open", "x", W), ("read", "f", 1), ("pread", "f",
               1, 0),
               ("map", "f", 1))
    yield case("open/directory-uses", ("mkdir", "d", 0o755), ("open", "d", R | DIRECTORY), ("read", "f", 1),
               ("write", "f", b"x"), ("ftruncate", "f", 0), ("fsync", "f"), ("fdatasync", "f"), ("lseek", "f",
               0),
               ("pread", "f", 1, 0), ("map", "f", 1), ("fchmod", "f", 0o711), ("fchown", "f", 3, 4),
               ("truncate", "d", 0))


def limits() -> Iterator[Case]:
    for size in (-1, 0, 1, 4095, 4096, 4097, 2**31 - 1, 2**31, 2**32, 2**40, 2**43, 2**44 - 8192, 2**62, 2**63 - 1):
        yield case(f"size/{size}", ("put", "x", b"content"), ("truncate", "x", size), ("stat", "x"), ("sparse", "x"),
                   ("open", "x", RW), ("ftruncate", "f", 3), ("ftruncate", "f", size), ("fstat", "f"),
                   ("pread", "f", 10, max(0, min(size, 2**62) - 5)), ("truncate", "x", 0))
    for at in (2**31 - 1, 2**32, 2**40, 2**44 - 8192, 2**63 - 10, 2**63 - 1):
        yield case(f"write-at/{at}", ("open", "x", RW | CREAT), ("pwrite", "f", b"0123456789", at), ("fstat", "f"),
                   ("pread", "f", 20, at), ("lseek", "f", -3, 2), ("read", "f", 10), ("lseek", "f", at),
                   ("write", "f", b"abcdef"), ("lseek", "f", 0, 1), ("truncate", "x", 0))
    yield case("seek/bad", ("put", "x", b"content"), ("open", "x", RW), ("lseek", "f", -1), ("lseek", "f", -8, 2),
               ("lseek", "f", -1, 1), ("lseek", "f", 3, 9), ("pread", "f", 1, -1), ("pwrite", "f", b"x", -1),
               ("lseek", "f", 2**63 - 1), ("lseek", "f", 1, 1), ("lseek", "f", 100), ("read", "f", 5))
    for limit in (0, 3, 4096, 5000):
        for uid in (0, OWNER):
            yield case(f"limit/{limit}-{uid}", ("put", "x", b"content"), ("chmod", "x", 0o666), ("limit_size", limit),
                       *as_user(uid, ("open", "x", RW), ("pwrite", "f", b"y" * 6000, 0), ("fstat", "f"),
                                ("pwrite", "f", b"y", limit), ("pwrite", "f", b"yy", max(0, limit - 1)),
                                ("ftruncate", "f", limit), ("ftruncate", "f", limit + 1), ("truncate", "x", limit + 1),
                                ("lseek", "f", 0, 2), ("write", "f", b"more")))


def reading_and_writing() -> Iterator[Case]:
    sizes = (1, 7, 511, 512, 3839, 3840, 3841, 4095, 4096, 4097, 8191, 70_001, 1 << 20, (1 << 20) + 1)
    for size in sizes:
        data = bytes(range(251)) * (size // 251 + 1)
        yield case(f"io/{size}", ("open", "x", RW | CREAT), ("write", "f", data[:size]), ("content", "x"),
                   ("pread", "f", size + 10, 0), ("pread", "f", 3, size - 1), ("pread", "f", 3, size),
                   ("pread", "f", 0, 0), ("pwrite", "f", b"end", size), ("pwrite", "f", b"gap", size + 9000),
                   ("content", "x"), ("ftruncate", "f", size // 2), ("content", "x"), ("ftruncate", "f", size * 2),
                   ("content", "x"), ("lseek", "f", 0, 1), ("write", "f", b"on"), ("content", "x"))
    yield case("io/vectors", ("open", "x", RW | CREAT), ("pwritev", "f", (b"one", b"", b"three" * 1000, b"4"), 5),
               ("content", "x"), ("preadv", "f", (2, 0, 5000, 100), 4), ("preadv", "f", (10,), 9000),
               ("pwritev", "f", (), 0))
    yield case("io/append", ("put", "x", b"start"), ("open", "x", RW | APPEND), ("write", "f", b"+1"),
               ("pwrite", "f", b"+2", 0), ("lseek", "f", 0), ("write", "f", b"+3"), ("lseek", "f", 0, 1),
               ("content", "x"), ("truncate", "x", 2), ("write", "f", b"+4"), ("content", "x"), ("lseek", "f", 0),
               ("read", "f", 50), ("put", "x", b"new"), ("write", "f", b"+5"), ("content", "x"))
    yield case("io/append-later", ("put", "x", b"start"), ("open", "x", RW, 0, "a"), ("pread", "a", 9, 0),
               ("move_to", 1),
               ("open", "x", W | APPEND, 0, "b"), ("write", "b", b"+b"), ("set_flags", "a", APPEND),
               ("write", "a", b"+a"),
               ("content", "x"), ("pwrite", "a", b"+A", 0), ("set_flags", "b", 0), ("pwrite", "b", b"B", 1),
               ("content", "x"), ("set_flags", "a", 0), ("pwrite", "a", b"A", 2), ("pread", "a", 30, 0),
               ("content", "x"))
    yield case("map/append", ("put", "x", b"0123456789"), ("open", "x", RW | APPEND), ("map_w", "f", 10),
               ("map_private", "f", 10))
    yield case("io/append-across", ("put", "x", b"start"), ("open", "x", W | APPEND, 0, "a"), ("move_to", 1),
               ("open", "x", W | APPEND, 0, "b"), ("move_to", 2), ("open", "x", W | APPEND, 0, "c"),
               *(("write", "abc"[at % 3], b"%d," % at) for at in range(12)), ("content", "x"))
    yield case("io/three-mounts", ("open", "x", RW | CREAT, 0o644, "a"), ("move_to", 1), ("open", "x", RW, 0, "b"),
               ("move_to", 2), ("open", "x", RW, 0, "c"),
               *(step for at in range(12) for step in (
                   ("pwrite", "abc"[at % 3], b"%d" % at * 1500, at * 2900),
                   ("pread", "abc"[(at + 1) % 3], 9000, at * 2000),
                   ("ftruncate", "abc"[(at + 2) % 3], at * 3000), ("fstat", "abc"[at % 3]))), ("content", "x"))
    yield case("io/holes", ("open", "x", RW | CREAT), ("ftruncate", "f", 1 << 20), ("sparse", "x"),
               ("pread", "f", 5000, 100_000), ("pwrite", "f", b"island", 500_001), ("pread", "f", 20, 499_995),
               ("sparse", "x"), ("content", "x"), ("ftruncate", "f", 500_004), ("ftruncate", "f", 600_000),
               ("pread", "f", 20, 499_995), ("fsync", "f"), ("content", "x"), ("sparse", "x"))
    for length, offset, skew in ((4096, 0, 0), (4096, 4096, 0), (8192, 0, 0), (512, 0, 0), (512, 512, 0),
        (4096, 0, 512),
                                 (100, 0, 0), (4096, 100, 0), (4096, 0, 1), (4096, 1 << 20, 0), (4096, 8192, 0)):
        yield case(f"direct/{length}-{offset}-{skew}", ("put", "x", b"content." * 1024), ("open", "x", RW | DIRECT),
                   ("direct", "f", length, offset, skew), ("direct_write", "f", length, offset, skew),
                   ("content", "x"), ("direct", "f", length, offset, skew), ("put", "x", b"short"),
                   ("direct", "f", length, offset, skew))
    for flags in (0, 2, 4, 8, 16):
        yield case(f"vector-flags/{flags}", ("put", "x", b"content"), ("open", "x", RW), ("pwritev", "f",
                   (b"ab",), 2, flags),
                   ("content", "x"))


def moving_data() -> Iterator[Case]:
    for size in (5, 4096, 100_000):
        data = b"0123456789" * (size // 10 + 1)
        yield case(f"sendfile/{size}", ("put", "x", data[:size]), ("open", "x", R, 0, "x"),
                   ("open", "y", RW | CREAT, 0o644, "y"), ("sendfile", "y", "x", 0, size + 5), ("content", "y"),
                   ("sendfile", "y", "x", size, 5), ("splice", "y", "x", min(size, 60_000), 2), ("content", "y"))
    yield case("map/shared", ("put", "x", b"0123456789" * 1000), ("open", "x", RW), ("map_w", "f", 10_000),
               ("map_read", "f", 9_995, 10), ("map_write", "f", 5, b"mapped"), ("pread", "f", 12, 0), ("map_sync", "f"),
               ("content", "x"), ("pwrite", "f", b"written", 20), ("map_read", "f", 18, 12), ("unmap", "f"))
    yield case("map/private", ("put", "x", b"0123456789"), ("open", "x", R), ("map_private", "f", 10),
               ("map_write", "f", 0, b"mine"), ("map_read", "f", 0, 10), ("pread", "f", 10, 0), ("content", "x"))
    yield case("map/rights", ("put", "x", b"0123456789"), ("open", "x", R), ("map_w", "f", 10), ("map", "f", 10),
               ("map_read", "f", 0, 10))
    yield case("map/truncated", ("put", "x", b"0123456789" * 1000), ("open", "x", RW), ("map_w", "f", 10_000),
               ("ftruncate", "f", 5), ("map_read", "f", 0, 12), ("ftruncate", "f", 9000), ("map_read", "f", 0, 12),
               ("map_read", "f", 8000, 5), ("map_write", "f", 8000, b"new"), ("map_sync", "f"), ("content", "x"))
    yield case("map/past-end", ("put", "x", b"short"), ("open", "x", RW), ("map_past_end", "f", 100, b"lost"),
               ("content", "x"), ("ftruncate", "f", 200), ("content", "x"), ("pread", "f", 300, 0))
    for at in (0, 4095, 4096, 8192):
        yield case(f"map/beyond-{at}", ("put", "x", b"short"), ("open", "x", RW), ("map_beyond", "f", at))
    yield case("map/after-close", ("put", "x", b"0123456789"), ("open", "x", RW), ("map_w", "f", 10), ("close", "f"),
               ("unlink", "x"), ("map_write", "f", 0, b"still"), ("map_read", "f", 0, 10), ("map_sync", "f"))


def nameless() -> Iterator[Case]:
    """A file that is open while its name goes: here, or on another mount."""
    for where in (0, 1):
        yield case(f"nameless/{where}", ("put", "x", b"0123456789" * 1000), ("open", "x", RW), ("move_to", where),
                   ("unlink", "x"), ("fstat", "f"), ("path_of", "f") if where == 0 else ("names", "."),
                   ("pread", "f", 12, 5), ("pwrite", "f", b"still", 20_000), ("fstat", "f"), ("pread", "f", 12, 19_998),
                   ("ftruncate", "f", 15_000), ("fchmod", "f", 0o600), ("fchown", "f", 5, 6), ("fstat", "f"),
                   ("put", "x", b"another"), ("content", "x"), ("pread", "f", 12, 5), ("fsync", "f"), ("close", "f"),
                   ("content", "x"))
        yield case(f"nameless/replaced-{where}", ("put", "x", b"old"), ("put", "y", b"new"), ("open", "x", RW),
                   ("move_to", where), ("rename", "y", "x"), ("fstat", "f"), ("pread", "f", 9, 0), ("content", "x"),
                   ("pwrite", "f", b"OLD", 0), ("content", "x"), ("pread", "f", 9, 0))
        yield case(f"nameless/two-names-{where}", ("put", "x", b"old"), ("link", "x", "y"), ("open", "x", RW),
                   ("move_to", where), ("unlink", "x"), ("fstat", "f"), ("unlink", "y"), ("fstat", "f"),
                   ("link_file", "f", "z"), ("names", "."))
        yield case(f"nameless/dir-{where}", ("mkdir", "d", 0o755), ("open", "d", R | DIRECTORY), ("move_to", where),
                   ("rmdir", "d"), ("fstat", "f"), ("fsync", "f"), ("fchmod", "f", 0o700))
        yield case(f"nameless/inside-{where}", ("mkdir", "d", 0o755), ("open", "d", R | DIRECTORY), ("move_to", where),
                   ("rmdir", "d"), ("move_to", 0), ("inside", "f", ("put", "new", b"n")),
                   ("inside", "f", ("mkdir", "new", 0o755)), ("inside", "f", ("link", "../x", "new")),
                   ("inside", "f", ("names_here", ".")), ("inside", "f", ("symlink", "a", "b")),
                   ("inside", "f", ("rename", "../d", "new")), ("inside", "f", ("lstat_here", "..")))


def reserving() -> Iterator[Case]:
    """fallocate(2) in each mode, on each kind of descriptor; what is left is looked at on other nodes."""
    ranges = ((0, 4096), (4096, 8192), (100, 200), (9000, 5000), (50_000, 1), (0, 0), (-1, 4096), (5, -5))
    for mode in (0, 1, 2, 3, 4, 8, 16, 17, 18, 32, 64, 65, 128, 3 | 8, 3 | 16, -(2**31)):
        yield case(f"reserve/{mode}", ("put", "x", bytes(range(1, 251)) * 100), ("open", "x", RW), *(
            step for at, length in ranges for step in (("fallocate", "f", mode, at, length), ("content", "x"))))
    for mode in (0, 1, 3, 16):
        for how, flags in (("r", R), ("w", W), ("append", RW | APPEND), ("path", PATH), ("directory", R | DIRECTORY)):
            yield case(f"reserve-by/{mode}-{how}", ("put", "x", b"content"), ("mkdir", "d", 0o755),
                       ("open", "d" if how == "directory" else "x", flags), ("fallocate", "f", mode, 2, 3),
                       ("fallocate", "f", mode, 5, 9), ("content", "x"))
        yield case(f"reserve-times/{mode}", ("put", "x", b"content" * 900), ("open", "x", RW), ("mark", "x"),
                   ("fallocate", "f", mode, 100, 20), ("moved", "x"), ("mark", "x"),
                   ("fallocate", "f", mode, 6000, 9000), ("moved", "x"), ("lstat", "x"))
        yield case(f"reserve-limit/{mode}", ("open", "x", RW | CREAT), ("limit_size", 10_000),
                   ("fallocate", "f", mode, 5000, 5000), ("fallocate", "f", mode, 5000, 5001), ("lstat", "x"))
    yield case("reserve/punched-whole", ("put", "x", b"x" * 5000), ("open", "x", RW), ("ftruncate", "f", 1 << 20),
               ("fallocate", "f", 3, 0, 1 << 20), ("fsync", "f"), ("blocks", "x"), ("content", "x"))


def programs() -> Iterator[Case]:
    yield case("program/run", ("program", "p", "/bin/true"), ("execute", "p"), ("chmod", "p", 0o644), ("execute", "p"),
               ("chmod", "p", 0o711), *as_user(OWNER, ("execute", "p"), ("open_close", "p", R)))
    yield case("program/busy", ("program", "p", "/bin/true"), ("open", "p", W | APPEND), ("execute", "p"),
               ("close", "f"),
               ("execute", "p"), ("program", "s", "/bin/sleep"), ("while_running", "s", ("open_close", "s", W)),
               ("while_running", "s", ("truncate", "s", 0)), ("while_running", "s", ("rename", "s", "t")),
               ("while_running", "t", ("unlink", "t")))
    yield case("program/script", ("put", "p", b"#!/bin/sh\nexit 7\n"), ("chmod", "p", 0o755), ("execute", "p"),
               ("put", "q", b"no program"), ("chmod", "q", 0o755), ("execute", "q"), ("put", "e", b""),
               ("chmod", "e", 0o755), ("execute", "e"), ("mkdir", "d", 0o755), ("execute", "d"))


def between_processes() -> Iterator[Case]:
    yield case("socket/talk", ("bind", "s"), ("connect", "s"), ("lstat", "s"), ("bind", "s"), ("chmod", "s", 0o600),
               *as_user(OWNER, ("connect", "s")), ("unlink", "s"), ("connect", "s"), ("put", "f", b""),
               ("connect", "f"),
               ("bind", "b"), ("rename", "b", "c"), ("connect", "c"), ("link", "c", "d"), ("connect", "d"))
    yield case("fifo/talk", ("mkfifo", "p", 0o644), ("open", "p", RW, 0, "a"), ("open", "p", R | os.O_NONBLOCK, 0, "b"),
               ("write", "a", b"through"), ("read", "b", 20), ("read", "b", 20), ("lseek", "a", 0), ("fstat", "a"),
               ("close", "a"), ("read", "b", 5), ("close", "b"), ("open_close", "p", W), ("truncate", "p", 0))
    yield case("device/null", *make("char", "n"), ("open", "n", RW), ("write", "f", b"gone"), ("read", "f", 5),
               ("fstat", "f"), ("open", "n", W | TRUNC), *make("block", "b"), ("open_close", "b", R))
    yield case("statvfs/tree", ("put", "x", b""), ("statvfs", "x"), ("statvfs", "."), ("symlink", "nowhere", "l"),
               ("statvfs", "l"))


GROUPS = (
    opening, limits, reading_and_writing, moving_data, nameless, reserving, programs, between_processes,
)
