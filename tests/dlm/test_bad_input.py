"""A peer that talks nonsense harms itself: no assertion of ours, bounded memory, no lock that nobody granted (R11).

What reaches the core is well-formed (``test_messages.py`` has what is not), and of a member: the links prove that.
"""

from __future__ import annotations

import random

import pytest

from dlm.client import DeniedEvent, GrantedEvent, RevokeEvent
from dlm.lockspace import _EARLY_MAX, HELD_BACK_MAX, LockspaceCore
from dlm.messages import (
    NEVER,
    NO_VALUE,
    SEQUENCE_MAX,
    Cancel,
    Denied,
    Extra,
    ExtraAnswer,
    Ghost,
    Granted,
    HandOver,
    LockReport,
    Member,
    Prefetched,
    Rebuild,
    RebuildDone,
    RecordReport,
    Release,
    Request,
    Return,
    Revoke,
    Value,
    encode,
)
from dlm.modes import EX, MODES, NL, PR, covers
from dlm.names import Resource
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

TOP = (1 << 64) - 1
NAMES = [Resource(0, 0), Resource(1, 7), Resource(255, TOP, TOP, TOP), Resource(1, 8, 0, 1)]


class Liar:
    """Well-formed messages with random contents, some of which fit what the victim waits for."""

    def __init__(self, rng, victim):
        self.rng, self.victim = rng, victim

    def serial(self, resource):
        lock = self.victim._client.locks.get(resource)
        known = [lock.serial, lock.wanted_serial] if lock else []
        return self.rng.choice([0, 1, TOP, *known * 3])

    def mode(self, *modes):
        return self.rng.choice(modes or MODES)

    def value(self):
        attempt = self.rng.choice([0, self.victim.attempt, TOP])
        return Value(b"lie", self.rng.random() < 0.5, attempt, self.rng.choice([0, 1, TOP]))

    def hand_over(self):
        if self.rng.random() < 0.5:
            return None
        wanted = self.mode(NEVER, *MODES)
        return HandOver(self.mode(), self.rng.choice([0, TOP]), wanted, self.rng.choice([1, TOP]), 255)

    def message(self):
        rng, name, positive = self.rng, self.rng.choice(NAMES), MODES[1:]
        some = rng.sample(NAMES, rng.randint(0, 4))
        answers = [
            ExtraAnswer(one, self.serial(one), rng.random() < 0.7, self.value(), self.hand_over()) for one in some
        ]
        finish = self.mode(NEVER, NEVER, *MODES)
        lock = self.victim._client.locks.get(name)
        wanted = lock.wanted if lock and lock.wanted > 0 else EX
        report = LockReport(
            name, self.mode(), 1, self.value(), rng.random() < 0.3, self.mode(NEVER, *MODES), 2, rng.random() < 0.3
        )
        return rng.choice(
            [
                lambda: Request(name, self.mode(*positive), self.serial(name), rng.random() < 0.3, 255, []),
                lambda: Request(name, EX, 9, False, 0, [Extra(one, self.serial(one)) for one in some]),
                lambda: Granted(name, self.mode(wanted, *positive), self.serial(name), self.value(), finish, answers),
                lambda: Granted(name, wanted, self.serial(name), self.value(), finish, answers, self.hand_over()),
                lambda: Denied(name, self.serial(name)),
                lambda: Revoke(name, self.mode()),
                lambda: Release(name, self.mode(), self.serial(name), self.value()),
                lambda: Cancel(name, self.serial(name)),
                lambda: Return(name),
                lambda: Prefetched(self.mode(*positive), answers),
                lambda: Rebuild([report] * rng.randint(0, 3), [RecordReport(name, self.value(), [Ghost(3, 1, 5)])]),
                lambda: RebuildDone(rng.choice([0, 1, TOP]), [[Member(63, TOP)] * 3]),
            ]
        )()


