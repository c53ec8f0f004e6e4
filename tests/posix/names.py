"""Cases about names: what can be made where, linked, removed; what stands in the way, and with which errno."""

from __future__ import annotations

# fmt: off  (tables)
import stat
from collections.abc import Callable, Iterator

from tests.posix.cases import (
    CREAT,
    DIRECTORY,
    EXCL,
    KINDS,
    NOFOLLOW,
    OTHER,
    OWNER,
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

LONG = "n" * 255
WORD = "w" * 249

# what makes a name, by a name for it; the path is filled in
MAKERS: dict[str, Step] = {
    "creat": ("put", "?", b"x"),
    "excl": ("open_close", "?", CREAT | EXCL | W),
    "mkdir": ("mkdir", "?", 0o755),
    "mkfifo": ("mkfifo", "?", 0o644),
    "char": ("mknod", "?", stat.S_IFCHR | 0o644, 0x103),
    "block": ("mknod", "?", stat.S_IFBLK | 0o644, 0x103),
    "socket": ("mknod", "?", stat.S_IFSOCK | 0o644, 0),
    "regular": ("mknod", "?", stat.S_IFREG | 0o644, 0),
    "symlink": ("symlink", "target", "?"),
    "link": ("link", "source", "?"),
    "bind": ("bind", "?"),
    "rename": ("rename", "source", "?"),
    "noreplace": ("renameat2", "source", "?", 1),
}
REMOVERS: dict[str, Step] = {
    "unlink": ("unlink", "?"),
    "rmdir": ("rmdir", "?"),
    "away": ("rename", "?", "moved"),
    "exchange": ("renameat2", "?", "source", 2),
}
USERS: dict[str, Step] = {
    "stat": ("stat", "?"),
    "lstat": ("lstat", "?"),
    "open": ("open_close", "?", R),
    "nofollow": ("open_close", "?", R | NOFOLLOW),
    "directory": ("open_close", "?", R | DIRECTORY),
    "chmod": ("chmod", "?", 0o600),
    "chown": ("chown", "?", 5, 6),
    "lchown": ("lchown", "?", 5, 6),
    "truncate": ("truncate", "?", 3),
    "utimens": ("utimens", "?", (1, 2), (3, 4)),
    "readlink": ("readlink", "?"),
    "names": ("names", "?"),
    "access": ("access", "?", 4),
    "statvfs": ("statvfs", "?"),
    "connect": ("connect", "?"),
    "execute": ("execute", "?"),
    "from": ("link", "?", "new"),
    "from-follow": ("link", "?", "new"),
}
ALL = MAKERS | REMOVERS | USERS

# paths that lead nowhere, or oddly somewhere
PATHS: dict[str, str] = {
    "empty": "",
    "dot": ".",
    "dotdot": "sub/..",
    "slash": "sub/",
    "new-slash": "new/",
    "file-slash": "file/",
    "link-slash": "link/",
    "dangling-slash": "dangling/",
    "dirlink-slash": "dirlink/",
    "dots-below": "sub/./../new2",
    "sub-dot": "sub/.",
    "many": "sub//inner",
    "absent": "nowhere/x",
    "absent-dot": "nowhere/.",
    "below-file": "file/x",
    "below-fifo": "fifo/x",
    "below-link": "link/x",
    "below-dangling": "dangling/x",
    "below-dirlink": "dirlink/new3",
    "loop": "loop",
    "below-loop": "loop/x",
    "name-255": LONG,
    "name-256": LONG + "n",
    "below-256": LONG + "n/x",
    "path-4095": "./" * 2045 + "abcde",
    "path-4096": "./" * 2045 + "abcdef",
    "bytes": "\udcff\udc80 \n\t\x01\x7f*?\\",
    "utf8": "für ☃",
    "closed": "closed/x",
    "shut": "shut/x",
}


def filled(step: Step, path: str) -> Step:
    if step[0] == "bind" and len(path) > 100:  # sockets know shorter paths only
        return ("mknod", path, stat.S_IFSOCK, 0)
    return tuple(path if part == "?" else part for part in step)


def scene() -> list[Step]:
    return [
        ("put", "source", b"s"), ("put", "file", b"f"), ("mkdir", "sub", 0o755), ("mkdir", "sub/inner", 0o777),
        ("symlink", "file", "link"), ("symlink", "nothing", "dangling"), ("symlink", "sub", "dirlink"),
        ("symlink", "loop2", "loop"), ("symlink", "loop", "loop2"), ("mkfifo", "fifo", 0o666),
        ("mkdir", "closed", 0o700), ("put", "closed/x", b"c"), ("mkdir", "shut", 0o755), ("put", "shut/x", b"s"),
        ("chmod", "source", 0o666),
    ]


def odd_paths() -> Iterator[Case]:
    """Every call with every odd path, as root; and with those where rights matter as a user."""
    made = tuple(scene())
    for what, step in ALL.items():
        steps: list[Step] = []
        for path in PATHS.values():
            steps += [filled(step, path), ("restore", made)]
        for how in ("closed", "shut", "below-file", "absent", "name-256", "loop"):
            steps += as_user(OWNER, filled(step, PATHS[how]))
        yield case(f"path/{what}", *made, *steps)


def every_kind() -> Iterator[Case]:
    """Every call on a thing of every kind."""
    for what, step in ALL.items():
        for kind in KINDS:
            yield case(f"kind/{what}/{kind}", ("put", "source", b"s"), *make(kind, "x"), filled(step, "x"))
        for kind in ("file", "dir", "link"):
            yield case(
                f"kind-user/{what}/{kind}", ("put", "source", b"s"), *make(kind, "x", 0o600),
                *as_user(OWNER, filled(step, "x")),
            )


def new_things() -> Iterator[Case]:
    """Mode, owner and times of what is made, under several umasks, and the times of its directory."""
    makers: dict[str, Callable[[str, int], Step]] = {
        "open": lambda path, mode: ("open", path, CREAT | EXCL | RW, mode),
        "mkdir": lambda path, mode: ("mkdir", path, mode),
        "mkfifo": lambda path, mode: ("mkfifo", path, mode),
        "socket": lambda path, mode: ("mknod", path, stat.S_IFSOCK | mode, 0),
        "regular": lambda path, mode: ("mknod", path, stat.S_IFREG | mode, 0),
    }
    directory: list[tuple[str, list[Step]]] = [
        ("plain", [("mkdir", "d", 0o755), ("chmod", "d", 0o777)]),
        ("setgid", [("mkdir", "d", 0o755), ("chown", "d", OTHER, TEAM), ("chmod", "d", 0o2777)]),
    ]
    for what, maker in makers.items():
        for how, made in directory:
            steps: list[Step] = []
            for mode in (0, 0o755, 0o151, 0o77, 0o4755, 0o2755, 0o1777, 0o6711, 0o2745):
                for mask in (0, 0o22, 0o77, 0o345):
                    path = f"d/{mode:o}-{mask:o}"
                    steps += [("umask", mask), maker(path, mode), ("become", 0, 0, ()), ("order", path)]
                    steps += [("become", OWNER, 7, ())]
            yield case(f"new/{what}/{how}", *made, ("become", OWNER, 7, ()), *steps)
    for what, step in MAKERS.items():
        for how, made in directory:
            yield case(
                f"new-times/{what}/{how}", ("put", "source", b"s"), *made, ("mark", "d", "source"),
                *as_user(0, filled(step, "d/new")), ("moved", "d"), ("moved", "source"), ("order", "d/new"),
                ("lstat", "d/new"), ("mark", "d"), filled(step, "d/new"), ("moved", "d"),
            )


def removed_things() -> Iterator[Case]:
    """Removing: times of the directory and of what keeps another name; ENOTEMPTY; what is still open."""
    for kind in KINDS:
        removing = ("rmdir", "d/x") if kind == "dir" else ("unlink", "d/x")
        yield case(f"gone/{kind}", ("mkdir", "d", 0o755), *make(kind, "d/x"), ("mark", "d"), removing, ("moved", "d"),
                   removing, ("lstat", "d/x"), ("mark", "d"), removing, ("moved", "d"))
        if kind != "dir":
            yield case(f"second-name/{kind}", ("mkdir", "d", 0o755), *make(kind, "d/x"), ("link", "d/x", "other"),
                       ("lstat", "other"), ("mark", "other"), ("unlink", "d/x"), ("moved", "other"),
                       ("lstat", "other"), ("mark", "other"), ("link", "other", "d/again"),
                       ("moved", "other"), ("unlink", "other"), ("lstat", "d/again"))
            yield case(f"full/{kind}", ("mkdir", "d", 0o755), *make(kind, "d/x"), ("rmdir", "d"), ("unlink", "d/x"),
                       *(("unlink", f"d/x.{more}") for more in ("target",) if kind == "link"),
                       *(("rmdir", f"d/x.{more}") for more in ("target",) if kind == "dirlink"),
                       ("rmdir", "d"))
    yield case("gone/dir-in-use", ("mkdir", "d", 0o755), ("open", "d", R | DIRECTORY), ("rmdir", "d"), ("fstat", "f"),
               ("fchdir", "f"), ("names", "."), ("path_of", "f"))
    yield case("gone/dot", ("mkdir", "d", 0o755), ("rmdir", "d/."), ("rmdir", "d/.."), ("unlink", "d/."),
               ("rename", "d/.", "e"), ("rename", "d", "d/."), ("rename", "d/..", "e"), ("rename", "d", "."),
               ("rename", ".", "d"), ("rename", "..", "d"), ("renameat2", "d/.", "d/..", 2))
    yield case("gone/dirlink-slash", ("mkdir", "d", 0o755), ("symlink", "d", "l"), ("rmdir", "l/"), ("unlink", "l/"),
               ("rmdir", "l"), ("unlink", "l"))


def sticky() -> Iterator[Case]:
    """Who may remove, move or replace in a sticky directory: by its owner, the thing's owner, the caller."""
    calls: dict[str, list[Step]] = {
        "remove": [("unlink", "d/x"), ("rmdir", "d/x")],
        "away": [("rename", "d/x", "mine/x")],
        "within": [("rename", "d/x", "d/y")],
        "over": [("rename", "mine/own", "d/x"), ("rename", "mine/dir", "d/x")],
        "exchange": [("renameat2", "mine/own", "d/x", 2)],
        "link": [("link", "d/x", "mine/link")],
    }
    for kind in ("file", "dir", "fifo", "link"):
        for directory_owner in (0, OWNER, OTHER):
            for owner in (OWNER, OTHER):
                for what, steps in calls.items():
                    yield case(
                        f"sticky/{kind}/{directory_owner}-{owner}-{what}", ("mkdir", "d", 0o755),
                        ("chown", "d", directory_owner, 0), ("chmod", "d", 0o1777), *make(kind, "d/x"),
                        ("lchown", "d/x", owner, owner), ("mkdir", "mine", 0o755), ("chown", "mine", OWNER, OWNER),
                        *as_user(OWNER, ("put", "mine/own", b"o"), ("mkdir", "mine/dir", 0o700), *steps),
                    )


def rights() -> Iterator[Case]:
    """Search and write permission, for owner, group, further group and others."""
    callers = {"owner": (OWNER, OWNER, ()), "group": (5, TEAM, ()), "further": (5, 5, (9, TEAM)), "other": (5, 5, ())}
    for mode in (0, 0o111, 0o222, 0o333, 0o444, 0o555, 0o666, 0o700, 0o70, 0o7, 0o300, 0o30, 0o3, 0o77, 0o707):
        for who, (uid, gid, groups) in callers.items():
            steps: list[Step] = [
                ("lstat", "d/x"), ("names", "d"), ("put", "d/new", b"n"), ("mkdir", "d/dir", 0o755),
                ("symlink", "a", "d/symlink"), ("link", "f", "d/link"), ("mkfifo", "d/fifo", 0o600),
                ("unlink", "d/x"), ("rmdir", "d/e"), ("rename", "d/y", "d/z"), ("rename", "g", "d/g"),
                ("rename", "d/v", "v"), ("access", "d", 2), ("access", "d", 1, 0x200), ("open_close", "d/w", R),
                ("open_close", "d", R), ("chmod", "d/w", 0o600), ("truncate", "d/w", 0), ("readlink", "d/l"),
            ]
            yield case(
                f"rights/directory/{mode:o}-{who}", ("mkdir", "d", 0o755), ("put", "d/x", b"x"), ("put", "d/y", b"y"),
                ("put", "d/v", b"v"), ("put", "d/w", b"w"), ("mkdir", "d/e", 0o755), ("symlink", "x", "d/l"),
                ("put", "f", b"f"), ("chmod", "f", 0o666), ("put", "g", b"g"), ("chown", "d", OWNER, TEAM),
                ("chmod", "d", mode), *as_user(uid, *steps, gid=gid, groups=groups),
            )
    for mode in (0, 0o400, 0o200, 0o100, 0o40, 0o20, 0o10, 0o4, 0o2, 0o1, 0o777, 0o770, 0o707, 0o77):
        for who, (uid, gid, groups) in callers.items():
            steps = [
                *(("access", "f", wanted) for wanted in range(8)), ("access", "f", 7, 0x200),
                ("open_close", "f", R), ("open_close", "f", W), ("open_close", "f", RW), ("open_close", "f", R | TRUNC),
                ("truncate", "f", 1), ("chmod", "f", mode), ("chown", "f", -1, gid), ("utime_now", "f"),
                ("utimens", "f", (5, 0), (5, 0)), ("link", "f", "hard"),
            ]
            yield case(f"rights/file/{mode:o}-{who}", ("put", "f", b"content"), ("chown", "f", OWNER, TEAM),
                       ("chmod", "f", mode), *as_user(uid, *steps, gid=gid, groups=groups),
                       ("access", "f", 1), ("access", "f", 7))


def faults() -> Iterator[Case]:
    """Pointers to nowhere."""
    calls: list[Step] = [
        ("mkdir", None, 0o755), ("rmdir", None), ("unlink", None), ("link", None, "x"), ("link", "f", None),
        ("symlink", None, "x"), ("symlink", "x", None), ("rename", None, "x"), ("rename", "f", None),
        ("open", None, 0), ("chmod", None, 0), ("chown", None, 0, 0), ("lchown", None, 0, 0), ("truncate", None, 0),
        ("mkfifo", None, 0), ("readlink", "l", None, 10), ("access", None, 0), ("statfs", "f", None),
        ("utimensat", -100, None, None, 0),
    ]
    for number, step in enumerate(calls):
        yield case(f"fault/{step[0]}-{number}", ("put", "f", b"f"), ("symlink", "a", "l"), ("efault", *step))
    for name in ("read", "write"):
        yield case(f"fault/{name}", ("put", "f", b"content"), ("open", "f", RW), ("fault_io", name, "f", 100),
                   ("fault_io", name, "f", 0), ("content", "f"))


def of_any_byte() -> Iterator[Case]:
    names = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in range(1, 256) if byte not in b"/."]
    names += ["...", "..x", ".hidden", " ", "-", "\udcff" * 255, "é" * 127, "a\nb"]
    steps: list[Step] = [("put", name, b"") for name in names]
    yield case("bytes/make", *steps, ("names", "."), *(("lstat", name) for name in names))
    yield case("bytes/links", *(("symlink", name * 15, f"l{at}") for at, name in enumerate(names)),
               *(("readlink", f"l{at}") for at in range(len(names))))
    for length in (1, 59, 60, 61, 1000, 3839, 3840, 3841, 4094, 4095, 4096):
        yield case(f"symlink-of/{length}", ("symlink", "t" * length, "l"), ("readlink", "l"), ("lstat", "l"))


