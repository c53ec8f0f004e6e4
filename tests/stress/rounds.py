"""Runs the stress on a lab: rounds of some seconds, each in a directory of its own, each judged when it is over.

A watchdog looks at what every worker does.  An operation that takes longer than ``HANG_SECONDS`` ends the run: it
prints the waits of all mounts and the kernel stacks of those that hang, aborts the FUSE connections, which frees
whoever waits in them, and kills the workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matrixfs.fuse import connection, registry
from tests.mount.lab import Lab, LabError, LabNode
from tests.stress import crowd
from tests.stress.contents import Stale
from tests.stress.history import Op
from tests.stress.judge import judge
from tests.stress.worker import Board, Plan, Worker, prepare

HANG_SECONDS = 30.0
STARVED_TIMES = 5  # as long, for workers that come last
LOOK_SECONDS = 0.05
END_SECONDS = 10.0


class Hang(Exception):
    """An operation took longer than any may; the text says which, and what everybody waits for."""


class Broken(Exception):
    """A worker failed, or a history is not explained; the text says why, and how to repeat it."""


@dataclass(frozen=True)
class Round:
    """What is done: ``profile`` is one of ``worker.PROFILES``."""

    number: int
    profile: str
    seed: int
    processes: int
    operations: int  # of each process

    def __str__(self) -> str:
        return f"round {self.number} ({self.profile}, seed {self.seed}, {self.processes} processes)"


class Rounds:
    """A lab that is up, and what was done on it.

    Args:
        lab: all its nodes mounted.
        hang_seconds: see the module.
        epochs: whether the kernel has the epoch notification and the mounts use it.
        strict: known limits count as problems.
        starve: workers come last wherever they run (``crowd``).
    """

    def __init__(
        self,
        lab: Lab,
        hang_seconds: float = HANG_SECONDS,
        *,
        epochs: bool = True,
        strict: bool = False,
        starve: bool = False,
    ) -> None:
        self.lab = lab
        self.counts: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self._hang_seconds = hang_seconds * (STARVED_TIMES if starve else 1)
        self._epochs = epochs
        self._strict = strict
        self._starve = starve
        self.stale: list[Stale] = []  # of the last round, excused or not
        self._logs = lab.directory / "histories"

    def run(self, wanted: Round) -> list[Op]:
        """Do a round and judge it; its history.  Raises Hang, Broken."""
        history = self.work(wanted)
        verdict = judge(history, epochs=self._epochs, strict=self._strict)
        self.excused.update(verdict.excused)
        self.stale = verdict.stale
        if verdict.problems:
            (self._logs / f"round{wanted.number}.pickle").write_bytes(pickle.dumps(history))
            raise Broken(f"{wanted}: " + "\n".join(verdict.problems[:6]))
        return history

    def work(self, wanted: Round) -> list[Op]:
        """Do a round; its history, with everything looked at from every node at the end."""
        self._logs.mkdir(exist_ok=True)
        name = f"round{wanted.number}"
        board = Board(wanted.processes + 1)
        nodes = self.lab.nodes
        history = self._in_workers(board, [(lambda: prepare(nodes[0].mountpoint / name), wanted.processes)])
        plans = [
            Plan(who, who % len(nodes), nodes[who % len(nodes)].mountpoint / name,
                 f"{wanted.seed}.{wanted.number}.{who}", wanted.operations, wanted.profile)
            for who in range(wanted.processes)
        ]  # fmt: skip
        jobs: list[tuple[Callable[[], object], int]] = [
            (lambda plan=plan: Worker(plan, board).run(), plan.who) for plan in plans
        ]
        history += self._in_workers(board, jobs)
        for number, node in enumerate(nodes):
            plan = Plan(wanted.processes, number, node.mountpoint / name, "", 0, wanted.profile)
            history += self._in_workers(board, [(Worker(plan, board).look_at_everything, wanted.processes)])
        self.counts.update(op.kind for op in history)
        return history

    def _in_workers(self, board: Board, jobs: list[tuple[Callable[[], object], int]]) -> list[Op]:
        """Run each job in a process of its own; their histories."""
        children = {self._fork(board, job, who): who for job, who in jobs}
        try:
            failed = self._watch(board, dict(children))
        except Hang:
            for pid in children:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
            raise
        if failed:
            raise Broken(f"a worker failed: {(self._logs / str(failed[0])).read_text(errors='replace')[-2000:]}")
        history: list[Op] = []
        for who in children.values():
            history += pickle.loads((self._logs / str(who)).read_bytes())  # noqa: S301 - our own
        return history

    def _fork(self, board: Board, job: Callable[[], object], who: int) -> int:
        log = self._logs / str(who)
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            board.begin(who, "its beginning")
            if self._starve:
                crowd.come_last()
            log.write_bytes(pickle.dumps(job() or []))
            code = 0
        except BaseException:  # noqa: BLE001 - a child must not run the parent's handlers
            log.write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def _watch(self, board: Board, children: dict[int, int]) -> list[int]:
        """Wait for all; who failed.  Raises Hang."""
        failed = []
        while children:
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    who = children.pop(pid)
                    failed += [who] if status else []
            now = time.monotonic_ns()
            late = {
                pid: board.now(who)
                for pid, who in children.items()
                if 0 < board.now(who)[0] < now - self._hang_seconds * 1e9
            }
            if late:
                told = self.report(late)
                self.cut_off()
                raise Hang(told)
            time.sleep(LOOK_SECONDS)
        return failed

    def report(self, late: dict[int, tuple[int, str]]) -> str:
        """Who hangs where, and what every mount waits for."""
        lines = []
        for pid, (since, what) in late.items():
            lines.append(f"process {pid} hangs for {(time.monotonic_ns() - since) / 1e9:.1f} s in {what}")
            with contextlib.suppress(OSError):
                lines += [f"    {line}" for line in Path(f"/proc/{pid}/stack").read_text().splitlines()]
        for node in self.lab.nodes:
            try:
                counters = self.lab.counters(node)
                lines.append(f"{node.name}: waits {counters['waits']}, kernel caches {counters['fuse']['caches']}")
            except (LabError, KeyError, OSError) as error:
                lines.append(f"{node.name}: {error}")
        return "\n".join(lines)

    def cut_off(self) -> None:
        """Abort every FUSE connection of the lab: nobody waits in them any more."""
        for node in self.lab.nodes:
            mount = registry.mount_at(str(node.mountpoint))
            if mount is not None:
                with contextlib.suppress(OSError):
                    connection.abort(mount.device)


def plan_of(number: int, seed: int, processes: int, operations: int, profiles: tuple[str, ...]) -> Round:
    """The ``number``-th round of a run."""
    rng = random.Random(f"{seed}.{number}")
    return Round(number, profiles[number % len(profiles)], seed, processes, rng.randint(operations // 2, operations))


def mount_hooked(lab: Lab, node: LabNode, hook: str, *options: str) -> None:
    """Mount with ``hooked_mount``'s hook."""
    node.mountpoint.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("hooked_mount.py")
    lab.run(sys.executable, program, hook, lab.name, node.mountpoint, "-o", ",".join((f"state={node.state}", *options)))
    node.pids.append(node.mount_pid)
