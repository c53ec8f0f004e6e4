"""Whether memory is short, as Linux tells it: pressure stall information, and the events of this process's cgroup.

An implementation of a seam (R1): it reads files of the kernel.  ``LockCache`` is given its ``stalled``; the simulation
gives another, or none.
"""

from __future__ import annotations

from pathlib import Path

PRESSURE = Path("/proc/pressure/memory")
OWN_CGROUP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
STALLED_PERCENT = 10.0  # of the last 10 s some task waited for memory; a healthy machine shows 0
EVENTS = ("high", "max")  # the group was throttled, or reached its limit


class MemoryPressure:
    """See the module.  Files that don't exist (old kernels, containers) mean no pressure."""

    def __init__(
        self, pressure: Path = PRESSURE, own_cgroup: Path = OWN_CGROUP, cgroups: Path = CGROUPS
    ) -> None:
        self._pressure = pressure
        self._events = _events_file(own_cgroup, cgroups)
        self._seen = self._count()

    def stalled(self) -> bool:
        """Whether memory is short now, or the cgroup's limit was met since the last call."""
        seen, self._seen = self._seen, self._count()
        return self._seen > seen or self._percent() >= STALLED_PERCENT

    def _percent(self) -> float:
        for line in _lines(self._pressure):
            if line.startswith("some avg10="):
                return _number(line.split()[1].removeprefix("avg10="))
        return 0.0

    def _count(self) -> int:
        if self._events is None:
            return 0
        pairs = [line.split() for line in _lines(self._events)]
        return int(sum(_number(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in EVENTS))


def _events_file(own_cgroup: Path, cgroups: Path) -> Path | None:
    for line in _lines(own_cgroup):
        if line.startswith("0::/"):  # the unified hierarchy
            return cgroups / line[4:] / "memory.events"
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
