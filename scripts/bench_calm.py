"""``scripts/bench --calm``: four nodes on one machine whose CPUs are all taken, for minutes: is anybody evicted?

Each node has a process that only computes and one that works on the tree.  There is nothing to recover from, so every
fence, eviction and recovery is a false one, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.bench_counters import BenchError
from scripts.bench_failover import GUARD_SECONDS, Say, Worker, stream
from tests.mount.guard import guarded
from tests.mount.lab import Lab, is_settled, wait_until

NODES = 4
LOOK_SECONDS = 1.0


@dataclass
class Calm:
    """What was seen.  Times in seconds."""

    minutes: float
    hogs: int  # processes that only compute
    cpus: int
    generations: int  # how often the SAN generation moved: 0 is right
    fences: int  # 0 is right
    recoveries: int  # 0 is right
    lease_left_least: float  # of any node, of ``lease``: 0 would have paused its mounts
    lease: float
    slot_age_most: float  # of any node as another saw it: at ``lease`` and more it would have been dead
    longest_call: float  # of those that work on the tree

    @property
    def is_calm(self) -> bool:
        """Nobody was evicted, fenced or recovered."""
        return not (self.generations or self.fences or self.recoveries)


def burn(stop: Callable[[], bool]) -> float:
    """Compute until told to stop."""
    rounds = 0.0
    while not stop():
        rounds += sum(range(20000)) and 1
    return rounds


def measure(directory: Path, minutes: float, say: Say) -> Calm:
    """Run it.  Raises BenchError, LabError, OSError."""
    if os.geteuid() != 0:
        raise BenchError("only root may mount: use sudo")
    own = directory / f"calm-{os.getpid()}"
    own.mkdir(parents=True)
    with guarded(own, keep=True) as ear:
        print(GUARD_SECONDS, file=ear, flush=True)
        lab = Lab(own / "lab", nodes=NODES, size="512M", name="calm")
        try:
            lab.up()
            wait_until(lambda: is_settled(lab, lab.nodes[0], lab.nodes), "all are members")
            found = _under_load(lab, minutes, say)
        except BaseException:
            lab.close()
            say(f"logs: {lab.directory}/n*/*.log")
            raise
        lab.remove()
    shutil.rmtree(own)
    return found


def _under_load(lab: Lab, minutes: float, say: Say) -> Calm:
    before = lab.status(lab.nodes[0])
    tops = [node.mountpoint / f"stream-{node.name}" for node in lab.nodes]
    for top in tops:
        top.mkdir()
    hogs = [Worker(burn) for _ in lab.nodes]
    streams = [Worker(lambda stop, top=top: stream(top, stop)) for top in tops]  # type: ignore[misc]
    for worker in (*hogs, *streams):
        worker.go()
    lease, ages = [before["lease_left"]], [0.0]
    try:
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            status = lab.status(lab.nodes[len(lease) % len(lab.nodes)])
            lease.append(status["lease_left"])
            ages += [node["slot_age"] for node in status["nodes"] if node["state"] == "member"]
            if len(lease) % 60 == 0:
                say(f"{len(lease)} looks: least lease left {min(lease):.2f} s, oldest slot {max(ages):.2f} s")
    finally:
        longest = max([worker.answer() for worker in streams])
        for worker in hogs:
            worker.answer()
    after = lab.status(lab.nodes[0])
    return Calm(
        minutes, len(hogs), os.cpu_count() or 0,
        after["generation"] - before["generation"], len(after["fences"]) - len(before["fences"]),
        len(after["recoveries"]) - len(before["recoveries"]),
        min(lease), before["timing"]["lease"], max(ages), longest,
    )  # fmt: skip


def run(directory: Path, minutes: float, head: dict[str, Any], say: Say, *, as_json: bool) -> None:
    """Measure, and print.  Raises BenchError when somebody was evicted."""
    found = measure(directory, minutes, say)
    if as_json:
        json.dump({**head, **asdict(found)}, sys.stdout, indent=2)
        print()
    else:
        print(f"\n{NODES} nodes, {found.hogs} processes that only compute, {found.cpus} CPUs, {minutes:g} minutes")
        false = f"{found.generations} generations, {found.fences} fences, {found.recoveries} recoveries"
        print(f"false evictions        {false}")
        print(f"least lease left       {found.lease_left_least:.2f} of {found.lease:g} s")
        print(f"oldest slot of a node  {found.slot_age_most:.2f} s")
        print(f"longest call           {found.longest_call:.2f} s")
        print(f"\nrepeat with: {head['command']}")
    if not found.is_calm:
        raise BenchError("somebody was evicted though nothing had happened")
