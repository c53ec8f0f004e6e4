"""The hazards of coherence.md on real mounts: counted, never timed.

Wherever a kernel could answer from its caches, it is first made to have the old answer there.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.crowd import Crowd, together
from tests.mount.lab import wait_until

pytestmark = pytest.mark.seed("002-08", "002-09")

ROUNDS = 200
LINES = 500
NAMES = 15


def test_200_times_write_and_close_then_read_on_another_node(tree: Tree) -> None:
    stale = []
    for i, writer in zip(range(ROUNDS), itertools.cycle(range(3)), strict=False):
        data = b"%d:" % i * (1 + i * 37 % 900)
        (tree.paths[writer] / "f").write_bytes(data)
        for reader in (1, 2):
            path = tree.paths[(writer + reader) % 3] / "f"
            if path.read_bytes() != data or path.stat().st_size != len(data):
                stale.append((i, reader))
    assert stale == []


def test_overwriting_bytes_of_equal_length_while_a_reader_holds_a_descriptor(tree: Tree) -> None:
    """Size and names never change: only the version of the data tells the reader's kernel."""
    (tree.a / "f").write_bytes(b"%08d" % 0 * 1024)
    reader = os.open(tree.b / "f", os.O_RDONLY)
    writer = os.open(tree.a / "f", os.O_WRONLY)
    seen = []
    for i in range(1, ROUNDS + 1):
        assert os.pread(reader, 8192, 0)[:8] == b"%08d" % (i - 1)
        os.pwrite(writer, b"%08d" % i * 1024, 0)
        seen.append(os.pread(reader, 8192, 0))
    os.close(reader)
    os.close(writer)
    assert seen == [b"%08d" % i * 1024 for i in range(1, ROUNDS + 1)]


