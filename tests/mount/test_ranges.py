"""Ranges of files on real mounts: next to a local file, operation by operation, and looked at from every node.

And what has no name: O_TMPFILE, what was removed while it is in use, and files that are opened by a handle.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.by_handle import handle_of, open_handle, with_number
from tests.mount.conftest import Tree
from tests.mount.lab import Lab, LabNode, wait_until
from tests.mount.processes import CAP_FSETID, NOBODY, done_by
from tests.mount.test_operations import outcome

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
PUNCH = PUNCH_HOLE | KEEP_SIZE
MODES = (0, KEEP_SIZE, PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)
AT_SYMLINK_FOLLOW = 0x400
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def calls(lab: Lab, node: LabNode, operation: str) -> int:
    found: int = lab.counters(node)["fuse"]["calls"].get(operation, 0)
    return found


@pytest.fixture
def local() -> Iterator[Path]:
    """A directory on this machine's own filesystem: the one to be like."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


def data_map(fd: int, size: int) -> list[tuple[int, int]]:
    """What SEEK_DATA and SEEK_HOLE call data."""
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def a_step(rng: random.Random) -> tuple[str, Callable[[int], Any]]:
    """One operation on an open file, the same for both."""
    at = rng.choice((rng.randrange(300_000), rng.randrange(70) * 4096))
    length = rng.choice((rng.randrange(1, 50_000), rng.randrange(1, 12) * 4096))
    kind = rng.choice(("write", "write", "truncate", "copy", "fallocate", "fallocate", "fallocate", "bad"))
    if kind == "write":
        piece = rng.randbytes(100) * (length // 100 + 1)
        return f"write {at}+{length}", lambda fd: os.pwrite(fd, piece[:length], at)
    if kind == "truncate":
        return f"truncate {at}", lambda fd: os.ftruncate(fd, at)
    if kind == "copy":
        to = rng.choice((at + length, rng.randrange(300_000)))  # the second may overlap: EINVAL
        return f"copy {at}+{length} to {to}", lambda fd: os.copy_file_range(fd, fd, length, at, to)
    mode = rng.choice(MODES)
    if kind == "bad":
        at, length = rng.choice(((-1, 5), (0, 0), (5, -5), ((1 << 63) - 4, 4), (1 << 62, 1 << 62)))
    return f"fallocate {mode:#x} {at}+{length}", lambda fd: fallocate(fd, mode, at, length)


def is_too_long(name: str) -> bool:
    """Filesystems differ in how long a file may be."""
    return str(1 << 62) in name or str((1 << 63) - 4) in name


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 9))])
def test_like_a_local_file(tree: Tree, local: Path, seed: int) -> None:
    """Each step on another node, on descriptors that stay open; bytes, size, results and errors are the same."""
    rng = random.Random(seed)
    (tree.a / "f").touch()
    fds = [os.open(path / "f", os.O_RDWR) for path in tree.paths]
    other = os.open(local / "f", os.O_RDWR | os.O_CREAT)
    try:
        for number in range(120):
            name, step = a_step(rng)
            fd = fds[number % 3]
            os.stat(fd)  # the kernel cuts a copy at the size it knows
            found, wanted = outcome(step, fd), outcome(step, other)
            assert found == wanted or is_too_long(name), name
            size = os.stat(other).st_size
            for looking in (fd, fds[rng.randrange(3)]):
                assert os.stat(looking).st_size == size, name
                assert os.pread(looking, size, 0) == os.pread(other, size, 0), name
            content = os.pread(fd, size, 0)
            shown = bytearray(size)
            for start, end in data_map(fds[rng.randrange(3)], size):
                shown[start:end] = content[start:end]
            assert shown == content, f"{name}: a hole with data in it"
    finally:
        for fd in (*fds, other):
            os.close(fd)


