"""A cluster in a network namespace of its own, in which the link between two mounts is cut; test_lost_link.py runs it.

Usage: ``unshare --net python -m tests.mount.lost_link DIRECTORY PAIR|ALL``.  Policy routing swallows every packet to
and from the port on which one mount listens for locks, so nothing refuses and nothing resets; the links of the
matrixds, on the same addresses, are not touched.  Of two mounts the one with the lower node id connects: PAIR cuts the
middle node's port, which is one link; ALL cuts the highest node's, which is all of its links.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.mount.crowd import Crowd
from tests.mount.lab import Lab, LabNode, is_settled, wait_gone, wait_until
from tests.mount.test_death import value, work_until

ROUNDS_MIN = 10


def cut(port: int) -> None:
    """Swallow what goes to or comes from this port."""
    for end in ("dport", "sport"):
        subprocess.run(["ip", "rule", "add", "pref", "10", "ipproto", "tcp", end, str(port), "blackhole"], check=True)


def main(directory: Path, what: str) -> int:
    """Print what was seen; 0 when all went as it must."""
    for line in ("link set lo up", "rule add pref 100 lookup local", "rule del pref 0"):
        subprocess.run(["ip", *line.split()], check=True)
    lab = Lab(directory, nodes=3, size="512M", name="lostlink")
    try:
        lab.up()
        run(lab, what)
        lab.down()
        return lab.fsck("-n").returncode
    finally:
        lab.remove()


def run(lab: Lab, what: str) -> None:
    """Cut, and see who goes."""
    status = lab.status(lab.nodes[0])
    (filesystem,) = status["filesystems"]
    names = {node["id"]: node["name"] for node in status["nodes"]}
    ordered = sorted(filesystem["mounts"], key=lambda mount: int(mount["node"]))
    cut_one = ordered[1 if what == "PAIR" else 2]
    ends = ordered[:2] if what == "PAIR" else [ordered[2]]
    victim = by_name(lab, max(names[mount["node"]] for mount in ends))  # of equal ones the greater address goes
    survivors = [node for node in lab.nodes if node is not victim]
    daemons, mounted = [node.daemon_pid for node in lab.nodes], victim.mount_pid
    tops = [node.mountpoint / "shared" for node in lab.nodes]
    tops[0].mkdir()
    outside = lab.directory / "outside"
    outside.mkdir()
    with Crowd() as crowd, Crowd() as dying:
        for node in survivors:
            rounds = outside / f"rounds-{node.name}"
            crowd.start(work_until, node.mountpoint / "shared", node.name, outside / "stop", rounds)
        rounds = outside / "rounds-victim"
        dying.start(fail_quietly, victim.mountpoint / "shared", victim.name, outside / "stop", rounds)
        wait_until(lambda: all(value(path) > 2 for path in outside.glob("rounds-*")), "load runs")
        began = time.monotonic()
        cut(cut_one["port"])
        wait_gone([mounted])
        lab.detach(victim)
        took = time.monotonic() - began
        dying.wait()
        wait_until(lambda: is_settled(lab, survivors[0], survivors), "the others have recovered")
        for node in survivors:
            rounds = outside / f"rounds-{node.name}"
            at = value(rounds)
            wait_until(lambda rounds=rounds, at=at: value(rounds) > at + ROUNDS_MIN, f"{node.name} goes on")
        (outside / "stop").touch()
        crowd.wait()
    assert [node.daemon_pid for node in lab.nodes] == daemons, "no node was evicted"
    events = list(itertools.chain(*(lab.status(node)["events"] for node in lab.nodes)))
    said = [event["text"] for event in events if event["kind"] == "evicted"]
    assert len(said) == 1, said
    assert "lock links" in said[0]
    print(f"{what}: {victim.name} went after {took:.1f} s: {said[0]}")


def by_name(lab: Lab, name: str) -> LabNode:
    return next(node for node in lab.nodes if node.name == name)


def fail_quietly(top: Path, who: str, stop: Path, rounds: Path) -> None:
    """The load on the mount that will be evicted."""
    try:
        work_until(top, who, stop, rounds)
    except OSError:
        return


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
