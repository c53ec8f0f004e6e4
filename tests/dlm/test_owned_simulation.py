"""Hundreds of seeds of ``tests/sim/owned_world.py``; a failing one replays with its ``--seed`` (R2)."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.owned_world import OwnedWorld

SEEDS_PER_TEST = 50


@pytest.mark.seed("002-04", "002-30")
@pytest.mark.parametrize("first", range(0, 100, SEEDS_PER_TEST))
def test_faults(first):
    results: Counter[str] = Counter()
    for seed in range(first, first + SEEDS_PER_TEST):
        world = OwnedWorld(seed, nodes=2 + seed % 4)
        try:
            world.run(800)
        except AssertionError as error:
            command = f"python -m tests.sim.owned_world --seed {seed} --nodes {2 + seed % 4} --steps 800 --trace"
            raise AssertionError(f"{command}: {error}") from error
        results.update(world.results)
        results["kills"] += world.counts["kills"]
    assert results["GRANTED"] > 20 * SEEDS_PER_TEST
    assert min(results[name] for name in ("DONE", "AGAIN", "WITHDRAWN", "DEADLOCK", "kills")) >= SEEDS_PER_TEST // 4
    assert min(results[name] for name in ("owned_deadlocks", "owned_repeated")) > 0


def test_the_same_seed_is_the_same_run():
    traces = []
    for _ in range(2):
        world = OwnedWorld(3)
        world.trace = []
        world.run(300)
        traces.append(world.trace)
    assert traces[0] == traces[1]
