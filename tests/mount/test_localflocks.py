"""``-o localflocks`` on two nodes: the kernel opens and closes by itself, and nothing else changes (coherence.md 6)."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import pytest

from matrixfs.ondisk.acl import pack_acl
from tests.matrixfs.acl_rules import rules
from tests.mount.by_handle import handle_of, open_handle
from tests.mount.conftest import Tree, left_clean, new_lab
from tests.mount.lab import Lab, LabNode, wait_until
from tests.mount.lockers import lockers


@pytest.fixture(scope="module")
def lab(base: tuple[Path, TextIO]) -> Iterator[Lab]:
    """Two nodes in this mode; at the end the store must be clean, with no file left that nobody can reach."""
    with left_clean(new_lab(base, "localflocks", nodes=2)) as lab:
        lab.format()
        for node in lab.nodes:
            lab.start(node)
        for node in lab.nodes:
            lab.mount(node, "localflocks,discard")
        yield lab


def calls(lab: Lab, node: LabNode) -> int:
    return sum(lab.counters(node)["fuse"]["calls"].values())


def dlm_requests(lab: Lab, node: LabNode) -> int:
    found: int = lab.counters(node)["locks"]["requests"]
    return found


def deleted(lab: Lab) -> int:
    return sum(lab.counters(node)["deleted"] for node in lab.nodes)


@pytest.mark.seed("002-06")
def test_a_hot_tree_makes_no_call(lab: Lab, tree: Tree) -> None:
    """But for what the kernel has just dropped: a test beside this one has the whole machine drop its caches."""
    for number in range(10):
        (tree.a / f"f{number}").write_bytes(b"x" * 4096)
    for path in (tree.a, tree.b):
        for _ in range(2):
            for number in range(10):
                (path / f"f{number}").read_bytes()
    made = []
    for _ in range(3):
        before = [calls(lab, node) for node in lab.nodes]
        for path in (tree.a, tree.b):
            for _ in range(20):
                for number in range(10):
                    assert len((path / f"f{number}").read_bytes()) == 4096
        made.append([calls(lab, node) - earlier for node, earlier in zip(lab.nodes, before, strict=True)])
    assert [0, 0] in made


@pytest.mark.seed("002-08")
def test_stale_data_is_never_read(tree: Tree) -> None:
    """Each version is written on one node and read on the other, through descriptors held open and new ones."""
    (tree.a / "f").write_bytes(b"%08d" % 0)
    held = [os.open(path / "f", os.O_RDWR) for path in (tree.a, tree.b)]
    paths = (tree.a / "f", tree.b / "f")
    for number in range(1, 60):
        writer = number % 2
        text = b"%08d" % number * (1 + number % 3)
        if number % 5 == 0:
            paths[writer].write_bytes(text)  # truncates
        else:
            os.ftruncate(held[writer], len(text))
            os.pwrite(held[writer], text, 0)
        reader = 1 - writer
        assert paths[reader].read_bytes() == text
        assert os.pread(held[reader], 100, 0) == text
        assert os.stat(paths[reader]).st_size == len(text)
    for descriptor in held:
        os.close(descriptor)


def test_stale_data_is_not_read_behind_a_set_back_mtime(tree: Tree) -> None:
    """coherence.md 2: the kernel judges its pages by mtime, and utimes can lie about that."""
    (tree.a / "f").write_bytes(b"old!")
    os.utime(tree.a / "f", ns=(10**18, 10**18))
    assert (tree.b / "f").read_bytes() == b"old!"
    with (tree.a / "f").open("r+b") as file:
        file.write(b"new!")
    os.utime(tree.a / "f", ns=(10**18, 10**18))
    assert (tree.b / "f").read_bytes() == b"new!"


APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
for number in range(int(sys.argv[3])):
    os.write(fd, b"%s %06d\\n" % (sys.argv[2].encode(), number))
"""


