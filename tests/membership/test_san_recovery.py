"""The recovery driver: order of R5, restart, failures within failures (002-28 to 002-30; R5, R6)."""

from __future__ import annotations

import pytest

from membership.effects import Outbox
from membership.label import DEFAULT_TIMING
from membership.messages import (
    AskReport,
    MountAdmit,
    MountJoin,
    MountLeft,
    MountRefuse,
    MountReport,
    OrderTo,
    ReplyFrom,
    Report,
)
from membership.orders import (
    Evict,
    GhostsReleased,
    JournalState,
    LinkLost,
    MountRequest,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Resumed,
    Suspend,
    Suspended,
    Withdraw,
    order_from_dict_untrusted,
    reply_to_dict,
)
from membership.san.agent import Admitted, MountAgent, Refused, ToMount
from membership.san.filesystems import Filesystems
from membership.san.header import make_header
from membership.san.recovery import ANSWERS, Finished, Phase

FS = b"F" * 16
CLUSTER = b"C" * 16


class Bench:
    """An administrator's Filesystems and the agents of n nodes, joined by queues that a test can hold back."""

    def __init__(self, nodes: int = 3, journals: int = 4, generation: int = 5) -> None:
        self.generation = generation
        self.members = {n: 1000 + n for n in range(nodes)}
        self.fencing: dict[int, int] = {}
        self.journals = [JournalState(i, 0, 0, dirty=False) for i in range(journals)]
        self.agents = {n: (MountAgent(out := Outbox()), out) for n in range(nodes)}
        self.now = 0.0
        self.trace: list[tuple[int, str]] = []
        self.events: list[object] = []
        self.held: set[type] = set()  # orders nobody answers
        self.fail_replay = False
        self.take_over()

    def header(self):
        return make_header(CLUSTER, self.generation, members=self.members, fencing=self.fencing)

    def take_over(self) -> None:
        """A new administrator; the agents live on."""
        self.out = Outbox()
        self.fs = Filesystems(self.header(), DEFAULT_TIMING, self.out)
        for agent, _ in self.agents.values():
            agent.administrator = 0
        self.fs.ask_again(self.now)
        self.settle()

    def evict(self, node: int) -> None:
        self.generation += 1
        self.fencing[node] = self.members.pop(node)
        del self.agents[node]
        self.fs.header_changed(self.header(), self.now)
        self.settle()

    def confirm(self, node: int) -> None:
        self.fs.node_dead(node, self.fencing[node], self.now)
        self.settle()

    def request(self, node: int, incarnation: int | None = None) -> MountRequest:
        incarnation = incarnation or 10 + node
        return MountRequest(FS, "web", 1, 1, incarnation, f"10.0.0.{node}", 9, f"/mnt{node}", tuple(self.journals))

    def mount(self, node: int, incarnation: int | None = None):
        agent, _ = self.agents[node]
        before = len(self.events)
        agent.join(self.request(node, incarnation))
        self.settle()
        answers = [e for e in self.events[before:] if isinstance(e, Admitted | Refused)]
        return answers[0] if answers else None

    def left(self, node: int, *, clean: bool, incarnation: int | None = None) -> None:
        self.agents[node][0].left(FS, incarnation or 10 + node, clean=clean)
        self.settle()

    def settle(self) -> None:
        """Carry messages until nothing moves; mounts answer at once unless the order is held."""
        moved = True
        while moved:
            moved = False
            send, self.out.send = self.out.send, []
            events, self.out.events = self.out.events, []
            self.events += events
            for envelope in send:
                moved = True
                if envelope.node in self.agents:
                    body = envelope.body
                    assert isinstance(body, AskReport | MountAdmit | MountRefuse | OrderTo) or body
                    self.agents[envelope.node][0].receive(body)
            for node, (agent, out) in list(self.agents.items()):
                orders, out.events = out.events, []
                for event in orders:
                    moved = True
                    self._event(node, agent, event)
                replies, out.send = out.send, []
                for envelope in replies:
                    moved = True
                    self.now += 0.001
                    self.fs.receive(node, envelope.body, self.now)

    def _event(self, node: int, agent: MountAgent, event: object) -> None:
        if not isinstance(event, ToMount):
            self.events.append(event)
            return
        order = event.order
        self.trace.append((node, type(order).__name__))
        if type(order) in self.held:
            return
        answer = self.answer(order)
        if answer is not None:
            agent.reply(FS, event.incarnation, answer)

    def answer(self, order):
        if isinstance(order, Suspend):
            return Suspended(order.attempt, tuple(self.journals) if order.survey else ())
        if isinstance(order, Rebuild):
            return Rebuilt(order.attempt)
        if isinstance(order, Resume):
            return Resumed(order.attempt)
        if isinstance(order, Replay):
            detail = "bad checksum in block 7" if self.fail_replay else ""
            return Replayed(order.attempt, order.dead.node, order.dead.incarnation, not self.fail_replay, detail)
        if isinstance(order, ReleaseGhosts):
            return GhostsReleased(order.attempt, order.node, order.incarnation)
        assert isinstance(order, Withdraw | Evict)
        return None

    def kinds(self) -> list[str]:
        """The trace with repetitions of one phase folded."""
        kinds: list[str] = []
        for _, kind in self.trace:
            if not kinds or kinds[-1] != kind:
                kinds.append(kind)
        return kinds

    @property
    def web(self):
        return self.fs.by_uuid[FS]


