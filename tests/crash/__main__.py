"""The crash matrix: ``scripts/test --crash`` runs this.

Records programs at work, loses the power before every flush and every durable write of theirs, replays and checks;
loses it again during the replays.  Prints a table; exit code 0 when nothing was found.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.crash.matrix import Counts, Matrix, Plan, Where
from tests.crash.points import DROPPED, KEPT, TORN
from tests.crash.workloads import WORKLOADS

HEADINGS = ("workload", "flushes", "points", "crashes", DROPPED, KEPT, TORN, "disks", "used", "again", "failed", "s")
FAILURES_SHOWN = 5  # of each workload and seed
ALL = Plan(choices=24, every=True)


def row(name: str, counts: Counts, seconds: float) -> str:
    """One line of the table."""
    fates = [counts.fates[fate] for fate in (DROPPED, KEPT, TORN)]
    numbers = (
        counts.flushes, counts.points, counts.crashes, *fates, counts.disks, counts.used, counts.double,
        len(counts.failures), round(seconds),
    )  # fmt: skip
    return f"{name:14}" + "".join(f"{number:9}" for number in numbers)


def tell(counts: Counts) -> None:
    """The first failures, each with the command that repeats it."""
    for failure in counts.failures[:FAILURES_SHOWN]:
        print(f"FAILED {failure.where.workload}, seed {failure.where.seed}: {failure.story}\n  {failure.found}")
        print(f"  again: scripts/test --crash {failure.where.options()}", flush=True)


def total(rows: list[Counts]) -> Counts:
    """The sum of all rows."""
    result = Counts()
    for counts in rows:
        for name in ("flushes", "points", "crashes", "disks", "used", "double"):
            setattr(result, name, getattr(result, name) + getattr(counts, name))
        result.fates += counts.fates
        result.failures += counts.failures
    return result


def run(names: list[str], seeds: range, plan: Plan) -> int:
    """All of it; the exit code."""
    rows: list[Counts] = []
    began = time.monotonic()
    print("".join(f"{heading:>9}" if at else f"{heading:14}" for at, heading in enumerate(HEADINGS)))
    for seed in seeds:
        for name in names:
            start = time.monotonic()
            counts = Matrix(name, seed).run(plan)
            rows.append(counts)
            label = name if len(seeds) == 1 else f"{name} {seed}"
            print(row(label, counts, time.monotonic() - start), flush=True)
            tell(counts)
    everything = total(rows)
    print(row("all", everything, time.monotonic() - began))
    return 1 if everything.failures else 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/test --crash", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the programs and of all choices (1)")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on (1)")
    parser.add_argument("--workload", choices=WORKLOADS, help="one alone (all)")
    parser.add_argument("--points", type=int, help="at most so many of each workload, chosen by the seed (all)")
    parser.add_argument("--choices", type=int, default=Plan().choices, help=f"of each point ({Plan().choices})")
    parser.add_argument("--all", action="store_true", help=f"every write, {ALL.choices} choices, all replays cut")
    parser.add_argument("--at", type=int, help="repeat one crash: the entry before which the power goes")
    parser.add_argument("--choice", type=int, default=0, help="with --at: what survives")
    parser.add_argument("--again", type=int, help="with --at: the entry of the replay before which it goes again")
    parser.add_argument("--again-choice", type=int, default=0, help="with --again: what survives")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    if options.at is not None:
        if options.workload is None:
            parser.error("--at needs --workload")
        where = Where(options.workload, options.seed, options.at, options.choice, options.again, options.again_choice)
        counts = Matrix(options.workload, options.seed).repeat(where)
        tell(counts)
        print(f"{options.workload}, seed {options.seed}: {len(counts.failures)} failures")
        return 1 if counts.failures else 0
    plan = Plan(ALL.choices, options.points, every=True) if options.all else Plan(options.choices, options.points)
    names = [options.workload] if options.workload else list(WORKLOADS)
    return run(names, range(options.seed, options.seed + options.count), plan)


if __name__ == "__main__":
    sys.exit(main())