def test_appends_of_two_nodes_lose_no_line(tree: Tree) -> None:
    (tree.a / "log").touch()
    running = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(path / "log"), name, "100"])
        for path, name in ((tree.a, "a"), (tree.b, "b"), (tree.b, "c"))
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    for path in (tree.a, tree.b):
        lines = (path / "log").read_text().splitlines()
        assert len(lines) == 300
        for name in "abc":
            assert [line for line in lines if line[0] == name] == [f"{name} {n:06}" for n in range(100)]


@pytest.mark.parametrize("exclusive", [0, os.O_EXCL], ids=["any", "new"])
def test_two_nodes_create_the_same_names_at_once(tree: Tree, exclusive: int) -> None:
    """Who asked for a new file is told that it is there; who did not, opens it."""

    def create(directory: Path) -> list[int]:
        codes = []
        for i in range(100):
            try:
                os.close(os.open(directory / f"same{exclusive}-{i}", os.O_CREAT | os.O_WRONLY | exclusive, 0o644))
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or -1)
        return codes

    with ThreadPoolExecutor() as threads:
        one, other = threads.map(create, tree.paths)
    if exclusive:
        assert [sorted(pair) for pair in zip(one, other, strict=True)] == [[0, errno.EEXIST]] * 100
    else:
        assert (one, other) == ([0] * 100, [0] * 100)


def test_unlinked_while_open(lab: Lab, tree: Tree) -> None:
    """On the node that has it open, and on the other one; the space comes back when the last descriptor closes."""
    for opener, unlinker in ((tree.a, tree.a), (tree.a, tree.b), (tree.b, tree.a)):
        (tree.a / "f").write_bytes(b"still here")
        assert (tree.b / "f").read_bytes() == b"still here"  # known to both kernels
        before = deleted(lab)
        descriptor = os.open(opener / "f", os.O_RDWR)
        (unlinker / "f").unlink()
        assert not (tree.a / "f").exists()
        assert not (tree.b / "f").exists()
        assert os.pread(descriptor, 100, 0) == b"still here"
        os.pwrite(descriptor, b"STILL", 0)
        os.fsync(descriptor)
        assert os.pread(descriptor, 100, 0) == b"STILL here"
        assert os.fstat(descriptor).st_nlink == 0
        assert deleted(lab) == before
        os.close(descriptor)
        wait_until(lambda: deleted(lab) == before + 1, "the file is deleted")  # noqa: B023 - called at once


def test_handles_and_what_is_removed_where_it_is_in_use(lab: Lab, tree: Tree) -> None:
    """By O_PATH alone, and as a working directory, as in the other mode; and a handle opens on the other node."""
    before = deleted(lab)
    (tree.a / "f").write_bytes(b"content")
    (tree.a / "d").mkdir()
    handle = handle_of(tree.a / "f")
    opened = open_handle(tree.b, handle)
    assert os.read(opened, 100) == b"content"
    os.close(opened)
    held = [os.open(tree.a / name, os.O_PATH) for name in ("f", "d")]
    (tree.a / "f").unlink()
    (tree.a / "d").rmdir()
    assert [os.fstat(each).st_nlink for each in held] == [0, 0]
    assert Path(f"/proc/self/fd/{held[0]}").read_bytes() == b"content"
    assert os.listdir(f"/proc/self/fd/{held[1]}") == []
    assert deleted(lab) == before
    for each in held:
        os.close(each)
    wait_until(lambda: deleted(lab) == before + 2, "both are deleted")
    with pytest.raises(OSError) as caught:
        open_handle(tree.b, handle)
    assert caught.value.errno == errno.ESTALE


def test_files_that_both_kernels_know_are_deleted_at_once(lab: Lab, tree: Tree) -> None:
    """None is open: the kernel of the other node is told to forget them, and no space waits for it."""
    names = [f"f{number}" for number in range(100)]
    for name in names:
        (tree.a / name).write_bytes(b"x" * 5000)
    for name in names:
        assert len((tree.b / name).read_bytes()) == 5000
    before = deleted(lab)
    for name in names:
        (tree.a / name).unlink()
    wait_until(lambda: deleted(lab) == before + 100, "all are deleted")
    assert os.listdir(tree.b) == []


