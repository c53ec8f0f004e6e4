"""A rebuild in small pieces: what the users and the administrator do in between, and that others get their turn."""

from __future__ import annotations

import pytest

from dlm.lockspace import WORK_ENTRIES
from dlm.modes import EX, PR
from dlm.names import Resource
from membership.views import Instance

LOCKS = 3 * WORK_ENTRIES


@pytest.fixture
def slow(cluster_of, monkeypatch):
    """Three nodes, of which #1 holds much; nobody works on a rebuild unless told to."""
    cluster = cluster_of(1, 2, 3)
    names = [Resource(1, i) for i in range(LOCKS)]
    for name in names:
        if cluster.request(1, name, EX) is None:
            cluster.deliver()
    cluster.events.clear()

    def flush(node):
        effects = cluster.cores[node].take_effects()
        for target, attempt, message in effects.send:
            cluster.post(node, target, attempt, message)
        cluster.events += [(node, event) for event in effects.events if hasattr(event, "resource")]

    monkeypatch.setattr(cluster, "flush", flush)
    cluster.names_held = names
    return cluster


def work(cluster, node, pieces=10**6):
    for _ in range(pieces):
        more = cluster.cores[node].work()
        cluster.flush(node)
        if not more:
            return


def finish(cluster):
    for _ in range(3):
        for node in cluster.cores:
            work(cluster, node)
        cluster.deliver()
    for node in cluster.cores:
        work(cluster, node)


def test_each_piece_is_small(slow):
    slow.suspend()
    slow.rebuild()
    pieces = 0
    while slow.cores[1].work():
        pieces += 1
        assert len(slow.cores[1].take_effects().send) <= WORK_ENTRIES // 16
    assert pieces >= LOCKS // WORK_ENTRIES


@pytest.mark.seed("002-04")
def test_what_changes_between_the_pieces_is_told_once_and_right(slow):
    first, *_, last = slow.names_held
    slow.suspend()
    slow.rebuild()
    work(slow, 1, 1)  # the first is reported, the last is not
    for name in (first, last):
        slow.release(1, name, PR, b"written")
    gone = slow.names_held[-2]
    slow.release(1, gone)
    slow.request(2, last, PR)
    slow.request(3, gone, EX)
    slow.request(3, first, PR)
    slow.cancel(3, first)
    finish(slow)
    assert all(core.state == "rebuilt" for core in slow.cores.values())
    slow.resume()
    slow.deliver()
    assert slow.held(first) == {1: PR}
    assert slow.held(last) == {1: PR, 2: PR}
    assert slow.held(gone) == {3: EX}
    assert [event.grant.value for node, event in slow.events if node == 2] == [b"written"]


@pytest.mark.parametrize("phase", ["reports", "records"])
def test_a_newer_attempt_in_the_midst_begins_anew(slow, phase):
    slow.suspend()
    slow.rebuild()
    if phase == "reports":
        work(slow, 1, 1)
        slow.deliver()
    else:
        for node in slow.cores:
            work(slow, node)
        slow.deliver()
        for core in slow.cores.values():
            core.work(5)  # a few records each
        assert {core.state for core in slow.cores.values()} == {"rebuilding"}
    slow.suspend()
    assert not slow.cores[1].working
    slow.rebuild()
    finish(slow)
    slow.resume()
    slow.deliver()
    granted = [entry["granted"] for core in slow.cores.values() for entry in core.dump() if "granted" in entry]
    assert granted == [{1: "EX"}] * LOCKS


@pytest.mark.seed("002-04")
@pytest.mark.parametrize("when", ["reports", "records"])
def test_a_replay_that_ends_in_the_midst_frees_what_the_dead_held(slow, when):
    mine = [name for name in slow.names_held if slow.cores[2].master_is_local(name)]
    dead = slow.kill(1, (Instance(1, 101), *slow.instances()))
    slow.suspend()
    slow.rebuild(dead)
    if when == "records":
        for node in slow.cores:
            work(slow, node)
        slow.deliver()
        for core in slow.cores.values():
            core.work(5)
        assert slow.cores[2].sizes()["resources"] > 0
    for core in slow.cores.values():
        core.release_ghosts(dead.instance)
    finish(slow)
    slow.resume()
    slow.deliver()
    assert all(core.sizes()["resources"] == 0 for core in slow.cores.values())
    assert slow.request(2, mine[0], EX) is not None
