"""Deadlocks over arbiters: one victim, the youngest; nobody in a cycle that broke up; probes bounded."""

from __future__ import annotations

import pytest

from dlm.owned.client import Result
from dlm.owned.messages import HOPS_MAX, Chase, Follow, Found, Hop, Kind
from tests.dlm.owned_cluster import OwnedCluster

PROBES = ("Chase", "Follow", "Found")


def cycle(count, *, kind=Kind.POSIX):
    """Node i holds object i, arbitrated by node i + 1, and waits for object i + 1: the last wait closes the cycle."""
    cluster = OwnedCluster(*range(count))
    objects = []
    for i in range(count):
        objects.append(cluster.object_at((i + 1) % count, avoid=objects))
        cluster.got(cluster.lock(i, objects[i], kind=kind))
    waits = []
    for i in range(count):
        waits.append(cluster.lock(i, objects[(i + 1) % count], kind=kind))
        cluster.deliver()
    return cluster, objects, waits


def results(cluster, waits):
    return [cluster.result(wait) for wait in waits]


@pytest.mark.parametrize("kind", [Kind.POSIX, Kind.NAMED])
@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_one_victim_within_4n_probes(count, kind):
    cluster, objects, waits = cycle(count, kind=kind)
    local = [i for i, wait in enumerate(waits) if cluster.result(wait) == Result.DEADLOCK]
    before = dict(cluster.sent)
    cluster.tick()
    cluster.deliver()
    assert results(cluster, waits).count(Result.DEADLOCK) == 1
    if not local:
        stamps = {}
        for i, (node, call) in enumerate(waits):
            pending = cluster.cores[node].owned.client.calls.get(call)
            stamps[i] = None if pending is None else (pending.message.stamp, i)
        assert list(stamps.values()).count(None) == 1
        # The younger a wait, the further its probe comes; the youngest's two rounds are 4 n, some of them at home.
        sent = sum(cluster.sent[name] - before.get(name, 0) for name in PROBES)
        assert sent <= 4 * count + 2 * count * count
    victim = results(cluster, waits).index(Result.DEADLOCK)
    cluster.unlock(victim, objects[victim], kind=kind)  # what a program does that is told EDEADLK
    cluster.deliver()
    assert results(cluster, waits).count(Result.GRANTED) == 1


def test_the_victims_rounds_are_4n_messages():
    cluster, _, waits = cycle(3)
    youngest = max(
        waits, key=lambda wait: (cluster.cores[wait[0]].owned.client.calls[wait[1]].message.stamp, wait[0])
    )
    cluster.sent.clear()
    cluster.tick(0.2, youngest[0])  # only its home looks
    cluster.deliver()
    assert cluster.result(youngest) == Result.DEADLOCK
    assert sum(cluster.sent[name] for name in PROBES) <= 12
    assert cluster.sent["Withdraw"] == cluster.sent["Refused"] <= 1


@pytest.mark.parametrize("node", [0, 1, 2])
def test_only_the_youngest_finds_the_cycle(node):
    cluster, _, waits = cycle(3)
    calls = {wait[0]: cluster.cores[wait[0]].owned.client.calls[wait[1]] for wait in waits}
    youngest = max(calls, key=lambda node: (calls[node].message.stamp, node))
    for _ in range(5):
        cluster.tick(1.1, node)
        cluster.deliver()
    expected = [Result.DEADLOCK] if node == youngest else []
    assert [result for result in results(cluster, waits) if result is not None] == expected


def deliver_until(cluster, name):
    """Deliver one by one until a message of this type is next on some link; return the link."""
    while True:
        for link, queue in sorted(cluster.links.items()):
            for payload in queue:
                if payload[9] == name.__struct_config__.tag:
                    return link
        assert any(cluster.links.values()), f"no {name.__name__} came"
        link = next(link for link, queue in sorted(cluster.links.items()) if queue)
        cluster.deliver(*link)


