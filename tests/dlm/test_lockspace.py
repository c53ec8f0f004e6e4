"""The joined core: round trips, views, ghosts and values, in scenes small enough to read."""

from __future__ import annotations

import pytest

from dlm.client import DeniedEvent, GrantedEvent
from dlm.messages import Granted, Request
from dlm.modes import CR, CW, EX, NL, PR, PW
from membership.views import Instance

# --- round trips ---


@pytest.mark.seed("003-11")
def test_local_master_costs_no_message_and_remote_one_round_trip(cluster_of):
    cluster = cluster_of(1, 2, 3)
    near, far = cluster.mastered_by(1), cluster.mastered_by(2)
    assert cluster.request(1, near, EX).mode == EX
    assert cluster.deliver() == 0
    assert cluster.request(1, far, EX) is None
    assert cluster.deliver() == 2
    assert cluster.held(far) == {1: EX}
    cluster.release(1, near)
    cluster.release(1, far)
    assert cluster.deliver() == 1
    assert all(core.sizes() == {"locks": 0, "resources": 0, "moved": 0} for core in cluster.cores.values())


@pytest.mark.seed("003-38")
def test_the_arbiter_itself_reads_under_its_own_write_and_grants_at_once(cluster_of):
    """Figure 19 with our fixed map: #2 masters, so what it does itself costs nothing."""
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    assert cluster.get(2, resource, EX).mode == EX
    assert cluster.get(1, resource, PR).mode == PR
    assert dict(cluster.sent) == {"Request": 1, "Granted": 1}  # #2's demotion cost no message
    assert cluster.held(resource) == {1: PR, 2: PR}
    assert cluster.request(2, resource, EX) is None
    cluster.deliver()
    assert dict(cluster.sent) == {"Request": 1, "Granted": 1, "Revoke": 1}


@pytest.mark.seed("003-41")
def test_the_same_operations_cost_the_same_at_3_and_at_8_nodes(cluster_of):
    counts = []
    for nodes in (range(3), range(8)):
        cluster = cluster_of(*nodes)
        resource = cluster.mastered_by(2)
        for node, mode in ((0, EX), (1, PR), (0, PR), (1, EX), (0, EX), (2, EX)):
            cluster.get(node, resource, mode) if mode > cluster.cores[node].held(resource) else None
        counts.append(dict(cluster.sent))
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 8


