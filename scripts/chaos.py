"""Random kills and freezes on real mounts; ``scripts/chaos`` installs first and then runs this.

The seed chooses whom and how to kill; when exactly is the machine's business, so a run can't be replayed.  What a run
finds becomes a simulated seed or a test of its own (``tests/sim``, ``tests/mount/test_death.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

from tests.mount.lab import Lab, LabError, LabNode

BACK_SECONDS_MAX = 60.0
# The whole node twice as often; "two" nodes at one instant; "nap": a freeze too short to be evicted for.
WAYS = ("node", "node", "mount", "daemon", "two", "freeze", "freeze-mount", "freeze-daemon", "nap")
NAP_SECONDS = 1.5


class Chaos:
    """One run on one lab."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        self.acknowledged = lab.directory / "acknowledged"
        self._numbers = itertools.count()
        self._writers: dict[str, int] = {}

    def start(self) -> None:
        self.lab.up()
        self.acknowledged.mkdir()
        (self.lab.nodes[0].mountpoint / "shared").mkdir()
        for node in self.lab.nodes:
            self._write_on(node)

    def _write_on(self, node: LabNode) -> None:
        number = next(self._numbers)
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):  # its node was killed
                write_for_ever(node.mountpoint / "shared", number, self.acknowledged / str(number))
            os._exit(0)
        self._writers[node.name] = pid

    def round(self, number: int) -> None:
        """Kill or freeze, look whether a survivor goes on, bring the dead back."""
        time.sleep(self.random.uniform(0.5, 2.5))
        way = self.random.choice(WAYS)
        victims = self.random.sample(self.lab.nodes, 2 if way == "two" else 1)
        if way == "nap":
            self._nap(number, victims[0])
            return
        began = time.monotonic()
        for node in victims:
            which = way.removeprefix("freeze-")
            pids = {"mount": [node.mount_pid], "daemon": [node.daemon_pid]}
            for pid in pids.get(which, [node.daemon_pid, node.mount_pid]):
                os.kill(pid, signal.SIGSTOP if way.startswith("freeze") else signal.SIGKILL)
        survivor = next(node for node in self.lab.nodes if node not in victims)
        (survivor.mountpoint / "shared" / f"probe-{number}").write_bytes(b"x")
        waited = time.monotonic() - began
        for node in victims:
            os.waitpid(self._writers[node.name], 0)
            self._bring_back(node, start=not way.endswith("mount"), until=began + BACK_SECONDS_MAX)
            self._write_on(node)
        names = " and ".join(node.name for node in victims)
        back = time.monotonic() - began
        told = f"{survivor.name} waited {waited * 1000:.0f} ms; back after {back:.1f} s"
        print(f"{number:4} {way:13} {names:9} {told}", flush=True)

    def _nap(self, number: int, node: LabNode) -> None:
        """Frozen for a moment, as under memory pressure: nobody may be evicted for it."""
        pid = node.mount_pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(NAP_SECONDS)
        os.kill(pid, signal.SIGCONT)
        (node.mountpoint / "shared" / f"awake-{number}").write_bytes(b"x")
        print(f"{number:4} {'nap':13} {node.name:9} goes on", flush=True)

    def calm(self, seconds: float, busy: int) -> None:
        """Kill nobody, with ``busy`` processes that only compute beside the load.  LabError: somebody died."""
        spinners = [spin() for _ in range(busy)]
        before = [(node.name, node.daemon_pid, node.mount_pid) for node in self.lab.nodes]
        lines = len(self._lines())
        try:
            time.sleep(seconds)
            after = [(node.name, node.daemon_pid, node.mount_pid) for node in self.lab.nodes]
        finally:
            for pid in spinners:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if after != before:
            raise LabError(f"evicted although nothing was wrong: {before} became {after}")
        print(f"calm: {seconds:g} s with {busy} busy processes, {len(self._lines()) - lines} writes, nobody evicted")

    def _lines(self) -> list[str]:
        return [line for log in self.acknowledged.iterdir() for line in log.read_text().splitlines()]

    def _bring_back(self, node: LabNode, *, start: bool, until: float) -> None:
        while True:
            try:
                self.lab.detach(node)
                if start:
                    self.lab.start(node)
                    start = False
                self.lab.mount(node)
                return
            except LabError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def finish(self) -> tuple[int, list[str]]:
        """Stop the writers; (acknowledged writes, those that are missing or wrong on some node)."""
        for pid in self._writers.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        lines = self._lines()
        bad = []
        for line in lines:
            name, digest = line.split()
            for node in self.lab.nodes:
                path = node.mountpoint / "shared" / name
                if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                    bad.append(f"{name} on {node.name}")
        return len(lines), bad


def spin() -> int:
    """A process that computes and never waits; its pid."""
    pid = os.fork()
    while pid == 0:
        pass
    return pid


def write_for_ever(directory: Path, number: int, log_path: Path) -> None:
    """Write, fsync, rename, fsync the directory; note what is durable outside of the cluster."""
    content = random.Random(number)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for i in itertools.count():
        data = content.randbytes(content.choice([10, 3000, 5000, 40000]))
        name, temporary = f"{number}-{i}", directory / f"{number}-{i}.tmp"
        with temporary.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())
        temporary.rename(directory / name)
        fd = os.open(directory, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        os.write(log, f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calm", type=float, default=0, help="seconds under load in which nobody is killed, at first")
    parser.add_argument("--busy", type=int, default=4, help="processes that only compute, beside the load, meanwhile")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp/matrixfs-chaos"), help="where everything is made")
    options = parser.parse_args()
    lab = Lab(options.dir.resolve(), size="1G", name="chaos")
    lab.remove()
    chaos = Chaos(lab, options.seed)
    try:
        chaos.start()
        if options.calm:
            chaos.calm(options.calm, options.busy)
        for number in range(options.rounds):
            chaos.round(number)
        writes, bad = chaos.finish()
        lab.down()
        checked = lab.fsck("-n")
    except (LabError, OSError) as error:
        print(f"FAILED: {error}\nlogs: {lab.directory}/n*/*.log", file=sys.stderr)
        lab.close()
        return 1
    except BaseException:
        lab.close()
        raise
    print(f"{writes} acknowledged writes, {len(bad)} missing or wrong; {checked.stdout.strip()}")
    for line in bad[:20]:
        print(f"  {line}", file=sys.stderr)
    if bad or checked.returncode:
        return 1
    lab.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
