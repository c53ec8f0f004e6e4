"""Every operation on one node, looked at from all three before and after: nobody may show what was (002-09).

A look before the change fills the kernel's caches of every node, so a stale entry, attribute or page would show.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import wait_until

SLACK = 600  # blocks that may lie in others' unwritten changes when free space is counted
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
libc = ctypes.CDLL(None, use_errno=True)


def outcome(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the call returned, or the name of its errno."""
    try:
        return function(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def kind(path: Path) -> int:
    return stat.S_IFMT(os.lstat(path).st_mode)


def nlink(path: Path) -> int:
    return os.lstat(path).st_nlink


def write(path: Path, data: str) -> None:
    path.write_text(data)


def put_at(path: Path, offset: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def append(path: Path, data: str) -> None:
    with path.open("a") as file:
        file.write(data)


def two_files(top: Path) -> None:
    write(top / "one", "1")
    write(top / "two", "2")


def two_directories(top: Path) -> None:
    (top / "from" / "moved" / "deep").mkdir(parents=True)
    (top / "to").mkdir()
    write(top / "from" / "file", "f")
    write(top / "from" / "moved" / "deep" / "leaf", "l")


def contents(top: Path) -> dict[str, str]:
    return {str(p.relative_to(top)): outcome(p.read_text) for p in sorted(top.rglob("*")) if kind(p) == stat.S_IFREG}


@dataclass(frozen=True)
class Case:
    """Make ``before`` so, look, do ``change`` on one node, look again."""

    name: str
    before: Callable[[Path], Any]
    change: Callable[[Path], Any]
    look: Callable[[Path], Any]
    seen_before: Any
    seen_after: Any


CASES = [
    Case("create", lambda t: None, lambda t: (t / "new").touch(),
         lambda t: (names(t), outcome(nlink, t / "new")), ([], "ENOENT"), (["new"], 1)),
    Case("write", lambda t: (t / "f").touch(), lambda t: write(t / "f", "hello"),
         lambda t: ((t / "f").read_text(), (t / "f").stat().st_size), ("", 0), ("hello", 5)),
    Case("overwrite in place", lambda t: write(t / "f", "0123456789"), lambda t: put_at(t / "f", 3, b"xyz"),
         lambda t: (t / "f").read_text(), "0123456789", "012xyz6789"),
    Case("overwrite in a large file", lambda t: write(t / "f", "a" * 300_000), lambda t: put_at(t / "f", 200_001, b"b"),
         lambda t: (t / "f").read_text().find("b"), -1, 200_001),
    Case("append", lambda t: write(t / "f", "one\n"), lambda t: append(t / "f", "two\n"),
         lambda t: (t / "f").read_text(), "one\n", "one\ntwo\n"),
    Case("grow out of the inode", lambda t: write(t / "f", "a" * 3000), lambda t: append(t / "f", "b" * 3000),
         lambda t: (t / "f").read_text(), "a" * 3000, "a" * 3000 + "b" * 3000),
    Case("truncate to nothing", lambda t: write(t / "f", "x" * 9000), lambda t: os.truncate(t / "f", 0),
         lambda t: (len((t / "f").read_bytes()), (t / "f").stat().st_blocks > 0), (9000, True), (0, False)),
    Case("truncate shorter", lambda t: write(t / "f", "x" * 9000), lambda t: os.truncate(t / "f", 4097),
         lambda t: (t / "f").read_bytes(), b"x" * 9000, b"x" * 4097),
    Case("truncate longer", lambda t: write(t / "f", "x" * 10), lambda t: os.truncate(t / "f", 10_000),
         lambda t: (t / "f").read_bytes(), b"x" * 10, b"x" * 10 + bytes(9990)),
    Case("truncate shorter, then longer", lambda t: write(t / "f", "x" * 9000),
         lambda t: (os.truncate(t / "f", 5), os.truncate(t / "f", 9000)),
         lambda t: (t / "f").read_bytes(), b"x" * 9000, b"x" * 5 + bytes(8995)),
    Case("open with O_TRUNC", lambda t: write(t / "f", "long"), lambda t: write(t / "f", "s"),
         lambda t: (t / "f").read_text(), "long", "s"),
    Case("rename", two_files, lambda t: os.rename(t / "one", t / "uno"),
         contents, {"one": "1", "two": "2"}, {"two": "2", "uno": "1"}),
    Case("rename over a file", two_files, lambda t: os.rename(t / "one", t / "two"),
         contents, {"one": "1", "two": "2"}, {"two": "1"}),
    Case("rename across directories", two_directories, lambda t: os.rename(t / "from" / "file", t / "to" / "f2"),
         contents, {"from/file": "f", "from/moved/deep/leaf": "l"}, {"from/moved/deep/leaf": "l", "to/f2": "f"}),
    Case("rename a directory", two_directories, lambda t: os.rename(t / "from", t / "other"),
         contents, {"from/file": "f", "from/moved/deep/leaf": "l"}, {"other/file": "f", "other/moved/deep/leaf": "l"}),
    Case("move a directory", two_directories, lambda t: os.rename(t / "from" / "moved", t / "to" / "here"),
         lambda t: (contents(t), nlink(t / "from"), nlink(t / "to"), outcome(names, t / "to" / "here" / "..")),
         ({"from/file": "f", "from/moved/deep/leaf": "l"}, 3, 2, "ENOENT"),
         ({"from/file": "f", "to/here/deep/leaf": "l"}, 2, 3, ["here"])),
    Case("rename over an empty directory", two_directories, lambda t: os.rename(t / "from", t / "to"),
         lambda t: (names(t), nlink(t), contents(t)),
         (["from", "to"], 4, {"from/file": "f", "from/moved/deep/leaf": "l"}),
         (["to"], 3, {"to/file": "f", "to/moved/deep/leaf": "l"})),
    Case("exchange two names", two_files, lambda t: renameat2(t / "one", t / "two", EXCHANGE),
         contents, {"one": "1", "two": "2"}, {"one": "2", "two": "1"}),
    Case("exchange a file and a directory", two_directories,
         lambda t: renameat2(t / "from" / "file", t / "to", EXCHANGE),
         lambda t: (kind(t / "from" / "file"), kind(t / "to"), nlink(t), nlink(t / "from")),
         (stat.S_IFREG, stat.S_IFDIR, 4, 3), (stat.S_IFDIR, stat.S_IFREG, 3, 4)),
    Case("rename onto another name of the same file", lambda t: (write(t / "f", "1"), os.link(t / "f", t / "g")),
         lambda t: os.rename(t / "f", t / "g"), lambda t: (names(t), nlink(t / "f")), (["f", "g"], 2), (["f", "g"], 2)),
    Case("link", lambda t: write(t / "f", "1"), lambda t: os.link(t / "f", t / "g"),
         lambda t: (contents(t), nlink(t / "f"), outcome(os.path.samefile, t / "f", t / "g")),
         ({"f": "1"}, 1, "ENOENT"), ({"f": "1", "g": "1"}, 2, True)),
    Case("unlink one of two names", lambda t: (write(t / "f", "1"), os.link(t / "f", t / "g")),
         lambda t: os.unlink(t / "f"), lambda t: (contents(t), nlink(t / "g")),
         ({"f": "1", "g": "1"}, 2), ({"g": "1"}, 1)),
    Case("symlink", lambda t: write(t / "f", "1"), lambda t: os.symlink("f", t / "s"),
         lambda t: (outcome(os.readlink, t / "s"), outcome((t / "s").read_text)), ("ENOENT", "ENOENT"), ("f", "1")),
    Case("the longest symlink", lambda t: None, lambda t: os.symlink("t" * 4095, t / "s"),
         lambda t: outcome(os.readlink, t / "s"), "ENOENT", "t" * 4095),
    Case("chmod", lambda t: write(t / "f", "1"), lambda t: os.chmod(t / "f", 0o6751),
         lambda t: stat.S_IMODE(os.stat(t / "f").st_mode), 0o644, 0o6751),
    Case("chown", lambda t: write(t / "f", "1"), lambda t: os.chown(t / "f", 1234, 4_000_000_000),
         lambda t: (os.stat(t / "f").st_uid, os.stat(t / "f").st_gid), (0, 0), (1234, 4_000_000_000)),
    Case("utimes", lambda t: (write(t / "f", "1"), os.utime(t / "f", ns=(1, 2))),
         lambda t: os.utime(t / "f", ns=(-1_000_000_001, 4_102_444_800_123_456_789)),
         lambda t: (os.stat(t / "f").st_atime_ns, os.stat(t / "f").st_mtime_ns),
         (1, 2), (-1_000_000_001, 4_102_444_800_123_456_789)),
    Case("unlink", lambda t: write(t / "f", "1"), lambda t: os.unlink(t / "f"),
         lambda t: (names(t), outcome((t / "f").read_text)), (["f"], "1"), ([], "ENOENT")),
    Case("mkdir", lambda t: None, lambda t: os.mkdir(t / "d", 0o751),
         lambda t: (names(t), nlink(t), outcome(lambda: oct(os.stat(t / "d").st_mode))),
         ([], 2, "ENOENT"), (["d"], 3, "0o40751")),
    Case("rmdir", lambda t: os.mkdir(t / "d"), lambda t: os.rmdir(t / "d"),
         lambda t: (names(t), nlink(t), outcome(names, t / "d")), (["d"], 3, []), ([], 2, "ENOENT")),
    Case("a name that was a file becomes a directory", lambda t: write(t / "n", "1"),
         lambda t: (os.unlink(t / "n"), os.mkdir(t / "n")), lambda t: kind(t / "n"), stat.S_IFREG, stat.S_IFDIR),
    Case("mkfifo", lambda t: None, lambda t: os.mkfifo(t / "p", 0o640),
         lambda t: outcome(lambda: oct(os.lstat(t / "p").st_mode)), "ENOENT", "0o10640"),
    Case("mknod", lambda t: None, lambda t: os.mknod(t / "n", stat.S_IFCHR | 0o600, os.makedev(259, 70_000)),
         lambda t: outcome(lambda: os.lstat(t / "n").st_rdev), "ENOENT", os.makedev(259, 70_000)),
]  # fmt: skip


@pytest.mark.seed("002-09", "002-08")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_a_change_on_one_node_is_seen_on_all(tree: Tree, case: Case) -> None:
    for writer in range(3):
        tops = [path / f"by{writer}" for path in tree.paths]
        tops[writer].mkdir()
        case.before(tops[(writer + 1) % 3])
        for _ in range(2):
            assert [case.look(top) for top in tops] == [case.seen_before] * 3, "before"
        case.change(tops[writer])
        for _ in range(2):
            assert [case.look(top) for top in tops] == [case.seen_after] * 3, f"after the change on node {writer + 1}"


ERRORS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("create over a name", lambda t: os.open(t / "file", os.O_CREAT | os.O_EXCL), "EEXIST"),
    ("mkdir over a name", lambda t: os.mkdir(t / "file"), "EEXIST"),
    ("symlink over a name", lambda t: os.symlink("x", t / "file"), "EEXIST"),
    ("link over a name", lambda t: os.link(t / "file", t / "full"), "EEXIST"),
    ("link of a directory", lambda t: os.link(t / "empty", t / "l"), "EPERM"),
    ("noreplace", lambda t: renameat2(t / "file", t / "empty", NOREPLACE), "EEXIST"),
    ("whiteout", lambda t: renameat2(t / "file", t / "w", WHITEOUT), "EINVAL"),
    ("exchange with nothing", lambda t: renameat2(t / "file", t / "none", EXCHANGE), "ENOENT"),
    ("unlink a directory", lambda t: os.unlink(t / "empty"), "EISDIR"),
    ("unlink nothing", lambda t: os.unlink(t / "none"), "ENOENT"),
    ("rmdir a file", lambda t: os.rmdir(t / "file"), "ENOTDIR"),
    ("rmdir a full directory", lambda t: os.rmdir(t / "full"), "ENOTEMPTY"),
    ("rename a directory over a file", lambda t: os.rename(t / "empty", t / "file"), "ENOTDIR"),
    ("rename a file over a directory", lambda t: os.rename(t / "file", t / "empty"), "EISDIR"),
    ("rename over a full directory", lambda t: os.rename(t / "empty", t / "full"), "ENOTEMPTY"),
    ("rename a directory into itself", lambda t: os.rename(t / "full", t / "full" / "x"), "EINVAL"),
    ("rename nothing", lambda t: os.rename(t / "none", t / "x"), "ENOENT"),
    ("a file as a directory", lambda t: os.stat(t / "file" / "x"), "ENOTDIR"),
    ("open a directory for writing", lambda t: os.open(t / "empty", os.O_WRONLY), "EISDIR"),
    ("a link to itself", lambda t: os.stat(t / "loop"), "ELOOP"),
    ("a name of 256 bytes", lambda t: (t / ("n" * 256)).touch(), "ENAMETOOLONG"),
    ("look for a name of 256 bytes", lambda t: os.stat(t / ("n" * 256)), "ENAMETOOLONG"),
    ("list a file", lambda t: os.listdir(t / "file"), "ENOTDIR"),
    ("a negative size", lambda t: os.truncate(t / "file", -1), "EINVAL"),
]  # fmt: skip


@pytest.mark.seed("002-09")
def test_refusals_are_those_of_a_local_filesystem(tree: Tree) -> None:
    (tree.a / "full" / "in").mkdir(parents=True)
    (tree.a / "empty").mkdir()
    (tree.a / "file").write_text("f")
    os.symlink("loop", tree.a / "loop")
    before = [sorted(str(p.relative_to(top)) for p in top.rglob("*")) for top in tree.paths]
    found = {(name, i): outcome(call, top) for name, call, _ in ERRORS for i, top in enumerate(tree.paths)}
    assert found == {(name, i): code for name, _, code in ERRORS for i in range(3)}
    assert [sorted(str(p.relative_to(top)) for p in top.rglob("*")) for top in tree.paths] == before
    assert (tree.b / "file").read_text() == "f"


@pytest.mark.seed("002-09")
def test_names_of_any_bytes(tree: Tree) -> None:
    odd = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    odd += [b"\xff" * 255, b"n" * 255, "für Käse ☃".encode(), b" leading", b"trailing ", b"-rf", b"a\nb", b"..."]
    for i, name in enumerate(odd):
        top = os.fsencode(tree.paths[i % 3])
        os.close(os.open(os.path.join(top, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    for path in tree.paths:
        assert sorted(os.listdir(os.fsencode(path))) == sorted(odd)
    for i, name in enumerate(odd):
        os.unlink(os.path.join(os.fsencode(tree.paths[(i + 1) % 3]), name))
    assert [names(path) for path in tree.paths] == [[], [], []]


class DirectoryStream:
    """opendir(3) and friends, for seekdir."""

    class Entry(ctypes.Structure):
        _fields_ = [
            ("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte),
            ("name", ctypes.c_char * 256),
        ]  # fmt: skip

    def __init__(self, path: Path) -> None:
        libc.opendir.restype = ctypes.c_void_p
        libc.readdir.restype = ctypes.POINTER(self.Entry)
        libc.telldir.restype = ctypes.c_long
        self._stream = ctypes.c_void_p(libc.opendir(os.fsencode(path)))
        assert self._stream

    def __iter__(self) -> Iterator[bytes]:
        while entry := libc.readdir(self._stream):
            if entry.contents.name not in (b".", b".."):
                yield entry.contents.name

    def tell(self) -> int:
        return libc.telldir(self._stream)

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, ctypes.c_long(position))

    def close(self) -> None:
        libc.closedir(self._stream)


def test_a_directory_of_3000_names_with_seekdir(tree: Tree) -> None:
    wanted = {b"name-%04d" % i for i in range(3000)}
    for name in wanted:
        os.close(os.open(tree.a / os.fsdecode(name), os.O_CREAT | os.O_WRONLY))
    for path in (tree.b, tree.c):
        stream = DirectoryStream(path)
        read = []
        positions = []
        for name in stream:
            read.append(name)
            positions.append(stream.tell())
        assert len(read) == len(wanted)
        assert set(read) == wanted
        for at in (2999, 0, 1500, 2200, 3):
            stream.seek(positions[at])
            assert list(stream) == read[at + 1 :]
        stream.close()


def test_reading_a_directory_while_another_node_changes_it(tree: Tree) -> None:
    """POSIX: who stays all the time is returned once; who comes or goes may be or not be, but never twice."""
    staying = {b"stay-%03d" % i for i in range(600)}
    going = {b"go-%03d" % i for i in range(300)}
    for name in staying | going:
        (tree.a / os.fsdecode(name)).touch()
    stream = DirectoryStream(tree.b)
    read = []
    for i, name in enumerate(stream):
        read.append(name)
        if i == 100:
            for gone in going:
                os.unlink(tree.c / os.fsdecode(gone))
            for j in range(300):
                (tree.a / f"come-{j}").touch()
    stream.close()
    assert len(read) == len(set(read))
    assert staying <= set(read)
    assert set(os.listdir(os.fsencode(tree.b))) == staying | {b"come-%d" % j for j in range(300)}


@pytest.mark.seed("002-09", "002-33", "002-34")
def test_a_file_of_many_extents(tree: Tree) -> None:
    """Random writes from all three nodes into one sparse file, mirrored in memory."""
    rng = random.Random(7)
    size = 4 << 20
    mirror = bytearray(size)
    (tree.a / "f").touch()
    os.truncate(tree.a / "f", size)
    for i in range(150):
        length = rng.choice((1, 100, 4096, 5000, 70_000))
        at = rng.randrange(size - length)
        data = rng.randbytes(length)
        put_at(tree.paths[i % 3] / "f", at, data)
        mirror[at : at + length] = data
    wanted = hashlib.sha256(mirror).hexdigest()
    assert [hashlib.sha256((path / "f").read_bytes()).hexdigest() for path in tree.paths] == [wanted] * 3


def test_sparse_files_take_no_space(tree: Tree) -> None:
    far = 1 << 62
    fd = os.open(tree.a / "f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", far)
    os.fsync(fd)
    os.close(fd)
    for path in tree.paths:
        found = os.stat(path / "f")
        assert found.st_size == far + 3
        assert found.st_blocks * 512 <= 16 << 10
        with (path / "f").open("rb") as file:
            assert file.read(8192) == bytes(8192)
            file.seek(far - 5)
            assert file.read() == bytes(5) + b"end"


def test_statfs_agrees_and_space_comes_back(tree: Tree) -> None:
    def free() -> list[int]:
        return [os.statvfs(path).f_bfree for path in tree.paths]

    def settled() -> int:
        for path in tree.paths:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        wait_until(lambda: max(free()) - min(free()) <= SLACK, "all nodes count the same")
        return min(free())

    before = settled()
    fd = os.open(tree.a / "f", os.O_CREAT | os.O_WRONLY)
    for _ in range(20):
        os.write(fd, os.urandom(1 << 20))
    os.fsync(fd)
    os.close(fd)
    assert settled() <= before - 20 * 256 + SLACK
    os.unlink(tree.b / "f")
    wait_until(lambda: settled() >= before - SLACK, "the space of a deleted file is free again")
    assert {os.statvfs(path).f_namemax for path in tree.paths} == {255}


@pytest.mark.seed("002-09")
def test_what_a_set_group_id_directory_hands_down(tree: Tree) -> None:
    os.mkdir(tree.a / "shared")
    os.chown(tree.a / "shared", 0, 5000)
    os.chmod(tree.a / "shared", 0o2777)
    for path in tree.paths:
        node = path.parent.name
        (path / "shared" / f"file-{node}").touch()
        (path / "shared" / f"dir-{node}").mkdir()
        os.symlink("x", path / "shared" / f"link-{node}")
    for path in tree.paths:
        for entry in (path / "shared").iterdir():
            found = os.lstat(entry)
            assert found.st_gid == 5000, entry
            assert bool(found.st_mode & stat.S_ISGID) == stat.S_ISDIR(found.st_mode), entry


def as_nobody(*command: str) -> int:
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command], check=False, capture_output=True
    )
    return done.returncode


@pytest.mark.seed("002-09")
def test_permissions_hold_on_every_node(tree: Tree) -> None:
    (tree.a / "secret").write_text("s")
    os.chmod(tree.a / "secret", 0o600)
    for path in tree.paths:
        assert as_nobody("cat", str(path / "secret")) != 0
        assert as_nobody("touch", str(path / "new")) != 0
    os.chmod(tree.b / "secret", 0o644)
    os.chmod(tree.b, 0o1777)
    for i, path in enumerate(tree.paths):
        assert as_nobody("cat", str(path / "secret")) == 0
        assert as_nobody("touch", str(path / f"new{i}")) == 0
        assert os.stat(tree.c / f"new{i}").st_uid == 65534
        assert as_nobody("rm", "-f", str(path / "secret")) != 0, "sticky"
    os.chmod(tree.c / "secret", 0o600)
    assert [as_nobody("cat", str(path / "secret")) for path in tree.paths] == [1, 1, 1]


def test_writing_takes_away_set_user_id(tree: Tree) -> None:
    for i, path in enumerate(tree.paths):
        name = f"tool{i}"
        (tree.a / name).write_text("x")
        os.chmod(tree.a / name, 0o6777)
        assert os.stat(path / name).st_mode & 0o7777 == 0o6777
        assert as_nobody("sh", "-c", f"echo y >> '{path / name}'") == 0
        assert [os.stat(p / name).st_mode & 0o7777 for p in tree.paths] == [0o777] * 3


@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["", "append"])
@pytest.mark.parametrize("sync", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
def test_a_synchronous_write_is_committed_when_it_returns(tree: Tree, flags: int, sync: int) -> None:
    """Append or not: the kernel asks for no FSYNC of what goes around its page cache."""
    node, writes = tree.lab.nodes[0], 8
    file = os.open(tree.a / "synchronous", os.O_CREAT | os.O_WRONLY | flags | sync)
    try:
        before = tree.lab.counters(node)["journal"]["commits"]
        for _ in range(writes):
            os.write(file, b"x" * 5000)
        assert tree.lab.counters(node)["journal"]["commits"] - before >= writes
    finally:
        os.close(file)


def test_a_socket_is_a_name_for_one_node(tree: Tree) -> None:
    """bind(2) makes the inode; who may connect is the local kernel's business."""
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(tree.a, os.O_RDONLY)  # the path may be longer than a socket's 108 bytes
        try:
            listener.bind(f"/proc/self/fd/{here}/s")
        finally:
            os.close(here)
    assert [kind(path / "s") for path in tree.paths] == [stat.S_IFSOCK] * 3


def test_times_move_with_what_happens(tree: Tree) -> None:
    (tree.a / "f").write_text("1")
    os.utime(tree.a / "f", ns=(10**18, 10**18))
    first = os.stat(tree.b / "f")
    os.chmod(tree.c / "f", 0o600)
    second = os.stat(tree.b / "f")
    assert second.st_ctime_ns > first.st_ctime_ns
    assert second.st_mtime_ns == first.st_mtime_ns
    append(tree.c / "f", "2")
    third = os.stat(tree.b / "f")
    assert third.st_mtime_ns > second.st_mtime_ns
    directory = os.stat(tree.b)
    (tree.c / "g").touch()
    assert os.stat(tree.b).st_mtime_ns > directory.st_mtime_ns


def test_space_of_a_file_is_told_right_before_and_after_it_is_written_back(tree: Tree) -> None:
    here, there, _ = tree.paths
    with (here / "f").open("wb", buffering=0) as file:
        file.write(bytes(9000))
        assert os.stat(here / "f").st_blocks == 24
        os.fsync(file.fileno())
        assert os.stat(here / "f").st_blocks == 24
        os.pwrite(file.fileno(), b"x", 100)  # its block is there already, which only writing back finds out
        os.fsync(file.fileno())
        assert os.stat(here / "f").st_blocks == 24
        os.pwrite(file.fileno(), b"x", 1 << 20)
        os.fsync(file.fileno())
        assert os.stat(here / "f").st_blocks == 32
    assert os.stat(there / "f").st_blocks == 32


def test_a_time_of_birth_is_that_of_the_creation_on_every_node(tree: Tree) -> None:
    """statx(2), which Python's os.stat doesn't ask for (``matrixfs/fuse/statx_requests.py``)."""

    def birth(path: Path) -> int:
        told = subprocess.check_output(["stat", "-c", "%.9W", path], text=True).strip()
        return int(told.replace(".", ""))

    before = time.time_ns()
    (tree.a / "born").write_bytes(b"x")
    (tree.b / "made").mkdir()
    os.mkfifo(tree.c / "pipe")
    os.symlink("nowhere", tree.a / "link")
    after = time.time_ns()
    born = {name: birth(tree.a / name) for name in ("born", "made", "pipe", "link")}
    assert [name for name, found in born.items() if not before <= found <= after] == []
    os.utime(tree.b / "born", (1, 1))
    (tree.c / "born").write_bytes(b"another")
    os.rename(tree.b / "born", tree.b / "renamed")
    (tree.c / "made" / "file").touch()
    born["renamed"] = born.pop("born")
    for path in tree.paths:
        assert {name: birth(path / name) for name in born} == born
    told = subprocess.check_output(["stat", "-c", "%f %h %u %g %s %b %i %Y %Z", tree.b / "renamed"], text=True).split()
    seen = os.stat(tree.b / "renamed")
    assert [int(told[0], 16), *map(int, told[1:])] == [
        seen.st_mode, seen.st_nlink, seen.st_uid, seen.st_gid, 7, seen.st_blocks, seen.st_ino,
        seen.st_mtime_ns // 10**9, seen.st_ctime_ns // 10**9,
    ]  # fmt: skip
