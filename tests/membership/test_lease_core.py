"""The lease: every state with every event, and the deadline of R4."""

from __future__ import annotations

import itertools

import pytest

from membership.label import DEFAULT_TIMING
from membership.lease.core import TRANSITIONS, LeaseCore, LeaseEvent, LeaseState
from membership.lease.records import HeartbeatSlot
from membership.lease.watch import DiskWatch

LEASE = DEFAULT_TIMING.lease


def test_table_is_complete_and_final_states_are_final():
    assert set(TRANSITIONS) == set(itertools.product(LeaseState, LeaseEvent))
    for state, event in itertools.product((LeaseState.FENCED, LeaseState.LEFT), LeaseEvent):
        assert TRANSITIONS[state, event] is state


@pytest.mark.seed("002-12")
def test_only_a_timely_renewal_that_saw_us_listed_makes_a_member():
    for state, event in itertools.product(LeaseState, LeaseEvent):
        if TRANSITIONS[state, event] is LeaseState.MEMBER:
            assert (state, event) in {
                (LeaseState.OUT, LeaseEvent.LISTED),
                (LeaseState.MEMBER, LeaseEvent.LISTED),
                (LeaseState.MEMBER, LeaseEvent.FAILED),
                (LeaseState.LAPSED, LeaseEvent.LISTED),
            }


def test_deadline_counts_from_the_start_of_the_renewal():
    core = LeaseCore(DEFAULT_TIMING)
    core.finished(10.0, 12.5, listed=True)
    assert (core.state, core.deadline) == (LeaseState.MEMBER, 10.0 + LEASE)
    core.finished(11.0, 11.1, listed=True)
    assert core.deadline == 11.0 + LEASE


def test_a_renewal_that_took_longer_than_the_lease_gives_nothing():
    core = LeaseCore(DEFAULT_TIMING)
    core.finished(0.0, LEASE, listed=True)
    assert core.state is LeaseState.OUT
    core.finished(10.0, 10.1, listed=True)
    core.finished(13.0, 13.0 + LEASE + 1, listed=True)
    assert core.state is LeaseState.LAPSED


@pytest.mark.seed("002-22")
def test_failed_renewals_pause_at_the_deadline_for_as_long_as_it_takes():
    core = LeaseCore(DEFAULT_TIMING)
    core.finished(0.0, 0.0, listed=True)
    core.failed(LEASE - 0.01)
    assert core.state is LeaseState.MEMBER
    core.failed(LEASE)
    assert core.state is LeaseState.LAPSED
    core.finished(LEASE + 1, LEASE + 1, listed=True)
    assert (core.state, core.deadline) == (LeaseState.MEMBER, LEASE + 1 + LEASE)
    core.tick(core.deadline + 3600)
    assert core.state is LeaseState.LAPSED
    core.finished(4000.0, 4000.0, listed=True)
    assert core.state is LeaseState.MEMBER


def test_storage_is_there_until_no_renewal_ended_for_a_lease():
    core = LeaseCore(DEFAULT_TIMING)
    assert core.has_storage(1000.0)  # nothing tried yet
    core.failed(1000.0)
    assert core.has_storage(1000.0 + LEASE - 0.1)
    assert not core.has_storage(1000.0 + LEASE)
    core.finished(1010.0, 1010.1, listed=False)  # also for who is no member
    assert core.has_storage(1010.0 + LEASE - 0.1)
    core.failed(1010.0 + LEASE)
    assert not core.has_storage(1010.0 + LEASE)


@pytest.mark.seed("002-22")
def test_a_lapsed_node_that_was_evicted_is_fenced():
    core = LeaseCore(DEFAULT_TIMING)
    core.finished(0.0, 0.0, listed=True)
    core.tick(LEASE)
    core.finished(LEASE + 1, LEASE + 1, listed=False)
    assert core.state is LeaseState.FENCED


def test_an_eviction_ends_every_state_but_a_clean_leave():
    for state in LeaseState:
        left = state is LeaseState.LEFT
        assert TRANSITIONS[state, LeaseEvent.EVICTED] is (LeaseState.LEFT if left else LeaseState.FENCED)
    core = LeaseCore(DEFAULT_TIMING)
    core.evicted()  # listed once, and never had a lease
    core.finished(1.0, 1.0, listed=True)
    assert core.state is LeaseState.FENCED


def test_off_the_header_is_fenced_unless_we_asked_for_it():
    fenced, left = LeaseCore(DEFAULT_TIMING), LeaseCore(DEFAULT_TIMING)
    for core in (fenced, left):
        core.finished(0.0, 0.0, listed=True)
    fenced.finished(1.0, 1.0, listed=False)
    left.finished(1.0, 1.0, listed=False, leaving=True)
    assert (fenced.state, left.state) == (LeaseState.FENCED, LeaseState.LEFT)


def test_reading_the_header_without_a_renewal_extends_nothing():
    core = LeaseCore(DEFAULT_TIMING)
    core.finished(0.0, 0.0, listed=True)
    core.finished(float("-inf"), 3.0, listed=True)
    assert core.deadline == LEASE


def _slot(counter: int, incarnation: int = 1, flags: int = 0) -> HeartbeatSlot:
    return HeartbeatSlot(
        owner=b"C" * 16, address=66, incarnation=incarnation, counter=counter, hears=0, boot_id=b"", machine_id=b"",
        flags=flags, pid=1, start_time=1, port=1, name="a", host="h", mount_pids=(), mount_starts=(),
        mount_incarnations=(),
    )  # fmt: skip


def test_watch_counts_who_moves_and_who_is_new():
    watch = DiskWatch(DEFAULT_TIMING)
    watch.observe({0: _slot(1), 1: _slot(1), 2: _slot(1, flags=1)}, 0.0)
    assert watch.alive(0.0) == {0, 1}
    for i in range(1, 5):
        watch.observe({0: _slot(1 + i), 1: _slot(1)}, i / 2)
    assert watch.alive(2.0) == {0, 1}
    assert watch.alive(DEFAULT_TIMING.link_dead) == {0}
    watch.mark_gone(0, 1)
    assert watch.alive(2.1) == {1}
    assert watch.observe({0: _slot(9)}, 2.2) == [0]  # it moved: not gone after all
    assert 0 in watch.alive(2.2)


def test_watch_calls_nobody_dead_for_time_in_which_it_did_not_look():
    watch = DiskWatch(DEFAULT_TIMING)
    watch.observe({0: _slot(1)}, 0.0)
    watch.observe({0: _slot(1)}, 60.0)  # the store was gone for a minute
    assert watch.alive(60.0) == {0}
    assert watch.standing(60.0) == set()
    for i in range(13):
        watch.observe({0: _slot(1)}, 60.5 + i / 2)
    assert watch.alive(66.5) == set()
    assert watch.standing(66.5) == {0}


def test_watch_ignores_gone_of_an_older_incarnation():
    watch = DiskWatch(DEFAULT_TIMING)
    watch.observe({0: _slot(1, incarnation=2)}, 0.0)
    watch.mark_gone(0, 1)
    assert watch.alive(0.0) == {0}
