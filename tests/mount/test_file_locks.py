"""Cluster-wide flock, POSIX and open-file-description locks through real mounts (002-09, coherence.md 5 and 8)."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

import pytest

from matrixfs.fuse import registry
from tests.mount.conftest import Tree, new_lab
from tests.mount.lab import Lab, LabNode, wait_until
from tests.mount.lockers import Locker, lockers, record


@pytest.fixture
def pair(tree: Tree) -> Iterator[tuple[Locker, Locker]]:
    """A process on each of two nodes with one file open."""
    (tree.a / "f").write_bytes(b"x" * 100)
    with lockers(tree.a / "f", tree.b / "f") as (one, two):
        yield one, two


def calls(lab: Lab, node: LabNode, name: str) -> int:
    found: int = lab.counters(node)["fuse"]["calls"].get(name, 0)
    return found


def say_and_wait(lab: Lab, node: LabNode, locker: Locker, line: str) -> None:
    """Send a call that will block, and see it arrive at the node's mount process."""
    name = "flock" if "flock" in line else "setlk"
    before = calls(lab, node, name)
    locker.say(line)
    wait_until(lambda: calls(lab, node, name) > before, f"{line} arrives")


EXCLUSIVE_TRY = ["fcntl.lockf(fd, EX | NB)", "fcntl.flock(fd, EX | NB)"]
SHARED_TRY = ["fcntl.lockf(fd, SH | NB)", "fcntl.flock(fd, SH | NB)"]


@pytest.mark.seed("002-09")
@pytest.mark.parametrize("call", ["fcntl.lockf", "fcntl.flock"])
def test_exclusion_upgrade_and_downgrade(lab: Lab, pair: tuple[Locker, Locker], call: str) -> None:
    one, two = pair
    assert one.ask(f"{call}(fd, EX | NB)") == "None"
    assert two.ask(f"{call}(fd, SH | NB)") == "EAGAIN"
    assert one.ask(f"{call}(fd, SH | NB)") == "None"  # downgrade
    assert two.ask(f"{call}(fd, SH | NB)") == "None"
    assert one.ask(f"{call}(fd, EX | NB)") == "EAGAIN"  # upgrade; flock gives up what it had, as on Linux
    if call == "fcntl.flock":
        assert two.ask(f"{call}(fd, EX | NB)") == "None"
    else:
        assert two.ask(f"{call}(fd, EX | NB)") == "EAGAIN"
        assert one.ask(f"{call}(fd, UN)") == "None"
        assert two.ask(f"{call}(fd, EX | NB)") == "None"
    say_and_wait(lab, lab.nodes[0], one, f"{call}(fd, EX)")
    assert two.ask(f"{call}(fd, UN)") == "None"
    assert one.heard() == "None"
    assert two.ask(f"{call}(fd, SH | NB)") == "EAGAIN"


@pytest.mark.seed("000-15")
def test_ranges_from_the_end_and_backwards(pair: tuple[Locker, Locker]) -> None:
    one, two = pair
    assert one.ask("fcntl.lockf(fd, EX | NB, 10, -10, os.SEEK_END)") == "None"  # 90 to 99
    assert two.ask("fcntl.lockf(fd, EX | NB, 0, 100)") == "None"
    assert two.ask("fcntl.lockf(fd, EX | NB, 1, 99)") == "EAGAIN"
    assert one.ask("os.lseek(fd, 50, 0) and fcntl.lockf(fd, EX | NB, -5, 0, os.SEEK_CUR)") == "None"  # 45 to 49
    assert [two.ask(f"fcntl.lockf(fd, EX | NB, 1, {at})") for at in (44, 45, 49, 50)] == [
        "None", "EAGAIN", "EAGAIN", "None",
    ]  # fmt: skip
    assert one.ask("fcntl.lockf(fd, UN, 3, 46)") == "None"  # 45 and 49 stay
    assert [two.ask(f"fcntl.lockf(fd, SH | NB, 1, {at})") for at in (45, 46, 48, 49)] == [
        "EAGAIN", "None", "None", "EAGAIN",
    ]  # fmt: skip


def test_getlk_names_the_holder_where_it_lives(tree: Tree, pair: tuple[Locker, Locker]) -> None:
    """A pid means something on its own node only; 0 is what is said elsewhere."""
    one, two = pair
    assert one.ask("fcntl.lockf(fd, EX, 10, 20)") == "None"
    with (tree.a / "f").open("r+b") as here, (tree.b / "f").open("r+b") as there:
        assert record(here.fileno(), fcntl.F_GETLK, fcntl.F_RDLCK) == (fcntl.F_WRLCK, 20, 10, one.pid)
        assert record(there.fileno(), fcntl.F_GETLK, fcntl.F_RDLCK) == (fcntl.F_WRLCK, 20, 10, 0)
        assert record(there.fileno(), fcntl.F_GETLK, fcntl.F_WRLCK, 30)[0] == fcntl.F_UNLCK
    assert two.ask("fcntl.lockf(fd, SH | NB)") == "EAGAIN"


