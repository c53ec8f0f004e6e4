"""Cases about flags and projects of files: what chattr(1) takes, hands down, and what is then forbidden."""

from __future__ import annotations

# fmt: off  (tables)
from collections.abc import Iterator

from tests.posix.cases import (
    APPEND,
    CREAT,
    NOW,
    OMIT,
    OTHER,
    OWNER,
    RW,
    TRUNC,
    Case,
    R,
    Step,
    W,
    as_user,
    case,
    make,
)

FIXED = ("i", "a", "ia")
LETTERS = "SiadADP"  # j needs a journal for data
UNKNOWN = 0x800000  # C, no copy on write: of other filesystems


def taking() -> Iterator[Case]:
    """Which flags which kind of file takes, and who may set them."""
    for kind in ("file", "dir"):
        for letter in LETTERS:
            yield case(f"take/{kind}-{letter}", *make(kind, "x"), ("mark", "x"), ("set_flags_to", "x", letter),
                       ("moved", "x"), ("flags", "x"), ("project", "x"), ("set_project", "x", "", 0), ("flags", "x"),
                       ("project", "x"), ("set_flags_to", "x", ""), ("flags", "x"), ("project", "x"))
        yield case(f"take/{kind}-many", *make(kind, "x"), ("set_flags_to", "x", "SdA"), ("flags", "x"),
                   ("set_project", "x", "dA", 0), ("flags", "x"), ("project", "x"), ("set_flags_to", "x", "d"),
                   ("project", "x"), ("set_project", "x", "SiP" if kind == "dir" else "Si", 0), ("flags", "x"),
                   ("project", "x"), ("set_flags_to", "x", ""), ("project", "x"), ("version", "x"))
        yield case(f"take/{kind}-unknown", *make(kind, "x"), ("set_flags_to", "x", "d", UNKNOWN), ("flags", "x"),
                   ("other_ioctl", "x", 0x80047A7A), ("project", "x"))
        yield case(f"take/{kind}-fixed", *make(kind, "x"), ("set_flags_to", "x", "i"), ("set_flags_to", "x", "id"),
                   ("set_flags_to", "x", "ia"), ("set_project", "x", "iA", 0), ("set_project", "x", "i", 0),
                   ("flags", "x"), ("set_flags_to", "x", "ad"), ("flags", "x"), ("set_project", "x", "a", 0),
                   ("project", "x"), ("set_flags_to", "x", ""))
        for who in (OWNER, OTHER):
            for flags in ("d", "A", "S", "i", "a", "P", "ad"):
                yield case(f"take-user/{kind}-{flags}-{who}", *make(kind, "x"), ("chown", "x", OWNER, 0),
                           *as_user(who, ("set_flags_to", "x", flags), ("flags", "x"), ("set_project", "x", "", 0),
                                    ("project", "x")), ("set_flags_to", "x", "ia"), *as_user(
                           who, ("set_flags_to", "x", "ia"), ("set_flags_to", "x", "i"), ("set_flags_to", "x", ""),
                           ("set_project", "x", "", 0)), ("flags", "x"))
    for kind in ("fifo", "char", "link", "dirlink"):
        yield case(f"take/{kind}", *make(kind, "x"), ("set_flags_to", "x", "d") if "link" in kind else ("names", "."))


