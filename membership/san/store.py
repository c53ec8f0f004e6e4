"""The SAN lock and header on the shared disk: what AdminCore's events do there (002-32, 002-40)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, DeviceError
from membership.label import BALLOT_BLOCK, BLOCK_BYTES, NODE_SLOTS
from membership.san.ballot import Decided, DiskBallot, Overtaken, Passed
from membership.san.header import read_header, write_header
from membership.san.records import Ballot, ballot_block, ballot_image, ballot_untrusted

if TYPE_CHECKING:
    from membership.san.header import SanHeader
    from membership.seams import Clock, Rng, SectorDevice

ROUNDS_MAX = 32  # rivals back off at random: more rounds than this means the store or the clock is broken
BACKOFF_SECONDS = 0.02


async def _read_ballots(device: SectorDevice, cluster: bytes) -> dict[int, Ballot]:
    data = await device.read(BALLOT_BLOCK * BLOCK_BYTES, NODE_SLOTS * BLOCK_BYTES)
    blocks = (data[node * BLOCK_BYTES : (node + 1) * BLOCK_BYTES] for node in range(NODE_SLOTS))
    return {node: ballot_untrusted(block, node, cluster) for node, block in enumerate(blocks)}


async def take_generation(
    device: SectorDevice, cluster: bytes, me: tuple[int, int], generation: int, *, clock: Clock, rng: Rng
) -> Decided | Passed | None:
    """Ballot for a generation with ourselves as the value.

    Args:
        device: the cluster disk.
        cluster: its uuid.
        me: (node id, incarnation).
        generation: what to win.
        clock: for the back-off.
        rng: for the back-off.

    Returns:
        Who owns it, that it was passed already, or None when the ballot blocks can't be used (1724).
    """
    round_ = 0
    try:
        for _ in range(ROUNDS_MAX):
            outcome = await _hold(device, cluster, me, generation, round_)
            if not isinstance(outcome, Overtaken):
                return outcome
            round_ = outcome.round_
            await clock.sleep(rng.uniform(0, BACKOFF_SECONDS))
    except (DeviceError, CorruptRecord):
        return None
    return None


async def _hold(
    device: SectorDevice, cluster: bytes, me: tuple[int, int], generation: int, round_: int
) -> Decided | Overtaken | Passed:
    node = me[0]
    blocks = await _read_ballots(device, cluster)
    ballot = DiskBallot(node, generation, me, blocks[node], round_)
    while True:
        block = ballot.block()
        if block is not None:
            await device.write(ballot_block(node) * BLOCK_BYTES, ballot_image(block), durable=True)
        others = await _read_ballots(device, cluster)
        del others[node]
        outcome = ballot.read(others)
        if outcome is not None:
            return outcome


async def put_header(device: SectorDevice, header: SanHeader) -> bool:
    """Write the header and read it back; False when it failed or a newer one stands there.

    A header older than ours that appears later was on its way when we won: AdminCore.header_overwritten.
    """
    try:
        before = await read_header(device, header.owner)
        if before.generation > header.generation:
            return False
        await write_header(device, header)
        return await read_header(device, header.owner) == header
    except (DeviceError, CorruptRecord):
        return False
