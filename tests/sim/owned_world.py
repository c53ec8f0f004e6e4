"""Owned locks in the lockspace simulation: owners that lock, try, unlock, test and give up, under all its faults.

    python -m tests.sim.owned_world --seed 7 [--nodes 4] [--steps 1500] [--trace]

Messages about owned locks come twice now and then.  Each owner does one thing at a time.  For every owner the world
knows what it *must* hold (what it was told) and what it *may* hold (the same, and what calls under way may have got
or not yet given up).  Checked at every step:

  O1. no two owners of one kind must hold the same byte unless both share it; a dead instance's owners hold nothing
      (it was fenced before the view that forgets them);
  O2. every call has one answer;
  O3. a try is refused, and a test names somebody, only if at some instant of the call another owner may have held
      what it says; a test finds nobody only if at some instant nobody must have.  So a returned unlock is free;
  O4. EDEADLK only if at some instant of the call there was a cycle of waits through its owner (the dead wait and hold
      until the view that forgets them);
and after the faults have stopped:
  O5. every wait ends, by a grant or as a deadlock's victim, and no table is left anywhere.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field, replace

from dlm.messages import decode_untrusted
from dlm.owned.client import OwnedAnswer, Result, Span
from dlm.owned.messages import AboutOwned, Kind
from dlm.owned.ranges import END_MAX
from membership.views import Instance
from tests.sim.dlm_world import SHIFT, World

BYTES = 6
KINDS = (Kind.POSIX, Kind.POSIX, Kind.NAMED, Kind.FLOCK)
Bytes = dict[tuple[Kind, int, int], bool]  # (kind, object, byte) -> exclusive


@dataclass
class Call:
    """What an owner is doing."""

    what: str
    span: Span
    exclusive: bool
    wait: bool
    cells: list[tuple[Kind, int, int]]
    before: Bytes  # what the owner held when it called
    could_be_refused: bool = False
    could_be_free: bool = False
    could_be_deadlock: bool = False
    cancelled: bool = False


@dataclass
class User:
    """One owner."""

    instance: Instance
    id: int
    kind: Kind  # one for each owner: cycles over two kinds are nobody's to find
    must: Bytes = field(default_factory=dict)
    call: Call | None = None
    number: int = 0

    @property
    def may(self) -> Bytes:
        """What arbiters may have for it."""
        if self.call is None:
            return self.must
        merged = dict(self.must)
        for cell, mode in self.call.before.items():
            merged[cell] = mode or merged.get(cell, False)
        if self.call.what == "lock":
            for cell in self.call.cells:
                merged[cell] = self.call.exclusive or merged.get(cell, False)
        return merged


def conflict(held: Bytes, call: Call) -> bool:
    return any(cell in held and (call.exclusive or held[cell]) for cell in call.cells)


class OwnedWorld(World):
    """See the module."""

    def __init__(
        self, seed: int, *, owners: int = 2, objects: int = 3, kinds: tuple[Kind, ...] = KINDS, **options
    ) -> None:
        self.kinds = kinds
        self.users: list[User] = []
        self.gone: list[tuple[int, User]] = []  # dead, or gave up: an old arbiter knows them until that attempt is over
        self.owners = owners
        self.objects = objects
        self.now = 0.0
        self.results: Counter[str] = Counter()
        super().__init__(seed, **options)

    # --- the lockspace's world ---

    def start(self, node: int) -> None:
        super().start(node)
        for i in range(self.owners):
            self.users.append(User(Instance(node, self.incarnations), i, self.kinds[(i + node) % len(self.kinds)]))

    def kill(self, instance: Instance) -> None:
        super().kill(instance)
        self.forget(instance)

    def leave(self, instance: Instance) -> None:
        super().leave(instance)
        if instance not in self.peers:
            self.forget(instance)

    def forget(self, instance: Instance) -> None:
        self.gone += [(self.admin.attempt + 1, user) for user in self.users if user.instance == instance]
        self.users = [user for user in self.users if user.instance != instance]

    def flush(self, instance: Instance) -> None:
        core = self.peers[instance].core
        core.settle()
        answers = core.owned.take_events()
        super().flush(instance)
        for answer in answers:
            self.answered(instance, answer)

    def deliver(self, source: Instance, target: Instance) -> None:
        """Owned messages may come again, later: the transport never does that, and a careless peer may."""
        queue = self.links[source, target]
        payload = queue[0]
        super().deliver(source, target)
        again = not self.quiet and self.rng.random() < 0.05
        if again and target in self.peers and isinstance(decode_untrusted(payload)[1], AboutOwned):
            queue.append(payload)

    def step(self) -> bool:
        self.now += 0.02
        chance = self.rng.random()
        more = True
        if chance < 0.4 and self.users:
            self.use_owned(self.rng.choice(self.users))
        elif chance < 0.45:
            for instance in sorted(self.peers):
                self.peers[instance].core.owned.chaser.tick(self.now)
                self.flush(instance)
        else:
            more = super().step()
        self.observe()
        return more or any(user.call or user.must for user in self.users)

    def check_rest(self) -> None:
        super().check_rest()
        for peer in self.peers.values():
            assert not peer.core.owned.arbiter.tables, f"O5: {list(peer.core.owned.arbiter.dump())}"
            assert not peer.core.owned.client.tables, "O5: held at rest"
            assert not peer.core.statistics["owned_conflicts"], "O1: reports in conflict"
            self.results.update({k: v for k, v in peer.core.statistics.items() if k.startswith("owned")})

    # --- the users ---

    def use_owned(self, user: User) -> None:
        rng = self.rng
        core = self.peers[user.instance].core
        if user.call is not None:
            patient = self.quiet and user.kind != Kind.FLOCK  # which may be in a deadlock for ever
            if user.call.what == "lock" and not patient and rng.random() < 0.03:
                self.note(f"{user.instance}/{user.id} gives up")
                user.call.cancelled = True
                if core.state != "running":
                    self.gone.append((self.admin.attempt, replace(user)))
                core.owned.client.cancel(user.number)
                self.flush(user.instance)
            return
        if self.quiet:
            if user.must:
                kind, object_, _ = next(iter(user.must))
                self.begin(user, "unlock", Span(kind, object_, user.id, 0, END_MAX))
            return
        kind = user.kind
        start = rng.randrange(BYTES)
        end = rng.choice((END_MAX, rng.randrange(start, BYTES), rng.randrange(start, BYTES)))
        if kind == Kind.FLOCK:
            start, end = 0, END_MAX
        what = rng.choice(("lock", "lock", "unlock", "test"))
        object_ = rng.randrange(self.objects) << SHIFT  # so that they have different arbiters
        self.begin(user, what, Span(kind, object_, user.id, start, end))

    def begin(self, user: User, what: str, span: Span) -> None:
        rng = self.rng
        client = self.peers[user.instance].core.owned.client
        exclusive, wait = rng.random() < 0.6, rng.random() < 0.6
        self.note(f"{user.instance}/{user.id} {what} {span} exclusive={exclusive} wait={wait}")
        cells = [(*span[:2], byte) for byte in range(span.start, min(span.end, BYTES) + 1)]
        before = {cell: user.must[cell] for cell in cells if cell in user.must}
        user.call = Call(what, span, exclusive, wait, cells, before if what != "test" else {})
        if what == "unlock" or (what == "lock" and span.kind == Kind.FLOCK and exclusive and False in before.values()):
            for cell in before:
                del user.must[cell]
        elif what == "lock" and not exclusive:
            user.must |= dict.fromkeys(before, False)
        if what == "lock":
            user.number = client.lock(span, 7, self.now, exclusive=exclusive, wait=wait)
        elif what == "unlock":
            user.number = client.unlock(span, self.now)
        else:
            user.number = client.test(span, self.now, exclusive=exclusive)
        self.observe()  # the instant of the call counts
        self.flush(user.instance)

    def answered(self, instance: Instance, answer: OwnedAnswer) -> None:
        user = next(
            (u for u in self.users if u.instance == instance and u.number == answer.call and u.call is not None), None
        )
        assert user is not None, f"O2: {instance} is told {answer} and asked nothing"
        self.observe()
        call, user.call = user.call, None
        assert call is not None
        self.note(f"{instance}/{user.id} is told {answer}")
        self.results[answer.result.name] += 1
        if answer.result == Result.GRANTED:
            user.must |= dict.fromkeys(call.cells, call.exclusive)
            return
        if call.what == "lock" and call.span.kind != Kind.FLOCK:
            user.must |= call.before
        if answer.result == Result.AGAIN:
            assert not call.wait, "O2: a wait was refused"
            assert call.could_be_refused, f"O3: {call} refused, and nobody was in the way"
        elif answer.result == Result.DEADLOCK:
            assert call.could_be_deadlock, f"O4: {call} was in no deadlock"
        elif answer.result == Result.WITHDRAWN:
            assert call.cancelled, f"O2: {call} withdrawn by nobody"
        else:
            assert answer.result == Result.DONE, answer
        if call.what == "test":
            found = call.could_be_free if answer.conflict is None else call.could_be_refused
            assert found, f"O3: {call} answered {answer.conflict}"

    # --- checks ---

    def observe(self) -> None:
        """O1, and what the calls under way may be told."""
        if self.admin.phase == "idle" and not self.admin.stale:
            self.gone = [(attempt, user) for attempt, user in self.gone if self.admin.attempt < attempt]
        holders: dict[tuple[Kind, int, int], list[tuple[User, bool]]] = {}
        for user in self.users:
            for cell, mode in user.must.items():
                for other, theirs in holders.setdefault(cell, []):
                    assert not (mode or theirs), f"O1: {cell}: {user} and {other}"
                holders[cell].append((user, mode))
        may = [user.may for user in self.users]
        for user in self.users:
            call = user.call
            if call is None or call.what == "unlock":
                continue
            others = [held for other, held in zip(self.users, may, strict=True) if other is not user]
            others += [other.may for _, other in self.gone]
            call.could_be_refused = call.could_be_refused or any(conflict(held, call) for held in others)
            if call.what == "test":
                must = [other.must for other in self.users if other is not user]
                call.could_be_free = call.could_be_free or not any(conflict(held, call) for held in must)
            elif call.wait and not call.could_be_deadlock:
                call.could_be_deadlock = self.in_cycle(user)

    def in_cycle(self, user: User) -> bool:
        """Whether a chain of waits may lead from the user back to it."""
        seen: list[User] = []
        ahead = [user]
        while ahead:
            one = ahead.pop()
            if one.call is None or one.call.what != "lock":
                continue
            for other in [*self.users, *(user for _, user in self.gone)]:
                if other is not one and conflict(other.may, one.call):
                    if other is user:
                        return True
                    if other not in seen:
                        seen.append(other)
                        ahead.append(other)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay one seed of the owned locks' simulation.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    world = OwnedWorld(options.seed, nodes=options.nodes)
    world.trace = [] if options.trace else None
    try:
        world.run(options.steps)
    finally:
        print("\n".join(world.trace or []))
        print(f"seed {options.seed}: {dict(world.results)}, attempts {world.admin.attempt}")


if __name__ == "__main__":
    main()