def test_a_files_lock_moves_without_an_open_lock(lab: Lab, tree: Tree) -> None:
    """What the kernel knows counts as open; having looked at a file must cost no more messages than in default mode."""
    (tree.a / "f").write_bytes(b"0")
    (tree.b / "f").read_bytes()
    requests = [dlm_requests(lab, node) for node in lab.nodes]
    vain = [lab.counters(node)["fuse"]["caches"]["shed_in_vain"] for node in lab.nodes]
    for number in range(10):
        os.utime(tree.a / "f", ns=(number, number))
        assert os.stat(tree.b / "f").st_mtime_ns == number
    asked = sum(dlm_requests(lab, node) for node in lab.nodes) - sum(requests)
    kept = sum(lab.counters(node)["fuse"]["caches"]["shed_in_vain"] for node in lab.nodes) - sum(vain)
    assert asked <= 20 + 2 * kept  # each round moves the inode's lock there and back


def test_locks_hold_on_one_node(tree: Tree) -> None:
    (tree.a / "f").write_bytes(b"x")
    with lockers(tree.a / "f", tree.a / "f", tree.b / "f") as (one, same, other):
        assert one.ask("fcntl.lockf(fd, EX | NB) or fcntl.flock(fd, EX | NB)") == "None"
        assert same.ask("fcntl.lockf(fd, SH | NB)") == "EAGAIN"
        assert same.ask("fcntl.flock(fd, SH | NB)") == "EAGAIN"
        assert other.ask("fcntl.lockf(fd, EX | NB) or fcntl.flock(fd, EX | NB)") == "None"
        one.end()
        assert same.ask("fcntl.lockf(fd, EX | NB) or fcntl.flock(fd, EX | NB)") == "None"


def test_beside_a_mount_in_default_mode(base: tuple[Path, TextIO], watched: None) -> None:
    """The mode is each mount's own: a file unlinked on a default node stays while one of the other kind has it open."""
    lab = new_lab(base, "mixed", nodes=2)
    try:
        lab.format()
        for node in lab.nodes:
            lab.start(node)
        hot, plain = lab.nodes
        lab.mount(hot, "localflocks")
        lab.mount(plain)
        (plain.mountpoint / "f").write_bytes(b"still here")
        with (hot.mountpoint / "f").open("rb") as file, (plain.mountpoint / "f").open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_EX)  # not seen over there
            (plain.mountpoint / "f").unlink()
            assert file.read() == b"still here"
            assert other.read() == b"still here"
        wait_until(lambda: deleted(lab) == 1, "the file is deleted")
        lab.down()
        assert lab.fsck("-n").returncode == 0
    finally:
        lab.remove()


