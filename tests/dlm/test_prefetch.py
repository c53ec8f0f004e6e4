"""Locks asked for along with another (003-42): one message per master, never waiting, never taking from anybody."""

from __future__ import annotations

import pytest

from dlm.client import DeniedEvent, Grant, GrantedEvent
from dlm.messages import EXTRAS_MAX, NO_VALUE, Extra, ExtraAnswer, Granted, Prefetched, Request
from dlm.modes import CR, EX, NL, PR

PLAIN = Grant(PR, None, -1)


def mastered_by(cluster, master, count):
    found = []
    while len(found) < count:
        found.append(cluster.mastered_by(master, avoid=[resource.object for resource in found]))
    return found


def answers(cluster, node):
    events, cluster.events = cluster.events, []
    assert all(who == node for who, _ in events)
    return {event.resource: isinstance(event, GrantedEvent) for _, event in events}


@pytest.mark.seed("003-42")
@pytest.mark.parametrize("k", [1, 8, 64])
def test_arbitration_messages_drop_k_fold(cluster_of, k):
    """A run through 128 resources of another master, k at a time."""
    cluster = cluster_of(1, 2, 3)
    names = mastered_by(cluster, 3, 128)
    for i in range(0, len(names), k):
        cluster.request(1, names[i], PR, extras=names[i + 1 : i + k])
        cluster.deliver()
    assert all(cluster.held(name) == {1: PR} for name in names)
    assert dict(cluster.sent) == {"Request": 128 // k, "Granted": 128 // k}
    assert cluster.cores[3].counts[1].prefetch_granted == 128 - 128 // k


@pytest.mark.seed("003-42")
def test_locked_extras_are_left_out_and_nobody_is_asked_for_them(cluster_of):
    cluster = cluster_of(1, 2, 3)
    first, free, shared, taken, waited_for = mastered_by(cluster, 3, 5)
    cluster.get(2, shared, PR)
    cluster.get(2, taken, EX)
    cluster.get(2, waited_for, PR)
    cluster.request(3, waited_for, EX)
    cluster.deliver()
    cluster.events.clear()
    cluster.sent.clear()
    cluster.request(1, first, PR, extras=[free, shared, taken, waited_for])
    cluster.deliver()
    assert dict(cluster.sent) == {"Request": 1, "Granted": 1}
    assert answers(cluster, 1) == {first: True, free: True, shared: True, taken: False, waited_for: False}
    assert cluster.held(taken) == {2: EX}
    assert cluster.cores[3].counts[1].prefetch_left_out == 2


@pytest.mark.seed("003-42")
def test_extras_do_not_wait_for_the_request(cluster_of):
    cluster = cluster_of(1, 2, 3)
    first, extra = mastered_by(cluster, 3, 2)
    cluster.get(2, first, EX)
    cluster.request(1, first, PR, extras=[extra])
    cluster.deliver()
    assert cluster.held(extra) == {1: PR}
    assert cluster.sent["Prefetched"] == 1
    cluster.release(2, first)
    cluster.deliver()
    assert cluster.held(first) == {1: PR}


def test_one_message_for_each_further_master_and_none_for_our_own(cluster_of):
    cluster = cluster_of(1, 2, 3)
    names = {node: mastered_by(cluster, node, 3) for node in (1, 2, 3)}
    first, *extras = names[2] + names[1] + names[3]
    cluster.request(1, first, EX, extras=extras)
    assert all(cluster.held(name) == {1: EX} for name in names[1])
    cluster.deliver()
    assert all(cluster.held(name) == {1: EX} for some in names.values() for name in some)
    assert dict(cluster.sent) == {"Request": 2, "Granted": 2}


def test_the_grant_of_a_local_request_is_returned_and_its_extras_come_as_events(cluster_of):
    cluster = cluster_of(1, 2, 3)
    first, free, taken = mastered_by(cluster, 1, 3)
    cluster.get(2, taken, EX)
    assert cluster.request(1, first, PR, extras=[free, taken]) == PLAIN
    assert answers(cluster, 1) == {free: True, taken: False}


def test_values_come_with_extras(cluster_of):
    cluster = cluster_of(1, 2, 3)
    first, extra = mastered_by(cluster, 3, 2)
    cluster.get(2, extra, EX)
    cluster.release(2, extra, CR, b"written")
    cluster.deliver()
    cluster.request(1, first, PR, extras=[extra])
    cluster.deliver()
    assert {event.resource: event.grant.value for _, event in cluster.events}[extra] == b"written"


def test_more_extras_than_a_message_holds(cluster_of):
    cluster = cluster_of(1, 2)
    names = mastered_by(cluster, 2, 3 * EXTRAS_MAX)
    cluster.request(1, names[0], PR, extras=names[1:])
    cluster.deliver()
    assert len(answers(cluster, 1)) == len(names)
    assert cluster.sent["Request"] == 3


@pytest.mark.parametrize("when", ["suspended", "under way"])
def test_extras_survive_a_change_of_view(cluster_of, when):
    cluster = cluster_of(1, 2, 3)
    first, free, taken = mastered_by(cluster, 3, 3)
    cluster.get(2, taken, EX)
    cluster.events.clear()
    if when == "suspended":
        cluster.suspend()
    cluster.request(1, first, PR, extras=[free, taken])
    if when == "under way":
        cluster.suspend()
    cluster.rebuild()
    cluster.deliver()
    cluster.resume()
    cluster.deliver()
    assert answers(cluster, 1) == {first: True, free: True, taken: False}


def test_a_cancelled_extra_is_given_back(cluster_of):
    cluster = cluster_of(1, 2)
    first, extra = mastered_by(cluster, 2, 2)
    cluster.request(1, first, PR, extras=[extra])
    cluster.cancel(1, extra)
    cluster.deliver()
    assert cluster.held(extra) == {}
    assert answers(cluster, 1) == {first: True}
    assert cluster.request(2, extra, EX).mode == EX


def test_an_extra_whose_cancelled_request_is_under_way_is_left_out(cluster_of):
    cluster = cluster_of(1, 2)
    first, extra = mastered_by(cluster, 2, 2)
    cluster.request(1, extra, PR)
    cluster.cancel(1, extra)
    cluster.request(1, first, PR, extras=[extra])
    assert (1, DeniedEvent(extra)) in cluster.events
    cluster.deliver()
    assert cluster.held(extra) == {}


def test_extras_of_a_request_that_must_wait_for_its_cancelled_forerunner_go_alone(cluster_of):
    cluster = cluster_of(1, 2)
    first, extra = mastered_by(cluster, 2, 2)
    cluster.request(1, first, EX)
    cluster.cancel(1, first)
    cluster.request(1, first, PR, extras=[extra])
    cluster.deliver()
    assert answers(cluster, 1) == {first: True, extra: True}
    assert cluster.held(first) == {1: PR}


def test_naming_an_extra_that_is_held_is_a_bug_and_a_peer_who_does_is_humoured(cluster_of):
    cluster = cluster_of(1, 2)
    first, extra = mastered_by(cluster, 2, 2)
    cluster.get(1, extra, PR)
    with pytest.raises(AssertionError):
        cluster.request(1, first, PR, extras=[extra])
    core = cluster.cores[2]
    core.receive(
        1, core.attempt, Request(first, EX, 99, False, 0, [Extra(extra, 100), Extra(first, 101), Extra(first, 102)])
    )
    assert core.dump()[0]["granted"] == {1: "PR"}


def test_answers_of_who_is_not_the_master_are_not_heard(cluster_of):
    cluster = cluster_of(1, 2, 3)
    first, extra = mastered_by(cluster, 2, 2)
    other = cluster.mastered_by(3)
    cluster.request(1, first, EX, extras=[extra])
    core = cluster.cores[1]
    serial = core._client.locks[extra].wanted_serial
    core.receive(3, core.attempt, Prefetched(EX, [ExtraAnswer(extra, serial, True)]))
    core.receive(3, core.attempt, Granted(other, EX, 1, NO_VALUE, -1, [ExtraAnswer(extra, serial, True)]))
    assert core.held(extra) == NL