def mounted(nodes: int = 3, **kwargs) -> Bench:
    bench = Bench(nodes, **kwargs)
    for node in range(nodes):
        assert bench.mount(node).journal == node
    bench.trace.clear()
    bench.events.clear()
    return bench


def test_answers_cover_every_reply():
    assert {phase for phases in ANSWERS.values() for phase in phases} == set(Phase) - {
        Phase.IDLE, Phase.WAITING, Phase.ERROR,
    }  # fmt: skip


@pytest.mark.seed("002-28")
def test_each_join_is_an_attempt_over_all_members():
    bench = Bench()
    bench.mount(0)
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume"]
    first = bench.web.attempt
    bench.trace.clear()
    bench.mount(1)
    assert bench.web.attempt == first + 1
    assert bench.trace == [(n, k) for k in ("Suspend", "Rebuild", "Resume") for n in (0, 1)]
    assert bench.web.attempt >> 32 == bench.generation


@pytest.mark.seed("002-29", "002-30")
def test_recovery_of_a_dead_node_in_r5_order():
    bench = mounted()
    bench.evict(2)
    assert bench.trace == []  # not before the fence is confirmed
    assert bench.web.phase is Phase.WAITING
    bench.confirm(2)
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts"]
    finished = [e for e in bench.events if isinstance(e, Finished)][-1]
    assert finished.dead == (2,)
    assert [name for name, _ in finished.phases] == [
        "detect", "fence", "suspend", "rebuild", "resume", "replay", "release",
    ]  # fmt: skip
    assert bench.web.phase is Phase.IDLE
    assert not bench.web.dead


def test_a_phase_waits_for_every_member():
    bench = mounted()
    bench.held.add(Suspend)
    bench.left(2, clean=False)
    assert {k for _, k in bench.trace} == {"Suspend"}
    assert bench.web.waiting == {0, 1}
    attempt = bench.web.attempt
    bench.agents[0][0].reply(FS, 10, Suspended(attempt))
    bench.settle()
    assert bench.web.waiting == {1}
    bench.agents[1][0].reply(FS, 11, Suspended(attempt - 1))  # stale
    bench.settle()
    assert bench.web.phase is Phase.SUSPEND
    bench.agents[1][0].reply(FS, 11, Suspended(attempt))
    bench.settle()
    assert bench.web.phase is Phase.IDLE


def test_a_clean_leave_needs_no_replay():
    bench = mounted()
    bench.left(1, clean=True)
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume"]
    assert not bench.web.dead


@pytest.mark.seed("002-30")
def test_two_dead_at_once_are_replayed_in_turn():
    bench = mounted()
    bench.evict(1)
    bench.evict(2)
    bench.confirm(1)
    assert bench.web.phase is Phase.WAITING  # the other could still be an answer away
    bench.confirm(2)
    kinds = [k for _, k in bench.trace]
    assert kinds == ["Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts", "Replay", "ReleaseGhosts"]


def test_a_second_death_restarts_with_a_greater_attempt():
    bench = mounted()
    bench.held.add(Rebuild)
    bench.left(2, clean=False)
    attempt = bench.web.attempt
    assert bench.web.phase is Phase.REBUILD
    bench.held.clear()
    bench.left(1, clean=False)
    assert bench.web.attempt == attempt + 1
    assert not bench.web.dead
    dead = [e for e in bench.events if isinstance(e, Finished)][-1].dead
    assert sorted(dead) == [1, 2]


def test_the_replayer_dies():
    bench = mounted()
    bench.held.add(Replay)
    bench.left(2, clean=False)
    assert bench.trace[-1] == (0, "Replay")
    bench.held.clear()
    bench.trace.clear()
    bench.left(0, clean=False)
    assert [k for _, k in bench.trace] == [
        "Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts", "Replay", "ReleaseGhosts",
    ]  # fmt: skip
    assert {n for n, _ in bench.trace} == {1}


