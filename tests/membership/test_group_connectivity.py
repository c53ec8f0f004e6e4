"""Rules that every node computes alike (002-39, architecture 5)."""

from __future__ import annotations

import itertools

import pytest

from membership.group.connectivity import address_key, candidate, clique, lowest, may_act
from membership.seams import PeerAddress

NODES = {n: PeerAddress(n, 1, f"10.0.0.{10 - n}", 7000) for n in range(5)}  # node 4 has the lowest address


def test_addresses_sort_as_numbers():
    hosts = ["10.0.0.10", "10.0.0.9", "fe80::1", "node-b", "node-a"]
    ordered = sorted((PeerAddress(0, 1, h, 1) for h in hosts), key=address_key)
    assert [a.host for a in ordered] == ["10.0.0.9", "10.0.0.10", "fe80::1", "node-a", "node-b"]
    same_host = [PeerAddress(0, 1, "10.0.0.1", 2), PeerAddress(1, 1, "10.0.0.1", 1)]
    assert lowest(same_host) == 1


@pytest.mark.seed("002-39")
def test_all_compute_the_same_coordinator():
    assert {lowest([NODES[n] for n in order]) for order in itertools.permutations(range(5))} == {4}


@pytest.mark.parametrize(
    ("reached", "alive", "expected"),
    [
        ({0}, {0}, True),
        ({0}, {0, 1}, False),
        ({1}, {0, 1}, True),
        ({0, 1}, {0, 1, 2}, True),
        ({2}, {0, 1, 2}, False),
        ({0, 1}, {0, 1, 2, 3}, False),
        ({2, 3}, {0, 1, 2, 3}, True),
        ({0}, set(), True),
    ],
)
def test_may_act(reached, alive, expected):
    assert may_act(reached, alive, NODES) is expected


def test_two_disjoint_sets_never_both_act():
    everybody = set(NODES)
    for size in range(6):
        for side in map(set, itertools.combinations(everybody, size)):
            other = everybody - side
            assert not (side and other and may_act(side, everybody, NODES) and may_act(other, everybody, NODES))


def test_clique_is_mutual_and_prefers_low_addresses():
    full = {n: set(NODES) for n in NODES}
    assert clique(0, NODES, full) == set(NODES)
    one_way = {**full, 3: set(NODES) - {4}}  # 3 does not hear 4: the lower address stays
    assert clique(0, NODES, one_way) == {0, 1, 2, 4}
    assert clique(3, NODES, one_way) == {0, 1, 2, 3}
    assert clique(2, NODES, {2: set(NODES)}) == {2}  # nobody has told whom it hears


@pytest.mark.seed("002-39")
def test_who_failed_last_is_not_nominated_next():
    members = {n: NODES[n] for n in (0, 1, 2)}
    assert candidate(members, []) == 2
    assert candidate(members, [2]) == 1
    assert candidate(members, [2, 1]) == 0
    assert candidate(members, [2, 1, 0]) == 2  # all failed: who failed longest ago
    assert candidate(members, [4, 2]) == 1


@pytest.mark.seed("002-46")
def test_a_newcomer_pushes_no_member_out():
    """Node 4, lowest of all, is back; node 0 has not heard it yet (found by killing mounts at random)."""
    hears = {0: {0, 1}, 1: {0, 1, 4}, 4: {1, 4}}
    nodes = {n: NODES[n] for n in hears}
    assert clique(1, nodes, hears) == {1, 4}, "by address alone"
    assert clique(1, nodes, hears, present={0, 1}) == {0, 1}
    hears[0] |= {4}
    hears[4] |= {0}
    assert clique(1, nodes, hears, present={0, 1}) == {0, 1, 4}