ON_FILE: dict[str, list[Step]] = {
    "open-r": [("open_close", "d/x", R)],
    "open-w": [("open_close", "d/x", W)],
    "open-rw": [("open_close", "d/x", RW)],
    "open-append": [("open_close", "d/x", RW | APPEND)],
    "open-trunc": [("open_close", "d/x", R | TRUNC)],
    "open-append-trunc": [("open_close", "d/x", W | APPEND | TRUNC)],
    "open-creat": [("open_close", "d/x", W | CREAT), ("open_close", "d/x", R | CREAT)],
    "truncate": [("truncate", "d/x", 2), ("truncate", "d/x", 20), ("truncate", "d/x", 7)],
    "chmod": [("chmod", "d/x", 0o600), ("chmod", "d/x", 0o644)],
    "chown": [("chown", "d/x", 5, 6), ("chown", "d/x", -1, -1)],
    "times": [("utimens", "d/x", (5, 5), (6, 6)), ("utimens", "d/x", (0, NOW), (0, OMIT))],
    "now": [("utime_now", "d/x"), ("utimens", "d/x", (0, NOW), (0, NOW))],
    "link": [("link", "d/x", "d/y"), ("link", "d/x", "y")],
    "unlink": [("unlink", "d/x")],
    "rename": [("rename", "d/x", "d/y"), ("rename", "d/x", "y")],
    "rename-over": [("put", "y", b"other"), ("rename", "y", "d/x")],
    "exchange": [("put", "y", b"other"), ("renameat2", "y", "d/x", 2), ("renameat2", "d/x", "y", 2)],
    "xattr": [("setxattr", "d/x", "user.a", b"1"), ("removexattr", "d/x", "user.a"),
              ("removexattr", "d/x", "user.none"), ("setxattr", "d/x", "trusted.a", b"1")],
    "user": [*as_user(OTHER, ("open_close", "d/x", W), ("utime_now", "d/x"))],
    "execute": [("open_close", "d/x", R), ("content", "d/x")],
}
ON_DIRECTORY: dict[str, list[Step]] = {
    "creat": [("put", "d/y", b"new"), ("open_close", "d/y", W | CREAT)],
    "creat-exists": [("open_close", "d/x", W | CREAT), ("mkdir", "d/x", 0o755)],
    "write": [("open", "d/x", RW), ("pwrite", "f", b"C", 0), ("content", "d/x"), ("chmod", "d/x", 0o600)],
    "make": [("mkdir", "d/y", 0o755), ("symlink", "a", "d/s"), ("mkfifo", "d/p", 0o644), ("tmpfile", "d")],
    "link": [("put", "y", b"y"), ("link", "y", "d/y"), ("link", "d/x", "z")],
    "unlink": [("unlink", "d/x"), ("unlink", "d/none"), ("rmdir", "d/x")],
    "rmdir": [("rmdir", "d/sub"), ("rmdir", "d"), ("unlink", "d/sub")],
    "rename-out": [("rename", "d/x", "y"), ("rename", "d/sub", "sub")],
    "rename-in": [("put", "y", b"y"), ("rename", "y", "d/y"), ("put", "z", b"z"), ("rename", "z", "d/x")],
    "rename-within": [("rename", "d/x", "d/y"), ("rename", "d/x", "d/x")],
    "rename-it": [("rename", "d", "e")],
    "exchange": [("put", "y", b"y"), ("renameat2", "y", "d/x", 2)],
    "chmod": [("chmod", "d", 0o700), ("utimens", "d", (5, 5), (6, 6)), ("utime_now", "d")],
    "xattr": [("setxattr", "d", "user.a", b"1")],
}


APPENDING: tuple[Step, ...] = (
    ("open", "x", RW | APPEND), ("write", "f", b"more"), ("pwrite", "f", b"+", 0), ("content", "x"),
    ("ftruncate", "f", 0), ("fchmod", "f", 0o600), ("fallocate", "f", 1, 0, 9), ("fallocate", "f", 3, 0, 9),
    ("fallocate", "f", 0, 0, 50), ("stat", "x"), ("write", "f", b"end"), ("content", "x"),
)


