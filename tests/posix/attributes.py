"""Cases about chmod, chown and times: what they may, what they clear, and what moves which time."""

from __future__ import annotations

# fmt: off  (tables)
from collections.abc import Iterator

from tests.posix.cases import (
    APPEND,
    CREAT,
    DIRECTORY,
    KINDS,
    NOW,
    OMIT,
    OTHER,
    OWNER,
    PATH,
    RW,
    TEAM,
    TRUNC,
    Case,
    R,
    Step,
    W,
    as_user,
    case,
    make,
)

GROUPS_OF = {"none": (), "team": (TEAM,)}


def modes() -> Iterator[Case]:
    for kind in KINDS:
        for mode in (0, 0o777, 0o4755, 0o2755, 0o1755, 0o7777, 0o2644):
            yield case(f"chmod/{kind}/{mode:o}", *make(kind, "x"), ("mark", "x"), ("chmod", "x", mode),
                       ("moved_here", "x"), ("stat", "x"))
    for kind in ("file", "dir"):
        for mode in (0o6777, 0o2755, 0o2745, 0o4711, 0o1644, 0o1777):
            for how, groups in GROUPS_OF.items():
                yield case(f"chmod-group/{kind}/{mode:o}-{how}", *make(kind, "x"), ("chown", "x", OWNER, TEAM),
                           ("mark", "x"), *as_user(OWNER, ("chmod", "x", mode), groups=groups), ("moved", "x"),
                           ("stat", "x"), *as_user(OTHER, ("chmod", "x", 0o700)), ("stat", "x"))
    yield case("chmod/open", ("put", "x", b"x"), ("open", "x", R), ("fchmod", "f", 0o4700), ("stat", "x"),
               ("open", "x", PATH), ("fchmod", "f", 0o700), ("mkdir", "d", 0o755), ("open", "d", R | DIRECTORY),
               ("fchmod", "f", 0o3700), ("stat", "d"))
    yield case("chmod/while-open", ("put", "x", b"x"), ("chown", "x", OWNER, OWNER),
               *as_user(OWNER, ("open", "x", RW), ("chmod", "x", 0), ("pwrite", "f", b"yes", 0), ("pread", "f", 3, 0),
                        ("open_close", "x", R)))


def owners() -> Iterator[Case]:
    """Who may give what to whom; set-id bits go when it is done by a user, and for programs by root as well."""
    changes = {
        "both": (OTHER, TEAM), "uid": (OTHER, -1), "gid": (-1, TEAM), "none": (-1, -1), "same-uid": (OWNER, -1),
        "same": (OWNER, 7), "gid-5": (-1, 5),
    }
    for kind in ("file", "dir", "link", "fifo"):
        for mode in (0o6777, 0o6770, 0o4644, 0o2644, 0o2755):
            for what, (uid, gid) in changes.items():
                made = [*make(kind, "x", 0o755), ("chown", "x", OWNER, 7), ("lchown", "x", OWNER, 7), ("chmod", "x",
                    mode)]
                change = ("lchown", "x", uid, gid)
                yield case(f"chown/{kind}/{mode:o}-{what}-root", *made, ("mark", "x"), change, ("moved", "x"),
                           ("lstat", "x"))
                if mode != 0o2644:
                    yield case(f"chown/{kind}/{mode:o}-{what}-owner", *made, ("mark", "x"),
                               *as_user(OWNER, change, groups=(TEAM,)), ("moved", "x"), ("lstat", "x"))
    for who in (OWNER, OTHER):
        for groups in ((), (TEAM, 5)):
            yield case(f"chown-user/{who}-{len(groups)}", ("put", "x", b"x"), ("chown", "x", OWNER, 7),
                       *as_user(who, ("chown", "x", who, -1), ("chown", "x", -1, 5), ("lstat", "x"),
                                ("chown", "x", -1, TEAM), ("chown", "x", OTHER, 5), ("chown", "x", 0, 0),
                                ("chown", "x", -1, -1), groups=groups))
    yield case("chown/large-ids", ("put", "x", b"x"), ("chown", "x", 0xFFFFFFFE, 0xFFFFFFFE), ("lstat", "x"),
               ("open", "x", R), ("fchown", "f", 70_000, 80_000), ("fstat", "f"))
    yield case("chown/links", *make("link", "x"), *make("dangling", "y"), ("chown", "x", 5, 6), ("lchown", "x", 7, 8),
               ("chown", "y", 5, 6), ("lchown", "y", 7, 8))


