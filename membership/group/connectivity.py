"""Who may act, who coordinates, who is nominated: rules every node computes alike, without messages (pure).

002-39 (coordinator by lowest address), architecture 5 ("a minority never acts: the disks are the tie-breaker").
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from membership.seams import PeerAddress

AddressKey = tuple[int, bytes, int, int]


def address_key(address: PeerAddress) -> AddressKey:
    """Sort key: IPv4 before IPv6 before names, then numerically, then port and node id."""
    try:
        ip = ipaddress.ip_address(address.host)
    except ValueError:
        return (9, address.host.encode(), address.port, address.node)
    return (ip.version, ip.packed, address.port, address.node)


def lowest(addresses: Collection[PeerAddress]) -> int:
    """Node id of the lowest address: the coordinator of a view (002-39).  ValueError when empty."""
    return min(addresses, key=address_key).node


def clique(
    me: int,
    addresses: Mapping[int, PeerAddress],
    hears: Mapping[int, AbstractSet[int]],
    present: AbstractSet[int] = frozenset(),
) -> frozenset[int]:
    """The mutually reachable set a node believes in: greedy, always with itself.

    Who is in the present view comes first, then by lowest address: a newcomer that some member does not hear yet waits
    outside, instead of pushing that member out.

    Args:
        me: our node id.
        addresses: candidates, ourselves included.
        hears: per node whom it hears; a node of unknown hearing hears nobody.
        present: nodes of the present view that are still the same incarnation.
    """
    chosen = {me}
    for node in sorted(addresses, key=lambda n: (n not in present, address_key(addresses[n]))):
        if all(node in hears.get(other, ()) and other in hears.get(node, ()) for other in chosen if other != node):
            chosen.add(node)
    return frozenset(chosen)


def may_act(reached: AbstractSet[int], alive: AbstractSet[int], addresses: Mapping[int, PeerAddress]) -> bool:
    """Whether the nodes ``reached`` may evict others and elect an administrator.

    Yes when they are a strict majority of the nodes alive on disk, or exactly half including the lowest address.

    Args:
        reached: mutually reachable set.
        alive: nodes whose disk heartbeat moves.
        addresses: of all nodes in both.
    """
    everyone = alive | reached
    if 2 * len(reached) != len(everyone):
        return 2 * len(reached) > len(everyone)
    return lowest([addresses[node] for node in everyone]) in reached


def candidate(members: Mapping[int, PeerAddress], failed: Sequence[int]) -> int:
    """Who is nominated as administrator: the lowest that has not failed, else who failed longest ago (002-39).

    Args:
        members: of the view.
        failed: node ids in the order they failed, latest last; each at most once.
    """
    fresh = [address for node, address in members.items() if node not in failed]
    if fresh:
        return lowest(fresh)
    return next(node for node in failed if node in members)
