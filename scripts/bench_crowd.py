"""The bench's rows with several nodes at work at once: creating in one directory, and the rebuild of many locks.

Beside them the one thing that a hand-over can't be quicker than: a durable write of one block of a file like the store.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from scripts.bench_counters import BenchError
from scripts.bench_rows import MIB, PAGE

REBUILD = Path(__file__).resolve().parent.parent / "tests" / "dlm" / "rebuild_bench.py"
REBUILD_SECONDS_MAX = 60
DURABLE_FILE_BYTES = 4 * MIB
STRIDE = 7 * PAGE  # from one durable write to the next


@dataclass(frozen=True, slots=True)
class Crowd:
    """What the nodes made in one directory within the time: files by node, and the longest any create took."""

    seconds: float
    made: tuple[int, ...]
    longest: float  # seconds

    @property
    def rate(self) -> float:
        """Files per second, all nodes together."""
        return sum(self.made) / self.seconds

    @property
    def slowest_share(self) -> float:
        """Of the node that made least: its files beside an equal share; 1 is fair."""
        return min(self.made) * len(self.made) / sum(self.made)


def create_together(directories: Sequence[Path], seconds: float) -> Crowd:
    """One process for each directory, all of them the same one on different mounts, creates empty files.

    Args:
        directories: as each of the nodes sees it.
        seconds: for how long.
    """
    began_at = time.monotonic() + 0.1  # all have been forked by then
    children = [_fork_creator(top, f"n{number}", began_at, seconds) for number, top in enumerate(directories)]
    found = []
    for pid, pipe in children:
        with os.fdopen(pipe) as answer:
            words = answer.read().split()
        _, status = os.waitpid(pid, 0)
        if status or len(words) != 2:
            raise BenchError(f"{directories[0]}: a process that created there failed")
        found.append((int(words[0]), float(words[1])))
    return Crowd(seconds, tuple(made for made, _ in found), max(longest for _, longest in found))


def _fork_creator(top: Path, tag: str, began_at: float, seconds: float) -> tuple[int, int]:
    hear, tell = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        return child, hear
    code = 1
    try:
        os.close(hear)
        time.sleep(max(0.0, began_at - time.monotonic()))
        os.write(tell, b"%d %f" % _create_for(top, tag, seconds))
        code = 0
    finally:
        os._exit(code)


def _create_for(top: Path, tag: str, seconds: float) -> tuple[int, float]:
    made, longest, now = 0, 0.0, time.monotonic()
    end = now + seconds  # a process that came late works as long as the others
    while now < end:
        os.close(os.open(f"{top}/{tag}-{made}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        made += 1
        began, now = now, time.monotonic()
        longest = max(longest, now - began)
    return made, longest


def rebuild(locks: int, nodes: int) -> float:
    """Seconds from SUSPEND to the last RESUME: ``locks`` in all, each node a process of its own, one more node dead."""
    command = [sys.executable, str(REBUILD), "--locks", str(locks), "--nodes", str(nodes), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REBUILD_SECONDS_MAX)
    if done.returncode:
        raise BenchError(f"{REBUILD.name}: exit {done.returncode}: {done.stderr.strip()[-200:]}")
    return float(json.loads(done.stdout)["seconds"])


class DurableFile:
    """A file whose blocks were all written before, like those of a store; durable direct writes of one block over it.

    Args:
        path: made, and removed at the end of the ``with`` block.
    """

    def __init__(self, path: Path) -> None:
        self.seconds: list[float] = []  # of each write
        self._path = path
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o600)
        self._page = mmap.mmap(-1, PAGE)
        with mmap.mmap(-1, DURABLE_FILE_BYTES) as zeros:
            os.pwrite(self._fd, zeros, 0)
        os.fsync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        self._page.close()
        self._path.unlink()

    def write(self) -> None:
        """Write one block, durably."""
        at = len(self.seconds) * STRIDE % DURABLE_FILE_BYTES
        began = time.perf_counter()
        os.pwritev(self._fd, [self._page], at, os.RWF_DSYNC)
        self.seconds.append(time.perf_counter() - began)