def set_id() -> Iterator[Case]:
    """Writing and truncating take away set-user-ID and set-group-ID, unless root does it."""
    ways: dict[str, list[Step]] = {
        "write": [("open", "x", W), ("write", "f", b"y")],
        "pwrite": [("open", "x", RW), ("pwrite", "f", b"y", 1)],
        "append": [("open", "x", W | APPEND), ("write", "f", b"y")],
        "nothing": [("open", "x", W), ("write", "f", b"")],
        "truncate": [("truncate", "x", 3)],
        "truncate-same": [("truncate", "x", 7)],
        "truncate-up": [("truncate", "x", 30)],
        "ftruncate": [("open", "x", W), ("ftruncate", "f", 3)],
        "trunc": [("open", "x", W | TRUNC)],
        "creat": [("open", "x", W | TRUNC | CREAT)],
        "read": [("open", "x", R), ("read", "f", 3)],
        "link": [("link", "x", "y")],
        "utime": [("utime_now", "x")],
        "mmap": [("open", "x", RW), ("map", "f", 7 ), ("unmap", "f")],
    }
    for what, steps in ways.items():
        for mode in (0o6777, 0o2767, 0o4666, 0o2777):
            for uid in (0, OWNER):
                yield case(f"set-id/{what}/{mode:o}-{uid}", ("put", "x", b"content"), ("chmod", "x", mode),
                           *as_user(uid, *steps), ("lstat", "x"))


def set_times() -> Iterator[Case]:
    pairs = {
        "both": ((10**9, 123_456_789), (10**9 + 5, 987_654_321)), "negative": ((-1, 1), (-(10**9), 999_999_999)),
        "zero": ((0, 0), (0, 1)), "now": ((0, NOW), (0, NOW)), "omit": ((0, OMIT), (0, OMIT)),
        "now-omit": ((0, NOW), (0, OMIT)), "omit-set": ((0, OMIT), (77, 5)), "set-now": ((77, 5), (0, NOW)),
        "2038": ((2**31 - 1, 5), (2**31, 5)), "2106": ((2**32 - 1, 1), (2**32, 1)), "bad": ((1, 10**9), (1, 1)),
        "bad-negative": ((1, -5), (1, 1)),
        "omit-bad": ((0, OMIT), (1, 10**9)),
    }
    for seconds in (2**34 - 1, 2**34, 2**40, 2**62, -(2**31), -(2**33), -(2**40),
        -(2**62)):
        yield case(f"times-far/{seconds}", ("put", "x", b"x"), ("utimens", "x", (seconds, 5), (seconds, 7)),
                   ("stamps", "x"),
                   ("open", "x", RW), ("write", "f", b"y"), ("remember", "x"), ("fsync", "f"))
    for kind in KINDS:
        for what, (accessed, modified) in pairs.items():
            if kind in ("file", "dir") or what in ("both", "now", "omit-set"):
                by_now = "now" in what or kind in ("link", "dangling", "dirlink")  # following one moves its atime
                shown: list[Step] = [] if by_now else [("stamps", "x")]
                yield case(f"times/{kind}/{what}", *make(kind, "x"), ("mark", "x"),
                           ("utimens", "x", accessed, modified), ("utimens", "x", accessed, modified), *shown,
                           *([] if kind == "dir" or "both" in what else [("lstat", "x")]))
    for what in ("now", "omit", "now-omit", "both"):
        yield case(f"times-moved/{what}", ("put", "x", b"x"), ("mark", "x"), ("utimens", "x", *pairs[what]),
                   ("remember", "x"), ("utimens", "x", *pairs[what]), ("names",
                   "."))
    for what in ("now", "omit"):
        yield case(f"times-which/{what}", ("put", "x", b"x"), ("mark", "x"), ("utimens", "x", *pairs[what]),
                   ("moved", "x"))
    yield case("times/link-itself", *make("link", "x"), ("utimens", "x", (5, 5), (6, 6)), ("stamps", "x.target"))
    yield case("times/no-follow", ("put", "t", b""), ("symlink", "t", "l"), ("utimes_of_link", "l", (5, 5), (6, 6)),
               ("stamps", "l"))
    for mode in (0o666, 0o644, 0o444, 0o222):
        for who in (OWNER, OTHER):
            for what in ("now", "omit", "now-omit", "both", "set-now"):
                yield case(f"times-user/{mode:o}-{who}-{what}", ("put", "x", b"x"), ("chown", "x", OWNER, 0),
                           ("chmod", "x", mode),
                           *as_user(who, ("utimens", "x", *pairs[what]), ("utime_now", "x")))