def deep() -> Iterator[Case]:
    """Paths near PATH_MAX, chains of 40 and 41 links, and directories with many links."""
    step: list[Step] = []
    path = ""
    for _ in range(16):
        path += ("/" if path else "") + WORD
        step.append(("mkdir", path, 0o755))
    yield case("deep/4095", *step, ("put", path + "/" + "x" * (4095 - len(path) - 1), b"x"),
               ("lstat", path + "/" + "x" * (4095 - len(path) - 1)),
               ("mkdir", path + "/" + "y" * (4096 - len(path) - 1),
               0o755), ("rename", path, path + "-"))
    for length in (39, 40, 41):
        yield case(f"deep/links-{length}", ("put", "l0", b"end"),
                   *(("symlink", f"l{at}", f"l{at + 1}") for at in range(length)), ("content", f"l{length}"),
                   ("stat", f"l{length}"), ("lstat", f"l{length}"), ("chmod", f"l{length}", 0o600))
    yield case("many/directories", ("repeat", 300, ("mkdir", "d%d", 0o755)), ("lstat", "."), ("names", "."),
               ("repeat", 300, ("rmdir", "d%d")), ("lstat", "."), ("names", "."))
    yield case("many/links", ("put", "f", b"f"), ("repeat", 300, ("link", "f", "l%d")), ("lstat", "l7"),
               ("repeat", 300, ("unlink", "l%d")), ("lstat", "f"))


def read_only() -> Iterator[Case]:
    """EROFS goes before most other refusals, and not before all."""
    for what, step in ALL.items():
        steps: list[Step] = [filled(step, path) for path in ("new", "file", "sub", "link", "nowhere/x", "file/x", "")]
        yield case(f"read-only/{what}", *scene(), ("read_only",), *steps,
                   *as_user(OWNER, filled(step, "new"), filled(step, "file"), filled(step, "closed/x")))
    yield case("read-only/files", *scene(), ("read_only",), ("open", "file", R), ("open", "file", W),
               ("open", "file", R | TRUNC), ("open", "new", CREAT | W), ("open", "file", CREAT), ("access", "file", 2),
               ("access", "fifo", 2), ("utime_now", "file"), ("chmod", "nothing", 0), ("content", "file"))


GROUPS = (
    read_only,
    odd_paths, every_kind, new_things, removed_things, sticky, rights, faults, of_any_byte, deep,
)