def fixed() -> Iterator[Case]:
    """What immutable and append-only files and directories refuse, and that all is as before when the flag is gone."""
    for flags in FIXED:
        for what, steps in ON_FILE.items():
            yield case(f"fixed-file/{flags}-{what}", ("mkdir", "d", 0o777), ("put", "d/x", b"content"),
                       ("chmod", "d/x", 0o666), ("set_flags_to", "d/x", flags), *steps, ("set_flags_to", "d/x", ""),
                       *steps)
        for what, steps in ON_DIRECTORY.items():
            yield case(f"fixed-dir/{flags}-{what}", ("mkdir", "d", 0o777), ("put", "d/x", b"content"),
                       ("mkdir", "d/sub", 0o755), ("set_flags_to", "d", flags), *steps, ("names", "d"),
                       ("set_flags_to", "d", ""), *steps)
        yield case(f"fixed-sub/{flags}", ("mkdir", "d", 0o755), ("mkdir", "d/sub", 0o755),
                   ("set_flags_to", "d/sub", flags), ("rmdir", "d/sub"), ("rename", "d/sub", "e"), ("put", "d/x", b""))


    for flags in FIXED:
        yield case(f"fixed-denied/{flags}", ("put", "x", b"content"), ("chmod", "x", 0o600), ("chown", "x", OWNER, 0),
                   ("set_flags_to", "x", flags), *as_user(OTHER, ("open_close", "x", W)), ("access", "x", 2),
                   ("access", "x", 4), *as_user(OWNER, ("open_close", "x", W), ("open_close", "x", R)))
    yield case("fixed-append", ("put", "x", b"content"), ("set_flags_to", "x", "a"), *APPENDING)


def opened_before() -> Iterator[Case]:
    """A descriptor that could write when the flag was set, on the same mount or by another."""
    for flags in FIXED:
        for mount in (0, 1):
            yield case(f"before/{flags}-{mount}", ("put", "x", b"content"), ("put", "y", b"source"),
                       ("open", "x", RW, 0, "a"), ("open", "x", W | APPEND, 0, "b"), ("open", "y", R, 0, "c"),
                       ("write", "a", b"C"), ("move_to", mount), ("set_flags_to", "x", flags), ("pwrite", "a", b"1", 2),
                       ("write", "b", b"+2"), ("ftruncate", "a", 3), ("fallocate", "a", 3, 0, 4096),
                       ("fallocate", "a", 0, 0, 20), ("fchmod", "a", 0o600), ("fsync", "a"), ("content", "x"),
                       ("move_to", 0), ("flags", "x"))
        yield case(f"before-map/{flags}", ("put", "x", b"content"), ("open", "x", RW), ("map_w", "f", 7),
                   ("map_write", "f", 0, b"C"), ("map_sync", "f"), ("unmap", "f"), ("set_flags_to", "x", flags),
                   ("content", "x"))
        yield case(f"before-dirty-map/{flags}", ("put", "x", b"content"), ("open", "x", RW), ("map_w", "f", 7),
                   ("map_write", "f", 0, b"C"), ("set_flags_to", "x", flags), ("content", "x"), ("map_sync", "f"),
                   ("unmap", "f"), ("content", "x"))
        yield case(f"before-copy/{flags}", ("put", "x", b"content"), ("put", "y", b"source"), ("open", "x", RW, 0, "a"),
                   ("open", "y", R, 0, "c"), ("set_flags_to", "x", flags), ("copy", "c", "a", 3), ("content", "x"))


def inherited() -> Iterator[Case]:
    """What a directory hands down, and to whom."""
    for flags in ("S", "d", "A", "D", "P", "SdAD", "a", "aSP"):
        yield case(f"inherit/{flags}", ("mkdir", "d", 0o755), ("set_flags_to", "d", flags), ("put", "d/x", b"x"),
                   ("mkdir", "d/sub", 0o755), ("put", "d/sub/y", b"y"), ("symlink", "x", "d/l"), ("flags", "d/x"),
                   ("project", "d/x"), ("flags", "d/sub"), ("project", "d/sub"), ("flags", "d/sub/y"),
                   ("project", "d/sub/y"), ("link", "d/x", "d/z"), ("link", "d/l", "d/l2"))
    yield case("inherit/renamed", ("mkdir", "d", 0o755), ("set_flags_to", "d", "SAD"), ("put", "x", b"x"),
               ("rename", "x", "d/x"), ("flags", "d/x"), ("link", "d/x", "y"), ("flags", "y"))


def atimes() -> Iterator[Case]:
    for flags in ("", "A"):
        yield case(f"atime/{flags}", ("put", "x", b"content"), ("set_flags_to", "x", flags), ("mark", "x"),
                   ("open", "x", R), ("read", "f", 3), ("moved_here", "x"))


GROUPS = (taking, fixed, opened_before, inherited, atimes)
