"""What a case is: steps on one directory, as data.

A step is a tuple: the name of a method of ``steps.Steps`` and its arguments.  What changes something is done on one
mount, what looks on the others in turn (``steps.LOOKS``), so every look also asks whether the nodes agree.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

Step = tuple[Any, ...]

ROOT, OWNER, OTHER = 0, 65534, 65533  # uids
TEAM = 65533  # gid of OTHER, and a further group of OWNER where a case says so
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2  # nanoseconds of utimensat(2): UTIME_NOW, UTIME_OMIT

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREAT, EXCL, TRUNC, APPEND = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
DIRECTORY, NOFOLLOW = os.O_DIRECTORY, os.O_NOFOLLOW
PATH: int = os.O_PATH
NOATIME: int = os.O_NOATIME
DIRECT: int = os.O_DIRECT

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4

KINDS = ("file", "dir", "fifo", "char", "block", "socket", "link", "dangling", "dirlink")


class Case(NamedTuple):
    """Steps, and a name to find them by; ``group/what`` names the row of ``differences``."""

    name: str
    steps: tuple[Step, ...]


def case(name: str, *steps: Step) -> Case:
    return Case(name, steps)


def make(kind: str, path: str, mode: int = 0o644) -> list[Step]:
    """Steps that make one thing of each kind; a link points to a file or directory of its own."""
    if kind == "file":
        return [("put", path, b"content"), ("chmod", path, mode)]
    if kind == "dir":
        return [("mkdir", path, 0o755), ("chmod", path, mode | (mode & 0o444) >> 2)]
    if kind == "fifo":
        return [("mkfifo", path, mode)]
    if kind == "char":
        return [("mknod", path, stat.S_IFCHR | mode, os.makedev(1, 3))]
    if kind == "block":
        return [("mknod", path, stat.S_IFBLK | mode, os.makedev(259, 70_000))]
    if kind == "socket":
        return [("mknod", path, stat.S_IFSOCK | mode, 0)]
    if kind == "link":
        return [("put", path + ".target", b"behind the link"), ("symlink", path + ".target", path)]
    if kind == "dirlink":
        return [("mkdir", path + ".target", 0o755), ("symlink", path + ".target", path)]
    assert kind == "dangling", kind
    return [("symlink", path + ".nowhere", path)]


def as_user(uid: int, *steps: Step, gid: int | None = None, groups: tuple[int, ...] = ()) -> list[Step]:
    """The steps with the rights of a user, then root again."""
    return [("become", uid, uid if gid is None else gid, groups), *steps, ("become", 0, 0, ())]


def numbered(cases: Iterator[Case]) -> list[Case]:
    """As a list; two of one name are a mistake of the tables."""
    found = list(cases)
    names = [each.name for each in found]
    assert len(set(names)) == len(names), [name for name in set(names) if names.count(name) > 1]
    return found
