"""File locks between the kernel and a lock manager of one node, through a real mount (coherence.md 5 and 8)."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from matrixfs.fuse.libfuse import _extension
from tests.mount.edge_tree import ANSWER_SECONDS, REPOSITORY, ROOT, Tree, in_thread
from tests.mount.lockers import F_OFD_SETLK, FLOCK, Locker


@pytest.fixture
def tree(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Tree]:
    mounted = Tree(tmp_path, "epoch")
    try:
        (mounted.path / "f").write_bytes(b"x" * 100)
        yield mounted
    finally:
        mounted.close()


@pytest.fixture
def child(tree: Tree) -> Iterator[Locker]:
    made = Locker(tree.path / "f")
    try:
        yield made
    finally:
        made.end()


def ofd(descriptor: int, command: int, kind: int, start: int = 0, length: int = 0) -> Any:
    return FLOCK.unpack(fcntl.fcntl(descriptor, command, FLOCK.pack(kind, 0, start, length, 0)))


def getlk(descriptor: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """Type, start, length, pid."""
    found = FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, FLOCK.pack(kind, 0, start, length, 0)))
    return found[0], found[2], found[3], found[4]


def held(tree: Tree) -> list[list[Any]]:
    found: list[list[Any]] = tree.ask("locks")["held"]
    return found


def wait_for_waiters(tree: Tree, count: int) -> None:
    while tree.ask("locks")["waiting"] != count:
        pass  # each question is a round trip to the process


@pytest.mark.seed("002-09")
def test_posix_locks_of_two_processes(tree: Tree, child: Locker) -> None:
    assert child.ask("fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)") == "None"
    with (tree.path / "f").open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 14)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
        assert getlk(file.fileno(), fcntl.F_WRLCK, 0, 0) == (fcntl.F_WRLCK, 5, 10, child.process.pid)
        assert getlk(file.fileno(), fcntl.F_WRLCK, 15, 0)[0] == fcntl.F_UNLCK
        assert child.ask("fcntl.lockf(fd, fcntl.LOCK_UN, 4, 7)") == "None"  # a hole in the middle
        assert held(tree) == [["posix", 0, 4, True], ["posix", 5, 6, True], ["posix", 11, 14, True]]
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 4, -93, os.SEEK_END)  # bytes 7 to 10, from the end
    assert held(tree) == [["posix", 5, 6, True], ["posix", 11, 14, True]]
    assert tree.ask("counters")["failures"] == 0


def test_close_of_any_descriptor_drops_posix_locks_before_it_returns(tree: Tree) -> None:
    """A descriptor for reading too: its close is asked about as soon as the file has a lock."""
    reader = os.open(tree.path / "f", os.O_RDONLY)
    fcntl.lockf(reader, fcntl.LOCK_SH)
    writer = os.open(tree.path / "f", os.O_RDWR)
    fcntl.lockf(writer, fcntl.LOCK_EX, 5)
    other = os.open(tree.path / "f", os.O_RDONLY)
    assert len(held(tree)) == 2
    os.close(other)
    assert held(tree) == []
    fcntl.lockf(reader, fcntl.LOCK_SH)
    os.close(reader)
    assert held(tree) == []
    os.close(writer)


def test_closes_of_readers_without_locks_stay_out_of_python(tree: Tree) -> None:
    def calls() -> tuple[int, int]:
        counted = tree.ask("counters")["calls"]
        return counted.get("flush", 0), counted["flush_of_readers"]

    before = calls()
    for _ in range(10):
        (tree.path / "f").read_bytes()
    assert calls() == (before[0], before[1] + 10)
    with (tree.path / "f").open("rb") as file:
        fcntl.lockf(file, fcntl.LOCK_SH)
    assert calls() == (before[0] + 1, before[1] + 10)
    (tree.path / "f").read_bytes()  # with its last lock the file left the filter
    assert calls() == (before[0] + 1, before[1] + 11)


def test_flock_of_two_open_files(tree: Tree) -> None:
    with (tree.path / "f").open("rb") as one, (tree.path / "f").open("rb") as two:
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH)
        with pytest.raises(BlockingIOError):
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(two, fcntl.LOCK_SH)  # kinds don't see each other
        with in_thread(lambda: fcntl.flock(one, fcntl.LOCK_SH)) as result:
            wait_for_waiters(tree, 1)
            fcntl.flock(two, fcntl.LOCK_UN)
        assert result == [None]


def test_an_open_files_locks_go_with_its_last_descriptor(tree: Tree) -> None:
    """flock and OFD locks: the close of a duplicate changes nothing; a try after the last one succeeds on this node."""
    for lock in (lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda fd: ofd(fd, F_OFD_SETLK, 1)):
        for _ in range(20):
            one = os.open(tree.path / "f", os.O_RDWR)
            lock(one)
            os.close(os.dup(one))
            two = os.open(tree.path / "f", os.O_RDWR)
            with pytest.raises(BlockingIOError):
                lock(two)
            os.close(one)
            lock(two)
            os.close(two)
    while held(tree):
        pass


def test_ofd_and_posix_locks_see_each_other(tree: Tree, child: Locker) -> None:
    with (tree.path / "f").open("r+b") as one, (tree.path / "f").open("r+b") as two:
        ofd(one.fileno(), F_OFD_SETLK, fcntl.F_WRLCK, 0, 10)
        with pytest.raises(BlockingIOError):
            ofd(two.fileno(), F_OFD_SETLK, fcntl.F_RDLCK, 9, 1)
        assert child.ask("fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 3)") == "EAGAIN"
        (tree.path / "f").open("r+b").close()  # drops this process's POSIX locks, of which there are none
        assert len(held(tree)) == 1
        ofd(one.fileno(), F_OFD_SETLK, fcntl.F_UNLCK)
        assert child.ask("fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 3)") == "None"


def test_the_holder_on_another_node_has_no_pid_here(tree: Tree) -> None:
    """The kernel would take a foreign pid for a process of this node: 0 says "not here"."""
    ino = os.stat(tree.path / "f").st_ino
    tree.ask("remote_lock", kind="posix", ino=ino, range=[3, 2**63 - 1])
    with (tree.path / "f").open("r+b") as file:
        assert getlk(file.fileno(), fcntl.F_RDLCK, 0, 0) == (fcntl.F_WRLCK, 3, 0, 0)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with in_thread(lambda: fcntl.lockf(file, fcntl.LOCK_EX)) as result:
            wait_for_waiters(tree, 1)
            tree.ask("remote_unlock", kind="posix", ino=ino)
        assert result == [None]


@pytest.mark.parametrize("call", ["fcntl.lockf(fd, fcntl.LOCK_EX)", "fcntl.flock(fd, fcntl.LOCK_EX)"])
def test_a_signal_ends_the_wait(tree: Tree, child: Locker, call: str) -> None:
    """coherence.md 8.  A handler that raises; without one the process ends, which needs the same answer."""
    ino = os.stat(tree.path / "f").st_ino
    kind = "flock" if "flock" in call else "posix"
    tree.ask("remote_lock", kind=kind, ino=ino, range=[0, 2**63 - 1])
    alarm = "(lambda n, f: (_ for _ in ()).throw(OSError(errno.EINTR, 'signal')))"
    child.ask(f"__import__('signal').signal(10, {alarm})")
    child.say(call)
    wait_for_waiters(tree, 1)
    child.process.send_signal(signal.SIGUSR1)
    assert child.heard() == "EINTR"
    wait_for_waiters(tree, 0)
    child.say(call)
    wait_for_waiters(tree, 1)
    child.process.kill()
    child.process.wait(ANSWER_SECONDS)
    wait_for_waiters(tree, 0)
    assert tree.ask("locks")["parked"] == 0


def test_a_grant_that_crosses_the_interrupt_is_kept(tree: Tree, child: Locker) -> None:
    tree.ask("locks_fail", how="cross")
    child.ask("__import__('signal').signal(10, lambda n, f: None)")
    child.say("fcntl.lockf(fd, fcntl.LOCK_EX)")
    wait_for_waiters(tree, 1)
    child.process.send_signal(signal.SIGUSR1)
    assert child.heard() == "None"
    assert len(held(tree)) == 1
    child.end()
    assert held(tree) == []


def test_errors_of_the_lock_manager(tree: Tree) -> None:
    with (tree.path / "f").open("r+b") as file:
        tree.ask("locks_fail", how="deadlock")
        with pytest.raises(OSError, match="deadlock") as caught:
            fcntl.lockf(file, fcntl.LOCK_EX)
        assert caught.value.errno == errno.EDEADLK
        tree.ask("locks_fail", how="raise")
        with pytest.raises(OSError, match="Input/output") as caught:
            fcntl.flock(file, fcntl.LOCK_EX)
        tree.ask("locks_fail", how="")
        fcntl.flock(file, fcntl.LOCK_EX)
    assert tree.ask("counters")["failures"] == 1
    assert "KeyError" in tree.log()


@pytest.mark.parametrize("how", ["withdraw", "kill"])
def test_the_end_of_the_mount_ends_the_waits(tree: Tree, how: str) -> None:
    ino = os.stat(tree.path / "f").st_ino
    tree.ask("remote_lock", kind="posix", ino=ino, range=[0, 2**63 - 1])
    descriptor = os.open(tree.path / "f", os.O_RDWR)
    with in_thread(lambda: fcntl.lockf(descriptor, fcntl.LOCK_EX)) as result:
        wait_for_waiters(tree, 1)
        if how == "kill":
            tree._process.kill()
        else:
            tree.send("withdraw")
    assert isinstance(result[0], OSError)
    assert result[0].errno in {errno.ENOTCONN, errno.ECONNABORTED}
    assert tree._process.wait(ANSWER_SECONDS) == (-9 if how == "kill" else 0), tree.log()
    with pytest.raises(OSError, match="not connected"):
        os.close(descriptor)


def test_stale_and_made_up_numbers_are_refused() -> None:
    for number in (0, 1, 1 << 32, 5 << 32 | 3, 2**64 - 1):
        assert _extension.reply_err(number, 0) == errno.ESRCH
        assert _extension.reply_lock(number, fcntl.F_UNLCK, 0, 5, 0) == errno.ESRCH
    with pytest.raises(ValueError, match="range"):
        _extension.reply_lock(1 << 32, fcntl.F_UNLCK, 5, 4, 0)
    with pytest.raises(ValueError, match="below 0"):
        _extension.count_locks(1, -1)
    with pytest.raises(TypeError):
        _extension.set_lock_handlers(print, None)
    _extension.set_lock_handlers(print, print)
    _extension.set_lock_handlers(None, None)
    assert _extension.lock_counters()["parked"] == 0


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The extension built with address and undefined-behaviour checks, as environment of a mount process."""
    built = tmp_path_factory.mktemp("asan") / "_libfuse.so"
    sources = [str(path) for path in (REPOSITORY / "matrixfs/fuse/extension").glob("*.c")]
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    subprocess.run(
        ["gcc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
         f"-I{sysconfig.get_paths()['include']}", *sources, "-o", str(built),
         *flags.stdout.split(), "-ldl"],
        check=True,
    )  # fmt: skip
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself leaks at its end
        "MATRIXFS_TEST_EXTENSION": str(built),
        "PYTHONMALLOC": "malloc",
    }