def test_ranges_of_files_that_the_kernel_opened_itself(lab: Lab, tree: Tree) -> None:
    """Requests come with inode numbers for handles; only a file without a name needs an open that we are told of."""
    with (tree.a / "f").open("w+b") as file:
        fd = file.fileno()
        os.posix_fallocate(fd, 0, 1 << 20)
        os.pwrite(fd, b"x" * 8192, 8192)
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 8192, os.SEEK_HOLE)) == (8192, 16384)
        assert os.copy_file_range(fd, fd, 8192, 8192, 65536) == 8192
        assert os.pread(fd, 8192, 65536) == b"x" * 8192
    found = os.stat(tree.b / "f")
    assert (found.st_size, found.st_blocks) == (1 << 20, 2048)
    assert (tree.b / "f").read_bytes() == (tree.a / "f").read_bytes()
    with pytest.raises(OSError) as caught:
        os.open(tree.a, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_attributes_and_access_control_lists(lab: Lab, tree: Tree) -> None:
    """Files are made by MKNOD here, and writing goes through the kernel's pages always: nothing else differs."""
    default = rules("u:rwx u4001:rw- g:r-x m:rwx o:---")
    os.setxattr(tree.a, "system.posix_acl_default", pack_acl(default))
    (tree.b / "f").touch()
    assert stat.S_IMODE(os.stat(tree.a / "f").st_mode) == 0o660
    assert os.listxattr(tree.a / "f") == ["system.posix_acl_access"]
    os.setxattr(tree.a / "f", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    with (tree.b / "f").open("ab") as file:
        file.write(b"x")
    assert os.listxattr(tree.a / "f") == ["system.posix_acl_access"]
    os.removexattr(tree.a, "system.posix_acl_default")
    (tree.b / "bare").touch()
    before = lab.counters(lab.nodes[1])["fuse"]["calls"]
    with (tree.b / "bare").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x")
    after = lab.counters(lab.nodes[1])["fuse"]["calls"]
    assert after.get("getxattr", 0) == before.get("getxattr", 0)


def test_flags_of_files_hold_though_nobody_asks_to_open(tree: Tree) -> None:
    """The kernel lets everything be opened; what is written through it is refused."""
    fixed, log = tree.a / "fixed", tree.a / "log"
    for path in (fixed, log):
        path.write_text("content")
    subprocess.run(["chattr", "+i", fixed], check=True)
    subprocess.run(["chattr", "+a", log], check=True)
    for path in (tree.a / "fixed", tree.b / "fixed"):
        with pytest.raises(PermissionError), path.open("r+b", buffering=0) as file:
            file.write(b"C")
        for attempt in (path.unlink, lambda path=path: os.truncate(path, 0), lambda path=path: path.chmod(0)):
            with pytest.raises(PermissionError):
                attempt()
    for path in (tree.b / "log", tree.a / "log"):
        with pytest.raises(PermissionError), path.open("r+b", buffering=0) as file:
            file.write(b"C")
        with path.open("ab") as file:
            file.write(b"+")
    assert (tree.a / "log").read_text() == "content++"
    assert (tree.b / "fixed").read_text() == "content"
    subprocess.run(["chattr", "-ia", tree.b / "fixed", tree.b / "log"], check=True)
    for path in (fixed, log):
        path.write_text("new")


def test_the_store_gets_back_what_is_freed(lab: Lab, tree: Tree) -> None:
    """By -o discard, and what was freed before by matrixctl fs trim."""

    def taken() -> int:
        return lab.store.stat().st_blocks * 512

    mib = 1 << 20
    kept = os.urandom(3 * mib)
    for path, content in ((tree.b / "kept", kept), (tree.a / "gone", os.urandom(24 * mib))):
        with path.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
    full = taken()
    (tree.a / "gone").unlink()
    wait_until(lambda: taken() < full - 23 * mib, "the store is told what was freed")
    counters = lab.counters(lab.nodes[0])
    assert counters["store"]["bytes_discarded"] >= 23 * mib
    with lab.store.open("r+b") as store:  # what an older mount left behind
        os.posix_fallocate(store.fileno(), 0, lab.store.stat().st_size)
    full = taken()
    by = lab.nodes[1]
    found = lab.run("matrixctl", "--state", by.state, "fs", "trim", lab.name, "--minimum", "64K")
    assert "the store was told that" in found.stdout
    assert taken() < full - 100 * mib
    found = lab.run("matrixctl", "--state", by.state, "fs", "trim", lab.name, "--json")
    assert json.loads(found.stdout)["bytes"] > 100 * mib
    with lab.store.open("r+b") as store:
        os.posix_fallocate(store.fileno(), 0, lab.store.stat().st_size)
    full = taken()
    told = subprocess.run(["fstrim", "-v", by.mountpoint], check=True, capture_output=True, text=True).stdout
    assert "bytes) trimmed" in told
    assert taken() < full - 100 * mib
    assert "is not being trimmed" in lab.run("matrixctl", "--state", by.state, "fs", "trim", lab.name, "--stop").stdout
    assert (tree.a / "kept").read_bytes() == kept
