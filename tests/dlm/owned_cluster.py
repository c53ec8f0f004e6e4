"""Owned locks on the hand-delivered cluster of ``conftest``: every message counted, held back or looked at."""

from __future__ import annotations

from dlm.owned.client import Result, Span
from dlm.owned.messages import Kind
from dlm.owned.ranges import END_MAX
from tests.dlm.conftest import Cluster


class OwnedCluster(Cluster):
    """``answers`` maps (node, call) to what was answered."""

    def __init__(self, *nodes):
        self.answers = {}
        self.now = 0.0
        super().__init__(*nodes)

    def flush(self, node):
        core = self.cores[node]
        core.settle()
        for answer in core.owned.take_events():
            assert (node, answer.call) not in self.answers, "answered twice"
            self.answers[node, answer.call] = answer
        super().flush(node)

    def object_at(self, node, *, avoid=()):
        """An object that this node arbitrates."""
        return self.mastered_by(node, avoid=avoid).object

    def lock(self, node, object_, owner=1, *, kind=Kind.POSIX, span=(0, END_MAX), exclusive=True, wait=True):
        client = self.cores[node].owned.client
        call = client.lock(Span(kind, object_, owner, *span), 77, self.now, exclusive=exclusive, wait=wait)
        self.flush(node)
        return node, call

    def unlock(self, node, object_, owner=1, *, kind=Kind.POSIX, span=(0, END_MAX)):
        call = self.cores[node].owned.client.unlock(Span(kind, object_, owner, *span), self.now)
        self.flush(node)
        return node, call

    def cancel(self, call):
        self.cores[call[0]].owned.client.cancel(call[1])
        self.flush(call[0])

    def tick(self, seconds=0.2, *nodes):
        """Time passes; due probes are sent, not delivered."""
        self.now += seconds
        for node in nodes or sorted(self.cores):
            self.cores[node].owned.chaser.tick(self.now)
            self.flush(node)

    def result(self, call):
        answer = self.answers.get(call)
        return None if answer is None else answer.result

    def got(self, call):
        """Deliver everything; the lock must be granted."""
        self.deliver()
        assert self.result(call) == Result.GRANTED
        return call

    def count(self, name):
        return sum(core.statistics[name] for core in self.cores.values())
