"""What an administrator sees: ages at the master, counters per domain, the last rebuild (R14)."""

from __future__ import annotations

import pytest
import trio.testing

from dlm.counts import Ages
from dlm.modes import EX, NL, PR
from dlm.names import Resource
from tests.dlm.test_service import Net

R = Resource(1, 1)


def test_ages_begin_when_the_time_is_told_and_end_with_the_wait():
    ages = Ages()
    assert not ages.unstamped
    ages.see(R, [1, 2], [3])
    assert ages.unstamped
    ages.stamp(10.0)
    ages.see(R, [2, 4], [3])  # 1 was granted, 4 is new
    ages.stamp(12.0)
    assert not ages.unstamped
    seconds = {node: ages.seconds(R, "waits", node, 15.0) for node in (1, 2, 4)}
    assert seconds == {1: 0.0, 2: 5.0, 4: 3.0}
    assert ages.seconds(R, "asked", 3, 15.0) == 5.0
    ages.see(R, [], [])
    assert ages.seconds(R, "waits", 2, 15.0) == 0.0


def test_who_waits_and_who_was_asked_since_when(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    cluster.request(3, resource, PR, priority=7)
    cluster.deliver()
    core = cluster.cores[1]
    core.stamp(100.0)
    (entry,) = core.dump([resource], 102.5)
    assert entry["waiting"] == [[3, "PR", 2.5, 7]]
    assert entry["revokes"] == [[2, "PR", 2.5]]
    cluster.release(2, resource)
    cluster.deliver()
    (entry,) = core.dump([resource], 103.0)
    assert (entry["waiting"], entry["revokes"]) == ([], [])
    assert core.dump([Resource(9, 9)], 1.0) == [{"resource": "9:9", "master": core._arbiters.of(Resource(9, 9))}]


@pytest.mark.seed("003-39", "003-42")
def test_counters_per_domain(cluster_of):
    cluster = cluster_of(1, 2, 3)
    near, far = cluster.mastered_by(1), cluster.mastered_by(2)
    cluster.request(1, near, EX)
    cluster.request(1, far, EX)
    cluster.deliver()
    for node in (3, 2):
        cluster.request(node, far, EX)
        cluster.deliver()
    cluster.release(1, far)
    cluster.deliver()
    one, two, three = (cluster.cores[node].counts[1].as_dict() for node in (1, 2, 3))
    assert (one["requests"], one["local_grants"], one["remote_grants"], one["revokes_received"]) == (2, 1, 1, 1)
    assert (two["revokes_sent"], two["hand_overs"]) == (1, 1)
    assert (three["remote_grants"], three["finish_flags"]) == (1, 1)
    other = Resource(2, near.object)
    cluster.request(1, other, PR)
    assert cluster.cores[1].counts[2].as_dict()["requests"] == 1


def test_a_rebuild_says_what_it_did(cluster_of):
    cluster = cluster_of(1, 2, 3)
    for i in range(30):
        cluster.get(1, Resource(1, i), EX)
    cluster.change()
    assert cluster.cores[1].last_rebuild["reports"] >= 30
    assert sum(core.last_rebuild["records"] for core in cluster.cores.values()) == 30


# --- values and conversions, beside ---


@pytest.mark.seed("002-30")
def test_only_the_value_that_the_dead_could_write_is_invalid(cluster_of):
    cluster = cluster_of(1, 2, 3)
    names = {kind: cluster.mastered_by(1, avoid=range(i * 40)) for i, kind in enumerate(("written", "read", "alone"))}
    for name in names.values():
        cluster.get(2, name, EX)
        cluster.release(2, name, PR, b"kept")
        cluster.get(1, name, PR)
    cluster.get(3, names["read"], PR)
    cluster.release(2, names["written"])
    cluster.release(1, names["written"])
    cluster.get(3, names["written"], EX)
    dead = cluster.kill(3, (*cluster.instances(),))
    cluster.change(dead)
    cluster.release_ghosts(dead)
    assert cluster.cores[1].held(names["read"]) == PR
    cluster.start(4)
    cluster.change()
    values = {kind: cluster.get(4, name, PR).value for kind, name in names.items()}
    assert values == {"written": None, "read": b"kept", "alone": b"kept"}


@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_conversions_against_each_other_end_since_every_client_yields(cluster_of, nodes):
    """Two readers that both want to write deadlock where a reader keeps its lock meanwhile; ours may not."""
    cluster = cluster_of(*range(nodes))
    resource = cluster.mastered_by(0)
    for node in range(nodes):
        cluster.get(node, resource, PR)
    cluster.events.clear()
    waiting = set()
    for node in range(nodes):
        if cluster.request(node, resource, EX) is None:
            waiting.add(node)
    served = []
    while waiting:
        assert len(served) < nodes, "nobody gets on"
        for _ in range(4):
            cluster.deliver()
            events, cluster.events = cluster.events, []
            for node, event in events:
                held = cluster.cores[node].held(resource)
                if hasattr(event, "grant"):
                    waiting.discard(node)
                    served.append(node)
                elif held == PR and event.mode == NL:
                    cluster.release(node, resource)  # though its own request waits
        holder = [node for node, mode in cluster.held(resource).items() if mode == EX]
        assert len(holder) == 1
        cluster.release(holder[0], resource)
    assert sorted(served) == list(range(nodes))


async def test_the_service_tells_the_time_and_the_phases(mock_clock, nursery):
    net = Net(0, 1, 2)
    for service in net.services.values():
        await nursery.start(service.run)
    await net.change(1)
    resource = net.mastered_by(0)
    net.services[1].request(resource, EX)
    await trio.testing.wait_all_tasks_blocked()
    net.services[2].request(resource, EX)
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(3.0)
    (entry,) = net.services[0].dump([resource])
    assert entry["waiting"] == [[2, "EX", 3.0, 0]]
    statistics = net.services[0].statistics()
    assert (statistics["hand_overs"], statistics["revokes_sent"]) == (0, 1)
    assert {"rebuild_reports", "rebuild_records", "rebuild_done_ms", "rebuild_resume_ms"} <= statistics.keys()
    assert net.services[1].domains()[1]["remote_grants"] == 1
