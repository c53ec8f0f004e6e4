"""The SAN lock on the shared disks: what AdminCore's TakeGeneration does there (002-32, 002-40)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, DeviceError
from membership.san.ballot import Decided, DiskBallot, Overtaken, Passed, latest

if TYPE_CHECKING:
    from collections.abc import Collection

    from membership.areas.quorum import Areas
    from membership.seams import Clock, Rng

ROUNDS_MAX = 32  # rivals back off at random: more rounds than this means the store or the clock is broken
BACKOFF_SECONDS = 0.02


async def take_generation(
    areas: Areas, me: tuple[int, int], generation: int, *, clock: Clock, rng: Rng, unused: Collection[int] = ()
) -> Decided | Passed | None:
    """Ballot for a generation with ourselves as the value.

    Args:
        areas: the membership areas.
        me: (node id, incarnation).
        generation: what to win.
        clock: for the back-off.
        rng: for the back-off.
        unused: slots of nobody: their blocks may be damaged.

    Returns:
        Who owns it, that it was passed already, or None when the ballot blocks can't be used (1724).
    """
    round_ = 0
    try:
        for _ in range(ROUNDS_MAX):
            outcome = await _hold(areas, me, generation, round_, unused)
            if not isinstance(outcome, Overtaken):
                return outcome
            round_ = outcome.round_
            await clock.sleep(rng.uniform(0, BACKOFF_SECONDS))
    except (DeviceError, CorruptRecord):
        return None
    return None


async def _hold(
    areas: Areas, me: tuple[int, int], generation: int, round_: int, unused: Collection[int]
) -> Decided | Overtaken | Passed:
    node = me[0]
    copies = await areas.read_ballots(unused)
    ballot = DiskBallot(node, generation, me, latest([copy[node] for copy in copies]), round_)
    while True:
        block = ballot.block()
        if block is not None:
            await areas.write_ballot(node, block)
        copies = await areas.read_ballots(unused)
        outcome = ballot.read([block for copy in copies for other, block in copy.items() if other != node])
        if outcome is not None:
            return outcome