def moving_times() -> Iterator[Case]:
    """Which times of a file and its directory each call moves."""
    calls: dict[str, list[Step]] = {
        "write": [("open", "d/x", W), ("mark", "d", "d/x"), ("write", "f", b"new")],
        "write-nothing": [("open", "d/x", W), ("mark", "d", "d/x"), ("write", "f", b"")],
        "write-append": [("open", "d/x", W | APPEND), ("mark", "d", "d/x"), ("write", "f", b"new")],
        "truncate": [("truncate", "d/x", 3)],
        "truncate-same": [("truncate", "d/x", 7)],
        "truncate-up": [("truncate", "d/x", 9)],
        "ftruncate-same": [("open", "d/x", W), ("mark", "d", "d/x"), ("ftruncate", "f", 7)],
        "ftruncate": [("open", "d/x", W), ("mark", "d", "d/x"), ("ftruncate", "f", 2)],
        "trunc": [("open", "d/x", W | TRUNC)],
        "trunc-empty": [("truncate", "d/x", 0), ("mark", "d", "d/x"), ("open", "d/x", W | TRUNC)],
        "creat": [("open", "d/x", W | CREAT)],
        "chmod": [("chmod", "d/x", 0o600)],
        "chmod-same": [("chmod", "d/x", 0o644)],
        "chown": [("chown", "d/x", 5, 6)],
        "chown-same": [("chown", "d/x", 0, 0)],
        "chown-none": [("chown", "d/x", -1, -1)],
        "link": [("link", "d/x", "d/y")],
        "link-away": [("link", "d/x", "y")],
        "rename": [("rename", "d/x", "d/y"), ("rename", "d/y", "d/x")],
        "rename-same": [("rename", "d/x", "d/x")],
        "exists": [("mkdir", "d/x", 0o755)],
        "stat": [("lstat", "d/x")],
        "open": [("open", "d/x", R)],
        "access": [("access", "d/x", 4)],
        "utime": [("utime_now", "d/x")],
        "mmap": [("open", "d/x", RW), ("map", "f", 7), ("mark", "d", "d/x"), ("unmap", "f")],
        "mmap-write": [("open", "d/x", RW), ("mark", "d", "d/x"), ("map_w", "f", 7), ("map_write", "f", 1, b"m"),
                       ("map_sync", "f"), ("unmap", "f")],
        "mmap-unmap": [("open", "d/x", RW), ("mark", "d", "d/x"), ("map_w", "f", 7), ("map_write", "f", 1, b"m"),
                       ("unmap", "f")],
        "fsync": [("open", "d/x", RW), ("mark", "d", "d/x"), ("fsync", "f")],
    }
    for ahead in (5, 60, 10**6, 10**10):
        yield case(f"moving/ahead-{ahead}", ("put", "x", b"content"), ("mark_ahead", "x", ahead), ("open", "x", W),
                   ("write", "f", b"new"), ("moved", "x") if ahead > 9 else ("names", "."))
    for what, steps in calls.items():
        yield case(f"moving/{what}", ("mkdir", "d", 0o755), ("put", "d/x", b"content"), ("mark", "d", "d/x"), *steps,
                   ("moved", "d/x"), ("moved", "d"))


def reading_times() -> Iterator[Case]:
    """Reading moves the access time, when it is older than the modification or a day."""
    reads: dict[str, list[Step]] = {
        "read": [("open", "x", R), ("read", "f", 3)],
        "read-twice": [("open", "x", R), ("read", "f", 3), ("remember_here", "x"), ("pread", "f", 3, 0)],
        "read-chmod": [("open", "x", R), ("read", "f", 3), ("remember_here", "x"), ("chmod", "x", 0o600)],
        "read-truncate": [("open", "x", R), ("read", "f", 3), ("remember_here", "x"), ("truncate", "x", 3)],
        "read-write": [("open", "x", RW), ("read", "f", 3), ("remember_here", "x"), ("write", "f", b"new")],
        "read-nothing": [("open", "x", R), ("read", "f", 0)],
        "read-end": [("open", "x", R), ("pread", "f", 3, 7)],
        "noatime": [("open", "x", R | 0o1000000), ("read", "f", 3)],
        "names": [("mkdir", "d", 0o755), ("put", "d/y", b""), ("mark", "d"), ("names_here", "d")],
        "readlink": [("symlink", "x", "l"), ("mark", "l"), ("readlink_here", "l")],
    }
    for what, steps in reads.items():
        path = {"names": "d", "readlink": "l"}.get(what, "x")
        yield case(f"reading/{what}", ("put", "x", b"content"), ("mark", "x"), *steps, ("moved_here", path))
    yield case("reading/not-owner", ("put", "x", b"content"), *as_user(OWNER, ("open", "x", R | 0o1000000)))


GROUPS = (modes, owners, set_id, set_times, moving_times, reading_times)
