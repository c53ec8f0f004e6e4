"""Group membership: Figure 7A as tables (pure; 002-27).

Per peer a small state machine says whether we hear it.  Above it, the coordinator of the mutually reachable set
proposes a numbered view, all accept, it is installed.

Invariants:

G1. A node installs only views it accepted, with growing numbers.
G2. From the moment it accepts a view it drops messages of older views (716), so none crosses the change.
G3. A view contains only nodes that its members hear mutually, each in one incarnation.
G4. A view's number names it: counter * NODE_SLOTS + the node that proposed it.

Steps of 7A: 702 changed? -> ``_upkeep``; 704/706 all answer -> Propose/Accept; 716 block -> ``_accepted``;
708 tell -> Install and the event ViewInstalled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from membership.group.connectivity import clique, lowest
from membership.label import NODE_SLOTS
from membership.messages import Accept, Heartbeat, Install, Propose

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from membership.effects import Outbox
    from membership.label import Timing
    from membership.seams import PeerAddress


class PeerState(Enum):
    """What we know of a peer's link."""

    ABSENT = "absent"  # on the disk, not heard yet
    UP = "up"
    SUSPECT = "suspect"  # silent for link_dead
    GONE = "gone"  # its host says that nobody listens, or its process is known dead


class PeerEvent(Enum):
    """What can happen to it."""

    HEARD = "heard"  # any message
    SILENT = "silent"  # link_dead without a message
    REFUSED = "refused"  # LinkDown(refused=True)
    MOVED = "moved"  # its disk heartbeat moved although we thought it gone


TRANSITIONS: dict[tuple[PeerState, PeerEvent], PeerState] = {
    (PeerState.ABSENT, PeerEvent.HEARD): PeerState.UP,
    (PeerState.ABSENT, PeerEvent.SILENT): PeerState.SUSPECT,
    (PeerState.ABSENT, PeerEvent.REFUSED): PeerState.GONE,
    (PeerState.ABSENT, PeerEvent.MOVED): PeerState.ABSENT,
    (PeerState.UP, PeerEvent.HEARD): PeerState.UP,
    (PeerState.UP, PeerEvent.SILENT): PeerState.SUSPECT,
    (PeerState.UP, PeerEvent.REFUSED): PeerState.GONE,
    (PeerState.UP, PeerEvent.MOVED): PeerState.UP,
    (PeerState.SUSPECT, PeerEvent.HEARD): PeerState.UP,
    (PeerState.SUSPECT, PeerEvent.SILENT): PeerState.SUSPECT,
    (PeerState.SUSPECT, PeerEvent.REFUSED): PeerState.GONE,
    (PeerState.SUSPECT, PeerEvent.MOVED): PeerState.SUSPECT,
    (PeerState.GONE, PeerEvent.HEARD): PeerState.UP,
    (PeerState.GONE, PeerEvent.SILENT): PeerState.GONE,
    (PeerState.GONE, PeerEvent.REFUSED): PeerState.GONE,
    (PeerState.GONE, PeerEvent.MOVED): PeerState.SUSPECT,
}


@dataclass(slots=True)
class Peer:
    """One other node."""

    address: PeerAddress
    heard_at: float  # of the last message, or since when we try
    state: PeerState = PeerState.ABSENT
    hears: frozenset[int] | None = None  # None: not told yet
    has_storage: bool = True  # as it says itself
    naming: int = 0  # version that it holds, by its own word

    def step(self, event: PeerEvent) -> bool:
        """Apply an event; True when the state changed."""
        old, self.state = self.state, TRANSITIONS[self.state, event]
        if self.state is not PeerState.UP:
            self.hears = None
        return old is not self.state


@dataclass(frozen=True, slots=True)
class View:
    """An installed view."""

    number: int
    members: Mapping[int, PeerAddress]

    @property
    def coordinator(self) -> int:
        """Lowest address (002-39)."""
        return lowest(list(self.members.values()))


@dataclass(frozen=True, slots=True)
class ViewInstalled:
    """Event: tell the SAN membership service (708)."""

    view: View


@dataclass(slots=True)
class _Proposal:
    number: int
    members: frozenset[tuple[int, int]]
    missing: set[int] = field(default_factory=set)


