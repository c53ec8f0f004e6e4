"""The bench's results: one ``Row`` for each line of the table, and the ways to print them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from scripts.bench_crowd import Crowd

MICROSECONDS = 1e6


@dataclass
class Row:
    """One line: how long one operation takes here and there, what it cost, and what bounds it.

    Attributes:
        name: what is measured.
        unit: what one operation is.
        bound: what keeps it from being quicker, in a few words.
        ours, local: seconds per operation, one per round (for latencies: one per call, then ``rounds`` is False).
        cost: counters per operation, the median of the rounds (``Counters.per``).
        note: added below the table.
        crowds: what the nodes of a row with several at work did, one per round.
    """

    name: str
    unit: str
    bound: str
    ours: list[float] = field(default_factory=list)
    local: list[float] = field(default_factory=list)
    costs: list[dict[str, float]] = field(default_factory=list)
    rounds: bool = True
    note: str = ""
    crowds: list[Crowd] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """How many times longer than on the local filesystem."""
        return median(self.ours) / median(self.local) if self.ours and self.local else None

    def cost(self, counter: str) -> float | None:
        """Median over the rounds of one counter per operation."""
        return median(found[counter] for found in self.costs) if self.costs else None

    def as_json(self) -> dict[str, Any]:
        """For programs: seconds, every round, and what it cost."""
        found = asdict(self)
        if not self.rounds:  # hundreds of single calls: their quantiles say it
            for side in ("ours", "local"):
                found[side] = _quantiles(found[side])
        else:
            found["ours_median"] = median(self.ours) if self.ours else None
            found["local_median"] = median(self.local) if self.local else None
        return found | {"ratio": self.ratio}


def percentile(seconds: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of them lie."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _quantiles(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {f"p{percent}": percentile(seconds, percent) for percent in (50, 90, 99)} | {"count": len(seconds)}


def _micro(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * MICROSECONDS:.0f}" if seconds else "-"


def _spread(row: Row) -> str:
    """From the quickest to the slowest round; of single calls the slowest but one in a hundred."""
    seconds = row.ours or row.local
    if not row.rounds:
        return f"p99 {percentile(seconds, 99) * MICROSECONDS:.0f}"
    return f"{min(seconds) * MICROSECONDS:.0f}-{max(seconds) * MICROSECONDS:.0f}" if len(seconds) > 1 else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


_COLUMNS = (
    "us per", "", "matrixfs", "rounds", "local", "ratio", "calls", "messages", "reads", "writes", "bound by",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """The table for people."""
    lines: list[tuple[str, ...]] = [_COLUMNS]
    for row in rows:
        ratio = row.ratio
        costs = [_number(row.cost(name)) for name in ("upcalls", "messages", "store_reads", "store_writes")]
        spread = _spread(row)
        lines.append((
            row.unit, row.name, _micro(row.ours), spread, _micro(row.local),
            "-" if ratio is None else f"{ratio:.1f}", *costs, row.bound,
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    left = {0, 1, len(_COLUMNS) - 1}
    text = []
    for line in lines:
        cells = [cell.ljust(width) if at in left else cell.rjust(width)
                 for at, (cell, width) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        text.append("  ".join(cells).rstrip())
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*text, "", *notes] if notes else text)


def as_json(header: dict[str, Any], rows: Sequence[Row]) -> str:
    """One JSON document; all times in seconds."""
    return json.dumps({**header, "rows": [row.as_json() for row in rows]}, indent=2)