@pytest.mark.parametrize("stage", [Follow, Chase, Found])
def test_a_cycle_that_breaks_up_kills_nobody(stage):
    """Another wait of the cycle is given up while the probe is under way."""
    for given_up in range(3):
        cluster, _, waits = cycle(3)
        calls = {wait[0]: cluster.cores[wait[0]].owned.client.calls[wait[1]] for wait in waits}
        youngest = max(calls, key=lambda node: (calls[node].message.stamp, node))
        if given_up == youngest:
            continue
        cluster.tick(0.2, youngest)
        deliver_until(cluster, stage)
        cluster.cancel(waits[given_up])
        cluster.deliver()
        cluster.tick(1.1)
        cluster.deliver()
        assert cluster.result(waits[given_up]) == Result.WITHDRAWN
        assert Result.DEADLOCK not in results(cluster, waits)


def test_flock_is_not_looked_at():
    cluster, _, waits = cycle(3, kind=Kind.FLOCK)
    cluster.sent.clear()
    cluster.tick(5)
    cluster.deliver()
    assert results(cluster, waits) == [None] * 3
    assert not any(cluster.sent[name] for name in PROBES)


def test_a_cycle_formed_across_a_view_is_found_in_the_next():
    cluster, _, waits = cycle(3)
    cluster.tick()
    cluster.change()  # the probes are gone with the view
    assert results(cluster, waits) == [None] * 3
    for _ in range(2):
        cluster.tick(1.1)
        cluster.deliver()
    assert results(cluster, waits).count(Result.DEADLOCK) == 1


def test_many_paths_are_walked_once_each():
    """Layers of readers, each waiting for all of the next layer: without memory a probe would double at each layer."""
    width, depth = 3, 5
    cluster = OwnedCluster(0, 1, 2)
    objects = []
    for layer in range(depth):
        objects.append(cluster.object_at(layer % 3, avoid=objects))
        for i in range(width):
            cluster.got(cluster.lock(i, objects[layer], owner=layer, exclusive=False))
    for layer in reversed(range(depth - 1)):  # the far ones first, so that they are older
        for i in range(width):
            cluster.lock(i, objects[layer + 1], owner=layer)
            cluster.deliver()
    top = cluster.lock(0, objects[0], owner=99)
    cluster.deliver()
    cluster.sent.clear()
    calls = cluster.cores[0].owned.client.calls
    assert top[1] in calls
    cluster.now += 10
    cluster.cores[0].owned.chaser._start(top[1], calls[top[1]], [])
    cluster.flush(0)
    cluster.deliver()
    waits = width * (depth - 1)
    assert cluster.sent["Chase"] <= waits + 1
    assert cluster.sent["Follow"] <= width * (waits + 1)


def test_a_threaded_owner_waits_for_what_any_thread_waits_for():
    cluster = OwnedCluster(0, 1, 2)
    x, y, z = (cluster.object_at(node) for node in (0, 1, 2))
    cluster.got(cluster.lock(0, x))
    cluster.got(cluster.lock(1, y))
    cluster.got(cluster.lock(2, z))
    harmless = cluster.lock(1, z)
    cluster.deliver()
    one = cluster.lock(1, x)
    cluster.deliver()
    two = cluster.lock(0, y)
    cluster.deliver()
    cluster.tick()
    cluster.deliver()
    assert sorted(map(str, (cluster.result(one), cluster.result(two)))) == ["3", "None"]
    assert cluster.result(harmless) is None


def test_forged_probes_change_nothing():
    cluster, _, waits = cycle(3)
    owned = cluster.cores[0].owned
    wait = next(wait for wait in waits if wait[0] == 0)
    call = owned.client.calls[wait[1]]
    hop = Hop(0, 1, wait[1], call.span.object)
    arbiter = owned.chaser._master(hop.object)
    stranger = next(node for node in range(3) if node not in (arbiter, 0))
    elsewhere = Hop(1, 1, 9, 9)
    for message in (
        Found(Kind.POSIX, 0, 1, [hop], [hop]),
        Found(Kind.POSIX, 0, 7, [hop], []),
        Follow(Kind.POSIX, 1 << 62, 1, [hop] * HOPS_MAX, [elsewhere], [1, 2, 3]),
        Chase(Kind.POSIX, 0, 1, [elsewhere], []),
        Chase(Kind.FLOCK, 0, 1, [hop] * HOPS_MAX, []),
    ):
        for sender in (stranger, arbiter):
            cluster.cores[0].receive(sender, cluster.attempt, message)
            cluster.flush(0)
    cluster.deliver()
    assert results(cluster, waits) == [None] * 3