def append_lines(path: Path, who: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for i in range(LINES):
        line = f"{who} {i:06d}\n".encode()
        assert os.write(fd, line) == len(line)
    os.close(fd)


def test_500_lines_appended_by_each_of_three(tree: Tree) -> None:
    (tree.a / "log").touch()
    together(*((append_lines, path / "log", f"n{i}") for i, path in enumerate(tree.paths)))
    wanted = [f"n{i} {line:06d}".encode() for i in range(3) for line in range(LINES)]
    for path in tree.paths:
        lines = (path / "log").read_bytes().split(b"\n")
        assert lines.pop() == b""
        assert sorted(lines) == wanted
        for i in range(3):  # each one's own lines stay in order
            mine = [line for line in lines if line.startswith(b"n%d" % i)]
            assert mine == sorted(mine)


def test_appending_through_a_held_descriptor_after_a_remote_append(tree: Tree) -> None:
    """coherence.md 7: the kernel sends WRITE at the size it remembers."""
    (tree.a / "log").touch()
    held = [os.open(path / "log", os.O_WRONLY | os.O_APPEND) for path in tree.paths]
    wanted = b""
    for i in range(60):
        for path in tree.paths:
            assert path.joinpath("log").stat().st_size == len(wanted), "every kernel knows a size"
        data = b"%d " % i * (1 + i % 7)
        os.write(held[i % 3], data)
        wanted += data
    for fd in held:
        os.close(fd)
    assert [(path / "log").read_bytes() for path in tree.paths] == [wanted] * 3


def test_a_write_past_a_remembered_end(tree: Tree) -> None:
    """A grows the file, B (whose kernel knew the old size) writes behind the old end, without O_APPEND."""
    for i in range(20):
        name = f"f{i}"
        (tree.a / name).write_bytes(b"a" * 100)
        fd = os.open(tree.b / name, os.O_RDWR)
        assert os.pread(fd, 200, 0) == b"a" * 100
        with (tree.a / name).open("ab") as file:
            file.write(b"A" * 5000)
        os.pwrite(fd, b"B" * 10, 3000)
        os.close(fd)
        wanted = b"a" * 100 + b"A" * 2900 + b"B" * 10 + b"A" * 2090
        assert [(path / name).read_bytes() for path in tree.paths] == [wanted] * 3


def test_a_mapping_made_anew_after_a_remote_write(tree: Tree) -> None:
    (tree.a / "f").write_bytes(b"%04d" % 0 * 4096)
    for i in range(1, 51):
        with (tree.b / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == b"%04d" % (i - 1) * 4096
        (tree.a / "f").write_bytes(b"%04d" % i * 4096)
        with (tree.b / "f").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == b"%04d" % i * 4096


def test_a_shared_mapping_reaches_the_others_after_msync(tree: Tree) -> None:
    (tree.a / "f").write_bytes(bytes(16384))
    for i in range(1, 21):
        with (tree.paths[i % 3] / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[i * 700 : i * 700 + 4] = b"%04d" % i
            mapped.flush()
        for path in tree.paths:
            data = (path / "f").read_bytes()
            assert [data[k * 700 : k * 700 + 4] for k in range(1, i + 1)] == [b"%04d" % k for k in range(1, i + 1)]


def test_truncation_by_a_peer_under_a_held_descriptor(tree: Tree) -> None:
    for i in range(30):
        name = f"f{i}"
        (tree.a / name).write_bytes(b"x" * 20_000)
        fd = os.open(tree.b / name, os.O_RDWR)
        assert len(os.pread(fd, 30_000, 0)) == 20_000
        os.truncate(tree.a / name, 6000)
        assert os.pread(fd, 30_000, 0) == b"x" * 6000
        assert os.fstat(fd).st_size == 6000
        os.truncate(tree.c / name, 9000)
        assert os.pread(fd, 30_000, 0) == b"x" * 6000 + bytes(3000), "what was cut off stays cut off"
        os.close(fd)


def test_an_absent_name_is_a_cached_answer_too(tree: Tree) -> None:
    for i in range(40):
        name = f"n{i}"
        for path in (tree.b, tree.c):
            for _ in range(2):
                assert not (path / name).exists()
        (tree.a / name).write_text(name)
        assert [(path / name).read_text() for path in tree.paths] == [name] * 3
        os.unlink(tree.paths[i % 3] / name)
        assert [(path / name).exists() for path in tree.paths] == [False] * 3


def test_a_name_that_points_elsewhere(tree: Tree) -> None:
    """How editors and web content save: write a new file, rename it over the name."""
    (tree.a / "page").write_text("version 0")
    for i in range(1, 101):
        assert [(path / "page").read_text() for path in tree.paths] == [f"version {i - 1}"] * 3
        writer = tree.paths[i % 3]
        (writer / "page.new").write_text(f"version {i}")
        os.rename(writer / "page.new", writer / "page")
    assert [(path / "page").read_text() for path in tree.paths] == ["version 100"] * 3
    assert [os.listdir(path) for path in tree.paths] == [["page"]] * 3


def test_a_directory_renamed_under_those_who_are_in_it(tree: Tree) -> None:
    (tree.a / "one" / "in").mkdir(parents=True)
    inside = os.open(tree.b / "one" / "in", os.O_RDONLY)
    before = os.getcwd()
    os.chdir(tree.c / "one" / "in")
    try:
        os.rename(tree.a / "one", tree.a / "two")
        (tree.a / "two" / "in" / "f").write_text("here")
        assert os.listdir(inside) == ["f"]
        assert Path("f").read_text() == "here"
        assert not (tree.c / "one").exists()
        assert (tree.c / "two" / "in" / "f").read_text() == "here", "the kernel has seen the new name"
        assert os.getcwd() == str(tree.c / "two" / "in")
    finally:
        os.chdir(before)
        os.close(inside)


def test_changed_bytes_under_the_old_mtime(tree: Tree) -> None:
    """coherence.md 2: utimes must not make a kernel trust its pages again."""
    (tree.a / "f").write_bytes(b"%06d" % 0 * 1000)
    os.utime(tree.a / "f", ns=(10**18, 10**18))
    fd = os.open(tree.b / "f", os.O_RDONLY)
    for i in range(1, 101):
        assert os.pread(fd, 6, 0) == b"%06d" % (i - 1)
        assert os.stat(tree.b / "f").st_mtime_ns == 10**18
        with (tree.a / "f").open("r+b") as file:
            file.write(b"%06d" % i * 1000)
        os.utime(tree.a / "f", ns=(10**18, 10**18))
        assert os.pread(fd, 6000, 0) == b"%06d" % i * 1000, f"held descriptor, round {i}"
        assert (tree.b / "f").read_bytes() == b"%06d" % i * 1000, f"opened anew, round {i}"
        assert os.stat(tree.b / "f").st_mtime_ns == 10**18
    os.close(fd)


# --- several at once: nothing lost, nothing stuck -----------------------------------------------------------


def working_directory(top: Path) -> str:
    """getcwd(2), which fails after a step of the epoch until somebody has walked there (K4 in kernel_caches)."""
    while True:
        try:
            return os.getcwd()
        except FileNotFoundError:
            os.stat(top)


def make_and_remove(top: Path, who: str) -> None:
    """In a directory all share: own names come and go, one common name is fought for."""
    os.chdir(top)
    for i in range(NAMES):
        os.close(os.open(f"{who}-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.rename(f"{who}-{i}", f"{who}-{i}-renamed")
        if i % 3 == 0:
            os.unlink(f"{who}-{i}-renamed")
        try:
            os.close(os.open("common", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink("common")
        except (FileExistsError, FileNotFoundError):
            pass  # another one had it
        assert working_directory(top) == str(top)
        os.listdir(".")


@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("processes", [1, 2], ids=["one-process-a-node", "two-processes-a-node"])
def test_all_work_in_one_directory_at_once(tree: Tree, nodes: int, processes: int) -> None:
    """coherence.md 1: two nodes that create in one directory deadlock if a purge waits for what waits for the lock."""
    who = [(path, f"n{i}p{p}") for i, path in enumerate(tree.paths[:nodes]) for p in range(processes)]
    together(*((make_and_remove, path, name) for path, name in who))
    wanted = sorted(f"{name}-{i}-renamed" for _, name in who for i in range(NAMES) if i % 3)
    for path in tree.paths:
        assert sorted(name for name in os.listdir(path) if name != "common") == wanted


def move_about(top: Path, seed: int) -> None:
    """Rename directories and files between three directories, in orders that would deadlock without one lock order."""
    rng = random.Random(seed)
    # ESTALE is the kernel's own: a directory that another node moved has an old dentry, which a lookup can't move while
    # a second rename on this mount holds the rename mutex (d_splice_alias; seen once in four full runs).
    expected = (errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.ESTALE)
    for _ in range(50):
        source, target = rng.sample(["x", "y", "z"], 2)
        name, new_name = (rng.choice(["f", "g", "d", "e"]) for _ in range(2))
        try:
            os.rename(top / source / name, top / target / new_name)
        except OSError as error:
            if error.errno not in expected:
                raise


def test_renames_across_directories_from_all_sides(tree: Tree) -> None:
    for place in "xyz":
        (tree.a / place).mkdir()
        (tree.a / place / "f").write_text(place)
        (tree.a / place / "d").mkdir()
        (tree.a / place / "d" / "leaf").write_text(place)
    together(*((move_about, path, i) for i, path in enumerate(tree.paths * 2)))
    found = [sorted(str(p.relative_to(path)) for p in path.rglob("*")) for path in tree.paths]
    assert found[0] == found[1] == found[2]
    leaves = [name for name in found[0] if name.endswith("leaf")]
    assert len(leaves) == 3, "a full directory is never renamed over"
    for name in leaves:
        assert len({(path / name).read_text() for path in tree.paths}) == 1


def count_up(top: Path, rounds: int) -> None:
    """Take turns by link(2), which is atomic on every filesystem, and count in a file."""
    for _ in range(rounds):
        while True:
            try:
                os.link(top / "token", top / "lock")
                break
            except FileExistsError:
                continue
        value = int((top / "counter").read_text())
        (top / "counter").write_text(str(value + 1))
        os.unlink(top / "lock")


def test_a_counter_under_a_lock_file_loses_nothing(tree: Tree) -> None:
    (tree.a / "token").touch()
    (tree.a / "counter").write_text("0")
    together(*((count_up, path, 12) for path in tree.paths))
    assert [(path / "counter").read_text() for path in tree.paths] == ["36"] * 3


# --- removed, but open --------------------------------------------------------------------------------------


def make_tree(top: Path, widths: Sequence[int]) -> None:
    top.mkdir()
    for i in range(4):
        (top / f"f{i}").touch()
    for i in range(widths[0] if widths else 0):
        make_tree(top / f"d{i}", widths[1:])


def remove_tree(top: Path) -> None:
    done = subprocess.run(["rm", "-rf", str(top)], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_rm_of_one_tree_on_all_nodes_at_once(tree: Tree) -> None:
    """None complains, as on a local filesystem.  So deep that rm leaves directories by "..": it keeps four open."""
    make_tree(tree.a / "top", (3, 2, 2, 1, 2, 1, 2))
    together(*((remove_tree, path / "top") for path in tree.paths))
    assert [os.listdir(path) for path in tree.paths] == [[], [], []]


def used_blocks(tree: Tree) -> int:
    found = os.statvfs(tree.a)
    return found.f_blocks - found.f_bfree


@pytest.mark.parametrize("remover", [0, 1], ids=["by-the-same-node", "by-another-node"])
def test_an_open_file_outlives_its_name_and_then_gives_its_space_back(tree: Tree, remover: int) -> None:
    megabytes = 8
    data = os.urandom(1 << 20)
    before = used_blocks(tree)
    with (tree.a / "f").open("wb") as file:
        for _ in range(megabytes):
            file.write(data)
        os.fsync(file.fileno())
    fd = os.open(tree.a / "f", os.O_RDWR)
    os.unlink(tree.paths[remover] / "f")
    assert [(path / "f").exists() for path in tree.paths] == [False] * 3
    (tree.c / "f").write_text("another of that name")
    assert os.pread(fd, 1 << 20, (megabytes - 1) << 20) == data
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"still writable", megabytes << 20)
    assert os.pread(fd, 100, megabytes << 20) == b"still writable"
    os.fsync(fd)
    assert (tree.b / "f").read_text() == "another of that name"
    os.close(fd)
    wait_until(lambda: used_blocks(tree) < before + megabytes * 256 // 2, "the space is free again")


def deletions(tree: Tree) -> int:
    return sum(tree.lab.counters(node)["deleted"] for node in tree.lab.nodes)


def hold_open(path: Path, ready: int, go: int) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.write(ready, b"r")
    os.read(go, 1)
    assert len(os.pread(fd, 1 << 20, 0)) == 100_000
    assert os.fstat(fd).st_nlink == 0


def test_a_file_open_on_all_nodes_is_deleted_when_the_last_one_closes(tree: Tree) -> None:
    (tree.a / "f").write_bytes(b"x" * 100_000)
    ready, ready_end = os.pipe()
    go, go_end = os.pipe()
    with Crowd() as crowd:
        for path in tree.paths:
            crowd.start(hold_open, path / "f", ready_end, go)
        for _ in tree.paths:
            assert os.read(ready, 1) == b"r"
        os.unlink(tree.b / "f")
        deleted = deletions(tree)
        os.write(go_end, b"ggg")
        crowd.wait()
    for end in (ready, ready_end, go, go_end):
        os.close(end)
    wait_until(lambda: deletions(tree) == deleted + 1, "the file is deleted")
