"""The master's record: order of service, revokes, finish flags, ghosts; and a random walk beside a naive model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlm.messages import NEVER, Denied, Granted, Revoke, Value
from dlm.modes import CR, CW, EX, MODES, NL, PR, PW, TOLERATED, compatible, covers
from dlm.names import Resource
from dlm.resource import Record, Waiter, by_priority, first_come
from membership.views import Instance

R = Resource(1, 1)


class Desk:
    """A record with short words for its operations; each returns what was sent, as text."""

    def __init__(self, enqueue=first_come):
        self.record = Record(R)
        self.serial = 0
        self.enqueue = enqueue

    def ask(self, node, mode, *, try_=False, priority=0):
        self.serial += 1
        self.record.request(Waiter(node, mode, self.serial, try_, priority), self.enqueue)
        return self.sent()

    def release(self, node, mode, value=None):
        self.record.release(node, mode, self.record.serials.get(node, 0), value)
        return self.sent()

    def sent(self, out=None):
        out = [] if out is None else out
        self.record.schedule(out)
        words = []
        for node, message in out:
            if isinstance(message, Granted):
                finish = "" if message.finish == NEVER else f" finish {message.finish}"
                words.append(f"grant {node} {message.mode}{finish}")
            elif isinstance(message, Revoke):
                words.append(f"revoke {node} {message.mode}")
            else:
                assert isinstance(message, Denied)
                words.append(f"deny {node}")
        return words


@pytest.mark.seed("003-36")
def test_reads_together_then_the_write_then_the_read():
    desk = Desk()
    assert desk.ask(0, EX) == ["grant 0 5"]
    assert desk.ask(1, PR) == ["revoke 0 3"]
    assert desk.ask(2, PR) == []
    assert desk.ask(3, EX) == []
    assert desk.ask(4, PR) == []
    assert desk.release(0, NL) == ["grant 1 3 finish 0", "grant 2 3 finish 0"]
    assert desk.release(1, NL) == []
    assert desk.release(2, NL) == ["grant 3 5 finish 3"]
    assert desk.release(3, NL) == ["grant 4 3"]


@pytest.mark.seed("003-12")
def test_five_contenders_are_served_in_order():
    desk = Desk()
    served = []
    for node in range(5):
        served += desk.ask(node, EX)
    for node in range(5):
        served += desk.release(node, NL)
    assert [word for word in served if word.startswith("grant")] == [
        "grant 0 5", "grant 1 5 finish 0", "grant 2 5 finish 0", "grant 3 5 finish 0", "grant 4 5"
    ]  # fmt: skip


@pytest.mark.seed("003-12")
def test_by_priority_the_greater_first_and_equals_in_order():
    desk = Desk(by_priority)
    desk.ask(0, EX)
    for node, priority in ((1, 0), (2, 9), (3, 5), (4, 9)):
        desk.ask(node, EX, priority=priority)
    served = [desk.release(node, NL)[0] for node in (0, 2, 4, 3)]
    assert [word.split()[1] for word in served] == ["2", "4", "3", "1"]


@pytest.mark.seed("003-12")
def test_by_priority_conversions_still_go_first_and_revokes_follow_the_head():
    desk = Desk(by_priority)
    desk.ask(0, CR)
    desk.ask(1, PW)
    assert desk.ask(2, PR, priority=1) == ["revoke 1 3"]
    assert desk.ask(3, EX, priority=2) == ["revoke 0 0", "revoke 1 0"]
    assert desk.ask(0, PR) == []
    assert desk.release(1, NL) == ["grant 0 3 finish 0"]


@pytest.mark.seed("003-39")
def test_finish_flag_saves_the_revoke():
    desk = Desk()
    desk.ask(2, EX)
    assert desk.ask(1, EX) == ["revoke 2 0"]
    assert desk.ask(4, EX) == []
    assert desk.release(2, NL) == ["grant 1 5 finish 0"]
    assert desk.ask(5, EX) == []  # 1 knows already
    assert desk.release(1, NL) == ["grant 4 5 finish 0"]


def test_revoke_is_repeated_only_to_go_lower():
    desk = Desk()
    desk.ask(0, EX)
    assert desk.ask(1, PR) == ["revoke 0 3"]
    assert desk.ask(2, EX) == []  # not at the head
    assert desk.release(0, PR) == ["grant 1 3 finish 0", "revoke 0 0"]
    assert desk.release(1, NL) == []
    assert desk.release(0, NL) == ["grant 2 5"]


def test_a_down_conversion_beside_the_told_mode_is_told_again():
    desk = Desk()
    desk.ask(0, EX)
    assert desk.ask(1, PR) == ["revoke 0 3"]
    assert desk.release(0, CW) == ["revoke 0 1"]  # CW stands against PR, and PR is no down-conversion of it
    assert desk.release(0, CR) == ["grant 1 3"]


def test_conversion_goes_before_waiters_and_deadlock_of_two_ends_by_release():
    desk = Desk()
    desk.ask(0, PR)
    desk.ask(1, PR)
    assert desk.ask(2, EX) == ["revoke 0 0", "revoke 1 0"]
    assert desk.ask(0, EX) == []  # 1 was told to go down to NL already
    assert desk.ask(1, EX) == []
    assert desk.release(1, NL) == ["grant 0 5 finish 0"]  # 1 keeps its place in the queue
    assert desk.release(0, NL) == ["grant 1 5 finish 0"]
    assert desk.release(1, NL) == ["grant 2 5"]


def test_release_that_crossed_a_grant_counts_for_its_value_only():
    desk = Desk()
    desk.ask(0, PW)
    old = desk.record.serials[0]
    assert desk.ask(0, EX) == ["grant 0 5"]
    desk.record.release(0, NL, old, Value(b"v", True, 1, 1))
    assert desk.record.granted == {0: EX}
    assert desk.record.value.data == b"v"


def test_values_are_taken_from_writers_only_and_never_go_back():
    desk = Desk()
    desk.ask(0, PR)
    desk.release(0, NL, Value(b"no", True, 1, 1))
    assert not desk.record.value.valid
    desk.ask(0, EX)
    desk.release(0, PW, Value(b"new", True, 2, 1))
    desk.release(0, NL, Value(b"old", True, 1, 9))
    assert desk.record.value.data == b"new"


def test_try_is_denied_not_queued():
    desk = Desk()
    desk.ask(0, PR)
    assert desk.ask(1, EX, try_=True) == ["deny 1"]
    assert desk.ask(1, PR, try_=True) == ["grant 1 3"]
    assert desk.ask(2, EX) == ["revoke 0 0", "revoke 1 0"]
    assert desk.ask(3, PR, try_=True) == ["deny 3"]  # it would overtake


def test_tries_behind_a_blocked_conversion_are_denied_too():
    desk = Desk()
    desk.ask(0, PR)
    desk.ask(1, PR)
    for node, mode, try_ in ((0, EX, False), (2, PR, True), (1, PW, True)):
        desk.serial += 1
        desk.record.request(Waiter(node, mode, desk.serial, try_))  # as after a rebuild: nothing scheduled yet
    assert desk.sent() == ["deny 1", "deny 2", "revoke 1 0"]


def test_cancel():
    desk = Desk()
    desk.ask(0, PR)
    desk.ask(1, EX)
    desk.ask(2, PR)
    out = []
    desk.record.cancel(1, 2, out)
    assert desk.sent(out) == ["deny 1", "grant 2 3"]
    out = []
    desk.record.cancel(2, 3, out)  # granted already: that was the answer
    assert out == []


@pytest.mark.seed("002-04")
@pytest.mark.parametrize("ghost", [CW, PW, EX])
@pytest.mark.parametrize("mode", MODES[1:])
def test_ghosts_count_like_holders_and_are_not_asked(ghost, mode):
    desk = Desk()
    dead = Instance(9, 1)
    desk.record.ghosts[dead] = ghost
    if compatible(ghost, mode):
        assert desk.ask(1, mode) == [f"grant 1 {mode}"]
        return
    assert desk.ask(1, mode) == []
    del desk.record.ghosts[dead]
    assert desk.sent() == [f"grant 1 {mode}"]


def test_nonsense_changes_nothing():
    desk = Desk()
    desk.ask(0, PR)
    desk.release(0, CW)  # no down-conversion
    desk.release(7, NL)
    desk.record.cancel(7, 7, [])
    assert desk.record.granted == {0: PR}
    desk.release(0, NL)
    assert desk.record.idle


class Beside(RuleBasedStateMachine):
    """The record beside a model that keeps plain lists and recomputes everything."""

    nodes = st.integers(0, 4)

    def __init__(self):
        super().__init__()
        self.record = Record(R)
        self.held: dict[int, int] = {}
        self.queues: tuple[list, list] = ([], [])  # conversions, new: (node, mode)
        self.told: dict[int, int] = {}
        self.serial = 0

    def waits(self, node):
        return any(node == entry[0] for queue in self.queues for entry in queue)

    def fits(self, node, mode):
        return all(compatible(mode, held) for other, held in self.held.items() if other != node)

    def settle(self, out=()):
        """Let the model grant, then the record, and compare every message."""
        expected = []
        blocked = False
        for queue in self.queues:
            while queue and not blocked:
                if not self.fits(*queue[0]):
                    blocked = True
                    break
                node, mode = queue.pop(0)
                self.held[node] = mode
                self.told.pop(node, None)
                expected.append((node, mode))
        head = next((queue[0] for queue in self.queues if queue), None)
        sent = list(out)
        self.record.schedule(sent)
        grants = [(node, m) for node, m in sent if isinstance(m, Granted)]
        assert [(node, m.mode) for node, m in grants] == expected
        for node, message in grants:
            clash = head is not None and not compatible(head[1], message.mode)
            assert message.finish == (TOLERATED[message.mode][head[1]] if clash else NEVER)
            if clash:
                self.told[node] = message.finish
        for node, message in sent:
            if isinstance(message, Revoke):
                assert not compatible(self.held[node], head[1])
                assert message.mode < self.told.get(node, 9)
                assert compatible(message.mode, head[1])
                self.told[node] = message.mode
        if head is not None:  # no lost wake-up: whoever stands in the way was told to go low enough
            for node, held in self.held.items():
                if node != head[0] and not compatible(held, head[1]):
                    assert node in self.told

    @rule(node=nodes, mode=st.sampled_from(MODES[1:]))
    def ask(self, node, mode):
        if self.waits(node) or not covers(mode, self.held.get(node, 0)) or mode == self.held.get(node, 0):
            return
        self.serial += 1
        self.record.request(Waiter(node, mode, self.serial, False))
        self.queues[0 if node in self.held else 1].append((node, mode))
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), mode=st.sampled_from(MODES))
    def release(self, data, mode):
        node = data.draw(st.sampled_from(sorted(self.held)))
        if mode == self.held[node] or not covers(self.held[node], mode):
            return
        self.record.release(node, mode, self.record.serials[node], None)
        if mode:
            self.held[node] = mode
        else:
            del self.held[node]
        if node in self.told and covers(self.told[node], mode):
            del self.told[node]
        self.settle()

    @rule(node=nodes)
    def cancel(self, node):
        out = []
        for waiter in (*self.record.converting, *self.record.waiting):
            if waiter.node == node:
                self.record.cancel(node, waiter.serial, out)
        assert len(out) == self.waits(node)
        for queue in self.queues:
            queue[:] = [entry for entry in queue if entry[0] != node]
        self.settle(out)

    @invariant()
    def same(self):
        assert self.record.granted == self.held
        assert [(w.node, w.mode) for w in self.record.converting] == self.queues[0]
        assert [(w.node, w.mode) for w in self.record.waiting] == self.queues[1]
        for one, mode in self.held.items():
            assert all(compatible(mode, other) for node, other in self.held.items() if node != one)


Beside.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestBeside = Beside.TestCase