class GroupCore:
    """One node's part in group membership."""

    def __init__(self, me: PeerAddress, timing: Timing, outbox: Outbox) -> None:
        self.me = me
        self.peers: dict[int, Peer] = {}
        self.view = View(0, {me.node: me})
        self.has_storage = True  # ours, set by the owner: the others are told
        self.naming = 0  # the same: version of the naming that we hold
        self._timing = timing
        self._out = outbox
        self._accepted = 0  # greatest number accepted (G2)
        self._highest = 0  # greatest number seen anywhere
        self._proposal: _Proposal | None = None
        self._installed_at = float("-inf")
        self._is_stray = False  # a member of our view lives in another: propose again
        self._next_heartbeat = float("-inf")

    # -- inputs ------------------------------------------------------------------------------------------------

    def set_peers(self, addresses: Iterable[PeerAddress], now: float) -> None:
        """The nodes that the disk shows, ourselves left out."""
        wanted = {a.node: a for a in addresses if a.node != self.me.node}
        for node in [n for n, p in self.peers.items() if wanted.get(n) != p.address]:
            del self.peers[node]
        for node, address in wanted.items():
            self.peers.setdefault(node, Peer(address, now))
        self._upkeep(now)

    def link_up(self, node: int, now: float) -> None:
        """The transport reached the peer: tell it whom we hear."""
        if self._step(node, PeerEvent.HEARD, now):
            self._beat(now)
        self._upkeep(now)

    def link_refused(self, node: int, now: float) -> None:
        """The peer's process is gone."""
        if self._step(node, PeerEvent.REFUSED, now):
            self._beat(now)
        self._upkeep(now)

    def disk_moved(self, node: int, now: float) -> None:
        """The peer's disk heartbeat moved: it is not gone."""
        self._step(node, PeerEvent.MOVED, now)
        self._upkeep(now)

    def tick(self, now: float) -> None:
        """Heartbeats and silence; call at least every heartbeat interval."""
        changed = False
        for peer in self.peers.values():
            if now - peer.heard_at >= self._timing.link_dead:
                changed |= peer.step(PeerEvent.SILENT)
        if changed or now >= self._next_heartbeat:
            self._beat(now)
            self._propose_again()
        self._upkeep(now)

    def admits(self, view: int) -> bool:
        """Whether a message of that view is still current (G2)."""
        return view >= self._accepted

    def heard(self, node: int, now: float) -> bool:
        """Any message of a peer; False when it is none of ours."""
        if node == self.me.node:
            return True
        if node not in self.peers:
            return False
        if self._step(node, PeerEvent.HEARD, now):
            self._beat(now)
        return True

    def receive(self, node: int, body: Heartbeat | Propose | Accept | Install, view: int, now: float) -> None:
        """A group message of a peer that ``heard`` knows."""
        self._highest = max(self._highest, view)
        if isinstance(body, Heartbeat):
            if node in self.peers:
                self.peers[node].hears = frozenset(n for n in range(NODE_SLOTS) if body.hears >> n & 1)
                self.peers[node].has_storage = body.has_storage
                self.peers[node].naming = body.naming
                self._is_stray |= self._is_astray(node, {view, body.accepted}, now)
            self._highest = max(self._highest, body.accepted)
            if self._proposal is not None and self._proposal.number < body.accepted:
                self._proposal, self._is_stray = None, True
        elif isinstance(body, Propose):
            self._on_propose(node, body)
        elif isinstance(body, Accept):
            self._on_accept(node, body, now)
        else:
            self._on_install(body, now)
        self._upkeep(now)

    # -- questions ---------------------------------------------------------------------------------------------

    def addresses(self) -> dict[int, PeerAddress]:
        """All nodes known from the disk, ourselves included."""
        return {self.me.node: self.me} | {node: peer.address for node, peer in self.peers.items()}

    def hears(self) -> frozenset[int]:
        """Whom we hear, ourselves included."""
        return frozenset({self.me.node} | {n for n, p in self.peers.items() if p.state is PeerState.UP})

    def sighted(self) -> frozenset[int]:
        """Who of the view reaches the store, by its own word."""
        peers = {node for node, peer in self.peers.items() if peer.has_storage}
        return frozenset((peers | {self.me.node} if self.has_storage else peers) & set(self.view.members))

    def held(self) -> dict[int, int]:
        """By node, the version of the naming that it holds."""
        return {self.me.node: self.naming} | {node: peer.naming for node, peer in self.peers.items()}

    def tell_at_once(self) -> None:
        """Beat with the next tick: something that others wait for has changed."""
        self._next_heartbeat = float("-inf")

    def heard_at(self, node: int) -> float:
        """When the node was heard last; infinite when that is not known."""
        peer = self.peers.get(node)
        return peer.heard_at if peer is not None else float("inf")

    def is_settled(self, alive: Iterable[int]) -> bool:
        """Nothing is in the air: the view is what we hear, and every live node was heard or is silent for link_dead."""
        waiting = any(
            peer.state is PeerState.ABSENT or (peer.state is PeerState.UP and peer.hears is None)
            for node, peer in self.peers.items()
            if node in set(alive)
        )
        return not waiting and self._members_of(self.view) == self._desired()

    # -- internals ---------------------------------------------------------------------------------------------

    def _step(self, node: int, event: PeerEvent, now: float) -> bool:
        peer = self.peers.get(node)
        if peer is None:
            return False
        if event is PeerEvent.HEARD:
            peer.heard_at = now
        return peer.step(event)

    def _beat(self, now: float) -> None:
        mask = sum(1 << node for node in self.hears())
        for node in self.peers:
            self._out.post(node, Heartbeat(mask, self._accepted, self.has_storage, self.naming))
        self._next_heartbeat = now + self._timing.heartbeat

    def _is_astray(self, node: int, numbers: set[int], now: float) -> bool:
        """A member that missed Install, or accepted another view since, and had the time to come back."""
        late = now - self._installed_at > 2 * self._timing.heartbeat
        return late and node in self.view.members and numbers != {self.view.number}

    def _members_of(self, view: View) -> frozenset[tuple[int, int]]:
        return frozenset((a.node, a.incarnation) for a in view.members.values())

    def _desired(self) -> frozenset[tuple[int, int]]:
        addresses = self.addresses()
        up = {node: addresses[node] for node in self.hears()}
        hears = {n: p.hears for n, p in self.peers.items() if p.hears is not None} | {self.me.node: self.hears()}
        present = {n for n, a in self.view.members.items() if n in up and up[n].incarnation == a.incarnation}
        return frozenset((n, addresses[n].incarnation) for n in clique(self.me.node, up, hears, present))

    def _upkeep(self, now: float) -> None:
        """702: has the membership changed?  Then the coordinator of the new set proposes it."""
        desired = self._desired()
        if self._proposal is not None and self._proposal.members != desired:
            self._proposal, self._is_stray = None, True  # who accepted it waits for a greater one
        if (desired == self._members_of(self.view) and not self._is_stray) or self._proposal is not None:
            return
        addresses = self.addresses()
        if lowest([addresses[node] for node, _ in desired]) != self.me.node:
            return
        self._is_stray = False
        self._highest = (max(self._highest, self._accepted) // NODE_SLOTS + 1) * NODE_SLOTS + self.me.node  # G4
        self._proposal = _Proposal(self._highest, desired, {node for node, _ in desired} - {self.me.node})
        self._accepted = self._highest
        self._propose_again()
        self._complete(now)

    def _propose_again(self) -> None:
        if self._proposal is not None:
            for node in self._proposal.missing:
                self._out.post(node, Propose(self._proposal.number, tuple(sorted(self._proposal.members))))

    def _on_propose(self, node: int, body: Propose) -> None:
        """706: answer when we would be in that view too; else the coordinator asks again."""
        self._highest = max(self._highest, body.number)
        addresses = self.addresses()
        known = all(n in addresses and addresses[n].incarnation == inc for n, inc in body.members)
        if body.number < self._accepted:
            return  # the proposer learns the greater number from our heartbeats
        if not known or not {n for n, _ in body.members} <= self.hears():
            return
        # Only from the coordinator we would choose: in a half-cut triangle two of them court the third node.
        if lowest([addresses[n] for n, _ in self._desired()]) != node:
            return
        self._accepted = body.number
        self._out.post(node, Accept(body.number))

    def _on_accept(self, node: int, body: Accept, now: float) -> None:
        if self._proposal is not None and body.number == self._proposal.number:
            self._proposal.missing.discard(node)
            self._complete(now)

    def _complete(self, now: float) -> None:
        proposal = self._proposal
        if proposal is None or proposal.missing:
            return
        self._proposal = None
        for node, _ in sorted(proposal.members):
            if node != self.me.node:
                self._out.post(node, Install(proposal.number, tuple(sorted(proposal.members))))
        self._install(proposal.number, proposal.members, now)

    def _on_install(self, body: Install, now: float) -> None:
        if body.number == self._accepted and body.number > self.view.number:
            addresses = self.addresses()
            if all(n in addresses and addresses[n].incarnation == inc for n, inc in body.members):
                self._install(body.number, body.members, now)

    def _install(self, number: int, members: Iterable[tuple[int, int]], now: float) -> None:
        addresses = self.addresses()
        self.view = View(number, {node: addresses[node] for node, _ in members})
        self._installed_at, self._is_stray = now, False
        self._out.tell(ViewInstalled(self.view))
