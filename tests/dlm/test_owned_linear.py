"""Histories of tries, locks, unlocks and tests on one object are linearizable, over kills and views.

With one allowance: a lock whose answer is lost with a view may have been held for that while, before it is asked for
again.  Others may be refused for it; nobody is granted what conflicts with what its owner was told.
"""

from __future__ import annotations

import pytest

from dlm.owned.client import Result
from dlm.owned.messages import Kind
from tests.sim.linear import Operation, linearize
from tests.sim.owned_world import OwnedWorld


def change(owner, cells, mode, result=None):
    """Of a state, a set of (owner, byte, exclusive): set these bytes; ``keep``: if nobody is in the way."""

    def apply(state):
        if result == Result.GRANTED and in_the_way(state, owner, cells, mode):
            return None
        left = {held for held in state if held[0] != owner or held[1] not in cells}
        return frozenset(left | ({(owner, byte, mode) for byte in cells} if mode is not None else set()))

    return apply


def strengthen(owner, cells):
    """Get these bytes shared; what the owner has exclusively stays so."""

    def apply(state):
        if in_the_way(state, owner, cells, False):
            return None
        have = {held[1] for held in state if held[0] == owner}
        return state | {(owner, byte, False) for byte in cells if byte not in have}

    return apply


def look(owner, cells, exclusive, *, free):
    return lambda state: state if bool(in_the_way(state, owner, cells, exclusive)) != free else None


def in_the_way(state, owner, cells, exclusive):
    return any(who != owner and byte in cells and (exclusive or mode) for who, byte, mode in state)


class Recorder(OwnedWorld):
    """Notes what each owner of one object and kind did, and when."""

    def __init__(self, seed, kind, *, cancels, **options):
        self.steps = 0
        self.history: list[Operation] = []
        self.lost: list[tuple[int, Operation]] = []
        self.cancels = cancels
        self.called: dict[int, int] = {}
        self.view: dict[int, int] = {}  # attempt at the time of the call
        super().__init__(seed, objects=1, kinds=(kind,), **options)

    def use_owned(self, user):
        if user.call is None or self.cancels or self.quiet:
            super().use_owned(user)

    def begin(self, user, what, span):
        self.steps += 1
        self.called[id(user)] = self.steps
        self.view[id(user)] = self.admin.attempt
        super().begin(user, what, span)

    def answered(self, instance, answer):
        self.steps += 1
        user = next(u for u in self.users if u.instance == instance and u.number == answer.call and u.call)
        call = user.call
        super().answered(instance, answer)
        self.record(user, call, answer)

    def record(self, user, call, answer):
        owner, times = (user.instance, user.id), (self.called[id(user)], self.steps)
        cells = frozenset(cell[2] for cell in call.cells)
        text = f"{owner} {call.what} {sorted(cells)} {'ex' if call.exclusive else 'sh'}: {answer}"
        views = self.admin.attempt - self.view[id(user)] if call.what == "lock" else 0
        losses = self.lost_answers(owner, call, times, views)
        begin = len(self.history)
        upgrade = call.span.kind == Kind.FLOCK and call.exclusive and False in call.before.values()
        if call.what == "unlock" or (call.what == "lock" and upgrade):
            self.history.append(Operation(text + " (drop)", *times, change(owner, cells, None)))
        if call.what == "test":
            check = look(owner, cells, call.exclusive, free=answer.conflict is None)
            self.history.append(Operation(text, *times, check))
        elif answer.result == Result.AGAIN:
            self.history.append(Operation(text, *times, look(owner, cells, call.exclusive, free=False)))
        elif answer.result == Result.GRANTED and call.exclusive:
            self.history.append(Operation(text, *times, change(owner, cells, True, Result.GRANTED)))
        elif answer.result == Result.GRANTED:  # shared: get what is missing, then weaken what is exclusive
            self.history.append(Operation(text, *times, strengthen(owner, cells)))
            if True in call.before.values():
                self.history.append(Operation(text + " (weaken)", *times, change(owner, cells, False)))
        final = next((one for one in self.history[begin:] if not one.text.endswith("(drop)")), None)
        for lost in losses:
            lost.not_after = final  # what its owner was told stays

    def lost_answers(self, owner, call, times, views):
        """Each view that began meanwhile may have lost the answer of an arbiter: held, and forgotten."""
        cells = frozenset(cell[2] for cell in call.cells)
        get = change(owner, cells, True, Result.GRANTED) if call.exclusive else strengthen(owner, cells)
        upgrade = call.span.kind == Kind.FLOCK and call.exclusive
        before = {} if upgrade else {cell[2]: mode for cell, mode in call.before.items()}

        def lose(state):
            left = {held for held in state if held[0] != owner or held[1] not in cells}
            return frozenset(left | {(owner, byte, mode) for byte, mode in before.items()})

        losses = [Operation(f"{owner} loses", *times, lose) for _ in range(min(views, 3))]
        for lost in losses:
            self.history += [Operation(f"{owner} gets?", *times, get, True, lost), lost]
        return losses

    def forget(self, instance):
        for user in self.users:
            if user.instance == instance:
                self.steps += 1
                owner = (instance, user.id)
                fenced = Operation(f"{owner} dies", self.steps, 1 << 59, change(owner, frozenset(range(7)), None))
                self.history.append(fenced)
                self.lost.append((self.admin.attempt + 1, fenced))
                if user.call is not None and user.call.what != "test":
                    self.perhaps(owner, user.call, self.called[id(user)], fenced)
        super().forget(instance)

    def perhaps(self, owner, call, called, fenced):
        """What a dead owner had asked for may have happened before it was forgotten."""
        cells = frozenset(cell[2] for cell in call.cells)
        steps = [change(owner, cells, None)]  # an unlock, or what a lock call of FLOCK begins with
        if call.what == "lock" and call.span.kind != Kind.FLOCK:
            steps = [change(owner, frozenset(cell[2] for cell in call.before), False)] if not call.exclusive else []
        if call.what == "lock":
            steps.append(change(owner, cells, True, Result.GRANTED) if call.exclusive else strengthen(owner, cells))
        for apply in steps:
            self.history.append(Operation(f"{owner} {call.what}?", called, 1 << 59, apply, True, fenced))

    def observe(self):
        super().observe()
        if self.admin.phase == "idle" and not self.admin.stale:
            for attempt, operation in self.lost:
                if self.admin.attempt >= attempt:
                    self.steps += 1
                    operation.returned = self.steps
            self.lost = [(attempt, one) for attempt, one in self.lost if self.admin.attempt < attempt]


