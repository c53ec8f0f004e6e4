"""Parts of the rebuild on their own: memory, history, doubts, packing (see also test_lockspace, test_simulation)."""

from __future__ import annotations

import pytest

from dlm.directory import Directory
from dlm.messages import GHOSTS_MAX, HISTORY_MAX, NEVER, NO_VALUE, Ghost, LockReport, RebuildDone, RecordReport, Value
from dlm.modes import CR, CW, EX, MODES, NL, PR, PW, compatible, is_write
from dlm.names import Resource
from dlm.recovery import NOBODY, Doubts, History, Memory, Rebuilding, make_record
from dlm.resource import Record
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

R = Resource(1, 1)


def view_of(attempt, instances, *dead):
    return LockspaceView(attempt, tuple(PeerAddress(*one, "127.0.0.1", 1) for one in instances), dead)


def instances(*nodes, incarnation=100):
    return tuple(Instance(node, incarnation) for node in nodes)


def report(held=NL, value=NO_VALUE, *, written=False, wanted=NEVER):
    return LockReport(R, held, 1, value, written, wanted, 2, False)


def held_by(mode, node=1):
    record = Record(R)
    record.granted[node], record.serials[node] = mode, 1
    return {R: record}


@pytest.mark.parametrize("mode", MODES)
def test_memory_keeps_the_greatest_write_mode_until_resume(mode):
    memory = Memory()
    dead = Instance(1, 7)
    memory.remember(held_by(mode), {1: 7})
    memory.remember(held_by(CW), {1: 7})
    memory.remember(held_by(EX), {1: 8})  # another life of the node
    memory.remember({}, {})
    (entry,) = filter(None, memory.reports({dead}))
    assert entry.ghosts == [(1, 7, mode if is_write(mode) else CW)]
    assert list(filter(None, memory.reports(set()))) == []
    memory.forget()
    assert list(filter(None, memory.reports({dead}))) == []


def test_memory_splits_what_no_message_can_hold():
    memory = Memory()
    dead = [Instance(1, life) for life in range(GHOSTS_MAX + 5)]
    for one in dead:
        memory.remember(held_by(CW), {1: one.incarnation})
    memory.remember({}, {})
    sizes = [len(entry.ghosts) for entry in filter(None, memory.reports(dead))]
    assert sizes == [GHOSTS_MAX, 5]


@pytest.mark.parametrize("writer", MODES[1:])
def test_memory_speaks_for_a_value_only_while_nobody_may_write_it(writer):
    records = held_by(writer)
    records[R].value = Value(b"v", True, 1, 1)
    memory = Memory()
    memory.remember(records, {1: 7})
    values = [entry.value.data for entry in filter(None, memory.reports(()))]
    assert values == ([] if writer in (PW, EX) else [b"v"])
    memory.remember({}, {})  # a newer complete copy knows nothing of it
    assert list(filter(None, memory.reports(()))) == []


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("ghost", [CW, PW, EX])
def test_exact_ghosts_give_way_to_living_holders_only(held, ghost):
    dead = DeadInstance(2, 100, 2)
    doubts = Doubts(view_of(2, instances(1), dead), 0)
    record = make_record(R, [(1, report(held))], [RecordReport(R, NO_VALUE, [Ghost(2, 100, ghost)])], doubts)
    fitting = [mode for mode in (CW, PW, EX) if mode <= ghost and compatible(held, mode)]
    assert record.ghosts == ({dead.instance: max(fitting)} if fitting else {})


def test_doubt_is_about_lost_masters_only():
    old = instances(1, 2, 3)
    dead = DeadInstance(2, 100, 2, (old,))
    doubts = Doubts(view_of(2, instances(1, 3), dead), 0)
    directory = Directory((1, 2, 3), 0)
    for i in range(200):
        resource = Resource(1, i)
        assert doubts.of(resource) == ([dead.instance] if directory.master(resource) == 2 else [])
    doubts.release(dead.instance)
    assert not doubts
    assert all(doubts.of(Resource(1, i)) == [] for i in range(200))


def test_the_same_node_in_another_life_vouches_for_nothing():
    dead = DeadInstance(2, 100, 2, (instances(1, 2),))
    reborn = (Instance(1, 101), Instance(2, 101))
    doubts = Doubts(view_of(2, reborn, dead), 0)
    assert all(doubts.of(Resource(1, i)) == [dead.instance] for i in range(50))


def test_history_that_gets_too_long_doubts_everything():
    history = History()
    dead = DeadInstance(2, 100, 2)
    for attempt in range(HISTORY_MAX + 1):
        history.enter(view_of(attempt, (Instance(1, attempt),), dead))
    assert list(history.views) == [(NOBODY,)]
    doubts = Doubts(view_of(99, instances(1), dead), 0)
    assert doubts.of(R) == []
    doubts.doubt_all((NOBODY,))
    assert doubts.of(R) == [dead.instance]
    history.enter(view_of(100, instances(1)))  # nobody is dead any more
    assert history.views == {}


def test_barrier_needs_every_member_and_every_batch():
    rebuilding = Rebuilding((1, 2))
    rebuilding.receive(1, RebuildDone(0))
    rebuilding.receive(2, RebuildDone(1))  # its batch was lost
    rebuilding.receive(9, RebuildDone(0))
    assert rebuilding.waiting_for == {2}


OLD, NEW = Value(b"old", True, 1, 1), Value(b"new", True, 1, 2)
INVALID = Value(b"new", False, 1, 2)


@pytest.mark.parametrize(
    ("locks", "known", "expected"),
    [
        ([report(PR, NEW)], [], b"new"),
        ([report(CW, NEW)], [], b"new"),
        ([report(CR, NEW)], [], None),
        ([report(CR, OLD)], [NEW], b"new"),
        ([report(CR, NEW)], [OLD], None),
        ([report(EX, INVALID)], [OLD], None),
        ([report(NL, NEW, written=True)], [OLD], b"new"),
        ([report(NL, NEW, written=True), report(CR, OLD)], [], b"new"),
        ([], [NEW], b"new"),
        ([], [], None),
    ],
)
def test_value_rules(locks, known, expected):
    doubts = Doubts(view_of(2, instances(1, 2)), 0)
    reports = [RecordReport(R, value, []) for value in known]
    value = make_record(R, list(enumerate(locks)), reports, doubts).value
    assert (value.data if value.valid else None) == expected


@pytest.mark.parametrize(("ghost", "valid"), [(CW, True), (PW, False), (EX, False)])
def test_a_ghost_that_may_have_written_makes_the_value_invalid(ghost, valid):
    doubts = Doubts(view_of(2, instances(1), DeadInstance(2, 100, 2)), 0)
    record = make_record(R, [(1, report(CR, OLD))], [RecordReport(R, OLD, [Ghost(2, 100, ghost)])], doubts)
    assert record.value.valid == valid
    assert record.value.data == b"old"
