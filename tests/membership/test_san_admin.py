"""Figures 10 and 11 on the pure core: candidate, commit, undo, eviction, late writers (002-36 to 002-45)."""

from __future__ import annotations

import pytest

from membership.effects import Outbox
from membership.group.state import View
from membership.label import DEFAULT_TIMING
from membership.messages import CandidateFailed, Commit, HeaderChanged, JoinRequest, LeaveRequest, Nominate, Undo, Won
from membership.san.admin import AdminCore
from membership.san.ballot import Decided, Passed
from membership.san.events import FenceOrder, HeaderInForce, Log, NodeDead, ReadHeader, TakeGeneration, WriteHeader
from membership.san.fence import FenceResult
from membership.san.header import NOBODY, make_header
from membership.san.roles import Role
from membership.seams import PeerAddress

CLUSTER = b"C" * 16
NODES = {n: PeerAddress(n, 100 + n, f"10.0.0.{n + 1}", 7) for n in range(3)}
CONFIRMED = FenceResult(confirmed=True, driver="process", detail="killed")


def header(generation: int, administrator: int = NOBODY, members=(), fencing=()):
    return make_header(
        CLUSTER,
        generation,
        administrator=administrator,
        members={n: 100 + n for n in members},
        fencing={n: 100 + n for n in fencing},
    )


class Rig:
    """One AdminCore; ``drive`` gives what it wants done."""

    def __init__(self, me: int = 0, view=(0, 1, 2), start=None, number: int = 7) -> None:
        self.out = Outbox()
        self.core = AdminCore(NODES[me], start or header(0), DEFAULT_TIMING, self.out)
        self.now = 10.0
        self.has_lease = True
        self.alive = self.sighted = frozenset(view)
        self.view(view, number)

    def view(self, members, number: int) -> None:
        self.core.view_installed(View(number, {n: NODES[n] for n in members}), self.now)

    def drive(self, *, settled: bool = True):
        self.core.drive(self.alive, NODES, self.now, settled=settled, sighted=self.sighted, has_lease=self.has_lease)
        send = [(e.node, e.body) for e in self.out.send]
        events = [e for e in self.out.events if not isinstance(e, Log)]
        self.out.send.clear()
        self.out.events.clear()
        return send, events


def become_admin(rig: Rig, generation: int = 1) -> None:
    take_office(rig, generation)
    assert rig.core.role is Role.ADMIN
    rig.drive()


def take_office(rig: Rig, generation: int) -> None:
    me = rig.core.me
    rig.drive()
    number = rig.core._election._nomination.number
    rig.core.receive(me.node, Nominate(number, 0), rig.now)
    assert rig.drive()[1] == [TakeGeneration(generation)]
    rig.core.generation_taken(Decided(me.node, me.incarnation), rig.now)
    send, _ = rig.drive()
    assert (me.node, Won(number, generation)) in send
    rig.core.receive(me.node, Commit(number), rig.now)
    write = next(e for e in rig.drive()[1] if isinstance(e, WriteHeader))
    rig.core.header_written(write.header, rig.now)


@pytest.mark.seed("002-39", "002-40")
def test_coordinator_nominates_and_commits_the_one_it_nominated():
    rig = Rig(0)
    send, _ = rig.drive()
    assert [(n, type(b)) for n, b in send] == [(0, Nominate)]
    number = send[0][1].nomination
    rig.core.receive(0, CandidateFailed(number, "no path to the disk"), rig.now)
    send, _ = rig.drive()
    assert [n for n, _ in send] == [1]  # not the failed one again
    number = send[0][1].nomination
    rig.core.receive(2, Won(number, 1), rig.now)
    assert rig.drive()[0] == [(2, Undo(number))]
    rig.core.receive(1, Won(number, 1), rig.now)
    assert rig.drive()[0] == [(1, Commit(number))]


