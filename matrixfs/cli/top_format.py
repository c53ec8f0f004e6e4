"""``matrixctl top``: what all mounts say is hot, put together and laid out (pure).

Each mount tells rates of its own (``matrixfs.locks.hottest``); other nodes made them, so whatever is no number is 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matrixfs.cli.common import printable, table
from matrixfs.cli.locks_chain import Key, Names, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.cli.asking import Answers


@dataclass(slots=True)
class Row:
    """One lock in all nodes."""

    name: str
    hand_overs: float = 0.0  # a second
    waits: float = 0.0  # a second
    waiting: float = 0.0  # at a time, on average
    waiters: int = 0  # operations, now
    nodes: list[str] = field(default_factory=list)  # that handed it over or waited

    @property
    def mean_ms(self) -> float:
        """Milliseconds of a wait."""
        return 1000 * self.waiting / self.waits if self.waits else 0.0


@dataclass(slots=True)
class Link:
    """One direction of one link."""

    source: str
    target: str
    phase: str
    round_trip_us: float | None
    queued: int


def hottest(answers: Answers) -> list[Row]:
    """The locks that were handed over or waited for in the last seconds, hottest first."""
    found: dict[Key, Row] = {}
    names = Names(answers)
    for mount in answers.mounts:
        names.learn(mount.filesystem, _hot(mount.value))
    for mount in answers.mounts:
        for hot in _hot(mount.value):
            row = found.setdefault(key_of(mount.filesystem, hot), Row(names.name(mount.filesystem, hot)))
            row.hand_overs += _number(hot, "hand_overs")
            row.waits += _number(hot, "waits")
            row.waiting += _number(hot, "waiting")
            row.waiters += int(_number(hot, "waiters"))
            row.nodes.append(answers.name(mount.node))
    for row in found.values():
        row.nodes.sort()
    return sorted(found.values(), key=lambda row: (-row.hand_overs, -row.waiting, -row.waiters, row.name))


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
    cells: list[Sequence[object]] = [("HAND-OVERS/S", "WAITS/S", "MEAN WAIT", "WAITERS", "NODES", "LOCK")]
    room = max(1, lines_max - len(found) - 4)
    for row in rows[:room]:
        mean = f"{row.mean_ms:.1f} ms" if row.waits else "-"
        rate = (f"{row.hand_overs:.1f}", f"{row.waits:.1f}", mean, row.waiters)
        cells.append((*rate, " ".join(map(printable, row.nodes)), printable(row.name)))
    lines = table(cells, right={0, 1, 2, 3}) if rows else ["  No lock was handed over or waited for."]
    link_cells: list[Sequence[object]] = [("LINK", "STATE", "ROUND TRIP", "QUEUED")]
    for link in found:
        trip = f"{link.round_trip_us:.0f} us" if link.round_trip_us else "-"
        link_cells.append((printable(f"{link.source} -> {link.target}"), printable(link.phase), trip, link.queued))
    return [*lines, "", *(table(link_cells, right={2, 3}) if found else [])][:lines_max]


def _hot(value: Any) -> list[dict[str, Any]]:
    rows = value.get("hot") if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _number(fields: Any, name: str) -> float:
    value = fields.get(name) if isinstance(fields, dict) else None
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e19 else 0.0
