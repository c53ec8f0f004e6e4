"""The SAN administrator: who is one, and how the SAN header changes (pure; Figures 10, 11; 002-31, 002-36 to 002-45).

Every node runs this core.  At most one of them is ADMIN for a generation, because each header is written by the
winner of its generation's disk ballot (S1).  Inputs change fields, then ``drive`` compares what is with what should be.

Invariants:

A1. A header is written only in generation g won by ballot, while the group view may act (connectivity.may_act) and is
    settled, and each generation is written once.
A2. The bumped generation is durable on disk before anybody is told (1728, 1604).
A3. Whoever is dropped without a clean leave stays in ``fencing`` until confirmed (S4); only then NodeDead is told.
A4. A candidate becomes administrator only after the coordinator's Commit (1754); else its generation stays unused.
A5. Who can't reach the store is not kept: an administrator is replaced when another member reaches it, a member is
    evicted when its disk heartbeat has stood still for ``Timing.dead`` while the administrator's renewals went on.
    When nobody reaches it nothing happens: the cluster pauses.
A6. An administrator evicts, fences and calls nodes dead only while its lease holds: who was stopped, or lost the
    store, finds out first whether it still is the administrator.
A7. Time alone fences a node only counted from a moment since when we have always seen the header without it in force,
    and only when a renewal of ours that began after the last late write of an older one (S5) saw it there.
A8. In a generation whose header write failed, or was overtaken by a ballot for a later one, its owner does nothing but
    take the next.  Who won that ballot reads the header after it; so either it builds on ours, or we did not act.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.group.connectivity import may_act
from membership.messages import (
    CandidateFailed,
    Commit,
    HeaderChanged,
    JoinRefused,
    JoinRequest,
    LeaveRequest,
    Nominate,
    Undo,
    Won,
)
from membership.san.ballot import Decided, Passed
from membership.san.changes import NamingChange
from membership.san.election import Election
from membership.san.events import FenceOrder, HeaderInForce, Log, NodeDead, ReadHeader, TakeGeneration, WriteHeader
from membership.san.header import NOBODY, make_header
from membership.san.roles import TRANSITIONS, Role, RoleEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from membership.effects import Outbox
    from membership.group.state import View
    from membership.label import Timing
    from membership.san.fence import FenceResult
    from membership.san.header import SanHeader
    from membership.seams import PeerAddress

AdminBody = Nominate | Won | CandidateFailed | Commit | Undo | HeaderChanged | JoinRequest | LeaveRequest


class AdminCore:
    """One node's view of the administration."""

    def __init__(self, me: PeerAddress, header: SanHeader, timing: Timing, outbox: Outbox) -> None:
        self.me = me
        self.header = header
        self.role = Role.PEER
        self.is_leaving = False
        self.was_member = self.is_member()  # listed once: this incarnation never joins again (L2 of lease/core.py)
        self._timing = timing
        self._out = outbox
        self._view: View | None = None
        self._election = Election(timing, outbox)  # as coordinator
        self._bid: tuple[int, int] | None = None  # as candidate: (coordinator, nomination)
        self._generation = 0  # the one we ballot for or have won
        self._passed_over = 0  # generations up to here belong to others that never wrote a header
        self._busy = False  # a ballot or header write is under way
        self._spoilt: set[int] = set()  # generations of ours whose write failed or was overtaken: no deeds in them (A8)
        self._since = 0.0  # of the candidacy
        self._retry_at = float("-inf")  # after a ballot or write that failed: not at disk speed
        self._leavers: dict[int, int] = {}
        self._joiners: dict[int, int] = {}
        self._confirmed: set[tuple[int, int]] = set()  # fenced, not yet off the header
        self._fencing: set[tuple[int, int]] = set()  # fence under way
        self._evicted_at: dict[tuple[int, int], float] = {}  # since when a header without it is in force (A7); inf: no
        self._fence_at: dict[tuple[int, int], float] = {}  # not to be ordered again before
        self._looked_at = float("-inf")  # start of the last renewal that saw our header in force
        self._lost_at: dict[int, float] = {}  # generation that another owns: when we learnt it
        self._expelled: set[tuple[int, int]] = set()  # in the view, but must go
        self._refused: set[tuple[int, int]] = set()  # joiners that were told why not
        self._sighted: frozenset[int] = frozenset()  # members of the view that reach the store
        self._has_lease = False  # as ``drive`` was told last
        self.change = NamingChange(outbox)
        self.own_naming, self.own_name = 0, ""  # version of the naming that we hold; what we are called
        self.admission: Callable[[JoinRequest], str | None] = lambda _: ""  # as administrator: "" yes, text: why not
        self._asked_at = self._told_at = float("-inf")

    # -- inputs ------------------------------------------------------------------------------------------------

    def view_installed(self, view: View, now: float) -> None:
        """708: the active members."""
        self._view = view
        self._asked_at = float("-inf")
        self._joiners = {n: i for n, i in self._joiners.items() if self._in_view(n, i)}
        if self._bid is not None and self._bid[0] != view.coordinator and self.role is not Role.ADMIN:
            self._drop_candidacy("the coordinator changed")
        self._election.view_installed(view)
        self._say_again()

    def header_read(self, header: SanHeader, now: float) -> None:
        """The header on disk.  An older one than ours changes nothing (S2), but see ``header_in_doubt``."""
        if header.generation <= self.header.generation:
            return
        self.header = header
        self.was_member |= self.is_member()
        mine = (header.administrator, header.administrator_incarnation) == (self.me.node, self.me.incarnation)
        if not mine and self.role is Role.ADMIN:
            who = self._out.called(header.administrator)
            self._log("role", f"generation {header.generation}: node {who} is administrator now")
        known = self._evicted_at if self.role is Role.ADMIN else {}  # what we did not watch over counts from now on
        self._evicted_at = {key: known.get(key, now) for key in header.fencing.items()}
        self._fence_at = {key: at for key, at in self._fence_at.items() if key in self._evicted_at}
        self._step(RoleEvent.IN_FORCE if mine else RoleEvent.SUPERSEDED)
        if not mine:
            self._busy, self._bid = False, None
            self._fencing.clear()
            self.change.deposed()
        if self._admin_works():
            self._election.over()
        self._joiners = {n: i for n, i in self._joiners.items() if header.members.get(n) != i}
        self._leavers = {n: i for n, i in self._leavers.items() if header.members.get(n) == i}
        self._confirmed &= set(header.fencing.items())
        self.change.header_in_force(header)
        self._out.tell(HeaderInForce(header, mine and self._stands()))

    def header_in_doubt(self, now: float) -> None:
        """The disks show an older header than ours, or ours not on a majority of the areas: write it again.

        The former is a late write of a former administrator, the latter what is left of a write that failed.
        """
        self._evicted_at = dict.fromkeys(self._evicted_at, float("inf"))  # until it stands, or is written
        if self.role is not Role.ADMIN or self._busy or now < self._retry_at:
            return
        self._log("alert", f"generation {self.header.generation} is not on the disks any more: written again")
        self._busy = True
        self._out.tell(WriteHeader(self.header, self.header.generation))

    def header_stands(self, renewal: float, now: float) -> None:
        """Our header was read as the one in force; by the renewal that began at ``renewal``, or -inf."""
        self._looked_at = max(self._looked_at, renewal)
        self._count_evictions(now)

    def receive(self, node: int, body: AdminBody, now: float) -> None:
        """A message of a node in the view."""
        if isinstance(body, Nominate):
            self._on_nominate(node, body, now)
        elif isinstance(body, Won):
            wanted = body.generation > self.header.generation and not self._admin_works()
            self._election.won(node, body, now, wanted=wanted)
        elif isinstance(body, CandidateFailed):
            self._election.candidate_failed(node, body)
        elif isinstance(body, Commit | Undo):
            self._on_verdict(node, body)
        elif isinstance(body, HeaderChanged):
            if body.generation > self.header.generation:
                self._out.tell(ReadHeader())
        elif isinstance(body, JoinRequest):
            self._on_join(node, body)
        else:
            self._leavers[node] = body.incarnation

    def generation_taken(self, outcome: Decided | Passed | None, now: float, why: str = "") -> None:
        """The ballot ended; None: it could not be held, or the database not be read (1722 to 1726), and ``why``."""
        self._busy = False
        if isinstance(outcome, Passed):
            self._passed_over = max(self._passed_over, outcome.generation - 1)
            self._out.tell(ReadHeader())
            return
        if outcome is None:
            self._retry_at = now + self._timing.heartbeat
            self._give_up(why or "the ballot blocks can't be used")
            return
        owner = (outcome.node, outcome.incarnation)
        if owner != (self.me.node, self.me.incarnation):
            self._lost(owner, now)
        elif self.role is Role.ADMIN:
            if self._has_lease:  # else ``drive`` begins anew when it is renewed
                self._write()
        elif self.role is Role.CANDIDATE and self._bid is not None:
            self._step(RoleEvent.WON)
            self._since = now
            self._out.post(self._bid[0], Won(self._bid[1], self._generation))

    def header_written(self, header: SanHeader, now: float) -> None:
        """A header of ours is durable and was read back (A2)."""
        is_unsaid = header.generation == self.header.generation and not self._stands()  # a renewal was quicker
        self._busy = False
        if is_unsaid and self._stands():
            self._out.tell(HeaderInForce(header, self.role is Role.ADMIN))
        if header.generation == self.header.generation:
            self._count_evictions(now)
            return
        self.header_read(header, now)
        self._tell_header()

    def write_failed(self, now: float) -> None:
        """A header of ours could not be written, or was overtaken.  Its generation is spent: it may land yet (A1)."""
        self._busy = False
        self._passed_over = max(self._passed_over, self._generation)
        self._spoilt = {g for g in self._spoilt if g >= self.header.generation} | {self._generation}
        self._retry_at = now + self._timing.heartbeat
        self._out.tell(ReadHeader())
        self._give_up("the SAN header can't be written")

    def fence_done(self, node: int, incarnation: int, result: FenceResult, now: float, *, has_lease: bool) -> None:
        """A driver answered.  Unconfirmed: alert, and try again (nothing is recovered); so without a lease (A6)."""
        self._fencing.discard((node, incarnation))
        may = self.role is Role.ADMIN and self._stands() and has_lease
        if not may or self.header.fencing.get(node) != incarnation:
            return
        if not result.confirmed:
            who = self._out.called(node)
            self._log("alert", f"node {who} can't be fenced, nothing of it is recovered: {result.detail}")
        elif result.driver == "lease" and not self._is_over(self._evicted_at[node, incarnation], now):
            self._fence_at[node, incarnation] = now + self._timing.heartbeat
        else:
            self._confirmed.add((node, incarnation))
            self._log("fenced", f"node {self._out.called(node)} by {result.driver}: {result.detail}")
            self._out.tell(NodeDead(node, incarnation))

    def expel(self, node: int, incarnation: int, reason: str) -> None:
        """Evict a member although it is in the view: it does not do what others wait for."""
        self._log("alert", f"node {self._out.called(node)} is evicted: {reason}")
        self._expelled.add((node, incarnation))

    def is_expelled(self, node: int, incarnation: int) -> bool:
        """Whether it was told to go."""
        return (node, incarnation) in self._expelled

    # -- upkeep ------------------------------------------------------------------------------------------------

    def drive(
        self,
        alive: frozenset[int],
        addresses: Mapping[int, PeerAddress],
        now: float,
        *,
        settled: bool,
        sighted: frozenset[int],
        has_lease: bool,
    ) -> None:
        """Compare what is with what should be, and take the next step.  Call after every input and every tick.

        Args:
            alive: nodes whose disk heartbeat moves.
            addresses: of all nodes known.
            now: monotonic seconds.
            settled: no view change is in the air.
            sighted: members of the view that reach the store (A5).
            has_lease: ours holds (A6).
        """
        if self._view is None:
            return
        self._sighted, self._has_lease = sighted & self._view.members.keys(), has_lease
        self._ask(now)
        if not settled or not self._may_act(alive, addresses):
            return
        if self.role is Role.ADMIN:
            if has_lease:
                self._administrate(now)
        elif self.role is Role.ELECTED and now - self._since > self._timing.link_dead:
            self._drop_candidacy("no answer of the coordinator")
        elif self.role is Role.CANDIDATE and not self._busy and now >= self._retry_at:
            self._take(self._next_generation())
        if self._view.coordinator == self.me.node and not self._admin_works() and self._sighted:
            self._elect(now)

    def is_member(self) -> bool:
        """The header lists this incarnation."""
        return self.header.members.get(self.me.node) == self.me.incarnation

    def administrator(self) -> int | None:
        """The administrator, when it is in our view."""
        return self.header.administrator if self._admin_in_view() else None

    # -- internals ---------------------------------------------------------------------------------------------

    def _may_act(self, alive: frozenset[int], addresses: Mapping[int, PeerAddress]) -> bool:
        """The members of the header vote; only when none of them lives, everybody does.

        So a newcomer with a broken link neither blocks nor overthrows a cluster that works.
        """
        assert self._view is not None
        known = {**addresses, **self._view.members}
        reached = set(self._view.members)
        everyone = {node for node in alive if node in known} | reached
        voters = {n for n in everyone if self.header.members.get(n) == known[n].incarnation} or everyone
        return may_act(reached & voters, voters, known)

    def _count_evictions(self, now: float) -> None:
        """What was in doubt counts from now on (A7)."""
        self._evicted_at = {key: now if at == float("inf") else at for key, at in self._evicted_at.items()}

    def _is_over(self, evicted_at: float, now: float) -> bool:
        """A7: whether a node that was evicted then can have no lease any more."""
        late = evicted_at + self._timing.lease + self._timing.io_bound
        return now >= evicted_at + self._timing.dead and self._looked_at >= late

    def _step(self, event: RoleEvent) -> None:
        self.role = TRANSITIONS[self.role, event]

    def _log(self, kind: str, text: str) -> None:
        self._out.tell(Log(kind, text))

    def _in_view(self, node: int, incarnation: int) -> bool:
        view = self._view
        return view is not None and node in view.members and view.members[node].incarnation == incarnation

    def _admin_in_view(self) -> bool:
        number, incarnation = self.header.administrator, self.header.administrator_incarnation
        return number != NOBODY and self._in_view(number, incarnation)

    def _admin_works(self) -> bool:
        """A5: it is in our view, and reaches the store if anybody does."""
        return self._admin_in_view() and (self.header.administrator in self._sighted or not self._sighted)

    def _ask(self, now: float) -> None:
        """1402: ask the administrator to import us, or to let us go."""
        if not self._admin_in_view() or now - self._asked_at < self._timing.heartbeat:
            return
        body: JoinRequest | LeaveRequest | None = None
        if self.is_leaving and self.is_member():
            body = LeaveRequest(self.me.incarnation)
        elif not self.is_leaving and not self.was_member:
            body = JoinRequest(self.me.incarnation, self.own_naming, self.own_name)
        if body is not None:
            self._asked_at = now
            self._out.post(self.header.administrator, body)

    def _on_join(self, node: int, body: JoinRequest) -> None:
        """1404: admit it, or say why not.

        Who was told to go does not come back in the same incarnation; it may not know that it has to.  A mismatch of
        the naming is no refusal: the joiner reads it and asks again.
        """
        if (node, body.incarnation) in self._expelled:
            self._out.post(node, HeaderChanged(self.header.generation, ((node, body.incarnation),)))
            return
        refusal = self.admission(body)
        if refusal == "" and body.naming < self.header.naming:
            refusal = None
        if refusal == "":
            self._joiners[node] = body.incarnation
        elif refusal is not None:
            self._joiners.pop(node, None)
            if (node, body.incarnation) not in self._refused:
                self._refused.add((node, body.incarnation))
                self._log("refused", f"node {node} ({body.name}) is not admitted: {refusal}")
            self._out.post(node, JoinRefused(body.incarnation, refusal, final=True))

    def _elect(self, now: float) -> None:
        """Of those that reach the store; not when we are the last one and off the header: nobody is left to serve."""
        assert self._view is not None
        sighted = {n: address for n, address in self._view.members.items() if n in self._sighted}
        is_last = self.is_leaving and not self.is_member() and set(self._view.members) == {self.me.node}
        if sighted and not is_last:  # who is sighted is said of the group's view, which may be newer than ours
            self._election.elect(sighted, self._view.number, now)

    def _on_nominate(self, node: int, body: Nominate, now: float) -> None:
        if self._view is None or node != self._view.coordinator or self.role is Role.ADMIN:
            return
        self._passed_over = max(self._passed_over, body.undone)
        if self._bid != (node, body.nomination) or self.role is Role.PEER:
            self._bid, self._since = (node, body.nomination), now
            self._step(RoleEvent.NOMINATED)
        self._say_again()

    def _on_verdict(self, node: int, body: Commit | Undo) -> None:
        if self.role is not Role.ELECTED or self._bid != (node, body.nomination) or self._busy:
            return  # also a second Commit: the header is being written
        if isinstance(body, Commit):
            self._write()
        else:
            self._drop_candidacy("undone by the coordinator")

    def _drop_candidacy(self, reason: str) -> None:
        """1752: our generation stays without a header; the next candidate passes over it (A4)."""
        if self.role in (Role.CANDIDATE, Role.ELECTED):
            self._log("election", f"candidacy dropped: {reason}")
        self._step(RoleEvent.DROPPED)
        self._bid = None

    def _give_up(self, reason: str) -> None:
        if self._bid is not None and self.role is not Role.ADMIN:
            self._out.post(self._bid[0], CandidateFailed(self._bid[1], reason))
        self._drop_candidacy(reason)

    def _say_again(self) -> None:
        """Messages of the election that a view change dropped."""
        if self._view is not None and self._view.coordinator == self.me.node:
            self._election.say_again(self.me.node)
        if self.role is Role.ELECTED and self._bid is not None:
            self._out.post(self._bid[0], Won(self._bid[1], self._generation))

    def _lost(self, owner: tuple[int, int], now: float) -> None:
        """The generation is another's.  If its owner can still write the header, let it; else pass over."""
        lost_at = self._lost_at.setdefault(self._generation, now)
        if self._in_view(*owner) and now - lost_at <= self._timing.link_dead:
            self._retry_at = now + self._timing.heartbeat
            if self.role is not Role.ADMIN:
                self._give_up(f"node {self._out.called(owner[0])} was faster")
            return
        self._passed_over = max(self._passed_over, self._generation)

    def _next_generation(self) -> int:
        return max(self.header.generation, self._passed_over) + 1

    def _take(self, generation: int) -> None:
        self._busy, self._generation = True, generation
        self._out.tell(TakeGeneration(generation))

    def _wanted(self) -> tuple[dict[int, int], dict[int, int]]:
        """Members and fencing as they should be.

        Our own former incarnations count as fenced: we have their slot, which is only claimed after a fence (H1).
        """
        assert self._view is not None
        members: dict[int, int] = {}
        fencing = {n: i for n, i in self.header.fencing.items() if (n, i) not in self._confirmed and n != self.me.node}
        for node, incarnation in self.header.members.items():
            if node == self.me.node and incarnation != self.me.incarnation:
                continue
            if self._leavers.get(node) == incarnation or (node == self.me.node and self.is_leaving):
                continue
            if self._in_view(node, incarnation) and (node, incarnation) not in self._expelled:
                members[node] = incarnation
            elif node not in fencing:
                fencing[node] = incarnation
        for node, incarnation in [*self._joiners.items(), (self.me.node, self.me.incarnation)]:
            leaving = self._leavers.get(node) == incarnation or (node == self.me.node and self.is_leaving)
            expelled = (node, incarnation) in self._expelled
            if self._in_view(node, incarnation) and node not in fencing and not leaving and not expelled:
                members[node] = incarnation
        return members, fencing

    def _tell_header(self) -> None:
        """1758: all of the view, and among them those that were evicted."""
        if self._view is None:
            return
        evicted = tuple(sorted(self.header.fencing.items()))
        for node in self._view.members:
            if node != self.me.node:
                self._out.post(node, HeaderChanged(self.header.generation, evicted))

    def _stands(self) -> bool:
        """A8: whether the header in force, if it is ours, is one to act in; not while its write is under way."""
        return self.header.generation not in self._spoilt | ({self._generation} if self._busy else set())

    def _administrate(self, now: float) -> None:
        if not self._stands():
            if not self._busy and now >= self._retry_at:
                self._take(self._next_generation())
            return
        listening = any(self._in_view(*each) for each in self.header.fencing.items())
        if listening and now - self._told_at >= self._timing.renew:
            self._told_at = now
            self._tell_header()  # who is evicted and hears us may have missed it
        for node, incarnation in self.header.fencing.items():
            key, evicted_at = (node, incarnation), self._evicted_at[node, incarnation]
            is_due = evicted_at != float("inf") and now >= self._fence_at.get(key, now)
            if is_due and key not in self._fencing | self._confirmed:
                self._fencing.add(key)
                self._out.tell(FenceOrder(node, incarnation, evicted_at))
        if not self._busy and now >= self._retry_at and self._is_change_wanted():
            self._take(self._next_generation())

    def _is_change_wanted(self) -> bool:
        header, naming = self.header, self.change.wanted
        if naming is not None and naming.version > header.naming:
            return True
        return self._wanted() != (header.members, header.fencing)

    def _write(self) -> None:
        """1728: our generation, with what should be; we stay administrator unless we leave."""
        assert self._view is not None
        members, fencing = self._wanted()
        administrator = self.me.node if self.me.node in members else NOBODY  # we leave
        naming = self.change.wanted
        header = make_header(
            self.header.owner,
            self._generation,
            administrator=administrator,
            view=self._view.number,
            members=members,
            fencing=fencing,
            naming=max(naming.version, self.header.naming) if naming is not None else self.header.naming,
            areas=naming.areas if naming is not None else self.header.areas,
            areas_before=naming.areas_before if naming is not None else self.header.areas_before,
        )
        self._busy = True
        self._out.tell(WriteHeader(header, self.header.generation))
