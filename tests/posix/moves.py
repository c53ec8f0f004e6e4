"""Cases about rename(2): each kind over each, with each flag; directories into one another; rights; what it leaves."""

from __future__ import annotations

# fmt: off  (tables)
from collections.abc import Iterator

from tests.posix.cases import EXCHANGE, KINDS, NOREPLACE, OTHER, OWNER, RW, WHITEOUT, Case, R, Step, as_user, case, make

FLAGS = {"plain": 0, "noreplace": NOREPLACE, "exchange": EXCHANGE, "both": NOREPLACE | EXCHANGE, "unknown": 64}


def each_over_each() -> Iterator[Case]:
    for source in (*KINDS, "full", "absent"):
        for target in (*KINDS, "full", "absent"):
            for how, flags in FLAGS.items():
                steps: list[Step] = [("mkdir", "a", 0o755), ("mkdir", "b", 0o755)]
                for kind, path in ((source, "a/old"), (target, "b/new")):
                    if kind == "full":
                        steps += [("mkdir", path, 0o755), ("put", path + "/leaf", b"l")]
                    elif kind != "absent":
                        steps += make(kind, path)
                yield case(f"move/{source}-{target}/{how}", *steps, ("mark", "a", "b"),
                           ("renameat2", "a/old", "b/new", flags), ("moved", "a"), ("moved", "b"),
                           ("lstat", "a"), ("lstat", "b"))


def within() -> Iterator[Case]:
    """Into itself, over an ancestor, over a name of itself, of what is open."""
    tree: list[Step] = [("mkdir", "d", 0o755), ("mkdir", "d/e", 0o755), ("mkdir", "d/e/f", 0o755), ("put", "x", b"x")]
    pairs = [
        ("d", "d/e/new"), ("d", "d/e"), ("d", "d/e/f"), ("d", "d"), ("d/e/f", "d"), ("d/e", "d"), ("d/e", "d/e/new"),
        ("d/e", "d/e/f/g"), ("d/e/f", "d/e"), ("x", "d/e"), ("d/e", "x"), ("x", "x"), ("d/e/f", "f"), ("d", "x/y"),
        ("d/e/f", "d/e/../e/f"), ("d/", "n"), ("x/", "n"), ("d", "n/"), ("x", "n/"), ("d", "x/"), ("d/e/f/", "d/e/g/"),
    ]
    for old, new in pairs:
        for how, flags in (("plain", 0), ("exchange", EXCHANGE), ("noreplace", NOREPLACE)):
            yield case(f"within/{old}-{new}/{how}".replace("/", "_"), *tree, ("renameat2", old, new, flags))
    for flags in (0, NOREPLACE, EXCHANGE):
        yield case(f"same-file/{flags}", ("put", "a", b"a"), ("link", "a", "b"), ("mark", "a"),
                   ("renameat2", "a", "b", flags), ("moved", "a"), ("names", "."))
    yield case("moved/open", ("put", "a", b"a"), ("put", "b", b"b"), ("open", "a", RW, 0, "a"),
               ("open", "b", RW, 0, "b"),
               ("rename", "a", "b"), ("fstat", "a"), ("fstat", "b"), ("pread", "a", 9, 0), ("pread", "b", 9, 0),
               ("pwrite", "b", b"gone", 0), ("pread", "b", 9, 0), ("content", "b"), ("path_of", "b"))
    yield case("moved/keeps", ("put", "a", b"a"), ("mark", "a"), ("rename", "a", "b"), ("remember", "b"),
               ("stamps", "b"), ("mkdir", "d", 0o755), ("mark", "d"), ("rename", "d", "e"), ("stamps", "e"))
    yield case("moved/parent", ("mkdir", "a", 0o755), ("mkdir", "b", 0o755), ("mkdir", "a/x", 0o755),
               ("rename", "a/x", "b/x"), ("lstat", "a"), ("lstat", "b"), ("lstat", "b/x/../x"),
               ("rename", "b/x/../../a", "b/x/a"), ("lstat", "b/x/a/.."))
    for kind in ("file", "dir", "link"):
        yield case(f"whiteout/{kind}", *make(kind, "a"), ("renameat2", "a", "b", WHITEOUT),
                   ("renameat2", "a", "b", WHITEOUT | EXCHANGE), ("renameat2", "b", "c", WHITEOUT | NOREPLACE))


def by_users() -> Iterator[Case]:
    """A directory that moves to another parent is written itself, as its ".." changes."""
    for kind in ("file", "dir"):
        for owner in (OWNER, OTHER):
            for mode in (0o755, 0o555, 0o333, 0o777):
                for where in ("a/new", "b/new"):
                    yield case(
                        f"mover/{kind}-{owner}-{mode:o}-{where[0]}", ("mkdir", "a", 0o755), ("mkdir", "b", 0o755),
                        *make(kind, "a/old"), ("chmod", "a/old", mode), ("chown", "a/old", owner, 0),
                        ("chown", "a", OWNER, 0), ("chown", "b", OWNER, 0),
                        *as_user(OWNER, ("rename", "a/old", where), ("renameat2", "a", "b", EXCHANGE),
                                 ("open_close", "a", R)),
                    )


GROUPS = (each_over_each, within, by_users)