def test_denied_try_and_cancelled_request_leave_nothing(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.get(2, resource, EX)
    assert cluster.request(1, resource, PR, try_=True) is None
    cluster.deliver()
    assert (1, DeniedEvent(resource)) in cluster.events
    cluster.request(1, resource, PR)
    cluster.cancel(1, resource)
    cluster.request(1, resource, EX)  # allowed at once
    cluster.deliver()
    cluster.release(2, resource)
    cluster.deliver()
    assert cluster.held(resource) == {1: EX}
    cluster.release(1, resource)
    cluster.deliver()
    assert cluster.cores[1].sizes()["locks"] == 0


def test_misuse_is_a_bug_not_a_message(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, PR)
    for wrong in (
        lambda: cluster.request(1, resource, PR),
        lambda: cluster.request(1, resource, CW),
        lambda: cluster.release(1, resource, CW),
        lambda: cluster.release(1, resource, NL, b"value"),
    ):
        with pytest.raises(AssertionError):
            wrong()
    cluster.request(1, resource, EX)
    with pytest.raises(AssertionError):
        cluster.request(1, resource, EX)


# --- values ---


def test_values_travel_with_grants(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    assert cluster.get(1, resource, EX).value is None  # nobody wrote one: read the disk
    cluster.release(1, resource, PR, b"one")
    assert cluster.get(2, resource, PR).value == b"one"
    cluster.release(1, resource)
    assert cluster.get(2, resource, EX).value == b"one"
    cluster.release(2, resource, PR)  # did not write
    assert cluster.get(3, resource, CR).value == b"one"


@pytest.mark.parametrize("mode", [CR, PR, CW])
def test_value_survives_its_master_with_a_holder_that_shuts_writers_out(cluster_of, mode):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(1, resource, EX)
    cluster.release(1, resource, mode, b"one")
    cluster.deliver()
    dead = cluster.kill(3, (*cluster.instances(), Instance(3, 103)))
    cluster.change(dead)
    cluster.release_ghosts(dead)
    # A CR holder can't know whether somebody wrote since.
    assert cluster.get(2, resource, CR).value == (None if mode == CR else b"one")


def test_value_of_a_dead_writer_is_invalid_and_of_a_dead_reader_is_not(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(1, resource, EX)
    cluster.release(1, resource, CR, b"one")
    cluster.get(2, resource, PR)
    view = cluster.instances()
    dead = cluster.kill(2, view)
    cluster.change(dead)
    cluster.release_ghosts(dead)
    assert cluster.get(3, resource, EX).value == b"one"
    cluster.release(3, resource, CR, b"two")
    cluster.get(1, resource, PW)
    dead = cluster.kill(1, cluster.instances())
    cluster.change(dead)
    cluster.release_ghosts(dead)
    assert cluster.get(3, resource, EX).value is None


@pytest.mark.parametrize("when", ["before rebuild", "before resume"])
def test_value_released_while_suspended_arrives(cluster_of, when):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(1, resource, EX)
    cluster.request(2, resource, PR)
    cluster.deliver()
    cluster.suspend()
    if when == "before rebuild":
        cluster.release(1, resource, NL, b"new")
    cluster.rebuild()
    cluster.deliver()
    if when == "before resume":
        cluster.release(1, resource, NL, b"new")
    assert cluster.deliver() == 0  # nothing moves between SUSPEND and RESUME
    cluster.resume()
    cluster.deliver()
    assert [event.grant.value for who, event in cluster.events if who == 2] == [b"new"]


def test_release_lost_on_the_way_leaves_no_value_rather_than_the_old_one(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(1, resource, EX)
    cluster.release(1, resource, CR, b"old")
    cluster.get(1, resource, EX)
    cluster.release(1, resource, CR, b"new")
    cluster.links[1, 3].clear()
    cluster.change()
    assert cluster.get(2, resource, PR).value is None


def test_value_written_while_a_grant_is_under_way_is_the_newer_one(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, PW)
    cluster.request(1, resource, EX)
    cluster.deliver(1, 2)
    cluster.release(1, resource, NL, b"crossed")
    cluster.deliver()
    assert cluster.events[-1][1].grant == (EX, b"crossed", -1)
    assert cluster.held(resource) == {1: EX}  # the release was older than the grant


def test_grant_given_back_after_cancel_still_makes_way(cluster_of):
    """The finish flag came with the grant, and no Revoke will."""
    cluster = cluster_of(1, 2, 3, 4)
    resource = cluster.mastered_by(4)
    cluster.get(1, resource, CR)
    cluster.get(2, resource, PR)
    for node in (1, 3):
        cluster.request(node, resource, EX)
        cluster.deliver()
    cluster.release(2, resource)
    cluster.deliver(2, 4)
    cluster.cancel(1, resource)
    cluster.deliver()
    assert cluster.held(resource) == {1: CR}
    assert cluster.events[-1][0] == 1
    assert cluster.events[-1][1].mode == NL
    cluster.release(1, resource)
    cluster.deliver()
    assert cluster.held(resource) == {3: EX}


def test_release_that_arrives_after_suspend_still_counts(cluster_of):
    """Else the dead releaser would leave a ghost of what it had given up."""
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(1, resource, EX)
    cluster.release(1, resource)
    cluster.suspend(3)
    cluster.deliver()
    dead = cluster.kill(1, (Instance(1, 101), *cluster.instances()))
    cluster.change(dead)
    assert cluster.get(2, resource, EX).mode == EX


# --- ghosts ---


@pytest.mark.seed("002-04", "002-32")
@pytest.mark.parametrize("mode", [CR, PR, CW, PW, EX])
def test_only_what_the_dead_could_have_dirtied_waits(cluster_of, mode):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(1)
    other = cluster.mastered_by(1, avoid=[resource.object])
    cluster.get(3, resource, mode)
    dead = cluster.kill(3, (*cluster.instances(), Instance(3, 103)))
    cluster.change(dead)
    assert cluster.get(2, other, EX).mode == EX
    waits = mode in (CW, PW, EX)
    assert (cluster.get(2, resource, EX) is None) == waits
    cluster.release_ghosts(dead)
    assert cluster.held(resource) == {2: EX}


@pytest.mark.parametrize("held", [NL, CR, CW, PR, PW, EX])
def test_a_dead_master_leaves_doubt_unless_a_survivor_shuts_writers_out(cluster_of, held):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    if held:
        cluster.get(1, resource, held)
    dead = cluster.kill(3, (*cluster.instances(), Instance(3, 103)))
    cluster.change(dead)
    assert cluster.held(resource) == ({1: held} if held else {})
    wanted = {NL: EX, CR: PW, CW: PR, PR: PR, PW: CR, EX: NL}[held]
    if not wanted:
        return
    in_doubt = held in (NL, CR, CW)
    if held == CW:
        wanted = CW  # beside a living CW the dead may have CW too, which bears another
        in_doubt = False
    assert (cluster.get(2, resource, wanted) is None) == in_doubt
    cluster.release_ghosts(dead)
    assert cluster.held(resource)[2] == wanted


def test_a_dead_master_of_a_dead_holder(cluster_of):
    """Doubt concerns all who died, not only the master: #2 held what #3 mastered."""
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(3)
    cluster.get(2, resource, EX)
    view = cluster.instances()
    dead = [cluster.kill(3, view), cluster.kill(2, view)]
    cluster.change(*dead)
    assert cluster.request(1, resource, PR) is None
    cluster.release_ghosts(dead[0])
    assert cluster.held(resource) == {}
    cluster.start(4)  # a new view forgets neither
    cluster.change(dead[1])
    assert cluster.held(resource) == {}
    cluster.release_ghosts(dead[1])
    assert cluster.held(resource) == {1: PR}


def test_a_master_that_left_or_came_back_empty_leaves_the_same_doubt(cluster_of):
    for comes_back in (False, True):
        cluster = cluster_of(1, 2, 3)
        resource = cluster.mastered_by(3)
        cluster.get(2, resource, EX)
        view = cluster.instances()
        cluster.cores[3].leave()
        cluster.kill(3)
        if comes_back:
            cluster.start(3)
        dead = cluster.kill(2, view)
        cluster.change(dead)
        assert cluster.request(1, resource, CR) is None
        cluster.deliver()
        assert cluster.held(resource) == {}
        cluster.release_ghosts(dead)
        assert cluster.held(resource) == {1: CR}


def test_the_keeper_of_an_inherited_ghost_dies(cluster_of):
    """#2's ghost moves from #1 to a joiner, which dies: #1 has forgotten it by then, and must be in doubt.

    Found by the simulation, seed 64: views of the dead end with their death, so the members keep a history.
    """
    cluster = cluster_of(1, 2)
    joiner = 3
    after = (1, joiner)
    resource = next(
        resource
        for resource in (cluster.mastered_by(1, avoid=range(i)) for i in range(99))
        if cluster.mastered_by(joiner, after, avoid=range(resource.object)) == resource
    )
    cluster.get(2, resource, EX)
    dead = cluster.kill(2, cluster.instances())
    cluster.start(joiner)
    cluster.change(dead)
    assert cluster.cores[joiner].dump()[0]["ghosts"] == [[2, 102, "EX"]]
    second = cluster.kill(joiner, cluster.instances())
    cluster.change(dead, second)
    assert cluster.request(1, resource, PR) is None
    cluster.release_ghosts(second)
    assert cluster.held(resource) == {}
    cluster.release_ghosts(dead)
    assert cluster.held(resource) == {1: PR}


def test_a_holder_that_dies_in_an_unfinished_rebuild(cluster_of):
    """#1, its old master, has purged; #4, its new one, never heard of it: #1 must still remember."""
    cluster = cluster_of(1, 2, 3)
    resource = next(r for i in range(99) if (r := cluster.mastered_by(1, avoid=range(i))) and _moves(cluster, r, 4))
    cluster.get(2, resource, EX)
    first = cluster.instances()
    cluster.start(4)
    cluster.suspend()
    second = cluster.instances()
    cluster.rebuild(nodes=(1, 2))
    cluster.links[2, 4].clear()
    cluster.deliver()
    dead = cluster.kill(2, first, second)
    cluster.change(dead)
    assert cluster.request(3, resource, PR) is None
    cluster.deliver()
    assert cluster.held(resource) == {}
    cluster.release_ghosts(dead)
    assert cluster.held(resource) == {3: PR}


def _moves(cluster, resource, joiner):
    return cluster.mastered_by(joiner, (*cluster.cores, joiner), avoid=range(resource.object)) == resource


# --- attempts ---


def test_requests_of_all_phases_are_granted_after_resume(cluster_of):
    cluster = cluster_of(1, 2, 3)
    names = [cluster.mastered_by(2, avoid=range(i)) for i in (0, 20, 40, 60)]
    cluster.request(1, names[0], EX)  # on its way when SUSPEND comes
    cluster.suspend()
    cluster.request(1, names[1], EX)
    cluster.request(3, names[1], EX)
    cluster.cancel(3, names[1])
    cluster.rebuild()
    cluster.request(1, names[2], EX)
    cluster.deliver()
    cluster.request(1, names[3], EX)
    cluster.cancel(1, names[2])
    assert cluster.deliver() == 0
    assert all(cluster.held(name) == {} for name in names)
    cluster.resume()
    cluster.deliver()
    assert [cluster.held(name) for name in names] == [{1: EX}, {1: EX}, {}, {1: EX}]


def test_messages_of_old_views_are_dropped_and_of_new_ones_kept(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.request(1, resource, EX)
    cluster.deliver(1, 2)  # #2's grant is under way
    cluster.suspend()
    cluster.rebuild(nodes=(1,))  # #2 gets #1's reports before its own REBUILD
    cluster.deliver()
    assert cluster.held(resource) == {}
    cluster.rebuild(nodes=(2,))
    cluster.deliver()
    cluster.resume(1)
    cluster.request(1, cluster.mastered_by(2, avoid=[resource.object]), EX)
    cluster.deliver()  # #2 keeps the request until RESUME
    assert cluster.held(resource) == {}
    cluster.resume(2)
    cluster.deliver()
    assert cluster.held(resource) == {1: EX}
    assert len(cluster.events) == 2


def test_grant_that_comes_before_our_own_resume_waits(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.request(1, resource, EX)
    cluster.suspend()
    cluster.rebuild()
    cluster.deliver()
    cluster.resume(2)
    cluster.deliver()
    assert cluster.held(resource) == {}
    cluster.resume(1)
    assert cluster.held(resource) == {1: EX}


def test_stale_calls_are_ignored(cluster_of):
    cluster = cluster_of(1, 2)
    core = cluster.cores[1]
    now = core.attempt
    core.suspend(now)
    core.suspend(0)
    core.resume(now - 1)
    assert core.state == "running"
    core.suspend(now + 5)
    core.resume(now)
    assert core.state == "suspended"
    cluster.attempt = now + 5
    cluster.rebuild()
    core.resume(now + 5)  # not rebuilt yet
    assert core.state == "rebuilding"


def test_a_lost_batch_keeps_the_barrier_shut_until_the_next_attempt(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.get(1, resource, EX)
    cluster.suspend()
    cluster.rebuild()
    cluster.links[1, 2].popleft()
    cluster.deliver()
    assert cluster.cores[2].state == "rebuilding"
    cluster.change()
    assert cluster.request(2, resource, PR) is None
    assert cluster.cores[1].dump()[0]["granted"] == {1: "EX"}


def test_strangers_and_impostors_are_not_heard(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(2)
    core = cluster.cores[1]
    cluster.request(1, resource, EX)
    core.receive(3, core.attempt, Granted(resource, EX, 1))  # #3 does not master it
    core.receive(9, core.attempt, Request(resource, EX, 1))  # #9 is no member
    assert cluster.held(resource) == {}
    core.receive(2, core.attempt, Granted(resource, EX, 99))  # answers nothing we asked
    assert cluster.held(resource) == {}


def test_leave_demands_that_nothing_is_held(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(1)
    cluster.get(1, resource, PR)
    with pytest.raises(AssertionError):
        cluster.cores[1].leave()
    cluster.release(1, resource)
    cluster.cores[1].leave()
    cluster.cores[1].suspend(99)
    assert cluster.cores[1].state == "suspended"


@pytest.mark.seed("002-04")
def test_any_node_dies_the_first_too_and_the_others_go_on(cluster_of):
    for victim in (1, 2, 3):
        cluster = cluster_of(1, 2, 3)
        names = [cluster.mastered_by(node) for node in (1, 2, 3)]
        survivors = [node for node in (1, 2, 3) if node != victim]
        for name in names:
            cluster.get(victim, name, EX)
        for name in names:
            for node in survivors:
                cluster.request(node, name, PR)
        dead = cluster.kill(victim, (*cluster.instances(), Instance(victim, 100 + victim)))
        cluster.change(dead)
        assert all(cluster.held(name) == {} for name in names)
        cluster.release_ghosts(dead)
        assert all(cluster.held(name) == dict.fromkeys(survivors, PR) for name in names)
        assert all(isinstance(event, GrantedEvent) for _, event in cluster.events)
