"""What people run on such a filesystem, at its real size (issue 5, "Shown by"); ``scripts/test --long``.

A source tree of 50,000 files, rsync with everything it can keep, git gc, SQLite with writers on two nodes, a maildir
that two nodes deliver to, and PostgreSQL on one.  The module's end finds the store clean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.crowd import together
from tests.mount.lab import wait_until
from tests.mount.test_programs import git

STORE_SIZE = "4G"
TEST_SECONDS = 900  # for a broken product, not a bound under test
pytestmark = [pytest.mark.seed("002-09"), pytest.mark.long, pytest.mark.timeout(TEST_SECONDS)]

SOURCES = 50_000
DIRECTORIES = 2_500
WRITERS_PER_NODE = 2
TRANSACTIONS = 50
MESSAGES = 500


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return str(done.stdout)


def make_sources(archive: Path) -> None:
    """A tar archive of files as a kernel's source has them: most of a few KiB, some of hundreds."""
    rng = random.Random(5)
    with tarfile.open(archive, "w") as tar:
        for number in range(SOURCES):
            place = number % DIRECTORIES
            name = f"linux/d{place % 40}/s{place // 40}/file_{number}.c"
            size = min(int(rng.lognormvariate(8.3, 1.2)), 500_000)
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = size, 0o644, 1_700_000_000 + number
            text = b"%d\n" % number * (size // 2 + 1)
            tar.addfile(entry, fileobj=_Bytes(text[:size]))


class _Bytes:
    """The least of a file that tarfile reads."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, count: int) -> bytes:
        piece, self._data = bytes(self._data[:count]), self._data[count:]
        return piece


def digest(top: Path) -> str:
    """Names, modes, sizes, times and bytes below a directory."""
    found = hashlib.blake2b()
    for directory, names, files in os.walk(top):
        names.sort()
        for name in sorted(files):
            path = Path(directory) / name
            seen = path.lstat()
            about = (str(path.relative_to(top)), seen.st_mode, seen.st_size, int(seen.st_mtime))
            found.update(repr(about).encode() + path.read_bytes())
    return found.hexdigest()


def used(tree: Tree) -> int:
    space = os.statvfs(tree.c)
    return space.f_blocks - space.f_bfree


def test_a_source_tree_comes_goes_and_leaves_no_block(tree: Tree, tmp_path: Path) -> None:
    archive = tmp_path / "linux.tar"
    make_sources(archive)
    before = used(tree)
    run("tar", "-C", tree.a, "-xf", archive)
    run("tar", "-C", tmp_path, "-xf", archive)
    wanted = digest(tmp_path / "linux")
    assert digest(tree.b / "linux") == wanted
    run("rsync", "-aHAX", f"{tree.c}/linux", f"{tmp_path}/back")
    assert digest(tmp_path / "back" / "linux") == wanted
    run("rsync", "-aHAX", f"{tmp_path}/back/", f"{tree.b}/again")
    assert run("rsync", "-aHAXnic", f"{tree.a}/again/linux", f"{tmp_path}/back/") == ""
    run("rm", "-rf", tree.b / "linux", tree.b / "again")
    assert list(tree.a.iterdir()) == []
    run("sync", "-f", tree.c)
    wait_until(lambda: used(tree) - before < 100, "deletion in the background", TEST_SECONDS)


def test_git_gc_of_a_large_repository(tree: Tree, tmp_path: Path) -> None:
    make_sources(tmp_path / "s.tar")
    repository = tree.a / "repository"
    repository.mkdir()
    run("tar", "-C", repository, "-xf", tmp_path / "s.tar", "linux/d0", "linux/d1", "linux/d2", "linux/d3")
    git(repository, "init", "-q")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "all of it")
    git(tree.b / "repository", "gc", "-q", "--aggressive")
    git(tree.c / "repository", "fsck", "--full", "--strict")
    assert git(tree.c / "repository", "status", "--porcelain") == ""


def write_rows(path: Path, writer: int) -> None:
    connection = sqlite3.connect(path, timeout=120, isolation_level=None)
    assert connection.execute("pragma journal_mode").fetchone() == ("delete",)
    for number in range(TRANSACTIONS):
        connection.execute("begin immediate")
        (total,) = connection.execute("select total from counter").fetchone()
        connection.execute("update counter set total = ?", (total + 1,))
        connection.execute("insert into rows values (?, ?, ?)", (writer, number, os.urandom(700)))
        connection.execute("commit")
    connection.close()


def test_sqlite_with_writers_on_two_nodes(tree: Tree) -> None:
    with contextlib.closing(sqlite3.connect(tree.c / "db")) as made, made:
        made.execute("create table counter (total integer)")
        made.execute("insert into counter values (0)")
        made.execute("create table rows (writer integer, number integer, body blob, primary key (writer, number))")
    nodes = [tree.a, tree.b]
    together(*((write_rows, nodes[w % 2] / "db", w) for w in range(WRITERS_PER_NODE * 2)), seconds=TEST_SECONDS)
    with contextlib.closing(sqlite3.connect(tree.c / "db")) as read:
        wanted = WRITERS_PER_NODE * 2 * TRANSACTIONS
        assert read.execute("select total from counter").fetchone() == (wanted,)
        assert read.execute("select count(*) from rows").fetchone() == (wanted,)
        assert read.execute("pragma integrity_check").fetchall() == [("ok",)]


def deliver(maildir: Path, host: str) -> None:
    for number in range(MESSAGES):
        name = f"{number}.{host}"
        with open(maildir / "tmp" / name, "xb") as message:
            message.write(b"From: %s\n\n%d\n" % (host.encode(), number))
            message.flush()
            os.fsync(message.fileno())
        os.rename(maildir / "tmp" / name, maildir / "new" / name)


def collect(maildir: Path) -> None:
    """A mail reader on a third node: every message once, whole, and none in the way of those that come."""
    seen: set[str] = set()
    while len(seen) < 2 * MESSAGES:
        for name in os.listdir(maildir / "new"):
            assert name not in seen
            number, _, host = name.partition(".")
            os.rename(maildir / "new" / name, maildir / "cur" / f"{name}:2,S")
            text = (maildir / "cur" / f"{name}:2,S").read_bytes()
            assert text == b"From: %s\n\n%d\n" % (host.encode(), int(number))
            seen.add(name)


def test_a_maildir_is_delivered_to_from_two_nodes(tree: Tree) -> None:
    for name in ("tmp", "new", "cur"):
        (tree.a / name).mkdir()
    together((deliver, tree.a, "a"), (deliver, tree.b, "b"), (collect, tree.c), seconds=TEST_SECONDS)
    assert len(os.listdir(tree.b / "cur")) == 2 * MESSAGES
    assert os.listdir(tree.b / "new") == os.listdir(tree.b / "tmp") == []


def test_postgresql(tree: Tree) -> None:
    """initdb, load, transactions, an immediate stop in between, and all balances agree (pgbench's own invariant)."""
    bin_ = next(Path("/usr/lib/postgresql").glob("*/bin"))
    data = tree.a / "data"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    as_postgres = ("runuser", "-u", "postgres", "--")
    here = {"cwd": "/", "stdin": subprocess.DEVNULL}
    run(*as_postgres, bin_ / "initdb", "-D", data, "-k", **here)
    options = "-k /tmp -p 54399 -c listen_addresses='' -c logging_collector=off"
    start = (*as_postgres, bin_ / "pg_ctl", "-D", data, "-w", "-l", data / "log", "-o", options, "start")
    stop = (*as_postgres, bin_ / "pg_ctl", "-D", data, "-w", "stop", "-m")
    address = ("-h", "/tmp", "-p", "54399")
    run(*start, **here)
    try:
        run(*as_postgres, bin_ / "createdb", *address, "bench", **here)
        run(*as_postgres, bin_ / "pgbench", *address, "-q", "-i", "-s", "2", "bench", **here)
        run(*as_postgres, bin_ / "pgbench", *address, "-n", "-c", "4", "-t", "250", "bench", **here)
        run(*stop, "immediate", **here)
        run(*start, **here)
        run(*as_postgres, bin_ / "pgbench", *address, "-n", "-c", "4", "-t", "50", "bench", **here)
        sums = (
            "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),"
            " count(*) from pgbench_history"
        )
        told = run(*as_postgres, bin_ / "psql", *address, "-At", "-c", sums, "bench", **here)
        assert told.strip() == "t|1200"
    finally:
        run(*stop, "fast", **here)
    run(*as_postgres, bin_ / "pg_checksums", "-c", "-D", tree.b / "data", **here)
