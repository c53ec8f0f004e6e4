"""Claiming a heartbeat slot by node name (002-12; invariant H1 of lease/records.py).

A slot is taken only from a free one, from one that its owner left, or from our own predecessor *after* that was
confirmed fenced.  The claim is written, and read back a renew interval later; of two claimants that saw the slot
free, the first reads the second's claim, because a claim whose write took more than half that interval is made anew.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, OperatorError
from membership.label import NODE_SLOTS
from membership.lease.records import HeartbeatSlot, slot_block
from membership.san.fence import fence_target, is_gone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from membership.areas.quorum import Areas
    from membership.fence.process import HostIdentity
    from membership.label import Timing
    from membership.san.fence import FenceDriver
    from membership.seams import Clock

CLAIMS_MAX = 2 * NODE_SLOTS  # more lost claims than slots means a store that forgets what is written


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who wants a slot, and with what."""

    areas: Areas
    cluster: bytes
    timing: Timing
    clock: Clock
    drivers: Sequence[FenceDriver]
    host: HostIdentity
    name: str
    address: str
    incarnation: int


async def claim_slot(claimant: Claimant) -> tuple[int, HeartbeatSlot]:
    """Claim a slot; returns (node id, slot as written).

    Raises:
        OperatorError: a node of that name runs, its predecessor can't be fenced, or no slot is free.
        DeviceError: I/O failed.
    """
    for _ in range(CLAIMS_MAX):
        slots, damaged = await claimant.areas.read_slots()
        mine = [node for node, slot in slots.items() if slot.name == claimant.name]
        if mine:
            node = mine[0]
            await _retire(claimant, node, slots[node])
            before: HeartbeatSlot | None = slots[node]
        else:
            node = await _free_slot(claimant, slots, damaged)
            before = slots.get(node)
        claim = await _write_claim(claimant, node, before)
        if claim is not None:
            return node, claim
    raise OperatorError("no node slot could be claimed; does the store keep what is written?")


async def _retire(claimant: Claimant, node: int, slot: HeartbeatSlot) -> None:
    """Make sure that the former owner of our name writes no more (H1)."""
    where = f"slot {node}, {slot.host}"
    running = f"node {claimant.name} is already running ({where}): use another --name, or stop it first"
    if slot.is_left or slot.incarnation == claimant.incarnation:
        return  # the latter: our own claim, whose write took too long
    gone = is_gone(claimant.drivers, slot)
    if gone is False:
        raise OperatorError(running)
    watched_since = claimant.clock.monotonic()
    if gone is None:
        # Unknown host: who renews within the time in which its lease must end is alive; who doesn't has lost it for
        # good (L2).  Its last renewal began before ``watched_since``, as in R4.
        end = watched_since + claimant.timing.dead
        while claimant.clock.monotonic() < end:
            await claimant.clock.sleep(claimant.timing.renew)
            if await _has_moved(claimant, node, slot):
                raise OperatorError(running)
        return
    result = await fence_target(claimant.drivers, slot, watched_since)
    if not result.confirmed:
        raise OperatorError(f"node {claimant.name}: its former processes can't be stopped ({result.detail})")


async def _has_moved(claimant: Claimant, node: int, slot: HeartbeatSlot) -> bool:
    try:
        now = await claimant.areas.read_slot(node)
    except CorruptRecord:
        return True  # somebody is writing it
    return now is None or (now.incarnation, now.counter) != (slot.incarnation, slot.counter)


async def _free_slot(claimant: Claimant, slots: dict[int, HeartbeatSlot], damaged: set[int]) -> int:
    header = (await claimant.areas.read_header()).header
    first = zlib.crc32(claimant.name.encode()) % NODE_SLOTS
    order = [(first + i) % NODE_SLOTS for i in range(NODE_SLOTS)]
    order = [n for n in order if n not in header.members and n not in header.fencing and n not in damaged]
    never_used = [n for n in order if n not in slots]
    left = [n for n in order if n in slots and slots[n].is_left]
    if not never_used and not left:
        raise OperatorError(f"all {NODE_SLOTS} node slots are taken")
    return (never_used or left)[0]


async def _write_claim(claimant: Claimant, node: int, before: HeartbeatSlot | None) -> HeartbeatSlot | None:
    started = claimant.clock.monotonic()
    try:
        found = await claimant.areas.read_slot(node)
    except CorruptRecord:
        return None
    if (found is None) != (before is None) or (found and before and found.incarnation != before.incarnation):
        return None
    host = claimant.host
    claim = HeartbeatSlot(
        owner=claimant.cluster,
        address=slot_block(node),
        incarnation=claimant.incarnation,
        counter=(before.counter + 1) % 2**64 if before else 1,
        hears=1 << node,
        boot_id=host.boot_id,
        machine_id=host.machine_id,
        flags=0,
        port=0,
        mount_pids=(),
        mount_starts=(),
        mount_incarnations=(),
        pid=host.pid,
        start_time=host.start_time,
        name=claimant.name,
        host=claimant.address,
    )
    await claimant.areas.write_slot(claim)
    if claimant.clock.monotonic() - started > claimant.timing.renew / 2:
        return None
    await claimant.clock.sleep(claimant.timing.renew)
    try:
        found = await claimant.areas.read_slot(node)
    except CorruptRecord:
        return None
    return claim if found is not None and found.incarnation == claimant.incarnation else None