def test_who_may_not(tree: Tree, local: Path) -> None:
    """Descriptors that are no file's, or may not write: as on the local filesystem."""

    def attempts(top: Path) -> dict[str, Any]:
        (top / "f").write_bytes(b"x" * 10_000)
        os.mkfifo(top / "p")
        found: dict[str, Any] = {}
        for name, path, flags in (
            ("read only", "f", os.O_RDONLY), ("path", "f", os.O_PATH), ("directory", ".", os.O_RDONLY),
            ("fifo", "p", os.O_RDWR), ("append", "f", os.O_RDWR | os.O_APPEND),
        ):  # fmt: skip
            fd = os.open(top / path, flags)
            found[name] = [outcome(fallocate, fd, mode, 0, 4096) for mode in MODES]
            sought = [outcome(os.lseek, fd, at, whence) for at in (-1, 0, 9999, 10_000)
                      for whence in (os.SEEK_DATA, os.SEEK_HOLE)]  # fmt: skip
            found[name] += [one if isinstance(one, str) else "found" for one in sought]  # ext4 rounds what it zeroes
            found[name] += [outcome(os.copy_file_range, fd, fd, 100, 0, 5000)]
            os.close(fd)
        return found

    found, wanted = attempts(tree.a), attempts(local)
    for one in (found, wanted):
        del one["directory"][len(MODES) : -1]  # offsets in directories are each filesystem's own
    for name, outcomes in wanted.items():
        assert found[name] == outcomes, name


def test_what_linux_never_asks(lab: Lab, tree: Tree) -> None:
    before = calls(lab, lab.nodes[0], "fallocate")
    with (tree.a / "f").open("wb") as file:
        file.write(b"x" * 20_000)
        file.flush()
        for mode in (COLLAPSE, INSERT, UNSHARE, PUNCH_HOLE):
            assert outcome(fallocate, file.fileno(), mode, 0, 4096) == "ENOTSUP"
    assert calls(lab, lab.nodes[0], "fallocate") == before


def test_pages_of_every_node_go(tree: Tree) -> None:
    """Cached, and mapped: what was punched or zeroed on one node is read as zeros on all."""
    size = 64 * 4096
    (tree.a / "f").write_bytes(b"x" * size)
    files = [(path / "f").open("r+b") for path in tree.paths]
    maps = [mmap.mmap(file.fileno(), size) for file in files]
    model = bytearray(b"x" * size)
    for number, mode in enumerate((PUNCH, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH)):
        at = number * 10 * 4096 + 100
        assert [bytes(one[:]) for one in maps] == [model] * 3
        fallocate(files[number % 3].fileno(), mode, at, 30_000)
        model[at : at + 30_000] = bytes(30_000)
        for file in files:
            assert os.pread(file.fileno(), size, 0) == model
    for one, file in zip(maps, files, strict=True):
        one.close()
        file.close()


def test_space_and_times(lab: Lab, tree: Tree) -> None:
    """Blocks are counted on every node; mtime and ctime follow; a copy keeps holes."""
    with (tree.a / "f").open("w+b") as file:
        os.utime(file.fileno(), ns=(1, 2))
        fallocate(file.fileno(), KEEP_SIZE, 0, 1 << 20)
        for path in tree.paths:
            found = os.stat(path / "f")
            assert (found.st_size, found.st_blocks) == (0, 2048)
            assert found.st_mtime_ns > 2
        os.ftruncate(file.fileno(), 0)
        assert os.stat(tree.b / "f").st_blocks == 0
        fallocate(file.fileno(), 0, 0, 1 << 20)
        os.pwrite(file.fileno(), b"data" * 1024, 65536)
        file.flush()
        before = calls(lab, lab.nodes[0], "copy_file_range")
        with (tree.a / "copy").open("w+b") as copy:
            assert os.copy_file_range(file.fileno(), copy.fileno(), 2 << 20, 0, 0) == 1 << 20
            assert data_map(copy.fileno(), 1 << 20) == [(65536, 65536 + 4096)]
        assert calls(lab, lab.nodes[0], "copy_file_range") == before + 1
    assert (tree.c / "copy").read_bytes() == (tree.c / "f").read_bytes()
    assert [os.stat(path / "copy").st_blocks for path in tree.paths] == [8] * 3


