"""Of two members the last writer arbitrates (003-37, 003-38): hand-over, return, crossings, three and back, deaths."""

from __future__ import annotations

import pytest

from dlm.client import GrantedEvent
from dlm.messages import NEVER, NO_VALUE, Granted, HandOver, Request, Return
from dlm.modes import CR, CW, EX, NL, PR, PW
from membership.views import Instance

SIZES = ("locks", "resources", "moved")
IDLE = (0, 0, 0)


def arbiter(cluster, resource):
    """Who has the record; both must agree on whom to ask."""
    (node,) = [node for node, core in cluster.cores.items() if resource in dict(core.arbitrated())]
    assert {core._arbiters.of(resource) for core in cluster.cores.values()} == {node}
    return node


def sizes(cluster):
    return [size(core) for core in cluster.cores.values()]


def size(core):
    return tuple(core.sizes()[name] for name in SIZES)


@pytest.mark.seed("003-37", "003-38")
@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("mode", [PW, EX])
def test_the_writer_goes_down_and_up_without_a_message_wherever_the_map_points(cluster_of, home, mode):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(home)
    cluster.get(2, resource, EX)
    cluster.get(1, resource, mode)
    assert arbiter(cluster, resource) == 1
    cluster.sent.clear()
    for lower in (CR, PR, CR):
        cluster.release(1, resource, lower)
        assert cluster.request(1, resource, mode).mode == mode
    assert cluster.deliver() == 0


@pytest.mark.seed("003-37")
@pytest.mark.parametrize("mode", [CR, CW, PR])
def test_other_modes_move_nothing(cluster_of, mode):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, mode)
    assert arbiter(cluster, resource) == 2


@pytest.mark.seed("003-37")
@pytest.mark.parametrize("nodes", [(1, 2, 3), (1, 2, 3, 4)])
def test_with_three_and_more_the_map_alone_counts(cluster_of, nodes):
    cluster = cluster_of(*nodes)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, EX)
    assert arbiter(cluster, resource) == 2


def test_write_locks_passed_back_and_forth_cost_one_round_trip_each(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, EX)
    cluster.sent.clear()
    for _ in range(5):
        cluster.get(2, resource, EX)
        cluster.get(1, resource, EX)
    assert dict(cluster.sent) == {"Request": 10, "Granted": 10}


@pytest.mark.parametrize("home", [1, 2])
def test_what_nobody_holds_goes_home_and_nothing_is_left(cluster_of, home):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(home)
    for last in (1, 2):
        for node in (3 - last, last):
            cluster.get(node, resource, EX)
        cluster.release(last, resource)
        cluster.deliver()
        assert sizes(cluster) == [IDLE, IDLE]
        assert cluster.request(home, resource, PR).mode == PR
        assert cluster.deliver() == 0
        cluster.release(home, resource)


