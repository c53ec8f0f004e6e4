"""The short form of the stress, on real mounts; ``scripts/test --stress`` is the long one.

``locks`` is left to the long form and to the tests of file locks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.guard import guarded
from tests.mount.lab import Lab
from tests.stress.history import FILE, Op, new_identity
from tests.stress.judge import judge
from tests.stress.rounds import Hang, Round, Rounds, mount_hooked
from tests.stress.worker import shown

pytestmark = pytest.mark.seed("002-08", "002-09")

HANG_SECONDS = 1.0
TEST_SECONDS = 180.0  # for a broken product, not a bound under test


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of a lab; on a filesystem that does direct I/O.  Nothing of it stays behind, even if pytest is killed."""
    path = Path(f"/var/tmp/mfs-stress-{os.getpid()}")
    with guarded(path) as ear:
        print(TEST_SECONDS, file=ear, flush=True)
        yield path


@contextlib.contextmanager
def lab_of(directory: Path, nodes: int, hook: str = "") -> Iterator[Lab]:
    lab = Lab(directory, nodes=nodes, size="512M", name="stress")
    try:
        lab.format()
        for node in lab.nodes:
            lab.start(node)
        for node in lab.nodes:
            if hook:
                mount_hooked(lab, node, hook)
            else:
                lab.mount(node)
        yield lab
    finally:
        lab.remove()


def finish(lab: Lab) -> None:
    lab.down()
    found = lab.fsck("-n")
    assert found.returncode == 0, found.stdout + found.stderr


def test_two_then_eight_processes_on_three_mounts(directory: Path) -> None:
    with lab_of(directory, 3) as lab:
        assert judge(known_and_changed_elsewhere(lab), strict=True).problems == []
        rounds = Rounds(lab)
        for number, profile in enumerate(("names", "mixed", "append"), 1):
            rounds.run(Round(number, profile, 1, 2, 60))
        for number, profile in enumerate(("names", "mixed", "file"), 11):
            rounds.run(Round(number, profile, 1, 8, 15))
        finish(lab)
        assert rounds.counts.total() > 500


def test_without_epochs(directory: Path) -> None:
    with lab_of(directory, 2, "no-epoch") as lab:
        rounds = Rounds(lab, epochs=False)
        assert judge(known_and_changed_elsewhere(lab), epochs=False, strict=True).problems == []
        rounds.run(Round(1, "names", 1, 4, 15))
        assert all(lab.counters(node)["fuse"]["caches"]["epochs"] == 0 for node in lab.nodes)
        finish(lab)


RECORDS = [b"%023d\n" % number for number in range(3)]


def known_and_changed_elsewhere(lab: Lab) -> list[Op]:
    """Answers that a kernel has got, made wrong by the other node, asked for again: one after the other."""
    history: list[Op] = []
    tops = [node.mountpoint / "directed" for node in lab.nodes]
    tops[0].mkdir()
    (tops[0] / "log").touch()

    def do(node: int, kind: str, args: tuple[Any, ...], action: Callable[[], Any]) -> None:
        start = time.monotonic_ns()
        try:
            result = action()
        except OSError as error:
            result = -(error.errno or 0)
        history.append(Op(start, time.monotonic_ns(), node, node, kind, args, result))

    def looks(at: int) -> None:
        for _ in range(2):
            do(1, "look", (at,), lambda: shown(os.lstat(tops[1] / f"n{at}")))

    def reads_log() -> None:
        do(1, "log_size", (), lambda: (tops[1] / "log").stat().st_size)
        do(1, "read_log", (), (tops[1] / "log").read_bytes)

    looks(0)
    identity = new_identity(1, FILE)
    fd = os.open(tops[0], os.O_RDONLY)
    do(0, "create", (0, identity), lambda: make(tops[0] / "n0", identity))
    looks(0)
    looks(1)
    do(0, "rename", (0, 1, 0), lambda: os.rename("n0", "n1", src_dir_fd=fd, dst_dir_fd=fd))
    looks(0)
    looks(1)
    os.close(fd)
    for record in RECORDS:
        reads_log()
        do(0, "append", (record,), lambda record=record: append(tops[0] / "log", record))
    reads_log()
    return [op._replace(result=0) if op.result is None else op for op in history]


def make(path: Path, identity: int) -> None:
    os.setegid(identity)
    try:
        path.touch(exist_ok=False)
    finally:
        os.setegid(0)


def append(path: Path, record: bytes) -> None:
    with path.open("ab") as file:
        file.write(record)


@pytest.mark.parametrize(("hook", "said"), [("no-names", "names: not linearizable"), ("no-inodes", "log: ")])
def test_a_purge_that_does_nothing_is_found_out(directory: Path, hook: str, said: str) -> None:
    """The checker fails on real mounts with R8 taken out: kernels answer from what they should have forgotten."""
    with lab_of(directory, 2, hook) as lab:
        found = judge(known_and_changed_elsewhere(lab)).problems
    assert any(said in problem for problem in found), found


def test_the_watchdog_ends_an_operation_that_takes_too_long(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node stands still with what the other wants: told who waits for what, and nobody is left behind."""
    with lab_of(directory, 2) as lab:
        rounds = Rounds(lab, hang_seconds=HANG_SECONDS)
        paused = lab.nodes[0].mount_pid
        reports: list[str] = []
        report = rounds.report

        def with_both_running(late: dict[int, tuple[int, str]]) -> str:
            os.kill(paused, signal.SIGCONT)  # the report asks every mount process
            reports.append(report(late))
            return reports[-1]

        monkeypatch.setattr(rounds, "report", with_both_running)
        os.kill(paused, signal.SIGSTOP)
        with pytest.raises(Hang):
            rounds.run(Round(1, "names", 1, 2, 10))
        assert "hangs for" in reports[0]
        assert "kernel caches" in reports[0]