@pytest.mark.parametrize("end", ["os.close(os.open('{path}', os.O_RDONLY))", "os.close(fd)", "os._exit(0)", "kill"])
def test_posix_locks_are_free_elsewhere_when_close_returns(tree: Tree, pair: tuple[Locker, Locker], end: str) -> None:
    one, two = pair
    for round_ in range(1 if end in ("os._exit(0)", "kill", "os.close(fd)") else 10):
        assert one.ask(f"fcntl.lockf(fd, EX | NB, 5, {round_})") == "None"
        assert two.ask("fcntl.lockf(fd, SH | NB)") == "EAGAIN"
        if end == "kill":
            one.process.kill()
        else:
            one.say(end.format(path=tree.a / "f"))
        assert one.heard() == ("" if end in ("os._exit(0)", "kill") else "None")
        if end in ("os._exit(0)", "kill"):
            one.process.wait()
        assert two.ask("fcntl.lockf(fd, EX | NB)") == "None"
        assert two.ask("fcntl.lockf(fd, UN)") == "None"


@pytest.mark.parametrize("lock", ["fcntl.flock(fd, {})", "record(fd, F_OFD_SETLK{}, {})"])
def test_open_file_locks_go_with_the_last_descriptor(lab: Lab, pair: tuple[Locker, Locker], lock: str) -> None:
    """close(2) doesn't wait for the RELEASE; whoever waits for the lock gets it."""
    one, two = pair
    blocking = lock.format("EX") if "flock" in lock else lock.format("W", "fcntl.F_WRLCK")
    trying = lock.format("EX | NB") if "flock" in lock else lock.format("", "fcntl.F_WRLCK")
    assert one.ask(trying) != "EAGAIN"
    assert one.ask("globals().update(other=os.dup(fd))") == "None"
    assert one.ask("os.close(fd)") == "None"
    assert two.ask(trying) == "EAGAIN"
    say_and_wait(lab, lab.nodes[1], two, blocking)
    assert one.ask("os.close(other)") == "None"
    assert two.heard() != "EAGAIN"


@pytest.mark.parametrize("call", ["fcntl.lockf(fd, EX)", "fcntl.flock(fd, EX)"])
def test_a_signal_ends_a_wait_for_another_node(lab: Lab, pair: tuple[Locker, Locker], call: str) -> None:
    one, two = pair
    assert one.ask(call) == "None"
    say_and_wait(lab, lab.nodes[1], two, call)
    two.process.send_signal(signal.SIGINT)
    assert two.heard() == "interrupted"
    assert one.ask(call.replace("EX", "UN")) == "None"
    assert one.ask(call) == "None"  # the wait is gone: nothing was granted to it
    say_and_wait(lab, lab.nodes[1], two, call)
    two.process.send_signal(signal.SIGUSR1)  # a handler that returns: the call goes on
    assert one.ask(call.replace("EX", "UN")) == "None"
    assert two.heard() == "None"


def test_a_deadlock_over_two_nodes_is_told(lab: Lab, pair: tuple[Locker, Locker]) -> None:
    one, two = pair
    assert one.ask("fcntl.lockf(fd, EX, 1, 0)") == "None"
    assert two.ask("fcntl.lockf(fd, EX, 1, 1)") == "None"
    say_and_wait(lab, lab.nodes[0], one, "fcntl.lockf(fd, EX, 1, 1)")
    two.say("fcntl.lockf(fd, EX, 1, 0)")
    assert two.heard() in {"EDEADLK", "EDEADLOCK"}
    assert two.ask("fcntl.lockf(fd, UN)") == "None"
    assert one.heard() == "None"


COUNT = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(int(sys.argv[2])):
    fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
    number = int(os.pread(fd, 20, 8))
    os.pwrite(fd, b"%020d" % (number + 1), 8)
    fcntl.lockf(fd, fcntl.LOCK_UN, 1, 0)