@pytest.mark.seed("002-41")
def test_undo_leaves_the_header_alone_and_the_next_passes_over():
    rig = Rig(1)
    rig.core.receive(0, Nominate(5, 0), rig.now)
    assert rig.drive()[1] == [TakeGeneration(1)]
    rig.core.generation_taken(Decided(1, 101), rig.now)
    assert rig.drive()[0] == [(0, Won(5, 1))]
    rig.core.receive(0, Undo(5), rig.now)
    assert rig.core.role is Role.PEER
    assert rig.drive() == ([], [])
    rig.core.receive(0, Nominate(6, 1), rig.now)
    assert rig.drive()[1] == [TakeGeneration(2)]


def test_a_second_commit_writes_once():
    rig = Rig(1)
    rig.core.receive(0, Nominate(5, 0), rig.now)
    rig.drive()
    rig.core.generation_taken(Decided(1, 101), rig.now)
    rig.drive()
    rig.core.receive(0, Commit(5), rig.now)
    rig.core.receive(0, Commit(5), rig.now)
    assert [type(e) for e in rig.drive()[1]] == [WriteHeader]


@pytest.mark.seed("002-40")
def test_candidate_that_cannot_ballot_says_so():
    rig = Rig(1)
    rig.core.receive(0, Nominate(5, 0), rig.now)
    rig.drive()
    rig.core.generation_taken(None, rig.now)
    send, _ = rig.drive()
    assert [type(b) for _, b in send] == [CandidateFailed]
    assert rig.core.role is Role.PEER


def test_a_generation_of_a_dead_owner_is_passed_over_and_of_a_live_one_is_not():
    rig = Rig(1, view=(0, 1))
    rig.core.receive(0, Nominate(5, 0), rig.now)
    rig.drive()
    rig.core.generation_taken(Decided(2, 102), rig.now)  # not in our view
    assert rig.drive()[1] == [TakeGeneration(2)]
    rig.core.generation_taken(Decided(0, 100), rig.now)  # it may be about to write its header
    send, events = rig.drive()
    assert [type(b) for _, b in send] == [CandidateFailed]
    assert not events
    rig.core.receive(0, Nominate(6, 0), rig.now)
    assert rig.drive()[1] == []  # not at disk speed
    rig.now += DEFAULT_TIMING.heartbeat
    assert rig.drive()[1] == [TakeGeneration(2)]
    rig.core.generation_taken(Passed(9), rig.now)
    events = rig.drive()[1]
    assert ReadHeader() in events
    assert TakeGeneration(9) in events


@pytest.mark.seed("002-36", "002-37")
def test_join_and_leave_change_the_header_before_anybody_is_told():
    rig = Rig(0)
    become_admin(rig)
    rig.core.receive(1, JoinRequest(101), rig.now)
    assert rig.drive() == ([], [TakeGeneration(2)])
    rig.core.generation_taken(Decided(0, 100), rig.now)
    send, events = rig.drive()
    assert not send
    assert events[0].header.members == {0: 100, 1: 101}
    rig.core.header_written(events[0].header, rig.now)
    assert {b for _, b in rig.drive()[0]} == {HeaderChanged(2)}
    rig.core.receive(1, LeaveRequest(101), rig.now)
    rig.drive()
    rig.core.generation_taken(Decided(0, 100), rig.now)
    left = rig.drive()[1][0].header
    assert (left.members, left.fencing) == ({0: 100}, {})


@pytest.mark.seed("002-38", "002-45")
def test_eviction_fences_after_the_header_and_tells_only_after_the_confirmation():
    rig = Rig(0, start=header(4, 0, (0, 1, 2)))
    rig.core.role = Role.ADMIN
    rig.view((0, 1), 8)
    rig.alive = frozenset({0, 1})
    assert rig.drive()[1] == [TakeGeneration(5)]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    write = rig.drive()[1][0].header
    assert (write.members, write.fencing) == ({0: 100, 1: 101}, {2: 102})
    rig.core.header_written(write, rig.now)
    events = rig.drive()[1]
    assert FenceOrder(2, 102, rig.now) in events
    rig.core.fence_done(2, 102, FenceResult(confirmed=False, driver="none", detail="no"), rig.now, has_lease=True)
    events = rig.drive()[1]
    assert not any(isinstance(e, NodeDead) for e in events)
    assert FenceOrder(2, 102, rig.now) in events  # again
    rig.core.fence_done(2, 102, CONFIRMED, rig.now, has_lease=True)
    events = rig.drive()[1]
    assert NodeDead(2, 102) in events
    assert TakeGeneration(6) in events  # off the fencing list
    rig.core.generation_taken(Decided(0, 100), rig.now)
    assert rig.drive()[1][0].header.fencing == {}


