"""``python -m tests.sim.membership --seed N --count N``: random histories of a cluster; stops at the first that fails.

``scripts/sim --membership`` does the same with a report; this one needs no virtual environment of the checkout.
"""

from __future__ import annotations

import argparse

from tests.sim.membership.scenario import run_seed


def main() -> None:
    parser = argparse.ArgumentParser(description="Random faults on a simulated cluster of matrixds.")
    parser.add_argument("--seed", type=int, default=0, help="first seed (0)")
    parser.add_argument("--count", type=int, default=1, help="how many (1)")
    parser.add_argument("--nodes", type=int, help="1 to 4 (by the seed)")
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.count):
        print(f"seed {seed}: {run_seed(seed, options.nodes)}", flush=True)


main()