def change(fd: int, call: str) -> None:
    if call == "copy":
        os.copy_file_range(fd, fd, 10, 0, 100)
    else:
        fallocate(fd, int(call), 0, 10)


@pytest.mark.parametrize("call", ["0", "1", str(PUNCH), str(ZERO_RANGE), "copy"])
def test_set_id_bits_go(tree: Tree, call: str) -> None:
    """The node that does it may know nothing yet of what another has just given the file."""
    path = tree.b / "f"
    path.write_bytes(b"x" * 1000)
    fd = os.open(path, os.O_RDWR)
    for uid, capability, mode, left in (
        (NOBODY, None, 0o6777, 0o777), (NOBODY, CAP_FSETID, 0o6777, 0o6777), (0, None, 0o4777, 0o777),
        (0, CAP_FSETID, 0o2767, 0o2767), (NOBODY, None, 0o2767, 0o767), (0, None, 0o2767, 0o2767),
    ):  # fmt: skip
        os.write(fd, b"x")  # the kernel has looked: there is nothing to take away
        os.chmod(tree.a / "f", mode)
        done_by(lambda: change(fd, call), uid, capability)
        assert [stat.S_IMODE(os.stat(each / "f").st_mode) for each in tree.paths] == [left] * 3
    os.close(fd)


# --- files without a name --------------------------------------------------------------------------------------


def link(fd: int, path: Path) -> None:
    if libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(path), AT_SYMLINK_FOLLOW):
        raise OSError(ctypes.get_errno(), "linkat")


def test_a_file_without_a_name(lab: Lab, tree: Tree) -> None:
    os.chmod(tree.a, 0o2775)
    os.chown(tree.a, 0, 77)
    fd = os.open(tree.a, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"x" * 100_000)
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_size, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, 100_000, 77, 0o640)
    assert [os.listdir(path) for path in tree.paths] == [[]] * 3
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.pread(again, 10, 99_995) == b"x" * 5
    os.close(again)
    link(fd, tree.a / "named")
    link(fd, tree.a / "twice")
    for path in tree.paths:
        assert sorted(os.listdir(path)) == ["named", "twice"]
        assert (os.stat(path / "named").st_nlink, (path / "named").read_bytes()) == (2, b"x" * 100_000)
    (tree.b / "named").unlink()
    (tree.b / "twice").unlink()
    assert outcome(link, fd, tree.a / "again") == "ENOENT"
    assert os.pread(fd, 5, 0) == b"xxxxx"
    os.close(fd)


