"""Simulated histories of names, with deaths, through the checker of the stress."""

from __future__ import annotations

import pytest

from matrixfs.fs import namespace
from matrixfs.fs.inode import Inode
from matrixfs.fs.volume import Volume
from tests.sim.names_scenario import NamesScenario

SEEDS = range(20)


@pytest.mark.seed("002-09", "002-28")
def test_names_are_linearizable_whoever_dies() -> None:
    kills = lost = 0
    for seed in SEEDS:
        summary = NamesScenario(seed).run()
        kills += summary.kills
        lost += summary.lost
        assert summary.operations >= 300
    assert kills > len(SEEDS)
    assert lost > 0, "some died in the middle of an operation"


def test_a_node_that_remembers_names_is_found_out() -> None:
    """R8 taken out: who has looked once answers from memory."""
    memory: dict[tuple[Volume, bytes], Inode | None] = {}

    async def remembering(volume: Volume, parent: int, name: bytes) -> Inode | None:
        if (volume, name) not in memory:
            memory[volume, name] = await namespace.lookup(volume, parent, name)
        return memory[volume, name]

    scenario = NamesScenario(1)
    scenario.lookup = remembering
    with pytest.raises(AssertionError, match="not linearizable"):
        scenario.run()


def test_the_same_seed_is_the_same_history() -> None:
    runs = []
    for _ in range(2):
        scenario = NamesScenario(3)
        scenario.run()
        runs.append(scenario._history)
    assert runs[0] == runs[1]
