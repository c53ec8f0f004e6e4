"""Run the filesystem simulation: several nodes in one process under a virtual clock, everything from one seed (R2).

    scripts/sim --seed 4711              one run, the same every time
    scripts/sim --count 500              seeds 0 to 499
    scripts/sim --seed 4711 --nodes 3 --operations 5000
    scripts/sim --wide --count 500      also ranges of files, files without a name, attributes, access control lists
    scripts/sim --names --count 500     names alone, with deaths: the whole history must be linearizable
    scripts/sim --membership --count 1000    matrixds alone: partitions, pauses, kills, disks slow or lost

Exit codes: 0 all runs held, 1 a checker found something, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.sim.fs_scenario import OPERATIONS, Scenario, WideScenario  # noqa: E402 - found only now
from tests.sim.membership.scenario import MembershipScenario  # noqa: E402
from tests.sim.names_scenario import NamesScenario  # noqa: E402

SEEDS = ROOT / "tests" / "sim"


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the filesystem simulation.")
    parser.add_argument("--seed", type=int, default=0, help="first seed (0)")
    parser.add_argument("--count", type=int, default=1, help="how many seeds from there on (1)")
    parser.add_argument("--nodes", type=int, help="number of nodes (3 to 5, by the seed)")
    parser.add_argument("--operations", type=int, default=OPERATIONS, help=f"least operations of a run ({OPERATIONS})")
    parser.add_argument("--wide", action="store_true", help="also ranges, files without a name, attributes, ACLs")
    parser.add_argument("--names", action="store_true", help="names alone, the history checked for linearizability")
    parser.add_argument("--membership", action="store_true", help="matrixds alone: who may write, who administrates")
    parser.add_argument("--keep-going", action="store_true", help="don't stop at the first failure")
    parser.add_argument("--log", action="store_true", help="show what the nodes log")
    options = parser.parse_args()
    if options.count < 1 or options.operations < 1 or not 1 <= (options.nodes or 3) <= 64:
        parser.error("--count and --operations must be at least 1, --nodes 1 to 64")
    logging.basicConfig(level=logging.INFO if options.log else logging.CRITICAL, format="%(name)s: %(message)s")
    print(f"commit {commit()}")
    failed = []
    for seed in range(options.seed, options.seed + options.count):
        if not run(seed, options):
            failed.append(seed)
            if not options.keep_going:
                break
    if failed:
        kind = "membership_" if options.membership else "wide_" if options.wide else ""
        print(
            f"{len(failed)} of {options.count} failed: {' '.join(map(str, failed))}; once the bug is fixed, add them to"
            f" {(SEEDS / f'{kind}seeds.txt').relative_to(ROOT)}"
        )
    return 1 if failed else 0


def run(seed: int, options: argparse.Namespace) -> bool:
    """One run; whether everything held."""
    began = time.monotonic()
    try:
        summary = scenario_of(seed, options).run()
    except Exception as error:  # a checker's finding, or the product's own assertion, in groups of trio's
        print(f"seed {seed}: FAILED")
        for leaf in leaves(error):
            traceback.print_exception(leaf)
        return False
    print(f"seed {seed}: {summary}, {time.monotonic() - began:.1f} s")
    return True


def scenario_of(seed: int, options: argparse.Namespace) -> MembershipScenario | NamesScenario | Scenario:
    """What one run is."""
    if options.membership:
        return MembershipScenario(seed, options.nodes)
    kind = NamesScenario if options.names else WideScenario if options.wide else Scenario
    return kind(seed, options.nodes, options.operations)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The single errors in a group."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from leaves(part)
    else:
        yield error


def commit() -> str:
    """What was run, so that a seed can be run again; "-dirty" when it is not committed."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
