"""Hundreds of seeds of ``tests/sim/dlm_world.py``; a failing one replays with its ``--seed`` (R2)."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "sim", "dlm_world.py")
_spec = importlib.util.spec_from_file_location("dlm_world", PATH)
dlm_world = importlib.util.module_from_spec(_spec)
sys.modules["dlm_world"] = dlm_world
_spec.loader.exec_module(dlm_world)

SEEDS_PER_TEST = 25


@pytest.mark.seed("002-04", "003-19")
@pytest.mark.parametrize("first", range(0, 200, SEEDS_PER_TEST))
def test_faults(first):
    grants = kills = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        world = dlm_world.World(seed)
        try:
            world.run(1500)
        except AssertionError as error:
            raise AssertionError(f"python tests/sim/dlm_world.py --seed {seed} --trace: {error}") from error
        grants += world.counts["grants"]
        kills += world.counts["kills"]
    assert grants > 50 * SEEDS_PER_TEST
    assert kills > SEEDS_PER_TEST


@pytest.mark.seed("003-37", "003-38")
@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("fault_rate", [0.002, 0.01])
def test_two_members_and_what_becomes_of_them(nodes, fault_rate):
    """Arbitration moves with the write locks, and through kills, joins and rebuilds at every step."""
    moved = returned = 0
    for seed in range(SEEDS_PER_TEST):
        world = dlm_world.World(seed, nodes=nodes, fault_rate=fault_rate)
        try:
            world.run(1500)
        except AssertionError as error:
            replay = f"--seed {seed} --nodes {nodes} --fault-rate {fault_rate}"
            raise AssertionError(f"python tests/sim/dlm_world.py {replay} --trace: {error}") from error
        moved += sum(peer.core.sizes().get("arbitration_taken", 0) for peer in world.peers.values())
        returned += world.counts["Return"]
    assert moved > 4 * SEEDS_PER_TEST
    assert returned > SEEDS_PER_TEST // 2


@pytest.mark.seed("003-19")
@pytest.mark.parametrize("nodes", [2, 8])
def test_no_faults_means_delay_only(nodes):
    for seed in range(10):
        world = dlm_world.World(seed, nodes=nodes, fault_rate=0)
        world.run(1500)
        assert world.admin.attempt == 1
        assert world.counts["valid values"] > 50


def test_the_same_seed_is_the_same_run():
    traces = []
    for _ in range(2):
        world = dlm_world.World(3)
        world.trace = []
        world.run(500)
        traces.append(world.trace)
    assert traces[0] == traces[1]