def test_views_of_the_dead_name_every_view_since_the_last_complete():
    bench = mounted()
    bench.held.add(Rebuild)
    bench.left(2, clean=False)  # attempt with {0, 1} begins, is not complete
    views = bench.web.dead[2, 12].views
    assert [sorted(i.node for i in view) for view in views] == [[0, 1, 2]]
    bench.held.add(Suspend)
    bench.left(1, clean=False)
    views = bench.web.dead[1, 11].views
    assert [sorted(i.node for i in view) for view in views] == [[0, 1, 2], [0, 1]]


@pytest.mark.seed("002-30")
def test_cold_start_replays_before_it_resumes():
    bench = Bench()
    bench.journals[1] = JournalState(1, 7, 77, dirty=True)
    assert bench.mount(0).journal == 0
    assert bench.kinds() == ["Suspend", "Rebuild", "Replay", "ReleaseGhosts", "Resume"]
    assert not bench.web.dead


def test_all_journals_dirty_the_first_mount_replays_then_gets_one():
    bench = Bench(journals=2)
    bench.journals = [JournalState(0, 7, 77, dirty=True), JournalState(1, 8, 88, dirty=True)]
    bench.held.add(Replay)
    assert bench.mount(0).journal == 0  # meant for it as long as nobody has read the journals
    assert bench.web.members[0].journal == -1
    assert bench.mount(1) is None  # waits: nothing is free yet
    bench.held.clear()
    web = bench.web
    for dead in list(web.dead.values()):
        bench.agents[0][0].reply(FS, 10, Replayed(web.attempt, dead.node, dead.incarnation, ok=True, detail=""))
        bench.settle()
    assert web.members[0].journal == 0
    bench.agents[1][0].ask_again()
    bench.settle()
    assert web.members[1].journal == 1


def test_dirty_journal_of_an_unfenced_node_waits_for_the_fence():
    bench = Bench()
    bench.journals[1] = JournalState(1, 2, 12, dirty=True)
    bench.evict(2)
    bench.mount(0)
    assert bench.trace == []
    assert bench.web.phase is Phase.WAITING
    bench.confirm(2)
    assert bench.kinds() == ["Suspend", "Rebuild", "Replay", "ReleaseGhosts", "Resume"]


def test_a_dirty_journal_is_not_given_away_and_full_is_refused():
    bench = mounted(3, journals=3)
    bench.held.add(Replay)
    bench.left(2, clean=False)
    assert bench.mount(2, incarnation=99) is None  # its old journal waits for the replay
    bench.held.clear()
    full = Bench(3, journals=2)
    full.mount(0), full.mount(1)
    refused = full.mount(2)
    assert isinstance(refused, Refused)
    assert "all 2 journals" in refused.reason


def test_second_mount_on_one_node_is_refused():
    bench = mounted()
    report = MountReport(FS, "web", 555, "h", 1, "/x", -1, tuple(bench.journals), 0, False, (), (), (), ())
    bench.fs.receive(1, MountJoin(report), 0.0)
    refusal = [e.body for e in bench.out.send if isinstance(e.body, MountRefuse)]
    assert "already mounted on this node at /mnt1" in refusal[0].reason


@pytest.mark.seed("002-30")
def test_failed_replay_isolates_the_filesystem_and_fsck_brings_it_back():
    bench = mounted()
    bench.fail_replay = True
    bench.journals[2] = JournalState(2, 2, 12, dirty=True)
    bench.left(2, clean=False)
    assert bench.web.phase is Phase.ERROR
    assert {n for n, k in bench.trace if k == "Withdraw"} == {0, 1}
    alert = [e for e in bench.events if isinstance(e, Finished)][-1]
    assert "block 7" in alert.error
    bench.left(0, clean=False)
    bench.left(1, clean=False)
    refused = bench.mount(0, incarnation=50)
    assert isinstance(refused, Refused)
    assert "fsck.matrixfs" in refused.reason
    bench.fail_replay = False
    bench.journals[2] = JournalState(2, 0, 0, dirty=False)  # fsck ran
    assert isinstance(bench.mount(0, incarnation=51), Admitted)
    assert bench.web.phase is Phase.IDLE


@pytest.mark.seed("002-10")
def test_a_new_administrator_goes_on_with_a_greater_attempt():
    bench = mounted()
    bench.held.add(Replay)
    bench.left(2, clean=False)
    before = bench.web.attempt
    bench.held.clear()
    bench.trace.clear()
    bench.generation += 1
    bench.take_over()
    assert bench.web.attempt > before
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts"]
    assert bench.web.phase is Phase.IDLE


