"""The state of one resource as plain data, for administrators (pure, R14)."""

from __future__ import annotations

from typing import Any

from dlm.client import ClientSide
from dlm.master import MasterSide
from dlm.modes import NAMES
from dlm.names import Resource


def describe(resource: Resource, client: ClientSide, master: MasterSide, now: float) -> dict[str, Any]:
    """One resource as plain data: what this node holds and wants, and if it arbitrates, who else does."""
    entry: dict[str, Any] = {"resource": str(resource), "master": master.arbiters.of(resource)}
    lock = client.locks.get(resource)
    if lock is not None:
        entry["held"] = NAMES[lock.held]
        entry["wanted"] = NAMES[lock.wanted] if lock.wanted >= 0 else None
        entry["revoked_to"] = NAMES[lock.revoked] if lock.revoked >= 0 else None
    record = master.records.get(resource)
    if record is not None:
        seconds = master.ages.seconds
        entry["granted"] = {node: NAMES[mode] for node, mode in record.granted.items()}
        entry["waiting"] = [
            [waiter.node, NAMES[waiter.mode], seconds(resource, "waits", waiter.node, now), waiter.priority]
            for waiter in (*record.converting, *record.waiting)
        ]
        entry["revokes"] = [
            [node, NAMES[mode], seconds(resource, "asked", node, now)] for node, mode in record.revoked.items()
        ]
        entry["ghosts"] = [[*instance, NAMES[mode]] for instance, mode in record.ghosts.items()]
        entry["value_valid"] = record.value.valid
    return entry
