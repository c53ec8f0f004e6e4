"""``matrixctl top``: two looks at the counters of all mounts become rates (pure).

The counters only grow, so a rate is a difference over the seconds that the mount's own clock counted between the
looks.  A lock that the mount had forgotten in between starts from zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matrixfs.cli.common import printable, table
from matrixfs.cli.locks_chain import Key, Names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.cli.asking import Answers

_COUNTERS = ("handovers", "waits", "wait_seconds")


@dataclass(slots=True)
class Row:
    """One lock in all nodes."""

    name: str
    handovers: float = 0.0  # a second
    waits: float = 0.0  # a second
    wait_seconds: float = 0.0  # of waiting, a second
    waiters: int = 0  # operations, now
    nodes: list[str] = field(default_factory=list)  # that handed it over or waited

    @property
    def mean_ms(self) -> float:
        """Milliseconds of a wait."""
        return 1000 * self.wait_seconds / self.waits if self.waits else 0.0


@dataclass(slots=True)
class Link:
    """One direction of one link."""

    source: str
    target: str
    phase: str
    round_trip_us: float | None
    queued: int


def rates(old: Answers, new: Answers) -> list[Row]:
    """The locks that were handed over or waited for between two looks, hottest first."""
    before = {
        (mount.node, mount.filesystem): (_number(mount.value, "seconds"), _hot(mount.value)) for mount in old.mounts
    }
    found: dict[Key, Row] = {}
    names = Names(new)
    for mount in new.mounts:
        names.learn(mount.filesystem, _hot(mount.value).values())
    for mount in new.mounts:
        since, counted = before.get((mount.node, mount.filesystem), (0.0, {}))
        seconds = max(_number(mount.value, "seconds") - since, 1e-3)
        for (domain, number), hot in _hot(mount.value).items():
            last = counted.get((domain, number), {})
            grown = [_growth(last, hot, name) / seconds for name in _COUNTERS]
            waiters = int(_number(hot, "waiters"))
            if not waiters and not any(grown):
                continue
            row = found.setdefault((mount.filesystem, domain, number), Row(names.name(mount.filesystem, hot)))
            row.handovers += grown[0]
            row.waits += grown[1]
            row.wait_seconds += grown[2]
            row.waiters += waiters
            row.nodes.append(new.name(mount.node))
    return sorted(found.values(), key=lambda row: (-row.handovers, -row.wait_seconds, row.name))


def links(answers: Answers) -> list[Link]:
    """Every link between mounts, as each end sees it."""
    found = []
    for mount in answers.mounts:
        peers = mount.value.get("links") if isinstance(mount.value, dict) else None
        for peer in peers if isinstance(peers, list) else []:
            if isinstance(peer, dict):
                trip = _number(peer, "round_trip_us") if "round_trip_us" in peer else None
                target, phase = answers.name(int(_number(peer, "node"))), str(peer.get("phase"))[:10]
                found.append(Link(answers.name(mount.node), target, phase, trip, int(_number(peer, "queued"))))
    return found


def format_top(rows: Sequence[Row], found: Sequence[Link], lines_max: int) -> list[str]:
    """One screen of at most ``lines_max`` lines."""
    cells: list[Sequence[object]] = [("HANDOVERS/S", "WAITS/S", "MEAN WAIT", "WAITERS", "NODES", "LOCK")]
    room = max(1, lines_max - len(found) - 4)
    for row in rows[:room]:
        mean = f"{row.mean_ms:.1f} ms" if row.waits else "-"
        rate = (f"{row.handovers:.1f}", f"{row.waits:.1f}", mean, row.waiters)
        cells.append((*rate, " ".join(map(printable, row.nodes)), printable(row.name)))
    lines = table(cells, right={0, 1, 2, 3}) if rows else ["  No lock was handed over or waited for."]
    link_cells: list[Sequence[object]] = [("LINK", "STATE", "ROUND TRIP", "QUEUED")]
    for link in found:
        trip = f"{link.round_trip_us:.0f} us" if link.round_trip_us else "-"
        link_cells.append((printable(f"{link.source} -> {link.target}"), printable(link.phase), trip, link.queued))
    return [*lines, "", *(table(link_cells, right={2, 3}) if found else [])][:lines_max]


def _hot(value: Any) -> dict[tuple[int, int], dict[str, Any]]:
    rows = value.get("hot") if isinstance(value, dict) else None
    return {
        (int(_number(row, "domain")), int(_number(row, "object"))): row
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    }


def _growth(old: dict[str, Any], new: dict[str, Any], name: str) -> float:
    grown = _number(new, name) - _number(old, name)
    return grown if grown >= 0 else _number(new, name)


def _number(fields: Any, name: str) -> float:
    value = fields.get(name) if isinstance(fields, dict) else None
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e19 else 0.0
