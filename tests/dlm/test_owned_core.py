"""Owned locks between hand-delivered cores: views that break in, repeats, floods and lies."""

from __future__ import annotations

import pytest

from dlm.owned import arbiter as arbiter_module
from dlm.owned import client as client_module
from dlm.owned.client import Result
from dlm.owned.messages import (
    Acquire,
    Acquired,
    Free,
    Freed,
    Inquire,
    Inquired,
    Kind,
    OwnedReport,
    Reason,
    Refused,
    Withdraw,
)
from dlm.owned.ranges import END_MAX
from tests.dlm.owned_cluster import OwnedCluster

POSIX = Kind.POSIX


@pytest.fixture
def cluster():
    return OwnedCluster(0, 1, 2)


def held(cluster, node):
    """What the node arbitrates: (node, owner, start, end, exclusive) of held ranges."""
    return [
        (entry["node"], entry["owner"], entry["start"], entry["end"], entry["exclusive"])
        for entry in cluster.cores[node].owned.arbiter.dump()
        if entry["waits_for"] is None
    ]


def receive(cluster, node, sender, *messages):
    for message in messages:
        cluster.cores[node].receive(sender, cluster.attempt, message)
    cluster.flush(node)
    cluster.deliver()


# --- views ---


@pytest.mark.seed("002-30")
def test_an_answer_lost_with_its_view_leaves_no_conflict(cluster):
    """A downgrade that had to wait is granted, its answer is lost, and another shares the range by then."""
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x, span=(5, 7)))
    cluster.got(cluster.lock(2, x, span=(0, 3)))
    downgrade = cluster.lock(1, x, span=(0, 10), exclusive=False)
    cluster.deliver()
    sharer = cluster.lock(2, x, owner=2, span=(5, 7), exclusive=False)
    cluster.deliver()
    cluster.unlock(2, x, span=(0, 3))
    cluster.deliver(2, 0)  # the arbiter grants the downgrade; the answer stays on the wire
    assert (1, 1, 0, 4, False) in held(cluster, 0)
    assert (1, 1, 5, 7, True) in held(cluster, 0)  # not weakened before its owner knows
    assert cluster.result(sharer) is None
    cluster.change()
    assert cluster.count("owned_conflicts") == 0
    cluster.deliver()
    assert cluster.result(downgrade) == cluster.result(sharer) == Result.GRANTED
    assert held(cluster, 0) == [(1, 1, 0, 10, False), (2, 2, 5, 7, False)]