def test_a_new_administrator_learns_of_a_dead_member_from_the_views():
    bench = mounted()
    bench.generation += 1
    bench.fencing[2] = bench.members.pop(2)  # it was administrator: evicted by the same header
    del bench.agents[2]
    bench.take_over()
    assert bench.trace == []
    assert bench.web.phase is Phase.WAITING
    bench.confirm(2)
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts"]


def test_a_quiet_take_over_disturbs_nobody():
    bench = mounted()
    bench.generation += 1
    bench.take_over()
    assert bench.trace == []
    assert sorted(bench.web.members) == [0, 1, 2]
    assert bench.web.phase is Phase.IDLE
    bench.left(1, clean=True)
    assert bench.web.attempt >> 32 == bench.generation


def test_nothing_is_decided_before_all_reports_are_in():
    bench = mounted()
    silent = bench.agents.pop(1)
    bench.generation += 1
    bench.take_over()
    bench.left(2, clean=False)
    assert not bench.fs.by_uuid  # node 1 may know of mounts
    bench.agents[1] = silent
    bench.fs.tick(bench.now + 10)
    bench.settle()
    bench.agents[2][0].ask_again()
    bench.settle()
    assert not bench.web.dead
    assert sorted(bench.web.members) == [0, 1]


def test_repeated_orders_reach_the_mount_once_and_answers_are_repeated():
    bench = mounted()
    bench.held.add(Suspend)
    bench.left(2, clean=False)
    bench.web.ask_again()
    bench.settle()
    assert [k for _, k in bench.trace] == ["Suspend", "Suspend"]  # one per member
    bench.held.clear()
    agent, out = bench.agents[0]
    agent.reply(FS, 10, Suspended(bench.web.attempt))
    out.send.clear()  # the answer is lost
    bench.web.ask_again()
    for envelope in bench.out.send:
        if envelope.node == 0:
            agent.receive(envelope.body)
    answers = [e.body for e in out.send if isinstance(e.body, ReplyFrom)]
    assert answers[-1].reply == reply_to_dict(Suspended(bench.web.attempt))


def test_agent_drops_orders_of_older_attempts_and_of_unknown_mounts():
    out = Outbox()
    agent = MountAgent(out)
    agent.administrator = 0
    bench = Bench()
    agent.join(bench.request(1))
    agent.receive(MountAdmit(1, FS, 11, 0))
    out.events.clear()
    for attempt, expected in ((9, 1), (8, 0), (9, 0), (10, 1)):
        from membership.orders import order_to_dict

        agent.receive(OrderTo(1, FS, 11, order_to_dict(Suspend(attempt))))
        assert len(out.events) == expected
        out.events.clear()
    agent.receive(OrderTo(1, FS, 99, order_to_dict(Suspend(20))))
    agent.receive(OrderTo(1, FS, 11, {"order": "nonsense"}))
    agent.receive(OrderTo(1, FS, 11, order_to_dict(Resume(11, 0))))  # an attempt begins with Suspend
    assert not out.events
    assert order_from_dict_untrusted(order_to_dict(Suspend(9))) == Suspend(9)


def test_a_lost_link_begins_a_new_attempt_once():
    bench = mounted()
    attempt = bench.web.attempt
    bench.agents[1][0].reply(FS, 11, LinkLost(attempt, 2))
    bench.settle()
    assert bench.web.attempt == attempt + 1
    bench.agents[2][0].reply(FS, 12, LinkLost(attempt, 1))  # of the attempt before: cured already
    bench.settle()
    assert bench.web.attempt == attempt + 1
    assert bench.kinds() == ["Suspend", "Rebuild", "Resume"]
    assert not bench.web.dead


def test_left_is_said_until_it_is_heard():
    bench = mounted()
    agent, out = bench.agents[1]
    agent.left(FS, 11, clean=True)
    out.send.clear()  # lost
    agent.ask_again()
    assert [type(e.body) for e in out.send] == [MountLeft]
    bench.settle()
    assert agent.is_quiet() is True
    assert 1 not in bench.web.members
    assert isinstance(Report(1, ()), Report)


def test_a_report_to_an_earlier_term_is_none():
    bench = Bench(2)
    book = Filesystems(bench.header(), DEFAULT_TIMING, bench.out)
    assert book.reports_missing == {0, 1}
    book.receive(1, Report(bench.header().generation - 1, ()), 0.0)
    assert book.reports_missing == {0, 1}
    book.receive(1, Report(bench.header().generation, ()), 0.0)
    assert book.reports_missing == {0}