class Victim:
    """A core and its obedient user."""

    def __init__(self, seed, members):
        self.rng = random.Random(seed)
        self.core = LockspaceCore(0, 1, 0)
        self.members = members
        self.asked = {}
        self.attempt = 0
        self.liar = Liar(self.rng, self.core)

    def view(self, *dead):
        addresses = tuple(PeerAddress(node, 1, "127.0.0.1", 1) for node in range(self.members))
        return LockspaceView(self.attempt, addresses, dead)

    def change(self):
        self.attempt += 1
        core = self.core
        core.suspend(self.attempt)
        self.lie(3)
        dead = [DeadInstance(9, 1, 9, ((Instance(0, 1), Instance(9, 1)),))][: self.rng.randint(0, 1)]
        core.rebuild(self.view(*dead))
        core.work(self.rng.randint(1, 5))
        for peer in range(1, self.members):  # their lies are over, or the barrier stays shut
            core.receive(peer, self.attempt, RebuildDone(core._rebuilding._batches[peer] if core._rebuilding else 0))
        self.lie(3)
        while core.work():
            pass
        self.lie(3)
        core.resume(self.attempt)
        self.obey()
        if self.rng.random() < 0.5:
            core.release_ghosts(Instance(9, 1))
        self.obey()

    def lie(self, count):
        for _ in range(count):
            attempt = self.rng.choice([self.attempt] * 8 + [self.attempt - 1 if self.attempt else 0, TOP])
            sender = self.rng.choice([*range(1, self.members), 63])
            self.core.receive(sender, attempt, self.liar.message())
            self.obey()

    def obey(self):
        effects = self.core.take_effects()
        for _, attempt, message in effects.send:
            encode(attempt, message)
        for event in effects.events:
            if isinstance(event, GrantedEvent):
                assert self.asked.pop(event.resource) == event.grant.mode
            elif isinstance(event, DeniedEvent):
                del self.asked[event.resource]
            elif isinstance(event, RevokeEvent):
                held = self.core.held(event.resource)
                if held != event.mode and covers(held, event.mode):
                    self.core.release(event.resource, event.mode)
                    self.obey()

    def use(self):
        core, rng, name = self.core, self.rng, self.rng.choice(NAMES)
        held = core.held(name)
        if name in self.asked:
            if rng.random() < 0.5:
                core.cancel(name)
                del self.asked[name]
        elif held and rng.random() < 0.5:
            lower = rng.choice([mode for mode in MODES if mode != held and covers(held, mode)])
            core.release(name, lower, b"truth" if held >= 4 else None)
        elif modes := [mode for mode in MODES[1:] if mode != held and covers(mode, held)]:
            mode = rng.choice(modes)
            self.asked[name] = mode
            if core.request(name, mode, try_=rng.random() < 0.2) is not None:
                del self.asked[name]
        self.obey()


@pytest.mark.parametrize("members", [2, 3])
def test_lies_of_a_member(members):
    granted = 0
    for seed in range(60):
        victim = Victim(seed, members)
        for _ in range(8):
            victim.change()
            for _ in range(30):
                victim.use()
                victim.lie(1)
        granted += sum(bool(victim.core.held(name)) for name in NAMES)
        for entry in victim.core.dump():
            assert len(entry.get("waiting", ())) <= 2 * members  # one request per node and queue at most
    assert granted > 30  # the user got on with it


@pytest.mark.parametrize("shuffle", [False, True])
def test_messages_of_honest_peers_doubled_or_out_of_order(cluster_of, shuffle):
    """The links exclude it (003-33); should they fail, nobody falls over, and the next view puts all right."""
    for seed in range(20):
        rng = random.Random(seed)
        cluster = cluster_of(*range(rng.choice([2, 3])))
        names = [Resource(1, i) for i in range(3)]
        asked = set()
        for _ in range(60):
            node, name = rng.choice(sorted(cluster.cores)), rng.choice(names)
            if (node, name) not in asked and not cluster.cores[node].held(name):
                asked.add((node, name))
                cluster.request(node, name, rng.choice([PR, EX]))
            for link in cluster.links.values():
                if link and rng.random() < 0.3:
                    rng.shuffle(link) if shuffle else link.append(link[0])
            cluster.deliver(*rng.choice(list(cluster.links) or [(0, 1)]))
            for holder, event in cluster.events:
                asked.discard((holder, event.resource))
                held = cluster.cores[holder].held(event.resource)
                if isinstance(event, RevokeEvent) and held != event.mode and covers(held, event.mode):
                    cluster.release(holder, event.resource, event.mode)
            cluster.events.clear()
        cluster.links.clear()


