"""``scripts/bench --failover``: how long the others wait when a node dies, hangs or comes.

Each round harms one node, another one each time, so every third is the administrator's.  Just before, the victim has
written a file, and nobody else has seen it; in the instant of the harm a process on each other node opens and reads it,
and waits for the victim's lock.  Beside that a stream of small operations runs on each of them, on files of their own:
its longest call shows what the death costs those who want nothing of the dead.

What is fenced by ``process``, ``lease`` and ``scsi-pr`` runs here; a row for another fence is one more ``Case``.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from scripts.bench_counters import BenchError
from tests.mount.crowd import die_with_parent
from tests.mount.guard import guarded
from tests.mount.lab import Lab, LabNode, is_settled, wait_gone, wait_until
from tests.net.lab import NetLab
from tests.san.cluster import SanLab
from tests.san.lab import san

ANSWER_SECONDS_MAX = 60
GUARD_SECONDS = 86400  # the guard is for our end; what hangs meanwhile shows by ANSWER_SECONDS_MAX
STREAM_PAUSE = 0.004  # seconds between two operations of a stream: steady work, not a load test
AFTER_SECONDS = 0.5  # of watching the streams after the recovery
SIZE = "512M"

Say = Callable[[str], None]
Harm = Callable[[LabNode], object]


@dataclass
class Case:
    """One row.

    Args:
        name: what happens.
        target: seconds that the longest blocked call may take, or the join.
        stream_target: seconds that the longest call of a stream may take; None: none was promised.
        seconds: per round: the longest blocked call of those who wait for the victim's lock; or the whole join.
        streams: per round: the longest call of the streams.
        phases: of each recovery, as ``matrixctl status`` has them.
    """

    name: str
    target: float
    stream_target: float | None = None
    seconds: list[float] = field(default_factory=list)
    streams: list[float] = field(default_factory=list)
    phases: list[list[tuple[str, float]]] = field(default_factory=list)

    @property
    def phase_medians(self) -> dict[str, float]:
        """Seconds by phase; of a phase that came twice in a recovery, the sum."""
        found: defaultdict[str, list[float]] = defaultdict(list)
        for recovery in self.phases:
            sums: defaultdict[str, float] = defaultdict(float)
            for name, seconds in recovery:
                sums[name] += seconds
            for name, seconds in sums.items():
                found[name].append(seconds)
        return {name: median(all_of_it) for name, all_of_it in found.items()}


# --- processes beside the bench -------------------------------------------------------------------------------------


class Worker:
    """A forked process: runs ``action(stop)`` after ``go``; its answer is one number.  ``stop()`` says: end now."""

    def __init__(self, action: Callable[[Callable[[], bool]], float]) -> None:
        hear, self._go = os.pipe()
        self._answer, tell = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(hear)
            os.close(tell)
            return
        code = 1
        try:
            die_with_parent()
            os.read(hear, 1)
            os.write(tell, b"%f" % action(lambda: bool(select.select([hear], [], [], 0)[0])))
            code = 0
        finally:
            os._exit(code)

    def go(self) -> None:
        os.write(self._go, b"g")

    def answer(self) -> float:
        """End it, and wait for its word.  Raises BenchError when it failed or hangs."""
        with contextlib.suppress(BrokenPipeError):  # it ended by itself
            os.write(self._go, b"s")
        os.close(self._go)
        ready, _, _ = select.select([self._answer], [], [], ANSWER_SECONDS_MAX)
        said = os.read(self._answer, 64) if ready else b""
        os.close(self._answer)
        if not ready:
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        if not said:
            raise BenchError("a call on a survivor failed" if ready else "a call on a survivor hangs")
        return float(said)


def read_once(path: Path) -> float:
    """Seconds of one open, read and close."""
    began = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)
    return time.monotonic() - began


def stream(top: Path, stop: Callable[[], bool]) -> float:
    """Create, write, read, rename and list in a directory of one's own; the longest of these calls, in seconds."""
    longest, number = 0.0, 0

    def timed(action: Callable[[], object]) -> None:
        nonlocal longest
        began = time.monotonic()
        action()
        longest = max(longest, time.monotonic() - began)
        time.sleep(STREAM_PAUSE)

    while not stop():
        path, number = top / f"f{number % 20}", number + 1
        timed(lambda: path.write_bytes(b"x" * 1000))  # noqa: B023 - called at once
        timed(path.read_bytes)
        timed(lambda: os.rename(path, top / "renamed"))  # noqa: B023
        timed(lambda: os.listdir(top))
    return longest


# --- the rounds -----------------------------------------------------------------------------------------------------


