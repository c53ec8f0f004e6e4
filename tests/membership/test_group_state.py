"""Figure 7A: peer states, views, stale messages (002-27)."""

from __future__ import annotations

import itertools
import random

import pytest

from membership.effects import Outbox
from membership.group.state import TRANSITIONS, GroupCore, PeerEvent, PeerState, ViewInstalled
from membership.label import DEFAULT_TIMING
from membership.seams import PeerAddress

ADDRESSES = [PeerAddress(n, 1, f"10.0.0.{n + 1}", 7) for n in range(4)]


class Net:
    """Group cores joined by queues; ``cut`` pairs lose everything."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.cores = {}
        self.views: dict[int, list[int]] = {n: [] for n in range(count)}
        self.queue: list = []
        self.cut: set[frozenset] = set()
        self.now = 0.0
        for address in ADDRESSES[:count]:
            out = Outbox()
            self.cores[address.node] = (GroupCore(address, DEFAULT_TIMING, out), out)

    def meet(self) -> None:
        for core, _ in self.cores.values():
            core.set_peers([ADDRESSES[n] for n in self.cores], self.now)
        self.run(1.0)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for core, _ in self.cores.values():
                core.tick(self.now)
            self.flush()

    def flush(self) -> None:
        while True:
            for node, (core, out) in self.cores.items():
                for event in out.events:
                    assert isinstance(event, ViewInstalled)
                    self.views[node].append(event.view.number)
                out.events.clear()
                self.queue += [(node, e.node, e.body, core.view.number) for e in out.send]
                out.send.clear()
            if not self.queue:
                return
            # FIFO per pair, any order across pairs
            pairs = sorted({(a, b) for a, b, _, _ in self.queue})
            pair = self.rng.choice(pairs)
            index = next(i for i, m in enumerate(self.queue) if m[:2] == pair)
            sender, to, body, view = self.queue.pop(index)
            if to in self.cores and frozenset((sender, to)) not in self.cut:
                core = self.cores[to][0]
                if core.heard(sender, self.now):
                    core.receive(sender, body, view, self.now)

    def members(self) -> dict[int, list[int]]:
        return {n: sorted(core.view.members) for n, (core, _) in self.cores.items()}


def test_table_is_complete_and_silence_never_revives():
    assert set(TRANSITIONS) == set(itertools.product(PeerState, PeerEvent))
    for state in PeerState:
        assert TRANSITIONS[state, PeerEvent.HEARD] is PeerState.UP
        assert TRANSITIONS[state, PeerEvent.REFUSED] is PeerState.GONE
        assert TRANSITIONS[state, PeerEvent.SILENT] in {PeerState.SUSPECT, PeerState.GONE}
    for state, event in itertools.product(PeerState, PeerEvent):
        if event is not PeerEvent.HEARD and state is not PeerState.UP:
            assert TRANSITIONS[state, event] is not PeerState.UP


@pytest.mark.seed("002-27")
@pytest.mark.parametrize("seed", range(20))
def test_all_agree_on_one_view_in_any_message_order(seed):
    net = Net(4, seed)
    net.meet()
    assert set(map(tuple, net.members().values())) == {(0, 1, 2, 3)}
    assert len({core.view.number for core, _ in net.cores.values()}) == 1
    for numbers in net.views.values():
        assert numbers == sorted(set(numbers))  # G1


@pytest.mark.seed("002-27")
def test_silent_peer_leaves_the_view_after_link_dead_and_refused_at_once():
    net = Net(3)
    net.meet()
    del net.cores[2]
    net.run(DEFAULT_TIMING.link_dead - 1.0)
    assert net.members()[0] == [0, 1, 2]
    net.run(1.5)
    assert net.members() == {0: [0, 1], 1: [0, 1]}
    del net.cores[1]
    net.cores[0][0].link_refused(1, net.now)
    net.flush()
    assert net.members() == {0: [0]}


@pytest.mark.seed("002-27")
def test_messages_of_an_older_view_are_refused_from_accept_on():
    net = Net(3)
    net.meet()
    core = net.cores[1][0]
    old = core.view.number
    assert core.admits(old)
    net.cores[0][0].link_refused(2, net.now)
    for envelope in list(net.cores[0][1].send):
        if envelope.node == 1:
            core.receive(0, envelope.body, old, net.now)
    core.link_refused(2, net.now)
    net.cores[0][1].send.clear()
    net.run(1.0)
    assert core.view.number > old
    assert not core.admits(old)
    assert core.admits(core.view.number)


def test_partition_and_merge():
    net = Net(4)
    net.meet()
    net.cut = {frozenset(p) for p in itertools.product((0, 1), (2, 3))}
    net.run(4.0)
    assert net.members() == {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    net.cut.clear()
    net.run(2.0)
    assert set(map(tuple, net.members().values())) == {(0, 1, 2, 3)}
    assert len({core.view.number for core, _ in net.cores.values()}) == 1


def test_half_cut_triangle_settles_on_a_clique():
    net = Net(3)
    net.meet()
    net.cut = {frozenset((0, 1))}
    net.run(5.0)
    assert net.members()[0] == net.members()[2] == [0, 2]
    assert net.cores[0][0].is_settled({0, 1, 2})


def test_who_accepted_a_greater_number_says_so_and_is_taken_in():
    net = Net(2)
    net.meet()
    ahead = net.cores[1][0]
    ahead._accepted = ahead.view.number + 64_000
    net.cores[0][0]._is_stray = True  # any reason to propose anew
    net.run(2.0)
    assert net.members() == {0: [0, 1], 1: [0, 1]}
    assert ahead.view.number > 64_000


def test_lost_install_is_repaired():
    net = Net(3)
    net.meet()
    core, _ = net.cores[2]
    core.view = type(core.view)(1, {2: ADDRESSES[2]})  # as if it had never seen Install
    net.run(2.0)
    assert len({c.view.number for c, _ in net.cores.values()}) == 1
    assert net.members()[2] == [0, 1, 2]


def test_not_settled_while_a_live_node_was_neither_heard_nor_silent_long_enough():
    out = Outbox()
    core = GroupCore(ADDRESSES[0], DEFAULT_TIMING, out)
    core.set_peers(ADDRESSES[:2], 0.0)
    assert not core.is_settled({1})
    assert core.is_settled(set())  # it is not alive on disk
    core.tick(DEFAULT_TIMING.link_dead)
    assert core.is_settled({1})


def test_new_incarnation_is_a_new_peer():
    net = Net(2)
    net.meet()
    reborn = PeerAddress(1, 2, ADDRESSES[1].host, 8)
    core = net.cores[0][0]
    core.set_peers([reborn], net.now)
    assert core.peers[1].state is PeerState.ABSENT
    assert sorted(core.view.members) == [0]