def test_a_minority_and_an_unsettled_group_do_nothing():
    rig = Rig(2, view=(2,), start=header(4, 0, (0, 1, 2)))
    rig.alive = frozenset({0, 1})
    assert rig.drive() == ([], [])
    rig.alive = frozenset({0})
    assert rig.drive() == ([], [])  # exactly half without the lowest address
    rig.alive = frozenset()
    assert rig.drive(settled=False) == ([], [])
    assert [type(b) for _, b in rig.drive()[0]] == [Nominate]


def test_a_newcomer_never_votes_against_living_members():
    rig = Rig(0, view=(0,), start=header(4, 1, (1,)))  # we have the lowest address, and a broken link
    rig.alive = frozenset({1})
    assert rig.drive() == ([], [])


@pytest.mark.seed("002-45")
def test_an_older_header_is_never_taken_and_is_overwritten_again():
    rig = Rig(0, start=header(4, 0, (0, 1, 2), ()))
    rig.core.role = Role.ADMIN
    rig.core.header_read(header(5, 0, (0, 1), (2,)), rig.now)
    order = next(e for e in rig.drive()[1] if isinstance(e, FenceOrder))
    rig.core.header_read(header(3, 2, (0, 1, 2)), rig.now)
    assert rig.core.header.generation == 5
    rig.core.header_in_doubt(rig.now)
    written = next(e for e in rig.drive()[1] if isinstance(e, WriteHeader)).header
    assert written.generation == 5
    # A lease fence that waited meanwhile proves nothing: the target may have renewed on the old header.
    lease = FenceResult(confirmed=True, driver="lease", detail="")
    rig.now = order.evicted_at + DEFAULT_TIMING.dead
    rig.core.fence_done(2, 102, lease, rig.now, has_lease=True)
    assert not any(isinstance(e, NodeDead) for e in rig.drive()[1])
    rig.core.header_written(written, rig.now)
    written_at, rig.now = rig.now, rig.now + DEFAULT_TIMING.heartbeat
    again = next(e for e in rig.drive()[1] if isinstance(e, FenceOrder))
    assert again.evicted_at == written_at
    over = written_at + DEFAULT_TIMING.dead
    rig.core.header_stands(over - DEFAULT_TIMING.margin - 0.1, over)  # a late header could still have come after it
    rig.core.fence_done(2, 102, lease, over, has_lease=True)
    rig.now = over
    assert rig.drive()[1] == []
    rig.now += DEFAULT_TIMING.heartbeat
    assert FenceOrder(2, 102, again.evicted_at) in rig.drive()[1]
    rig.core.header_stands(over - 0.1, over)
    rig.core.fence_done(2, 102, lease, rig.now, has_lease=True)
    assert NodeDead(2, 102) in rig.drive()[1]


def test_a_deposed_administrator_steps_down():
    rig = Rig(0)
    become_admin(rig)
    rig.core.header_read(header(9, 1, (0, 1)), rig.now)
    assert rig.core.role is Role.PEER
    events = rig.drive()[1]
    assert any(isinstance(e, HeaderInForce) and not e.mine for e in events)
    rig.core.fence_done(2, 102, CONFIRMED, rig.now, has_lease=True)
    assert not any(isinstance(e, NodeDead) for e in rig.drive()[1])


def test_our_own_former_incarnation_counts_as_fenced():
    rig = Rig(0, view=(0,), start=make_header(CLUSTER, 4, members={0: 55, 1: 101}, fencing={}))
    rig.alive = frozenset()
    become_admin(rig, generation=5)
    assert rig.core.header.members == {0: 100}
    assert rig.core.header.fencing == {1: 101}


