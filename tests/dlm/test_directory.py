"""The map from resources to masters: fixed, even, and stable under changes of members."""

from __future__ import annotations

from collections import Counter

import pytest

from dlm.directory import Directory, master_of
from dlm.names import Resource

KEYS = range(4000)


@pytest.mark.seed("003-37")
def test_spreads_evenly_and_all_compute_the_same():
    for count in (1, 2, 3, 8, 64):
        shares = Counter(Directory(range(count), 0).master_of_key(key) for key in KEYS)
        assert len(shares) == count
        if count <= 8:
            assert max(shares.values()) < 1.15 * len(KEYS) / count
    assert Directory([3, 1, 2], 15).nodes == Directory([1, 2, 3], 15).nodes
    # Part of the protocol: peers of different versions must agree.
    assert [master_of(Resource(1, key << 15), (0, 1, 2), 15) for key in range(12)] == GOLDEN


GOLDEN = [0, 1, 2, 2, 1, 0, 0, 2, 0, 1, 0, 1]


@pytest.mark.seed("003-37")
def test_a_death_moves_only_what_the_dead_mastered():
    before, after = Directory((0, 1, 2, 3), 0), Directory((0, 1, 3), 0)
    for key in KEYS:
        if before.master_of_key(key) != 2:
            assert after.master_of_key(key) == before.master_of_key(key)


def test_placement_groups_share_a_master_whatever_the_domain():
    directory = Directory((0, 1, 2), 15)
    for group in range(50):
        masters = {directory.master(Resource(domain, (group << 15) + i, i)) for domain in (1, 2) for i in (0, 9, 32767)}
        assert len(masters) == 1


def test_preferred():
    directory = Directory((0, 1, 2), 15)
    keys = list(range(30))
    mine = [directory.preferred(node, keys) for node in (0, 1, 2)]
    assert sorted(key for part in mine for key in part) == keys
    assert all(directory.master(Resource(7, key << 15)) == 1 for key in mine[1])


def test_memory_is_bounded():
    directory = Directory((0, 1), 0)
    for key in range(70000):
        directory.master_of_key(key)
    assert len(directory._cache) <= 65536
