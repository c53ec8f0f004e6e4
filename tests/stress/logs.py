"""Judges what was appended to the log, and what was counted under locks."""

from __future__ import annotations

from collections.abc import Sequence

from tests.stress.contents import LATE_NS, Excuses, Stale
from tests.stress.history import Op

Problem = str


def check_log(ops: Sequence[Op], excuses: Excuses) -> list[Problem]:
    """Appended records: each there once, in an order that real time allows, and every look at them a true prefix."""
    reads = [op for op in ops if op.kind == "read_log" and not op.failed]
    if not reads:
        return []
    content = max((op.result for op in reads), key=len)
    records = content.splitlines(keepends=True)
    place = {record: at for at, record in enumerate(records)}
    appends = {op.args[0]: op for op in ops if op.kind == "append" and not op.failed}
    found = [f"log: record {record!r} is there twice" for record in records if records.count(record) > 1][:3]
    found += [f"log: nobody wrote {record!r}" for record in records if record not in appends][:3]
    in_order = [appends[record] for record in records if record in appends]
    found += [
        f"log: {later} is in front of {earlier}, which had ended"
        for later, earlier in zip(in_order, in_order[1:], strict=False)
        if earlier.end < later.start
    ][:3]
    lengths = [(op, len(op.result)) for op in reads] + [(op, op.result) for op in ops if op.kind == "log_size"]
    found += [f"log: not a prefix: {op.node=} {op.who=}" for op in reads if not content.startswith(op.result)][:3]
    return found + _lengths(lengths, appends, place, excuses)


def _lengths(
    lengths: list[tuple[Op, int]], appends: dict[bytes, Op], place: dict[bytes, int], excuses: Excuses
) -> list[Problem]:
    found = []

    def short(op: Op, since: float, text: str) -> None:
        """A look that went by an end of before; excused like any other (docs/testing.md)."""
        stale = Stale("read" if op.kind == "read_log" else "fstat", "size", op.start - since, text)
        excuses.stale.append(stale)
        beside = any(append.start <= op.end and op.start <= append.end for append in appends.values())
        if not (beside and stale.late_ns < LATE_NS and excuses.grant(stale.name)):
            found.append(text)

    size = len(next(iter(appends))) if appends else 1
    for op, length in lengths:
        count, rest = divmod(length, size)
        if rest:
            found.append(f"log: {length} bytes seen, not whole records, by n{op.node + 1} p{op.who} {op.kind}")
        for record, append in appends.items():
            there = place.get(record, 1 << 60) < count
            if append.end < op.start and not there:
                short(op, append.end, f"log: {op.kind} of n{op.node + 1} p{op.who} saw {length} bytes, not {append}")
            if append.start > op.end and there:
                found.append(f"log: {op.kind} of n{op.node + 1} p{op.who} saw {append}, which came later")
    by_time = sorted(lengths, key=lambda pair: pair[0].end)
    longest: tuple[int, Op] | None = None
    ended = iter(by_time)
    candidate = next(ended, None)
    for op, length in sorted(lengths, key=lambda pair: pair[0].start):
        while candidate is not None and candidate[0].end < op.start:
            if longest is None or candidate[1] > longest[0]:
                longest = (candidate[1], candidate[0])
            candidate = next(ended, None)
        if longest is not None and length < longest[0]:
            text = f"log: n{op.node + 1} p{op.who} saw {length} bytes after {longest[0]} had been seen"
            short(op, longest[1].end, text)
    return found[:3]


def check_counter(kind: str, ops: Sequence[Op]) -> list[Problem]:
    """Nothing lost: in order of time the holders of the lock read 0, 1, 2, …; and never two at once."""
    found = []
    for number, op in enumerate(ops):
        if op.result != number:
            found.append(f"counter under {kind}: {op}, but it was the {number + 1}th")
        if number and op.start < ops[number - 1].end:
            found.append(f"counter under {kind}: {op} while {ops[number - 1]} held the lock")
    return found[:3]
