"""``-o localflocks`` through a real mount of a tree in memory: the kernel opens and closes without asking."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from matrixfs.fuse import registry
from tests.mount.edge_tree import REPOSITORY, ROOT, SERVER, Tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    mounted = Tree(tmp_path, "local")
    try:
        yield mounted
    finally:
        mounted.close()


def total(tree: Tree) -> int:
    return sum(tree.ask("counters")["calls"].values())


def wait_until_forgotten(tree: Tree, ino: int) -> None:
    while ino not in tree.ask("state")["forgot"]:
        pass  # each question is a round trip to the process


@pytest.mark.seed("002-06")
def test_a_warm_open_read_close_makes_no_call(tree: Tree) -> None:
    (tree.path / "f").write_bytes(b"x" * 4096)
    (tree.path / "f").read_bytes()
    (tree.path / "f").read_bytes()
    before = total(tree)
    for _ in range(100):
        assert len((tree.path / "f").read_bytes()) == 4096
    assert total(tree) == before
    calls = tree.ask("counters")["calls"]
    assert not {"open", "create", "release", "flush"} & set(calls)


def test_a_created_file_costs_a_lookup_and_a_mknod(tree: Tree) -> None:
    (tree.path / "first").touch()  # the kernel learns that there is neither CREATE nor OPEN
    os.stat(tree.path)  # changed by that
    before = tree.ask("counters")["calls"]
    os.close(os.open(tree.path / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640))
    after = tree.ask("counters")["calls"]
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)} == {
        "lookup": 1,
        "mknod": 1,
    }
    assert os.stat(tree.path / "f").st_mode & 0o777 == 0o640


def test_files_work_without_open(tree: Tree) -> None:
    path = tree.path / "f"
    path.write_text("first")
    with path.open("r+") as file:
        file.write("FIRST and more")
        file.flush()
        os.fsync(file.fileno())
        file.truncate(7)
    assert path.read_text() == "FIRST a"
    path.write_text("x")  # O_TRUNC comes as SETATTR
    assert path.read_text() == "x"
    with path.open("a") as one, path.open("a") as two:
        for number in range(10):
            one.write(f"{number}")
            one.flush()
            two.write("-")
            two.flush()
    assert path.read_text() == "x" + "".join(f"{n}-" for n in range(10))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert mapping[:3] == b"x0-"
    assert tree.ask("counters")["failures"] == 0


def test_an_append_goes_to_the_true_end_and_its_page_does_not_stay(tree: Tree, tmp_path: Path) -> None:
    """coherence.md 7: the kernel puts it where it believes the end to be; sendfile(2) believes the kernel's pages."""
    path = tree.path / "f"
    path.write_text("0123456789remote-line")
    path.read_text()
    ino = os.stat(path).st_ino
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    tree.ask("remote_write", ino=ino, text="0123456789")  # no purge: as if it came while the write waits for the lock
    os.write(descriptor, b"mine")
    with (tmp_path / "copy").open("w+b") as copy:
        while os.pread(copy.fileno(), 14, 0) != b"0123456789mine":  # dropped after the reply, by a worker
            os.lseek(copy.fileno(), 0, os.SEEK_SET)
            os.sendfile(copy.fileno(), descriptor, 0, 14)
    os.close(descriptor)
    assert path.read_text() == "0123456789mine"


def test_what_another_node_wrote_is_seen_without_open(tree: Tree) -> None:
    path = tree.path / "f"
    path.write_text("old!")
    assert path.read_text() == "old!"
    ino = os.stat(path).st_ino
    with path.open() as held:
        assert held.read() == "old!"
        tree.ask("remote_write", ino=ino, text="new!")
        tree.ask("purge_inode", ino=ino)
        assert path.read_text() == "new!"
        held.seek(0)
        assert held.read() == "new!"
        mapping = mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ)
        tree.ask("remote_write", ino=ino, text="last")
        tree.ask("purge_inode", ino=ino)
        assert mapping[:4] == b"last"
        mapping.close()


def test_locks_are_the_kernels(tree: Tree) -> None:
    (tree.path / "f").touch()
    with (tree.path / "f").open("r+") as one, (tree.path / "f").open("r+") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.lockf(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert tree.ask("locks")["held"] == []
    assert not {"posix_locks", "flock_locks", "atomic_o_trunc"} & set(tree.ask("counters")["capabilities"])


def test_what_the_kernel_knows_counts_as_open(tree: Tree) -> None:
    path = tree.path / "f"
    path.write_text("x")
    ino = os.stat(path).st_ino
    assert tree.ask("state")["opens"] == {str(ino): 1}
    with path.open() as file:
        path.unlink()
        tree.ask("shed", ino=ino)
        assert tree.ask("state")["opens"] == {str(ino): 1}
        assert file.read() == "x"
    wait_until_forgotten(tree, ino)
    assert tree.ask("state")["opens"] == {}


def test_the_kernel_forgets_on_demand_what_nobody_uses(tree: Tree) -> None:
    """FUSE_NOTIFY_PRUNE: so a lock that is given up needs no open lock in its place."""
    (tree.path / "f").write_text("x")
    (tree.path / "g").write_text("x")
    (tree.path / "f").read_text()
    ino, other = os.stat(tree.path / "f").st_ino, os.stat(tree.path / "g").st_ino
    assert sorted(tree.ask("state")["opens"]) == sorted([str(ino), str(other)])
    tree.ask("shed", ino=ino)
    assert tree.ask("state")["opens"] == {str(other): 1}
    with (tree.path / "g").open():
        tree.ask("shed", ino=other)
        assert tree.ask("state")["opens"] == {str(other): 1}
    caches = tree.caches()
    assert (caches["sheds"], caches["shed_in_vain"]) == (2, 1)
    assert (tree.path / "f").read_text() == "x"


def test_listed_files_count_too(tree: Tree) -> None:
    inos = [tree.ask("remote_create", parent=ROOT, name=f"n{n}") for n in range(5)]
    os.listdir(tree.path)
    opens = tree.ask("state")["opens"]
    opens.pop(str(ROOT), None)  # RELEASEDIR comes when it comes
    assert opens == {str(ino): 1 for ino in inos}
    (tree.path / "n0").unlink()
    wait_until_forgotten(tree, inos[0])


def test_localflocks_needs_the_extension(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SERVER), str(tmp_path), str(tmp_path), "local-no-extension"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "OperatorError: localflocks is not to be had: the C extension is not built" in done.stderr
    assert registry.mount_at(str(tmp_path)) is None