"""


def test_a_counter_under_a_lock_loses_no_update(tree: Tree) -> None:
    """Two mounts in a ping-pong on one byte: others lose about half (coherence.md)."""
    (tree.a / "f").write_bytes(b"\0" * 8 + b"%020d" % 0)
    rounds = 100
    running = [
        subprocess.Popen([sys.executable, "-c", COUNT, str(path / "f"), str(rounds)])
        for path in (tree.a, tree.b, tree.c)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert int((tree.c / "f").read_bytes()[8:]) == 3 * rounds


def test_a_counter_under_a_storm_of_signals_loses_no_update(tree: Tree) -> None:
    """Interrupts and grants cross all the time (coherence.md 8): each call is answered once, and tells the truth."""
    (tree.a / "f").write_bytes(b"\0" * 8 + b"%020d" % 0)
    rounds = 50
    program = (
        "import signal; signal.signal(signal.SIGUSR1, lambda number, frame: None); print(flush=True)"
        f"{COUNT}signal.signal(signal.SIGUSR1, signal.SIG_IGN)"  # Python's end takes handlers away
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(path / "f"), str(rounds)], stdout=subprocess.PIPE)
        for path in (tree.a, tree.b)
    ]
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()
    while any(process.poll() is None for process in running):
        for process in running:
            process.send_signal(signal.SIGUSR1)
        os.sched_yield()
    for process in running:
        assert process.stdout is not None
        process.stdout.close()
    assert [process.wait() for process in running] == [0, 0]
    assert int((tree.b / "f").read_bytes()[8:]) == 2 * rounds


def test_flock_command_and_counter(tree: Tree) -> None:
    if shutil.which("flock") is None:
        pytest.fail("flock(1), of util-linux, is needed")
    (tree.a / "count").write_text("0")
    script = 'for i in $(seq 10); do flock "$1/lock" sh -c \'echo $(($(cat "$1") + 1)) > "$1"\' sh "$1/count"; done'
    running = [subprocess.Popen(["bash", "-ec", script, "bash", str(path)]) for path in (tree.a, tree.b)]
    assert [process.wait() for process in running] == [0, 0]
    assert (tree.b / "count").read_text() == "20\n"


def test_sqlite_on_two_mounts(tree: Tree) -> None:
    """Rollback journal, which is what a shared filesystem is for; WAL needs shared memory (sqlite.org/wal.html)."""
    with (
        closing(sqlite3.connect(tree.a / "db", timeout=30, isolation_level=None)) as one,
        closing(sqlite3.connect(tree.b / "db", timeout=30, isolation_level=None)) as two,
    ):
        one.execute("create table t (node int, n int)")
        for number in range(10):
            for node, connection in enumerate((one, two)):
                connection.execute("begin immediate")
                (count,) = connection.execute("select count(*) from t").fetchone()
                assert count == 2 * number + node
                connection.execute("insert into t values (?, ?)", (node, number))
                connection.execute("commit")
        two.execute("begin exclusive")
        one.execute("pragma busy_timeout = 0")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            one.execute("select count(*) from t").fetchone()
        two.execute("commit")
        assert one.execute("pragma integrity_check").fetchone() == ("ok",)


def test_locks_of_many_files_leave_nothing_behind(lab: Lab, tree: Tree) -> None:
    for path in (tree.a, tree.b):
        for number in range(20):
            with (path / f"f{number}").open("a+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                fcntl.flock(file, fcntl.LOCK_EX)
    with (tree.c / "f0").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    for node in lab.nodes:
        assert lab.counters(node)["fuse"]["failures"] == 0


def test_a_dead_nodes_locks_go_with_it(base: tuple[Path, TextIO], watched: None) -> None:
    """SIGKILL of the holder's machine: the waiter gets the lock after the recovery, and what was written is there."""
    lab = new_lab(base, "lock-death", nodes=2)
    try:
        lab.up()
        first, second = lab.nodes
        (second.mountpoint / "f").write_bytes(b"x")
        with lockers(first.mountpoint / "f", second.mountpoint / "f", second.mountpoint / "f") as (one, two, three):
            assert one.ask("fcntl.lockf(fd, EX)") == "None"
            assert one.ask("fcntl.flock(fd, EX)") == "None"
            assert one.ask("os.pwrite(fd, b'saved', 0) and os.fsync(fd)") == "None"
            say_and_wait(lab, second, two, "fcntl.lockf(fd, EX)")
            say_and_wait(lab, second, three, "fcntl.flock(fd, EX)")
            lab.kill(first)
            assert two.heard() == "None"
            assert three.heard() == "None"
            assert two.ask("os.pread(fd, 10, 0)") == "b'saved'"
    finally:
        lab.remove()


def test_a_dead_node_leaves_no_waiter_behind(base: tuple[Path, TextIO], watched: None) -> None:
    """Its application is told that the tree is gone; the others get the lock, at the latest after the recovery."""
    lab = new_lab(base, "lock-withdraw", nodes=2)
    try:
        lab.up()
        first, second = lab.nodes
        (first.mountpoint / "f").write_bytes(b"x")
        with lockers(first.mountpoint / "f", second.mountpoint / "f") as (one, two):
            assert one.ask("fcntl.lockf(fd, EX)") == "None"
            say_and_wait(lab, second, two, "fcntl.lockf(fd, EX)")
            lab.kill(second)
            assert two.heard() in {errno.errorcode[code] for code in (errno.ENOTCONN, errno.ECONNABORTED)}
            assert one.ask("fcntl.lockf(fd, UN)") == "None"  # may be granted to the dead one now, until it is buried
            assert one.ask("fcntl.lockf(fd, EX)") == "None"
        assert registry.mount_at(str(first.mountpoint)) is not None
        assert os.listdir(first.mountpoint) == ["f"]
    finally:
        lab.remove()