class Failover:
    """Rounds on one lab, all of whose nodes are up and mounted before and after each."""

    def __init__(self, lab: Lab, say: Say) -> None:
        self.lab = lab
        self._say = say
        self._number = 0

    @contextlib.contextmanager
    def streams(self, case: Case, nodes: Sequence[LabNode]) -> Iterator[None]:
        """With a stream on each of the nodes; the longest call goes into the row."""
        tops = [node.mountpoint / f"stream-{node.name}" for node in nodes]
        for top in tops:
            top.mkdir(exist_ok=True)
        workers = [Worker(lambda stop, top=top: stream(top, stop)) for top in tops]  # type: ignore[misc]
        for worker in workers:
            worker.go()
        time.sleep(AFTER_SECONDS)  # the first calls take locks
        try:
            yield
            time.sleep(AFTER_SECONDS)
        finally:
            longest = max([worker.answer() for worker in workers])
        case.streams.append(longest)

    def dies(self, case: Case, harm: Harm, wake: Callable[[], object] = lambda: None, *, daemon: bool = True) -> None:
        """One round.

        Args:
            case: the row.
            harm: what is done to the victim.
            wake: after the recovery: makes that what is left of the victim can end.
            daemon: whether its matrixd ends, too.
        """
        lab = self.lab
        victim = lab.nodes[self._number % len(lab.nodes)]
        others = [node for node in lab.nodes if node is not victim]
        name = f"of-the-victim-{self._number}"
        self._number += 1
        pids = [victim.mount_pid, *([victim.daemon_pid] if daemon else [])]
        write_unseen(victim.mountpoint / name)
        waiters = [Worker(lambda _, node=node: read_once(node.mountpoint / name)) for node in others]  # type: ignore[misc]
        with self.streams(case, others):
            harm(victim)
            for waiter in waiters:
                waiter.go()
            case.seconds.append(max([waiter.answer() for waiter in waiters]))
            wait_until(lambda: is_settled(lab, others[0], others), "the others have recovered")
        case.phases.append(lab.status(others[0])["recoveries"][-1]["phases"])
        wake()
        wait_gone(pids)
        mend(lab, victim, daemon=daemon)
        wait_until(lambda: is_settled(lab, others[0], lab.nodes), "all are members again")
        self._say(f"{case.name}: {victim.name}: {case.seconds[-1]:.2f} s, streams {case.streams[-1]:.2f} s")

    def joins(self, case: Case) -> None:
        """One round: the last node, which is down, comes and goes."""
        lab, comer, others = self.lab, self.lab.nodes[-1], self.lab.nodes[:-1]
        with self.streams(case, others):
            began = time.monotonic()
            lab.start(comer)
            lab.mount(comer)
            case.seconds.append(time.monotonic() - began)
        self._say(f"{case.name}: {case.seconds[-1]:.2f} s, streams {case.streams[-1]:.3f} s")
        lab.umount(comer)
        lab.stop(comer)

    def idles(self, case: Case, seconds: float) -> None:
        """What the streams see when nothing happens: the machine's own hiccups."""
        with self.streams(case, self.lab.nodes[:-1]):
            time.sleep(seconds)