def test_floods_are_bounded(cluster_of):
    cluster = cluster_of(1, 2, 3)
    core = cluster.cores[1]
    for i in range(_EARLY_MAX + 10):
        core.receive(2, TOP, Request(Resource(1, i), EX, i))
    assert core.statistics["early_dropped"] == 10
    cluster.suspend()
    cluster.rebuild(nodes=(1,))
    for i in range(HELD_BACK_MAX + 10):
        core.receive(2, core.attempt, Request(Resource(1, i), EX, i))
    assert core.statistics["held_back_dropped"] == 10
    core.receive(3, core.attempt, Request(Resource(1, 1), EX, 1))  # the others have room
    assert core.statistics["held_back_dropped"] == 10


def test_one_request_per_node_is_kept_however_many_come(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(1)
    cluster.get(1, resource, EX)
    core = cluster.cores[1]
    for serial in range(1000):
        core.receive(2, core.attempt, Request(resource, PR, serial))
    assert [entry[:2] for entry in core.dump()[0]["waiting"]] == [[2, "PR"]]


def test_members_that_left_and_views_that_passed_are_not_heard(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(1)
    core = cluster.cores[1]
    core.receive(2, core.attempt - 1, Request(resource, EX, 1))
    cluster.kill(3)
    cluster.change()
    core.receive(3, core.attempt, Request(resource, EX, 1))
    core.receive(3, core.attempt, Rebuild([], []))
    assert core.sizes()["resources"] == 0
    assert core.statistics["stale"] == 3


@pytest.mark.parametrize("nodes", [(1, 2), (1, 2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_value(cluster_of, nodes, name):
    cluster = cluster_of(*nodes)
    for node in (1, 2, 1):
        assert cluster.get(node, name, EX).mode == EX
        cluster.release(node, name, PR, b"v")
    assert cluster.get(2, name, PR).value == b"v"
    cluster.change()
    assert cluster.held(name) == {1: PR, 2: PR}
    assert str(name) in {entry["resource"] for entry in cluster.cores[1].dump()}


def test_a_sequence_that_can_grow_no_more_stays(cluster_of):
    """A writer counts from what it was granted with; only a lie can bring it to the end."""
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(2)
    cluster.request(1, resource, EX)
    core = cluster.cores[1]
    core.receive(2, core.attempt, Granted(resource, EX, 1, Value(b"lie", True, core.attempt, SEQUENCE_MAX)))
    cluster.release(1, resource, PR, b"mine")
    assert core._client.locks[resource].value == Value(b"mine", True, core.attempt, SEQUENCE_MAX)


def test_serials_and_attempts_at_their_end(cluster_of):
    cluster = cluster_of(1, 2)
    resource = cluster.mastered_by(2)
    cluster.attempt = TOP - 1
    for core in cluster.cores.values():
        core._client._serial = TOP - 1
    cluster.change()
    assert cluster.cores[1].attempt == TOP
    assert cluster.get(1, resource, EX).mode == EX  # the last request of 2**64
    cluster.release(1, resource)
    cluster.deliver()
    assert cluster.held(resource) == {}


def test_a_grant_of_another_mode_than_asked_is_none(cluster_of):
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(2)
    cluster.request(1, resource, EX)
    core = cluster.cores[1]
    core.receive(2, core.attempt, Granted(resource, PR, 1, NO_VALUE))
    assert core.held(resource) == NL


def test_nobody_is_granted_what_we_do_not_arbitrate(cluster_of):
    """Two masters of one resource would be the end: a stray request makes none."""
    cluster = cluster_of(1, 2, 3)
    resource = cluster.mastered_by(2)
    core = cluster.cores[1]
    core.receive(3, core.attempt, Request(resource, EX, 1, False, 0, [Extra(cluster.mastered_by(3), 2)]))
    assert core.sizes()["resources"] == 0
    assert core.take_effects().send == []
