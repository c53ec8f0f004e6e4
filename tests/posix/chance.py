"""Cases by chance, from a seed: one file written through three mounts, and one tree.

As all cases they are run on ext4 as well, which so is the model.  Everything is done one after another, so that there
is one right answer to each step; what happens at once has tests of its own (``test_posix``).
"""

from __future__ import annotations

# fmt: off  (tables)
import random
from collections.abc import Callable

from tests.posix.cases import (
    APPEND,
    CREAT,
    DIRECT,
    EXCHANGE,
    NOREPLACE,
    OTHER,
    OWNER,
    RW,
    TEAM,
    TRUNC,
    Case,
    Step,
    W,
    case,
)

NAMES = ("a", "b", "c")
USERS = ((0, 0, ()), (0, 0, ()), (OWNER, OWNER, ()), (OTHER, TEAM, (OWNER,)))
FALLOCATE = (0, 1, 3, 3, 16, 17)  # to allocate, to punch and to zero, and whether the size stays
MODES = (0o777, 0o755, 0o700, 0o1777, 0o2775, 0o644, 0o555, 0)


def one_file(seed: int, steps: int, size_max: int) -> Case:
    """Reads, writes, truncations, mappings and reopenings of one file, each on any of three mounts."""
    rng = random.Random(seed)
    found: list[Step] = [("open", "f", RW | CREAT, 0o644, "0")]
    for key in (1, 2):
        found += [("move_to", key), ("open", "f", RW, 0, str(key))]

    def place() -> tuple[str, int, int]:
        length = rng.choice((1, 2, 100, 511, 4096, 4097, rng.randrange(1, 70_000)))
        at = rng.choice((0, 4096 * rng.randrange(size_max // 4096), rng.randrange(size_max)))
        return str(rng.randrange(3)), at, min(length, size_max - at)

    def write() -> Step:
        key, at, length = place()
        return ("pwrite", key, pattern(rng, length), at)

    def append() -> list[Step]:
        key, _, length = place()
        return [("move_to", int(key)), ("open", "f", W | APPEND, 0, "end"), ("write", "end", pattern(rng,
            length // 9 + 1))]

    def read() -> Step:
        key, at, length = place()
        return ("pread", key, length, at)

    def shorten() -> Step:
        return ("ftruncate", str(rng.randrange(3)), rng.choice((0, rng.randrange(size_max), rng.randrange(size_max))))

    def map_write() -> Step:
        key, at, length = place()
        return ("map_do", key, at, pattern(rng, length))

    def map_read() -> Step:
        key, at, length = place()
        return ("map_look", key, at, length)

    def direct() -> list[Step]:
        key, at, length = rng.randrange(3), 4096 * rng.randrange(size_max // 4096), 4096 * rng.randrange(1, 9)
        return [("move_to", key), ("open", "f", RW | DIRECT, 0, "direct"),
                (rng.choice(("direct", "direct_write")), "direct", length, at)]

    def reopen() -> list[Step]:
        key = rng.randrange(3)
        return [("move_to", key), ("open", "f", rng.choice((RW, RW, RW | TRUNC)), 0, str(key))]

    def change_range() -> Step:
        key, at, length = place()
        return ("fallocate", key, rng.choice(FALLOCATE), at, max(1, length))

    def copy_range() -> Step:
        key, at, length = place()
        to = rng.choice((at + length, rng.randrange(size_max)))
        count = min(length, abs(at - to), size_max - to)  # what overlaps is EINVAL, but for two mounts
        return ("copy_range", key, str(rng.randrange(3)), count, at, to)

    def by_kept_mapping() -> Step:
        key, at, length = place()
        return rng.choice((("kept_write", key, at, pattern(rng, length)), ("kept_read", key, at, length)))

    def by_splice() -> Step:
        key, at, length = place()
        return ("read_by_splice", key, length, at)

    def sync() -> Step:
        return ("fsync", str(rng.randrange(3)))

    def look() -> Step:
        key = str(rng.randrange(3))
        return rng.choice((("fstat", key), ("content", "f"), ("lstat", "f"), ("holes_are_zero", key)))

    calls: list[Callable[[], Step | list[Step]]] = [
        write, write, write, append, read, read, read, shorten, map_write, map_read, direct, reopen, sync, look, look,
        change_range, change_range, copy_range, by_kept_mapping, by_kept_mapping, by_splice,
    ]
    while len(found) < steps:
        made = rng.choice(calls)()
        found += made if isinstance(made, list) else [made]
    return case(f"one-file/{seed}", *found)


def pattern(rng: random.Random, length: int) -> bytes:
    """Bytes that differ from call to call and from place to place."""
    return (rng.randbytes(97) * (length // 97 + 1))[:length]


def one_tree(seed: int, steps: int) -> Case:
    """Names made, moved and removed by several users in a small tree, where most things meet one another."""
    rng = random.Random(seed)

    def path() -> str:
        return "/".join(rng.choices(NAMES, k=rng.choice((1, 1, 2, 2, 3))))

    calls: list[Callable[[], Step]] = [
        lambda: ("mkdir", path(), rng.choice(MODES)),
        lambda: ("mkdir", path(), 0o777),
        lambda: ("mkdir", path(), 0o777),
        lambda: ("rmdir", path()),
        lambda: ("put", path(), pattern(rng, rng.choice((0, 5, 5000)))),
        lambda: ("put", path(), pattern(rng, 9)),
        lambda: ("unlink", path()),
        lambda: ("rename", path(), path()),
        lambda: ("rename", path(), path()),
        lambda: ("renameat2", path(), path(), rng.choice((EXCHANGE, NOREPLACE))),
        lambda: ("link", path(), path()),
        lambda: ("symlink", path(), path()),
        lambda: ("mkfifo", path(), 0o600),
        lambda: ("chmod", path(), rng.choice(MODES)),
        lambda: ("lchown", path(), rng.choice((-1, 0, OWNER, OTHER)), rng.choice((-1, 0, TEAM))),
        lambda: ("truncate", path(), rng.randrange(9000)),
        lambda: ("open_close", path(), rng.choice((W | TRUNC, W | CREAT, RW))),
        lambda: ("lstat", path()),
        lambda: ("names", path()),
        lambda: ("content", path()),
        lambda: ("readlink", path()),
        lambda: ("access", path(), rng.randrange(8)),
    ]
    found: list[Step] = []
    while len(found) < steps:
        found += [("move_to", rng.randrange(3)), ("become", *rng.choice(USERS))]
        found += [rng.choice(calls)() for _ in range(rng.randrange(1, 6))]
    return case(f"one-tree/{seed}", *found, ("become", 0, 0, ()))
