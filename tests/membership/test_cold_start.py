"""Nobody who lives knows what was written: the journals are read, not guessed (R-7 and R-8 of san/recovery.py)."""

from __future__ import annotations

import pytest

from membership.messages import MountJoin
from membership.orders import JournalState, Rebuild, Replay, Suspend, Suspended
from membership.san.recovery import Phase
from tests.membership.test_san_recovery import FS, Bench

pytestmark = pytest.mark.seed("002-29", "002-30")

COLD = ["Suspend", "Rebuild", "Replay", "ReleaseGhosts", "Resume"]
OLD = JournalState(0, 7, 77, dirty=True)  # of an instance that died before anybody here lived


def dirty_by(bench: Bench, journal: int, node: int) -> None:
    bench.journals[journal] = JournalState(journal, node, 10 + node, dirty=True)


def die(bench: Bench, node: int) -> None:
    """Its node dies; whoever is administrator then (it was it, or not) finds it evicted."""
    bench.generation += 1
    bench.fencing[node] = bench.members.pop(node)
    del bench.agents[node]
    bench.trace.clear()
    bench.take_over()
    for agent, _ in bench.agents.values():
        agent.ask_again()
    bench.settle()


def test_what_a_mount_read_under_a_former_administrator_does_not_count():
    bench = Bench(2)
    waiting, _ = bench.agents[1]
    waiting.administrator = None  # it reads the journals, all clean, and its request waits
    waiting.join(bench.request(1))
    bench.mount(0)
    dirty_by(bench, 0, 0)
    die(bench, 0)
    assert bench.trace == []  # it may write yet
    assert bench.web.phase is Phase.WAITING
    bench.confirm(0)
    assert bench.kinds() == COLD
    assert bench.web.members[1].journal == 1


def test_what_the_dead_wrote_before_its_fence_was_confirmed_is_found():
    bench = Bench(2)
    bench.mount(0)
    die(bench, 0)
    bench.mount(1)  # it reads them after the eviction, and all are clean
    assert bench.trace == []
    dirty_by(bench, 0, 0)
    bench.confirm(0)
    assert bench.kinds() == COLD


@pytest.mark.parametrize("known", [False, True], ids=["cold", "known"])
def test_a_fence_that_was_confirmed_before_is_learnt_from_the_header(known: bool):
    """An administrator whose header had to be written again begins anew, but does not fence anew."""
    bench = Bench(2)
    bench.mount(0)
    if known:
        bench.mount(1)
    die(bench, 0)
    if not known:
        bench.mount(1)
    assert bench.trace == []
    bench.generation += 1
    bench.fencing.clear()
    bench.fs.header_changed(bench.header(), bench.now)
    bench.settle()
    assert bench.web.phase is Phase.IDLE
    assert bench.kinds()[0] == "Suspend"


def test_a_mount_that_was_admitted_but_never_rebuilt_knows_nothing():
    bench = Bench(2)
    bench.held.add(Rebuild)  # it never comes
    bench.journals[0] = OLD
    bench.held.add(Suspend)
    bench.mount(0)
    bench.mount(1)
    bench.held.clear()
    die(bench, 0)
    bench.confirm(0)
    assert bench.kinds() == COLD
    assert [d for n, d in bench.trace if n != 1] == []


def test_who_got_a_rebuild_knows_all_and_nothing_is_read_again():
    bench = Bench(2)
    bench.journals[0] = OLD
    bench.held.add(Replay)
    bench.mount(0)
    bench.mount(1)
    bench.journals[0] = JournalState(0, 0, 0, dirty=False)  # what it says now matters to nobody
    bench.held.clear()
    die(bench, 0)
    bench.confirm(0)
    assert bench.web.is_known
    assert "Replay" in bench.kinds()
    assert bench.kinds().index("Replay") < bench.kinds().index("Resume")


def test_a_survey_that_is_owed_holds_the_attempt():
    bench = Bench(2)
    bench.held.add(Suspend)
    bench.mount(0)
    agent, _ = bench.agents[0]
    agent.reply(FS, 10, Suspended(bench.web.attempt))  # it read nothing
    bench.settle()
    assert (bench.web.phase, bench.web.waiting, bench.web.is_known) == (Phase.SUSPEND, {0}, False)
    agent.reply(FS, 10, Suspended(bench.web.attempt, tuple(bench.journals)))
    bench.settle()
    assert bench.web.phase is Phase.IDLE


def test_the_surveyor_dies_and_another_reads():
    bench = Bench(3)
    bench.journals[0] = OLD
    bench.held.add(Suspend)
    bench.mount(0)
    bench.mount(1)
    bench.held.clear()
    bench.left(0, clean=False)
    assert bench.web.is_known
    assert bench.kinds()[-5:] == COLD


@pytest.mark.seed("002-10")
def test_journals_are_known_to_all_before_anybody_writes_one():
    """Both were dirty, so no mount had one when it came; then one dies with the administrator."""
    bench = Bench(2, journals=2)
    bench.journals = [OLD, JournalState(1, 8, 88, dirty=True)]
    bench.held.add(Suspend)
    bench.mount(0)
    bench.mount(1)
    bench.held.clear()
    for node in (0, 1):
        survey = tuple(bench.journals) if node == 0 else ()
        bench.agents[node][0].reply(FS, 10 + node, Suspended(bench.web.attempt, survey))
    bench.settle()
    assert bench.web.phase is Phase.IDLE
    mounts = [bench.agents[node][0].mounts[FS] for node in (0, 1)]
    assert {o.incarnation: o.journal for o in mounts[1].owners} == {10 + n: m.journal for n, m in enumerate(mounts)}
    assert {mount.journal for mount in mounts} == {0, 1}
    die(bench, 0)
    bench.confirm(0)
    assert "Replay" in bench.kinds()


def test_an_agent_reports_the_journal_of_the_rebuild_not_that_of_the_admission():
    bench = Bench(2)
    bench.journals[0] = OLD
    bench.held.add(Rebuild)
    assert bench.mount(0).journal == 0
    assert bench.agents[0][0].mounts[FS].report().journal == 1


def test_what_a_node_reported_that_is_evicted_before_all_have_is_dropped():
    bench = Bench(3)
    bench.mount(0)
    bench.mount(1)
    silent = bench.agents.pop(2)
    bench.generation += 1
    bench.take_over()
    assert bench.fs.reports_missing == {2}
    bench.evict(0)
    bench.confirm(0)
    bench.agents[2] = silent
    bench.fs.ask_again(bench.now)
    bench.settle()
    assert sorted(bench.web.members) == [1]
    assert bench.web.phase is Phase.IDLE


def test_a_request_that_waited_is_answered_once_the_survey_is_over():
    bench = Bench(2)
    bench.held.add(Suspend)
    bench.mount(0)
    report = bench.agents[0][0].mounts[FS].report()
    bench.fs.receive(0, MountJoin(report), bench.now)  # the answer was lost
    bench.settle()
    assert sorted(bench.web.members) == [0]