def test_an_unlock_under_way_is_done_by_the_view(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    unlock = cluster.unlock(1, x)
    cluster.suspend()
    assert cluster.result(unlock) is None
    cluster.rebuild()
    cluster.deliver()
    assert cluster.result(unlock) is None  # an old arbiter might still refuse others for it
    cluster.resume()
    assert cluster.result(unlock) == Result.DONE
    assert held(cluster, 0) == []


def test_calls_between_suspend_and_resume_are_made_after(cluster):
    x = cluster.object_at(0)
    kept = cluster.got(cluster.lock(1, x, span=(0, 9)))
    cluster.suspend()
    cluster.rebuild()
    calls = [
        cluster.unlock(1, x, span=(0, 4)),
        cluster.lock(2, x, span=(0, 4), wait=False),
        cluster.lock(2, x, span=(5, 5), wait=False),
    ]
    again = cluster.lock(1, x, span=(5, 9))
    assert cluster.result(again) == Result.GRANTED  # held already, recovery or not
    assert kept != again
    cluster.deliver()
    cluster.resume(1)
    cluster.resume(0)
    cluster.deliver()
    cluster.resume(2)
    cluster.deliver()
    assert [cluster.result(call) for call in calls] == [Result.DONE, Result.GRANTED, Result.AGAIN]


def test_a_second_attempt_before_the_first_ends(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    waits = cluster.lock(2, x)
    cluster.deliver()
    cluster.suspend()
    cluster.rebuild()
    unlock = cluster.unlock(1, x)  # after the report
    cluster.change()
    assert cluster.result(unlock) == Result.DONE
    assert cluster.result(waits) == Result.GRANTED


def test_the_dead_hold_nothing_and_their_waits_are_gone(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    waits = cluster.lock(2, x)
    third = cluster.lock(1, x, owner=5, span=(3, 3), exclusive=False)
    cluster.deliver()
    assert cluster.result(third) is None
    cluster.kill(1)
    cluster.change()
    assert cluster.result(waits) == Result.GRANTED
    assert list(cluster.cores[0].owned.arbiter.dump())[0]["node"] == 2
    assert cluster.cores[0].owned.arbiter.sizes()["owned_waits"] == 0


def test_a_withdrawal_crosses_a_view(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    early, late = cluster.lock(2, x, owner=1), cluster.lock(2, x, owner=2)
    cluster.deliver()
    cluster.cancel(early)  # told to an arbiter that has left for the next view
    cluster.suspend()
    cluster.cancel(late)
    assert cluster.result(late) == Result.WITHDRAWN
    cluster.rebuild()
    assert cluster.result(early) == Result.WITHDRAWN
    cluster.deliver()
    cluster.resume()
    cluster.unlock(1, x)
    cluster.deliver()
    assert held(cluster, 0) == []


def test_many_locks_are_rebuilt(cluster):
    x = cluster.object_at(0)
    for i in range(1300):
        cluster.lock(1, x, span=(2 * i, 2 * i))
    cluster.deliver()
    before = held(cluster, 0)
    assert len(before) == 1300
    cluster.sent.clear()
    cluster.change()
    assert held(cluster, 0) == before
    assert cluster.sent["Rebuild"] == 3  # of 512 each


# --- order of service ---


def test_who_waits_does_not_stand_in_the_way_of_others(cluster):
    """As on Linux: only what is held counts."""
    x = cluster.object_at(0)
    cluster.got(cluster.lock(0, x, span=(0, 4), exclusive=False))
    writer = cluster.lock(1, x, span=(0, 9))
    cluster.deliver()
    cluster.got(cluster.lock(2, x, span=(0, 9), exclusive=False))
    cluster.unlock(0, x)
    cluster.deliver()
    assert cluster.result(writer) is None
    cluster.unlock(2, x)
    cluster.deliver()
    assert cluster.result(writer) == Result.GRANTED


def test_freed_ranges_go_to_the_first_who_fits(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(0, x, span=(0, 9)))
    waits = [cluster.lock(1, x, owner=i, span=span) for i, span in enumerate([(0, 9), (0, 3), (2, 5), (4, 4)])]
    cluster.deliver()
    cluster.unlock(0, x, span=(0, 4))
    cluster.deliver()
    granted = [cluster.result(wait) == Result.GRANTED for wait in waits]
    assert granted == [False, True, False, True]


@pytest.mark.seed("003-41")
@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_messages_do_not_grow_with_the_cluster(nodes):
    cluster = OwnedCluster(*range(nodes))
    x = cluster.object_at(0)
    other = nodes - 1
    costs = []
    for call in (
        lambda: cluster.lock(1, x),
        lambda: cluster.lock(other, x, owner=2, wait=False),
        lambda: cluster.lock(other, x, owner=2),
        lambda: cluster.unlock(1, x),  # Free, Freed, and the waiter's Acquired
        lambda: cluster.unlock(other, x, owner=2),
        lambda: cluster.lock(0, x),
        lambda: cluster.unlock(0, x),
    ):
        call()
        costs.append(cluster.deliver())
    assert costs == [2, 2, 1, 3, 2, 0, 0]


# --- bad input ---


def test_repeated_messages_change_nothing(cluster):
    x = cluster.object_at(0)
    request = Acquire(POSIX, x, 5, 1, 0, 9, True, True, 1, 1)
    receive(cluster, 0, 1, request, Free(POSIX, x, 6, 1, 0, 9), request, request)
    assert held(cluster, 0) == []
    assert cluster.cores[0].statistics["owned_repeated"] == 2


def test_answers_nobody_asked_for(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    waits = cluster.lock(2, x)
    cluster.deliver()
    serial = waits[1]
    receive(cluster, 2, 1, Acquired(serial, 1), Refused(serial, Reason.AGAIN))  # from who is not its arbiter
    receive(cluster, 2, 0, Freed(serial), Inquired(serial, None), Acquired(99, 1), Freed(99))
    assert cluster.result(waits) is None
    assert cluster.cores[2].statistics["owned_unasked"] == 6


def test_nobody_withdraws_or_frees_for_another(cluster):
    x = cluster.object_at(0)
    cluster.got(cluster.lock(1, x))
    waits = cluster.lock(2, x)
    cluster.deliver()
    receive(cluster, 0, 1, Withdraw(POSIX, x, waits[1]))
    receive(cluster, 0, 2, Free(POSIX, x, 1000, 1, 0, END_MAX), Withdraw(POSIX, 12345, 3))
    assert held(cluster, 0) == [(1, 1, 0, END_MAX, True)]
    assert cluster.result(waits) is None


def test_a_flood_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(arbiter_module, "NODE_RANGES_MAX", 4)
    monkeypatch.setattr(arbiter_module, "NODE_WAITS_MAX", 3)
    monkeypatch.setattr(arbiter_module, "_SPLITS_MAX", 1)
    x = cluster.object_at(0)
    calls = [cluster.lock(1, x, span=(10 * i, 10 * i + 5)) for i in range(5)]
    cluster.deliver()
    assert [cluster.result(call) for call in calls] == [Result.GRANTED] * 4 + [Result.NOLOCKS]
    waits = [cluster.lock(2, x, owner=i) for i in range(5)]
    cluster.deliver()
    assert [cluster.result(call) for call in waits] == [None] * 3 + [Result.NOLOCKS] * 2
    splits = [cluster.unlock(1, x, span=(10 * i + 2, 10 * i + 2)) for i in range(2)]
    cluster.deliver()
    assert [cluster.result(call) for call in splits] == [Result.DONE, Result.NOLOCKS]
    whole = cluster.unlock(1, x)
    cluster.deliver()
    assert cluster.result(whole) == Result.DONE
    assert cluster.result(waits[0]) == Result.GRANTED


def test_a_client_knows_its_own_limit(cluster, monkeypatch):
    monkeypatch.setattr(client_module, "RANGES_MAX", 2)
    x = cluster.object_at(0)
    calls = [cluster.lock(1, x, span=(10 * i, 10 * i)) for i in range(2)]
    cluster.deliver()
    calls.append(cluster.lock(1, x, span=(50, 50)))
    assert [cluster.result(call) for call in calls] == [Result.GRANTED] * 2 + [Result.NOLOCKS]


def test_an_object_bears_so_many_ranges(cluster, monkeypatch):
    monkeypatch.setattr(arbiter_module, "OBJECT_RANGES_MAX", 2)
    x = cluster.object_at(0)
    calls = [cluster.lock(node, x, span=(10 * node, 10 * node)) for node in (0, 1, 2)]
    cluster.deliver()
    assert [cluster.result(call) for call in calls] == [Result.GRANTED] * 2 + [Result.NOLOCKS]


def test_reports_in_conflict_shut_out_everybody_else(cluster):
    """Clients that keep the rules never send them; one that doesn't can't be told from the other."""
    x = cluster.object_at(0)
    core = cluster.cores[0].owned
    core.replace([(node, OwnedReport(POSIX, x, 1, 0, 9, True, 7)) for node in (1, 2)])
    assert cluster.cores[0].statistics["owned_conflicts"] == 1
    assert len(held(cluster, 0)) == 2
    third = cluster.lock(0, x, span=(9, 9), wait=False)
    assert cluster.result(third) == Result.AGAIN


def test_a_stamp_from_the_end_of_the_world(cluster):
    x = cluster.object_at(0)
    receive(cluster, 0, 1, Acquire(POSIX, x, 1, 1, 0, 0, True, True, 1, END_MAX))
    stamps = [cluster.lock(0, x, owner=i) for i in range(3)]
    assert [cluster.cores[0].owned.client.calls[call].message.stamp for _, call in stamps] == [END_MAX] * 3
    receive(cluster, 0, 1, Inquire(POSIX, x, (1 << 64) - 1, 1, 0, 0, True))
    receive(cluster, 0, 1, Free(POSIX, x, 2, 1, 0, 0))
    assert len(held(cluster, 0)) == 1  # the serial of the sender wrapped: its own loss