def test_what_the_giver_holds_and_wants_goes_along(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(1, resource, CR)
    cluster.get(2, resource, PR)
    cluster.request(2, resource, PW)  # granted beside #1's CR
    cluster.request(1, resource, PR)  # before the request comes: ahead of it
    cluster.deliver()
    assert cluster.held(resource) == {1: PR, 2: PR}
    cluster.release(1, resource, CR)
    cluster.request(1, resource, EX)
    cluster.deliver()
    assert cluster.held(resource) == {1: CR, 2: PW}
    assert arbiter(cluster, resource) == 2
    assert cluster.cores[2].dump()[0]["granted"] == {1: "CR", 2: "PW"}
    cluster.release(2, resource, NL, b"by #2")
    cluster.deliver()
    assert cluster.held(resource) == {1: EX}
    assert cluster.events[-1][1].grant.value == b"by #2"
    assert arbiter(cluster, resource) == 1


def test_the_finish_flag_of_the_hand_over_saves_the_revoke(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(1, resource, PR)
    cluster.request(2, resource, EX)
    cluster.deliver()
    cluster.release(1, resource)
    cluster.request(1, resource, EX)  # crosses the hand-over, or comes after it
    cluster.deliver()
    assert cluster.held(resource) == {2: EX}
    cluster.release(2, resource)
    cluster.deliver()
    assert cluster.held(resource) == {1: EX}


# --- crossings (T3) ---


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_request_that_crosses_the_return_is_made_again_at_home(cluster_of, cancelled):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    cluster.request(1, resource, PR)
    cluster.release(2, resource)
    if cancelled:
        cluster.cancel(1, resource)
    cluster.deliver()
    assert cluster.held(resource) == ({} if cancelled else {1: PR})
    assert cluster.cores[2].sizes()["crossed"] == 1 + cancelled
    assert sizes(cluster)[1] == IDLE
    cluster.release(1, resource) if not cancelled else None
    assert sizes(cluster) == [IDLE, IDLE]


def test_a_new_request_of_the_returner_and_one_that_crossed_the_return(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    cluster.request(1, resource, EX)
    cluster.release(2, resource)
    cluster.request(2, resource, EX)
    cluster.deliver()
    assert cluster.held(resource) == {1: EX}
    cluster.release(1, resource)
    cluster.deliver()
    assert cluster.held(resource) == {2: EX}
    assert arbiter(cluster, resource) == 2


def test_extras_that_cross_the_return(cluster_of):
    cluster = cluster_of(1, 2)
    first = cluster.mastered_by(1)
    extra = cluster.mastered_by(1, avoid=[first.object])
    for resource in (first, extra):
        cluster.get(2, resource, EX)
    cluster.request(1, first, PR, extras=[extra])
    cluster.release(2, extra)
    cluster.deliver()
    assert cluster.held(extra) == {1: PR}
    cluster.release(2, first, PR)
    cluster.deliver()
    assert cluster.held(first) == {1: PR, 2: PR}


def test_extras_move_too(cluster_of):
    cluster = cluster_of(1, 2)
    first, extra = cluster.mastered_by(2), cluster.mastered_by(2, avoid=[cluster.mastered_by(2).object])
    cluster.request(1, first, EX, extras=[extra])
    cluster.deliver()
    assert arbiter(cluster, first) == arbiter(cluster, extra) == 1
    assert cluster.request(2, extra, PR) is None
    cluster.deliver()
    cluster.release(1, extra, PR)
    cluster.deliver()
    assert cluster.held(extra) == {1: PR, 2: PR}


def test_a_value_written_while_the_hand_over_is_under_way_is_the_newer_one(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, PW)
    cluster.change()  # PW stays with the map (T5)
    assert arbiter(cluster, resource) == 1
    cluster.request(2, resource, EX)
    cluster.deliver(2, 1)
    cluster.release(2, resource, NL, b"crossed")
    cluster.deliver()
    assert cluster.events[-1][1].grant == (EX, b"crossed", NEVER)
    cluster.release(2, resource, CR)
    assert cluster.get(1, resource, CR).value == b"crossed"


def test_a_cancelled_request_that_is_granted_with_the_hand_over_gives_it_back(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.request(2, resource, EX)
    cluster.cancel(2, resource)
    cluster.deliver()
    assert sizes(cluster) == [IDLE, IDLE]
    assert cluster.request(1, resource, EX).mode == EX


# --- views ---


@pytest.mark.seed("003-37", "003-38")
def test_to_three_members_and_back(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    assert arbiter(cluster, resource) == 2
    cluster.start(3)
    cluster.change()
    mapped = arbiter(cluster, resource)
    assert cluster.held(resource) == {2: EX}
    assert mapped == cluster.cores[1]._arbiters.directory.master(resource)
    cluster.cores[3].leave()
    cluster.kill(3)
    cluster.change()
    assert arbiter(cluster, resource) == 2
    assert cluster.get(1, resource, PR).mode == PR


@pytest.mark.parametrize("cancelled", [None, "before the reports", "after the reports", "after the barrier"])
def test_who_waits_at_home_asks_the_writer_after_a_rebuild(cluster_of, cancelled):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    cluster.request(1, resource, PR)
    cluster.suspend()
    if cancelled == "before the reports":
        cluster.cancel(1, resource)
    cluster.rebuild()
    if cancelled == "after the reports":
        cluster.cancel(1, resource)
    cluster.deliver()
    if cancelled == "after the barrier":
        cluster.cancel(1, resource)
    cluster.resume()
    cluster.deliver()
    assert arbiter(cluster, resource) == 2
    cluster.release(2, resource)
    cluster.deliver()
    assert cluster.held(resource) == ({} if cancelled else {1: PR})
    cluster.events.clear()
    assert cluster.get(1, resource, EX).mode == EX


def test_a_writer_that_lets_go_while_suspended_returns_it(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(2, resource, EX)
    cluster.suspend()
    cluster.rebuild()
    cluster.release(2, resource)
    cluster.deliver()
    cluster.resume()
    cluster.deliver()
    assert sizes(cluster) == [IDLE, IDLE]


@pytest.mark.seed("003-37", "002-04")
@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("step", range(9))
def test_the_writer_dies_at_every_step_and_is_waited_for_exactly_when_it_may_have_written(cluster_of, home, step):
    """#2 dies after ``step`` messages of a history in which X moves to it, to #1, and to it again."""
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(home)
    other = cluster.mastered_by(1, avoid=[resource.object])
    view = cluster.instances()
    left = step
    for node in (2, 1, 2):
        if not cluster.cores[node]._client.in_use():
            cluster.request(node, resource, EX)
        while left and any(cluster.links.values()):
            cluster.deliver(*next(link for link in sorted(cluster.links) if cluster.links[link]))
            left -= 1
            for holder, mode in cluster.held(resource).items():
                if mode == EX and holder != node:
                    cluster.release(holder, resource)
    wrote = cluster.cores[2].held(resource) == EX
    dead = cluster.kill(2, view)
    cluster.start(3)
    cluster.change(dead)
    assert cluster.get(3, other, EX).mode == EX  # nobody else waits
    if not cluster.cores[1].held(resource):
        cluster.request(3, resource, PR)
        cluster.deliver()
        if wrote:
            assert cluster.held(resource) == {}
    cluster.release_ghosts(dead)
    if not cluster.cores[1].held(resource):
        cluster.deliver()
        assert cluster.cores[3].held(resource) or cluster.cores[1].held(resource)


@pytest.mark.seed("002-04")
def test_only_what_was_given_to_the_dead_waits(cluster_of):
    cluster = cluster_of(1, 2)
    given, kept, read = (cluster.mastered_by(1, avoid=range(i)) for i in (0, 30, 60))
    cluster.get(2, given, EX)
    cluster.get(2, kept, EX)
    cluster.get(1, kept, EX)
    cluster.get(2, read, EX)
    cluster.get(1, read, PR)  # #2 arbitrates, and #1's read lock shuts writers out
    dead = cluster.kill(2, (*cluster.instances(), Instance(2, 102)))
    cluster.change(dead)
    assert cluster.request(1, given, PR) is None
    cluster.release(1, kept, CR)
    assert cluster.request(1, kept, EX) is not None
    assert cluster.request(1, read, EX) is not None
    cluster.release_ghosts(dead)
    assert cluster.held(given) == {1: PR}


def test_nothing_moves_while_a_dead_waits_for_its_replay(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(1)
    dead = cluster.kill(3, (*cluster.instances(), Instance(3, 103)))
    cluster.change(dead)
    cluster.get(2, resource, EX)
    assert cluster.held(resource) == {2: EX}
    assert arbiter(cluster, resource) == 1
    cluster.release_ghosts(dead)
    assert arbiter(cluster, resource) == 1
    cluster.get(1, resource, EX)
    cluster.get(2, resource, EX)
    assert arbiter(cluster, resource) == 2


# --- nonsense ---


def test_hand_overs_that_nobody_asked_for_are_not_taken(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    core = cluster.cores[1]
    core.receive(2, core.attempt, Granted(resource, EX, 7, NO_VALUE, -1, [], HandOver(EX, 1, EX, 2)))
    assert size(core) == IDLE
    three = cluster_of(1, 2, 3)
    core = three.cores[1]
    three.request(1, three.mastered_by(2), EX)
    core.receive(2, core.attempt, Granted(three.mastered_by(2), EX, 1, NO_VALUE, -1, [], HandOver(NL, 0)))
    assert core.held(three.mastered_by(2)) == NL
    assert core.statistics["nonsense"] == 1


def test_a_hand_over_that_contradicts_itself_makes_no_second_holder(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    core = cluster.cores[1]
    cluster.request(1, resource, EX)
    core.receive(2, core.attempt, Granted(resource, EX, 1, NO_VALUE, -1, [], HandOver(EX, 1, EX, 2)))
    assert core.dump()[0]["granted"] == {1: "EX"}
    assert any(not isinstance(event, GrantedEvent) for event in core.take_effects().events)  # and #2 wants it


def test_returns_of_what_was_not_given_or_is_held(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    core = cluster.cores[1]
    core.receive(2, core.attempt, Return(resource))
    core.receive(2, core.attempt, Return(cluster.mastered_by(2)))
    assert core.statistics["nonsense"] == 2
    cluster.get(2, resource, EX)
    cluster.get(1, resource, PR)
    core.receive(2, core.attempt, Return(resource))  # but #1 has PR
    core.receive(2, core.attempt, Request(resource, EX, 50))
    assert cluster.held(resource)[1] == PR
    assert core.dump()[0]["granted"] == {1: "PR"}
