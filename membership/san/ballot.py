"""Disk Paxos, one instance per SAN generation: who may write the header of generation g (pure; 002-32, 002-40, 002-45).

After Gafni and Lamport, "Disk Paxos" (2003): each node owns one block on each disk, writes it durably on a majority of
them, then reads all others' there.  Phase 1 writes a promise, phase 2 a vote; who completes phase 2 without seeing a
greater promise has decided the value.  It needs no link between nodes, so it also excludes with the network cut.

Invariants:

B1. For one generation at most one value is ever decided.
B2. A block that carries a later generation means ours is decided: nobody enters g+1 before g was decided, and
    entering overwrites the votes for g.  Such a ballot is lost, never completed.
B3. Ballot numbers are unique: round * NODE_SLOTS + node.

Use: write ``block()`` durably on a majority, read all blocks of a majority, pass them to ``read``, and so on until it
returns an outcome.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from membership.label import NODE_SLOTS
from membership.san.records import empty_ballot

if TYPE_CHECKING:
    from collections.abc import Collection

    from membership.san.records import Ballot


class Phase(Enum):
    """Where a ballot stands."""

    PROMISE = 1
    VOTE = 2
    ENDED = 3


@dataclass(frozen=True, slots=True)
class Decided:
    """The generation belongs to this instance, for ever."""

    node: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Overtaken:
    """A greater ballot number is about: wait a random moment, then try again with ``round_``."""

    round_: int


@dataclass(frozen=True, slots=True)
class Passed:
    """The generation was decided before, and a later one is being decided: read the header again."""

    generation: int


Outcome = Decided | Overtaken | Passed


def latest(copies: Collection[Ballot]) -> Ballot:
    """The last one written of one node's block."""
    return max(copies, key=lambda b: (b.generation, b.promised, b.voted))


class DiskBallot:
    """One attempt of one node to decide one generation.

    Args:
        node: our node id.
        generation: what is decided.
        value: (node, incarnation) we propose: ourselves.
        own: our block as it is on disk: of a majority of copies the latest (``latest``).
        round_: at least this round; from Overtaken.
    """

    def __init__(self, node: int, generation: int, value: tuple[int, int], own: Ballot, round_: int = 0) -> None:
        self._node = node
        self._generation = generation
        self._value = value
        self._phase = Phase.PROMISE
        same = own.generation == generation
        round_ = max(round_, own.promised // NODE_SLOTS + 1 if same else 1)  # from 1: ballot number 0 means none
        self._passed = own.generation if own.generation > generation else 0
        # A vote of ours for this generation, from an earlier attempt, must stay visible (Paxos's "bal, inp").
        self._block = dataclasses.replace(own) if same else empty_ballot(node, own.owner, generation)
        self._block.promised = round_ * NODE_SLOTS + node

    def block(self) -> Ballot | None:
        """What to write durably before the next read; None when our own block has passed this generation."""
        return None if self._passed else dataclasses.replace(self._block)

    def read(self, others: Collection[Ballot]) -> Outcome | None:
        """Take the other nodes' blocks of all disks, read after ``block()`` was durable.  None: write it again."""
        assert self._phase is not Phase.ENDED
        ahead = max((b.generation for b in others), default=0)
        outcome = self._judge(others, max(ahead, self._passed))
        if outcome is not None:
            self._phase = Phase.ENDED
        return outcome

    def _judge(self, others: Collection[Ballot], ahead: int) -> Outcome | None:
        if ahead > self._generation:
            return Passed(ahead)
        rivals = [b for b in others if b.generation == self._generation]
        greatest = max((b.promised for b in rivals), default=0)
        if greatest > self._block.promised:
            return Overtaken(greatest // NODE_SLOTS + 1)
        if self._phase is Phase.VOTE:
            return Decided(self._block.value_node, self._block.value_incarnation)
        last = max([*rivals, self._block], key=lambda b: b.voted)
        if last.voted:
            self._value = (last.value_node, last.value_incarnation)
        self._block.voted = self._block.promised
        self._block.value_node, self._block.value_incarnation = self._value
        self._phase = Phase.VOTE
        return None