def test_a_file_that_never_gets_a_name(lab: Lab, tree: Tree) -> None:
    deleted = lab.counters(lab.nodes[1])["deleted"]
    fd = os.open(tree.b, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    os.write(fd, b"x" * 100_000)
    assert outcome(link, fd, tree.b / "named") == "ENOENT"
    os.close(fd)
    wait_until(lambda: lab.counters(lab.nodes[1])["deleted"] == deleted + 1, "its blocks are freed")
    assert outcome(os.open, tree.b / "none", os.O_TMPFILE | os.O_RDWR, 0o600) == "ENOENT"
    assert outcome(os.open, tree.b, os.O_TMPFILE | os.O_RDONLY, 0o600) == "EINVAL"


def results(*calls: Callable[[], Any]) -> list[Any]:
    return [outcome(call) for call in calls]


def use_a_removed_file(top: Path) -> list[Any]:
    """By O_PATH alone, and when it was replaced."""
    found = []
    for remove in ((top / "f").unlink, lambda: os.rename(top / "g", top / "f")):
        (top / "f").write_bytes(b"content")
        (top / "g").write_bytes(b"other")
        fd = os.open(top / "f", os.O_PATH)
        remove()
        again = f"/proc/self/fd/{fd}"
        found += results(
            lambda: os.fstat(fd).st_nlink, lambda: os.fstat(fd).st_size, lambda: Path(again).read_bytes(),  # noqa: B023
            lambda: os.truncate(again, 3), lambda: Path(again).read_bytes(), lambda: os.fstat(fd).st_nlink,  # noqa: B023
        )  # fmt: skip
        os.close(fd)
        (top / "f").unlink(missing_ok=True)
    return found


def use_a_removed_directory(top: Path, remove: Callable[[str], None] | None = None) -> list[Any]:
    """As a working directory, and by O_PATH.  ``getcwd`` comes last: its name goes when somebody looks it up."""
    remove = remove or (lambda name: (top / name).rmdir())
    (top / "d").mkdir()
    (top / "e").mkdir()
    (top / "g").touch()
    fd = os.open(top / "e", os.O_PATH)
    remove("e")
    with contextlib.chdir(top):
        os.chdir("d")
        remove("d")
        found = results(
            lambda: os.stat(".").st_nlink, lambda: os.fstat(fd).st_nlink, lambda: os.listdir("."),
            lambda: os.mkdir("new"), lambda: Path("new").touch(), lambda: os.stat("absent"),
            lambda: os.chmod(".", 0o700), lambda: stat.S_IMODE(os.stat(".").st_mode), lambda: os.rmdir("."),
            lambda: os.listdir(f"/proc/self/fd/{fd}"), lambda: os.link(top / "g", "here"),
            lambda: os.rename(top / "g", "here"), lambda: os.stat(".").st_nlink, lambda: os.symlink("x", "new"),
            lambda: os.unlink("absent"), lambda: os.rmdir("absent"), lambda: os.listxattr("."),
            lambda: os.getxattr(".", "user.x"), lambda: os.path.samefile("..", top),
            lambda: os.listdir(".."), read_working_directory, lambda: os.stat("../d"), os.getcwd,
        )  # fmt: skip
    os.close(fd)
    return found


def read_working_directory() -> int:
    """As bytes, by getdents64(2): readdir(3) hides ENOENT."""
    fd = os.open(".", os.O_DIRECTORY)
    count: int = libc.getdents64(fd, ctypes.create_string_buffer(4096), 4096)
    code = ctypes.get_errno()
    os.close(fd)
    if count < 0:
        raise OSError(code, "getdents64")
    return count


def test_what_is_removed_where_it_is_in_use_goes_when_it_is_no_more(lab: Lab, tree: Tree, local: Path) -> None:
    """Nobody tells us of O_PATH and of working directories; that the kernel does not forget them does (K8)."""
    node = lab.nodes[0]
    before = lab.counters(node)["deleted"]
    for use in (use_a_removed_file, use_a_removed_directory):
        assert use(tree.a) == use(local)
    wait_until(lambda: lab.counters(node)["deleted"] == before + 5, "all are deleted")


def test_a_directory_that_another_node_removes_and_deletes_while_it_is_in_use(
    lab: Lab, tree: Tree, local: Path
) -> None:
    """It asks nobody who has it not open, so what is told of it is what is remembered (matrixfs/fuse/removed.py)."""
    remover = lab.nodes[0]

    def remove(name: str) -> None:
        deleted = lab.counters(remover)["deleted"]
        (tree.a / name).rmdir()
        wait_until(lambda: lab.counters(remover)["deleted"] == deleted + 1, "it is deleted")

    assert use_a_removed_directory(tree.b, remove) == use_a_removed_directory(local)
    assert lab.counters(lab.nodes[1])["fuse"]["failures"] == 0


def test_another_node_finds_no_space_in_what_is_in_use(lab: Lab, tree: Tree) -> None:
    """Its lock may go: the OPEN lock stands for it, as for an open file."""
    (tree.a / "f").write_bytes(b"content")
    fd = os.open(tree.a / "f", os.O_PATH)
    handle = handle_of(tree.a / "f")
    other = open_handle(tree.b, handle)
    (tree.a / "f").unlink()
    with open(f"/proc/self/fd/{other}", "wb") as file:
        file.write(b"other")
    os.close(other)
    assert os.fstat(fd).st_nlink == 0
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"other"
    os.close(fd)


# --- file handles ----------------------------------------------------------------------------------------------


def forget_all(lab: Lab, node: LabNode) -> None:
    """Have the kernel forget every inode of a mount; nothing is in use."""

    def forgotten() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        return lab.counters(node)["fuse"]["caches"]["known_inodes"] == 0

    wait_until(forgotten, "the kernel forgets")


def reached(anywhere: Path, handle: bytes) -> tuple[int, bytes]:
    fd = open_handle(anywhere, handle)
    try:
        return os.fstat(fd).st_ino, b"" if stat.S_ISDIR(os.fstat(fd).st_mode) else os.read(fd, 100)
    finally:
        os.close(fd)


def dead(anywhere: Path, handle: bytes) -> bool:
    with pytest.raises(OSError) as caught:
        open_handle(anywhere, handle)
    return caught.value.errno == errno.ESTALE


def test_a_handle_opens_on_every_node_and_after_a_mount(lab: Lab, tree: Tree) -> None:
    top, node = tree.a / "d" / "e", lab.nodes[1]
    top.mkdir(parents=True)
    (top / "f").write_bytes(b"content")
    wanted = {handle_of(path): os.stat(path).st_ino for path in (top / "f", top, tree.a.parent)}
    for _ in range(2):
        for path in tree.paths:
            assert [reached(path, handle)[0] for handle in wanted] == list(wanted.values())
        forget_all(lab, node)
    lab.umount(node)
    lab.mount(node)
    assert [reached(node.mountpoint, handle) for handle in wanted] == list(zip(wanted.values(), (b"content", b"", b"")))
    forget_all(lab, node)
    os.rename(tree.a / "d" / "e", tree.a / "moved")
    fd = open_handle(node.mountpoint, handle_of(tree.a / "moved"))
    assert os.readlink(f"/proc/self/fd/{fd}") == str(tree.b / "moved"), "the kernel finds a directory's place"
    assert os.listdir(fd) == ["f"]
    os.close(fd)


def test_a_handle_of_a_removed_file_is_stale(lab: Lab, tree: Tree) -> None:
    (tree.a / "f").write_bytes(b"content")
    (tree.a / "d").mkdir()
    handles = [handle_of(tree.a / "f"), handle_of(tree.a / "d")]
    for path in tree.paths:
        assert [reached(path, handle)[1] for handle in handles] == [b"content", b""]
    fd = open_handle(tree.b, handles[0])
    os.unlink(tree.c / "f")
    os.rmdir(tree.b / "d")
    assert os.read(fd, 100) == b"content", "it is open"
    assert reached(tree.b, handles[0])[1] == b"content"
    os.close(fd)
    for node in lab.nodes:
        forget_all(lab, node)
        assert dead(node.mountpoint, handles[0])
        assert dead(node.mountpoint, handles[1])


def test_handles_that_somebody_made_up_are_stale(lab: Lab, tree: Tree) -> None:
    (tree.a / "f").write_bytes(b"x" * 8192)
    handle, number = handle_of(tree.a / "f"), os.stat(tree.a / "f").st_ino
    for node in (0, 2, 3, 127, 128, number + 1, number + 2, number + 100, 1 << 40, (1 << 64) - 1):
        assert dead(tree.b, with_number(handle, node)), node
    wrong = handle[:-1] + bytes([handle[-1] ^ 1])
    assert dead(tree.c, wrong)
    assert reached(tree.c, handle)[0] == number
    assert lab.counters(lab.nodes[1])["fuse"]["failures"] == 0