def assert_sound(tree: Tree) -> None:
    assert "Sanitizer" not in tree.log()
    assert "runtime error" not in tree.log()


@pytest.mark.parametrize("end", ["unmount", "withdraw"])
def test_memory_is_sound(tmp_path: Path, sanitized: dict[str, str], end: str) -> None:
    """Every way of a request through the extension, in a build that checks each access to memory."""
    tree = Tree(tmp_path, "epoch", **sanitized)
    try:
        maps = Path(f"/proc/{tree._process.pid}/maps").read_text()
        assert "libasan" in maps
        assert sanitized["MATRIXFS_TEST_EXTENSION"] in maps
        path = tree.path / "f"
        path.write_bytes(b"x")
        ino = os.stat(path).st_ino
        child = Locker(path)
        assert child.ask("fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)") == "None"
        descriptors = [os.open(path, os.O_RDWR) for _ in range(100)]
        threads = [threading.Thread(target=fcntl.lockf, args=(d, fcntl.LOCK_EX)) for d in descriptors]
        for thread in threads:
            thread.start()
        wait_for_waiters(tree, 100)  # more than the first slots
        assert getlk(descriptors[0], fcntl.F_WRLCK, 0, 0)[3] == child.process.pid
        for how in ("deadlock", "raise", ""):
            tree.ask("locks_fail", how=how)
            child.ask("fcntl.flock(fd, fcntl.LOCK_SH)")
        child.end()
        for thread in threads:
            thread.join()
        while ["flock", 0, 2**63 - 1, False] in held(tree):  # goes with its open file, for which exit doesn't wait
            pass
        tree.ask("remote_lock", kind="flock", ino=ino, range=[0, 2**63 - 1])
        waiting = [Locker(path) for _ in range(3)]
        for each in waiting:
            each.say("fcntl.flock(fd, fcntl.LOCK_EX)")
        wait_for_waiters(tree, 3)
        waiting.pop().end()  # an interrupt
        wait_for_waiters(tree, 2)
        for descriptor in descriptors:
            os.close(descriptor)
        assert os.listdir(tree.path) == ["f"]
        if end == "unmount":
            for each in waiting:
                each.end()
            tree.unmount()
        else:
            tree.send("withdraw")
            assert [each.heard() for each in waiting] in (["ENOTCONN"] * 2, ["ECONNABORTED"] * 2)
            assert tree._process.wait(ANSWER_SECONDS) == 0, tree.log()
            for each in waiting:
                each.end()
        assert_sound(tree)
    finally:
        tree.close()


def test_memory_is_sound_without_open(tmp_path: Path, sanitized: dict[str, str]) -> None:
    """The same build, on a mount whose files the kernel opens by itself."""
    tree = Tree(tmp_path, "local", **sanitized)
    try:
        path = tree.path / "f"
        path.write_bytes(b"x" * 5000)
        with path.open("ab", buffering=0) as file:
            file.write(b"more")
            os.fsync(file.fileno())
        assert len(path.read_bytes()) == 5004
        tree.ask("shed", ino=os.stat(path).st_ino)
        tree.ask("purge_names", ino=ROOT)
        assert os.listdir(tree.path) == ["f"]
        path.unlink()
        tree.unmount()
        assert_sound(tree)
    finally:
        tree.close()