def write_unseen(path: Path) -> None:
    """A file of which only its writer knows the bytes: it holds the lock for writing, and nothing is dirty."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(fd, b"x" * 4096)
    os.fsync(fd)
    os.close(fd)


# --- what is done to a victim ---------------------------------------------------------------------------------------


def kill_mount(node: LabNode) -> None:
    os.kill(node.mount_pid, signal.SIGKILL)


def kill_daemon(node: LabNode) -> None:
    os.kill(node.daemon_pid, signal.SIGKILL)


def mend(lab: Lab, node: LabNode, *, daemon: bool) -> None:
    """What the service manager and fstab do, when the processes are gone."""
    lab.detach(node)
    if daemon:
        lab.start(node)
    lab.mount(node)


def on_one_machine(directory: Path, rounds: int, say: Say) -> list[Case]:
    """Three nodes that can kill each other (fence ``process``), and a fourth that joins them."""
    mount = Case("mount process killed", 1.0)
    daemon = Case("matrixd killed: its mount ends itself", 1.0)
    both = Case("matrixd and mount killed", 1.0)
    frozen = Case("node frozen, fenced by process", 5.0)
    join = Case("a fourth node joins: member and mounted", 3.0, 0.1)
    idle = Case("(the streams, and nothing happens)", 0.0)
    lab = Lab(directory / "one-machine", nodes=3, size=SIZE, name="failover")
    try:
        lab.up()
        bench = Failover(lab, say)
        for _ in range(rounds):
            bench.dies(mount, kill_mount, daemon=False)
            bench.dies(daemon, kill_daemon)
            bench.dies(both, lab.kill)
            bench.dies(frozen, lab.pause)
        lab.nodes.append(LabNode("n4", "127.0.0.4", lab.directory / "n4", lab.directory / "mnt4"))
        for _ in range(rounds):
            bench.joins(join)
            bench.idles(idle, join.seconds[-1])
    except BaseException:
        keep_logs(lab, say)
        raise
    lab.remove()
    return [mount, daemon, both, frozen, join, idle]


def on_machines(directory: Path, rounds: int, say: Say) -> list[Case]:
    """Four nodes, each a machine of its own: nobody can kill anybody, so time must pass (fence ``lease``)."""
    off = Case("machine powered off, fenced by lease", 10.0)
    frozen = Case("machine frozen, fenced by lease", 10.0)
    lab = NetLab(directory / "machines", size=SIZE, name="machines")
    try:
        lab.up()
        bench = Failover(lab, say)
        for _ in range(rounds):
            bench.dies(off, lab.power_off, lab.switch.heal)
            bench.dies(frozen, lambda node: lab.freeze(node, "stop"), lab.thaw)
    except BaseException:
        keep_logs(lab, say)
        raise
    lab.remove()
    return [off, frozen]


def on_a_lun(directory: Path, rounds: int, say: Say) -> list[Case]:
    """Three machines on a LUN of tgt, which fences by its reservations (``scsi-pr``): no time has to pass."""
    frozen = Case("machine frozen, fenced by its LUN", 5.0)
    mount = Case("mount process killed, disowned by its LUN", 1.0)
    with san("tgt", size=512 << 20) as target:
        lab = SanLab(directory / "lun", target)
        lab.remove()
        try:
            lab.up()
            bench = Failover(lab, say)
            for _ in range(rounds):
                bench.dies(mount, kill_mount, daemon=False)
                bench.dies(frozen, lambda node: lab.freeze(node, "stop"), lab.thaw)
        except BaseException:
            keep_logs(lab, say)
            raise
        lab.remove()
    return [mount, frozen]


def keep_logs(lab: Lab, say: Say) -> None:
    lab.close()
    say(f"logs: {lab.directory}/n*/*.log")


# --- the table ------------------------------------------------------------------------------------------------------

_COLUMNS = ("seconds", "median", "max", "target", "", "others' longest call", "max", "target", "")


def table(cases: Sequence[Case]) -> str:
    """For people."""
    lines = [_COLUMNS]
    for case in cases:
        lines.append((case.name, *_cells(case.seconds, case.target or None), *_cells(case.streams, case.stream_target)))
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
    text = [
        "  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                  for at, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]  # fmt: skip
    text.append("")
    for case in cases:
        if case.phases:
            phases = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in case.phase_medians.items())
            text.append(f"{case.name}: phases in ms: {phases}")
    return "\n".join(text)


def _cells(seconds: Sequence[float], target: float | None) -> tuple[str, str, str, str]:
    if not seconds:
        return "-", "-", "-", ""
    verdict = "" if target is None else "met" if median(seconds) < target else "MISSED"
    return f"{median(seconds):.3f}", f"{max(seconds):.3f}", "-" if target is None else f"{target:g}", verdict


def measure(directory: Path, rounds: int, say: Say) -> list[Case]:
    """All rows.  Raises BenchError, LabError, OSError."""
    if os.geteuid() != 0:
        raise BenchError("only root may mount: use sudo")
    own = directory / f"failover-{os.getpid()}"
    own.mkdir(parents=True)
    with guarded(own, keep=True) as ear:  # whatever ends us: no process, mount or namespace stays
        print(GUARD_SECONDS, file=ear, flush=True)
        every = (on_one_machine, on_machines, on_a_lun)
        found = [case for rows in every for case in rows(own, rounds, say)]
    shutil.rmtree(own)
    return found


def run(directory: Path, rounds: int, head: dict[str, Any], say: Say, *, as_json: bool) -> None:
    """Measure, and print."""
    cases = measure(directory, rounds, say)
    if as_json:
        rows = [asdict(case) | {"phase_medians": case.phase_medians} for case in cases]
        json.dump({**head, "rows": rows}, sys.stdout, indent=2)
        print()
        return
    print(f"\nFailover: seconds until all calls that wait for the victim's lock have gone on; {rounds} rounds each\n")
    print(table(cases))
    print(f"\n{head['cpus']} CPUs, Linux {head['kernel']}, Python {head['python']}, load {head['load_before']} before")
    print(f"repeat with: {head['command']}")