@pytest.mark.seed("002-04")
@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("faults", [0.0, 0.01])
def test_histories(kind, faults):
    operations = 0
    for seed in range(8):
        world = Recorder(seed, kind, cancels=not faults, fault_rate=faults, nodes=3, owners=1 + seed % 2)
        world.run(400)
        operations += len(world.history)
        assert linearize(world.history, frozenset()) is not None, f"seed {seed}: " + "\n".join(
            f"{one.called:5} {one.returned:5} {one.text}" for one in sorted(world.history, key=lambda one: one.called)
        )
    assert operations > 200


def test_the_checker_finds_what_is_wrong():
    a, b, cells = "a", "b", frozenset({1})
    lock_a = Operation("a locks", 0, 1, change(a, cells, True, Result.GRANTED))
    lock_b = Operation("b locks", 2, 3, change(b, cells, True, Result.GRANTED))
    free_a = Operation("a unlocks", 1, 4, change(a, cells, None))
    refused = Operation("b is refused", 5, 6, look(b, cells, True, free=False))
    assert linearize([lock_a, lock_b], frozenset()) is None
    assert linearize([lock_a, lock_b, free_a], frozenset()) == [lock_a, free_a, lock_b]
    assert linearize([lock_a, free_a, refused], frozenset()) is None
    perhaps = Operation("c locks?", 0, 9, change("c", cells, True, Result.GRANTED), optional=True)
    assert linearize([lock_a, free_a, refused, perhaps], frozenset()) == [lock_a, free_a, perhaps, refused]
    late = Operation("c locks?", 0, 5, perhaps.apply, optional=True)
    last = Operation("d is refused", 9, 10, look("d", cells, True, free=False))
    assert linearize([lock_a, free_a, last, late], frozenset()) == [lock_a, free_a, late, last]
