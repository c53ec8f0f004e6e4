"""Disk Paxos: never two winners, whatever the interleaving and whoever crashes (002-32, 002-40)."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership.errors import CorruptRecord
from membership.san.ballot import Decided, DiskBallot, Overtaken, Passed
from membership.san.records import ballot_block, ballot_image, ballot_untrusted, empty_ballot

CLUSTER = b"C" * 16


class Voter:
    """A node that ballots step by step: each step is one disk operation, reads block by block."""

    def __init__(self, node: int, disk: dict, generation: int = 1) -> None:
        self.node, self.disk, self.generation = node, disk, generation
        self.round = 0
        self.outcome = None
        self._steps = self._run()

    def step(self) -> bool:
        return next(self._steps, None) is not None

    def _run(self):
        while not isinstance(self.outcome, Decided | Passed):
            own = self.disk.get(self.node) or empty_ballot(self.node, CLUSTER, 0)
            ballot = DiskBallot(self.node, self.generation, (self.node, 100 + self.node), own, self.round)
            while True:
                block = ballot.block()
                if block is not None:
                    yield True
                    self.disk[self.node] = block
                seen = {}
                for other in range(4):
                    if other != self.node:
                        yield True
                        if other in self.disk:
                            seen[other] = dataclasses.replace(self.disk[other])
                self.outcome = ballot.read(seen.values())
                if self.outcome is not None:
                    break
            if isinstance(self.outcome, Overtaken):
                self.round = self.outcome.round_


@pytest.mark.seed("002-32", "002-40")
@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["step"] * 12 + ["crash"])), max_size=160))
def test_never_two_winners(schedule):
    disk: dict = {}
    voters = {node: Voter(node, disk) for node in range(4)}
    winners = set()
    for node, what in schedule:
        if what == "crash":
            voters[node] = Voter(node, disk)  # restarts from its block, mid-write or not
        else:
            voters[node].step()
        if isinstance(voters[node].outcome, Decided):
            winners.add(voters[node].outcome)
    for node in range(4):  # alone, everybody comes to the end and learns the same
        voter = Voter(node, disk)
        while voter.step():
            pass
        winners.add(voter.outcome)
    assert len(winners) == 1


def test_long_random_duels_never_have_two_winners():
    for seed in range(300):
        rng = random.Random(seed)
        disk: dict = {}
        voters = [Voter(node, disk) for node in range(4)]
        winners = set()
        for _ in range(600):
            voter = rng.choice(voters)
            voter.step()
            if isinstance(voter.outcome, Decided):
                winners.add(voter.outcome)
        assert len(winners) <= 1, seed


def test_alone_wins_in_two_writes():
    disk: dict = {}
    voter = Voter(0, disk)
    while voter.step():
        pass
    assert voter.outcome == Decided(0, 100)
    assert disk[0].voted == disk[0].promised > 0


def test_the_vote_of_a_dead_node_stands():
    disk: dict = {}
    dead = Voter(3, disk)
    for _ in range(8):  # promise, three reads, vote, and dies before its last reads
        dead.step()
    assert disk[3].voted
    heir = Voter(0, disk)
    while heir.step():
        pass
    assert heir.outcome == Decided(3, 103)


@pytest.mark.seed("002-45")
def test_a_later_generation_passes_an_earlier_one():
    disk: dict = {}
    for generation in (1, 2):
        voter = Voter(1, disk, generation)
        while voter.step():
            pass
    late = Voter(0, disk, 1)
    while late.step():
        pass
    assert late.outcome == Passed(2)
    again = Voter(1, disk, 1)  # our own block has moved on: nothing is written
    while again.step():
        pass
    assert again.outcome == Passed(2)
    assert disk[1].generation == 2


def test_record_is_one_sector_and_hostile_bytes_are_refused():
    ballot = empty_ballot(5, CLUSTER, 3)
    ballot.promised, ballot.voted, ballot.value_node = 69, 69, 5
    image = ballot_image(ballot)
    assert len(image) == 4096
    assert not any(image[512:])
    assert ballot_untrusted(image, 5, CLUSTER) == ballot
    assert ballot_untrusted(bytes(4096), 5, CLUSTER).promised == 0
    rng = random.Random(1)
    for _ in range(300):
        data = bytearray(image)
        data[rng.randrange(512)] ^= 1 << rng.randrange(8)
        try:
            ballot_untrusted(bytes(data), 5, CLUSTER)
        except CorruptRecord:
            continue
        raise AssertionError("a flipped bit passed")
    with pytest.raises(CorruptRecord, match="address"):
        ballot_untrusted(image, 6, CLUSTER)
    assert ballot_block(5) == 7