def test_the_last_node_leaves_though_the_administrator_left_just_before():
    """It must be administrator itself to take itself off the header (seen: matrixctl stop hung for ever)."""
    rig = Rig(0, view=(0,), start=make_header(CLUSTER, 4, members={0: 100}, fencing={}))
    rig.core.is_leaving = True
    take_office(rig, generation=5)
    assert (rig.core.header.administrator, rig.core.header.members) == (NOBODY, {})
    assert rig.core.role is Role.PEER
    rig.drive()
    assert not any(isinstance(body, Nominate) for _, body in rig.drive()[0])  # off the header: it elects nobody


def test_an_administrator_that_leaves_names_nobody():
    rig = Rig(0)
    become_admin(rig)
    rig.core.is_leaving = True
    assert TakeGeneration(2) in rig.drive()[1]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    last = rig.drive()[1][0].header
    assert (last.administrator, last.members) == (NOBODY, {})


@pytest.mark.seed("002-38")
def test_an_administrator_whose_lease_lapsed_evicts_and_buries_nobody():
    """Seen in simulation: stopped for 20 s, it went on and called a node dead before it had looked at the header."""
    rig = Rig(0, start=header(4, 0, (0, 1, 2)))
    rig.core.role = Role.ADMIN
    rig.view((0, 1), 8)
    rig.alive, rig.has_lease = frozenset({0, 1}), False
    assert rig.drive() == ([], [])
    rig.has_lease = True
    assert rig.drive()[1] == [TakeGeneration(5)]
    rig.has_lease = False
    rig.drive()
    rig.core.generation_taken(Decided(0, 100), rig.now)
    assert rig.drive() == ([], [])  # the ballot is ours, the header has to wait
    rig.has_lease = True
    assert rig.drive()[1] == [TakeGeneration(5)]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    rig.core.header_written(rig.drive()[1][0].header, rig.now)
    assert FenceOrder(2, 102, rig.now) in rig.drive()[1]
    rig.core.fence_done(2, 102, CONFIRMED, rig.now, has_lease=False)
    events = rig.drive()[1]
    assert NodeDead(2, 102) not in events
    assert FenceOrder(2, 102, rig.now) in events


def test_nobody_is_nominated_when_all_who_reach_the_store_are_of_a_view_that_is_not_told_yet():
    """Seen in simulation: the coordinator's matrixd died of it."""
    rig = Rig(0, view=(0, 1))
    rig.sighted = frozenset({2})
    assert rig.drive() == ([], [])


def test_what_another_administrator_evicted_is_counted_anew_by_time():
    """A header that came late between may have let it renew, and we did not watch."""
    rig = Rig(1, start=header(4, 0, (0, 1), (2,)))
    rig.now += 60
    rig.core.header_read(header(5, 1, (1,), (0, 2)), rig.now)
    rig.view((1,), 9)
    rig.alive = frozenset({1})
    orders = [event for event in rig.drive()[1] if isinstance(event, FenceOrder)]
    assert {order.evicted_at for order in orders} == {rig.now}


def test_a_header_that_did_not_reach_a_majority_is_written_again_and_fences_nobody_meanwhile():
    rig = Rig(0, start=header(4, 0, (0, 1, 2), ()))
    rig.core.role = Role.ADMIN
    rig.core.header_read(header(5, 0, (0, 1), (2,)), rig.now)
    rig.core.header_in_doubt(rig.now)
    events = rig.drive()[1]
    assert WriteHeader(rig.core.header, 5) in events
    assert not [event for event in events if isinstance(event, FenceOrder)]
    rig.core.write_failed(rig.now)
    rig.core.header_in_doubt(rig.now)
    assert rig.drive()[1] == [ReadHeader()]  # not at disk speed
    rig.now += 1.0
    rig.core.header_stands(rig.now, rig.now)
    assert FenceOrder(2, 102, rig.now) in rig.drive()[1]


