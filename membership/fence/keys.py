"""Reservation keys: which process of which node a registration on a LUN belongs to (002-31, 002-38; SPC-4 5.13).

::

    bits 63..48   0x4D58 ("MX"): a key of ours
    bits 47..40   node id; 255: a process that has no node id yet, because it claims a slot (CLAIMANT)
    bits 39..0    low bits of the incarnation of the process: of matrixd, or of a mount process

Invariants:
    K1. A key names one process for ever: an incarnation is drawn anew for every start, so a key that was preempted is
        never registered again by anybody else, and by its owner never on purpose.
    K2. A process without a node id registers as CLAIMANT.  So the fence of a node never hits who is about to become
        its successor: the successor takes a key of the node only when its claim of the slot is durable.
"""

from __future__ import annotations

from membership.label import NODE_SLOTS

PREFIX = 0x4D58
CLAIMANT = 0xFF
INCARNATION_BITS = 40
_INCARNATION_MASK = (1 << INCARNATION_BITS) - 1


def key_of(node: int, incarnation: int) -> int:
    """The key of one process of a node; ``node`` may be CLAIMANT."""
    assert 0 <= node < NODE_SLOTS or node == CLAIMANT
    return PREFIX << 48 | node << INCARNATION_BITS | incarnation & _INCARNATION_MASK


def node_of(key: int) -> int | None:
    """The node (or CLAIMANT) that a key belongs to; None: not ours."""
    node = key >> INCARNATION_BITS & 0xFF
    ours = key >> 48 == PREFIX and (node < NODE_SLOTS or node == CLAIMANT)
    return node if ours else None


def describe_key(key: int) -> str:
    """For people."""
    node = node_of(key)
    if node is None:
        return f"key {key:#018x} of somebody else"
    return f"key {key:#018x} ({'a claimant' if node == CLAIMANT else f'node {node}'})"
