"""The range table against a map from byte to mode, and the shape it promises."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dlm.owned.ranges import END_MAX, Held, Owner, RangeTable

A, B = Owner(1, 7), Owner(2, 7)
OWNERS = st.sampled_from([A, B, Owner(1, 8)])
BYTES = 24


@st.composite
def spans(draw):
    start = draw(st.integers(0, BYTES - 1))
    return start, draw(st.integers(start, BYTES - 1))


class Model(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.table = RangeTable()
        self.bytes: dict[tuple[Owner, int], bool] = {}
        self.changes = 0

    @rule(owner=OWNERS, span=spans(), exclusive=st.booleans())
    def set(self, owner, span, exclusive):
        self.changes += self.table.set(owner, 1, *span, exclusive)
        self.bytes |= {(owner, i): exclusive for i in range(span[0], span[1] + 1)}

    @rule(owner=OWNERS, span=spans(), exclusive=st.booleans())
    def strengthen(self, owner, span, exclusive):
        self.changes += self.table.strengthen(owner, 1, *span, exclusive)
        for i in range(span[0], span[1] + 1):
            self.bytes[owner, i] = exclusive or self.bytes.get((owner, i), False)

    @rule(owner=OWNERS, span=spans())
    def weaken(self, owner, span):
        self.changes += self.table.weaken(owner, *span)
        self.bytes |= {(owner, i): False for i in range(span[0], span[1] + 1) if (owner, i) in self.bytes}

    @rule(owner=OWNERS, span=spans())
    def unset(self, owner, span):
        self.changes += self.table.unset(owner, *span)
        for i in range(span[0], span[1] + 1):
            self.bytes.pop((owner, i), None)

    @rule(owner=OWNERS, span=spans(), exclusive=st.booleans())
    def ask(self, owner, span, exclusive):
        blocking = {
            other
            for (other, i), mode in self.bytes.items()
            if other != owner and span[0] <= i <= span[1] and (mode or exclusive)
        }
        assert {other for other, _ in self.table.conflicts(owner, *span, exclusive)} == blocking
        found = self.table.conflict(owner, *span, exclusive)
        assert (found is not None) == bool(blocking)
        if found is not None:
            assert any(self.bytes.get((found[0], i)) == found[1].exclusive for i in range(span[0], span[1] + 1))
        covered = all((owner, i) in self.bytes for i in range(span[0], span[1] + 1))
        assert self.table.covers(owner, *span) == covered

    @invariant()
    def content_is_the_bytes_with_nothing_left_to_merge(self):
        seen = {}
        last = {}
        for owner, held in self.table:
            before = last.get(owner)
            assert before is None or before.end < held.start - (before.exclusive == held.exclusive)
            last[owner] = held
            seen |= {(owner, i): held.exclusive for i in range(held.start, held.end + 1)}
        assert seen == self.bytes
        assert self.table.count == self.changes == len(list(self.table))


TestModel = Model.TestCase


def test_split_merge_and_the_end_of_the_world():
    table = RangeTable()
    table.set(A, 5, 0, END_MAX, True)
    table.unset(A, 10, 19)
    assert table.of(A) == [Held(0, 9, True, 5), Held(20, END_MAX, True, 5)]
    assert table.conflict(B, 10, 19, True) is None
    assert table.conflict(B, 0, END_MAX, False) == (A, Held(0, 9, True, 5))
    table.set(A, 6, 10, 19, True)
    assert table.of(A) == [Held(0, END_MAX, True, 5)]
    assert table.unset(A, 0, END_MAX) == -1
    assert list(table) == []


@pytest.mark.seed("000-15")
def test_thousands_of_ranges_are_found_by_bisection():
    """What is looked at for one range of another owner doesn't grow with the ranges it has."""
    table = RangeTable()
    for i in range(5000):
        table.set(A, 1, 2 * i, 2 * i, i % 2 == 0)
    assert table.count == 5000
    assert table.conflict(B, 5001, 5001, True) is None
    assert table.conflict(B, 5000, 5001, True) == (A, Held(5000, 5000, True, 1))
    assert table.of(A, 5000, 5003) == [Held(5000, 5000, True, 1), Held(5002, 5002, False, 1)]