@pytest.mark.seed("002-36")
def test_who_was_told_to_go_is_told_again_when_it_asks_to_join():
    """Seen in simulation: listed and expelled before it ever read the header, it asked to join for ever."""
    rig = Rig(0, start=header(4, 0, (0, 1, 2)))
    rig.core.role = Role.ADMIN
    rig.core.expel(2, 102, "its disk heartbeat stood still")
    assert rig.drive()[1] == [TakeGeneration(5)]
    rig.core.receive(2, JoinRequest(102), rig.now)
    assert rig.drive()[0] == [(2, HeaderChanged(4, ((2, 102),)))]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    assert rig.drive()[1][0].header.members == {0: 100, 1: 101}


def test_who_was_a_member_does_not_ask_to_join():
    rig = Rig(1, start=header(3, 0, (0,)))
    assert (0, JoinRequest(101)) in rig.drive()[0]
    rig.core.header_read(header(4, 0, (0, 1)), rig.now)
    rig.core.header_read(header(5, 0, (0,)), rig.now)
    rig.now += 1.0
    assert rig.drive()[0] == []


def test_a_generation_whose_write_failed_is_never_written_again():
    """It may be on its way to the disk all the same, and a second content of it would be one too many (S1)."""
    rig = Rig(0)
    rig.drive()
    rig.core.receive(0, Nominate(rig.core._election._nomination.number, 0), rig.now)
    rig.drive()
    rig.core.generation_taken(Decided(0, 100), rig.now)
    rig.drive()
    rig.core.receive(0, Commit(rig.core._election._nomination.number), rig.now)
    (write,) = [event for event in rig.drive()[1] if isinstance(event, WriteHeader)]
    assert (write.header.generation, write.base) == (1, 0)
    rig.core.write_failed(rig.now)
    rig.now += 1.0
    rig.drive()
    rig.core.receive(0, CandidateFailed(rig.core._election._nomination.number, "x"), rig.now)
    rig.drive()
    rig.core.receive(0, Nominate(99, 0), rig.now)
    assert TakeGeneration(2) in rig.drive()[1]


def test_in_a_generation_whose_write_was_overtaken_nothing_is_done_but_to_take_the_next():
    rig = Rig(0, start=header(4, 0, (0, 1, 2)))
    rig.core.role = Role.ADMIN
    rig.view((0, 1), 8)
    rig.alive = frozenset({0, 1})
    rig.drive()
    rig.core.generation_taken(Decided(0, 100), rig.now)
    (write,) = rig.drive()[1]
    rig.core.header_read(write.header, rig.now)  # by a renewal, while the write is under way
    assert rig.drive()[1] == [HeaderInForce(write.header, mine=False)]
    rig.core.write_failed(rig.now)
    assert rig.drive()[1] == [ReadHeader()]
    rig.now += 1.0
    assert rig.drive()[1] == [TakeGeneration(6)]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    (write,) = rig.drive()[1]
    assert (write.header.generation, write.base) == (6, 5)
    rig.core.header_read(write.header, rig.now)
    rig.core.header_written(write.header, rig.now)
    events = rig.drive()[1]
    assert HeaderInForce(write.header, mine=True) in events
    assert [event.node for event in events if isinstance(event, FenceOrder)] == [2]


def test_a_spoilt_generation_stays_so_when_the_write_of_the_next_fails_too():
    """Seed 10498: it stood again, but nobody had been told that it is in force: an administrator without a book."""
    rig = Rig(0, start=header(4, 0, (0, 1, 2)))
    rig.core.role = Role.ADMIN
    rig.view((0, 1), 8)
    rig.alive = frozenset({0, 1})
    rig.drive()
    rig.core.generation_taken(Decided(0, 100), rig.now)
    (write,) = rig.drive()[1]
    rig.core.write_failed(rig.now)
    rig.core.header_read(write.header, rig.now)  # it landed all the same
    assert HeaderInForce(write.header, mine=False) in rig.drive()[1]
    rig.now += 1.0
    assert rig.drive()[1] == [TakeGeneration(6)]
    rig.core.generation_taken(Decided(0, 100), rig.now)
    rig.drive()
    rig.core.write_failed(rig.now)
    rig.drive()
    rig.now += 1.0
    assert rig.drive()[1] == [TakeGeneration(7)]
