"""LinkMesh: the Transport of a real node, over TCP (trio; 002-19, 003-33).

One connection per pair of peers: the lower node id connects, the higher accepts.  States, events and the law of
what a LinkDown loses: ``peer.py``.  A peer gone is noticed thus: the kernel closes its sockets, both roles see the
end of the stream and connect to the peer's listening address at once (the accepting role only probes); if the
host refuses, LinkDown(refused=True) is reported without waiting for the grace.  A host that vanished altogether
is noticed by TCP's user time-out and keep-alive (``connection.SILENT_MS_MAX``).

A peer may have several addresses (``paths.py``, ``caller.py``).  When its connection ends, the next one is made over
whichever answers.  When the path is doubtful (``Pulse.is_doubtful``) the connecting side tries the others *while the
connection stands*, and changes over only to a peer that answers there: a peer that is stopped answers nowhere, and
keeps its link.  Either way the session goes on, with no LinkDown and nothing lost or doubled.

A peer that connects before we were told of it is proven, then parked until ``set_peers`` names it.

Every message of a received packet is given to who serves, then what that one sent leaves (``gather``, ``inbox``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import NoReturn, Protocol

import trio

from membership.seams import Clock, Delivery, LinkDown, LinkUp, PeerAddress, Rng, TransportEvent
from membership.transport.caller import Caller
from membership.transport.connection import Connection, Traffic
from membership.transport.door import Door, Offer
from membership.transport.gather import Gatherer, Outbox
from membership.transport.handshake import NOTHING, Credentials, Instance, ResumePoint
from membership.transport.inbox import Inbox, Signal
from membership.transport.peer import UP, PeerLink
from membership.transport.pulse import BEAT_SECONDS, Pulse
from membership.transport.reception import Guests

GRACE_SECONDS = 1.0
BACKOFF_SECONDS_MIN = 0.010
BACKOFF_SECONDS_MAX = 0.200
PARKED_MAX = 64  # proven peers we were not told of yet: at most one per node slot


class Identity(Protocol):
    """Who we are; a ``PeerAddress`` will do."""

    @property
    def node(self) -> int:
        """Node id."""
        ...

    @property
    def incarnation(self) -> int:
        """Number of our start, as others see it."""
        ...


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One peer, for ``matrixctl`` (R14); the traffic counts from when it was named."""

    node: int
    incarnation: int
    phase: str  # new, up, lost, down: peer.py
    seconds: float  # in this phase
    queued: int  # messages the peer has not acknowledged
    queued_bytes: int
    silence: float  # seconds without a sign of life although pinged
    round_trip_us: float  # of a ping: weighted mean; 0: none yet
    round_trip_max_us: float
    resumes: int  # connections lost and replaced without a loss
    losses: int  # LinkDowns reported
    traffic: Traffic
    trouble: str = ""  # why the peer does not take us, or we not it, though it answers; "" when that is not so
    path: str = ""  # address of the peer that the connection uses, or the last one used
    moves: int = 0  # times that a connection took another path than the one before


class _Peer:
    """A peer we were told of, and what serves it."""

    __slots__ = ("connection", "doubt", "link", "offer", "offered", "outbox", "pulse", "scope", "traffic")

    def __init__(self, link: PeerLink, gatherer: Gatherer) -> None:
        self.link = link
        self.outbox = Outbox(gatherer)
        self.pulse = Pulse(link.since)
        self.traffic = Traffic()
        self.scope = trio.CancelScope()
        self.connection: Connection | None = None
        self.offer: Offer | None = None
        self.offered = Signal()
        self.doubt = Signal()


class LinkMesh:
    """Transport between the processes of one purpose; see ``membership.seams.Transport`` for the contract."""

    def __init__(
        self,
        identity: Identity,
        purpose: str,
        cluster_uuid: bytes,
        cluster_key: bytes,
        clock: Clock,
        rng: Rng,
        *,
        grace: float = GRACE_SECONDS,
        encrypt: bool = True,
        guests: Guests | None = None,
    ) -> None:
        """Make an idle mesh; ``listen``, then ``run``.

        Args:
            identity: our node id and incarnation.
            purpose: both ends must say the same, for example ``"matrixd"``.
            cluster_uuid: 16 bytes.
            cluster_key: the label's secret.
            clock: time.
            rng: nonces and jitter; must be unpredictable in production.
            grace: seconds a lost peer may take to come back without a LinkDown.
            encrypt: what is said to peers; the same on all nodes of a cluster.
            guests: answers holders of join tokens that call at our door; None: they are strangers.
        """
        self._me = Instance(identity.node, identity.incarnation)
        self._credentials = Credentials(cluster_uuid, cluster_key, purpose, encrypt=encrypt)
        self._clock = clock
        self._rng = rng
        self._grace = grace
        self._peers: dict[int, _Peer] = {}
        self._parked: dict[int, Offer] = {}
        self._inbox = Inbox()
        self._gatherer = Gatherer()
        self._nursery: trio.Nursery | None = None
        self._past = Traffic()  # of peers that are none any more
        self._connects = 0
        self._reconnects = 0
        self._sessions = 0
        self._local = 0  # messages to ourselves
        self._caller = Caller(self._credentials, self._me, clock, rng)
        self._door = Door(self._credentials, self._me, clock, rng, self, guests)

    # ---- the Transport seam

    def set_peers(self, peers: Collection[PeerAddress]) -> None:
        """The peers wanted from now on; ourselves among them is ignored.  See the seam."""
        wanted = {peer.node: peer for peer in peers if peer.node != self._me.node}
        for node, peer in list(self._peers.items()):
            address = wanted.get(node)
            if address is None or address.incarnation != peer.link.address.incarnation:
                self._drop(node)
            else:
                peer.link.address = address  # it may have moved to another port
        for node in sorted(wanted.keys() - self._peers.keys()):
            self._add(wanted[node])

    def send(self, node: int, payload: bytes) -> None:
        """Queue a message; to ourselves: deliver it.  See the seam.

        Raises:
            ValueError: longer than ``session.MESSAGE_BYTES_MAX``.
        """
        peer = self._peers.get(node)
        if peer is None:
            if node == self._me.node:
                self._local += 1
                self._inbox.put((Delivery(node, payload),))
            return
        if not peer.link.session.queue(payload):
            self._inbox.put(peer.link.stuck(self._clock.monotonic()))
            if peer.connection is not None:
                peer.connection.close("stuck")
            return
        peer.outbox.sent()

    async def receive(self) -> TransportEvent:
        """The next event; for one task at a time.  See the seam."""
        return await self._inbox.get()

    async def serve(self, handler: Callable[[TransportEvent], None]) -> NoReturn:
        """Call ``handler`` with every event, until cancelled.  See the seam."""
        await self._inbox.serve(handler)

    def silence(self, node: int) -> float:
        """Seconds without a sign of life although pinged.  See the seam."""
        peer = self._peers.get(node)
        return 0.0 if peer is None else peer.pulse.silence(self._clock.monotonic())

    # ---- life

    async def listen(self, host: str, port: int = 0, others: tuple[str, ...] = ()) -> int:
        """Bind and listen; peers may connect as soon as ``run`` runs.

        Args:
            host: numeric address or name of an own interface.
            port: 0 for any.
            others: further own addresses, to listen at on the same port: other paths to us.

        Returns:
            The port.

        Raises:
            OperatorError: an address is not ours or the port is taken.
        """
        self._caller.hosts = (host, *others)
        return await self._door.listen(self._caller.hosts, port)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then all connections and the listener are closed."""
        trio.lowlevel.add_instrument(self._gatherer)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._door.run)
                nursery.start_soon(self._beat)
                for peer in self._peers.values():
                    nursery.start_soon(self._keep, peer)
                task_status.started()
        finally:
            self._nursery = None
            trio.lowlevel.remove_instrument(self._gatherer)
            for offer in [*self._parked.values(), *(peer.offer for peer in self._peers.values())]:
                if offer is not None:
                    offer.close()
            self._parked.clear()

    def statistics(self) -> dict[str, int]:
        """Counters since the start, by name; ``frames_sent`` < ``messages_sent`` shows gathering."""
        traffic = Traffic()
        for part in (self._past, *(peer.traffic for peer in self._peers.values())):
            traffic.add(part)
        return asdict(traffic) | {
            "connects": self._connects,
            "reconnects": self._reconnects,
            "sessions": self._sessions,
            "rejected": self._door.rejected,
            "guests": self._door.guests,
            "local": self._local,
        }

    def links(self) -> list[LinkStatus]:
        """Every peer's state, by node."""
        now = self._clock.monotonic()
        return [_status(peer, now) for _, peer in sorted(self._peers.items())]

    # ---- inside

    def _add(self, address: PeerAddress) -> None:
        peer = _Peer(PeerLink(address, self._clock.monotonic(), self._grace), self._gatherer)
        self._peers[address.node] = peer
        parked = self._parked.pop(address.node, None)
        if parked is not None:
            self.hand_over(parked)
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, peer)

    def _drop(self, node: int) -> None:
        peer = self._peers.pop(node)
        self._past.add(peer.traffic)
        peer.scope.cancel()
        if peer.connection is not None:
            peer.connection.close("no peer any more")
        if peer.offer is not None:
            peer.offer.close()
            peer.offer = None
        self._inbox.forget(node)

    def _report(self, peer: _Peer, events: Iterable[LinkUp | LinkDown]) -> None:
        """Tell events, unless ``set_peers`` dropped the peer in the pass that also woke its task."""
        if self._peers.get(peer.link.address.node) is peer:
            self._inbox.hand(events)

    async def _beat(self) -> None:
        """Ask every peer for a sign of life, for ever: one timer for all."""
        while True:
            await self._clock.sleep(BEAT_SECONDS)
            now = self._clock.monotonic()
            for peer in self._peers.values():
                token = peer.pulse.beat(now)
                if peer.connection is not None:
                    peer.connection.ping(token)
                    self._doubt(peer)

    def _doubt(self, peer: _Peer) -> None:
        """See that a doubtful path is left, if there is another: by us, or by the peer if that is who connects."""
        address = peer.link.address
        if not address.others:
            return
        if self._me.node < address.node:
            if peer.pulse.is_doubtful:
                peer.doubt.set()
        elif peer.pulse.is_silent and peer.connection is not None:
            peer.connection.say_deaf()

    async def _keep(self, peer: _Peer) -> None:
        """Hold the link to a peer until it is dropped."""
        with peer.scope:
            if self._me.node < peer.link.address.node:
                await self._keep_connecting(peer)
            else:
                await self._keep_accepting(peer)

    async def _keep_connecting(self, peer: _Peer) -> None:
        pause = BACKOFF_SECONDS_MIN
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._scout, peer)
            while True:
                offer, peer.offer = peer.offer, None
                if offer is None:
                    offer, events = await self._caller.connect(peer.link)
                    self._report(peer, events)
                began = self._clock.monotonic()
                if offer is not None:
                    await self._serve(peer, offer)
                if peer.offer is not None or self._clock.monotonic() - began > BACKOFF_SECONDS_MAX:
                    pause = BACKOFF_SECONDS_MIN  # it worked: ask at once whether the peer is still there
                else:
                    pause = await self._back_off(peer, pause)

    async def _scout(self, peer: _Peer) -> None:
        """Look for another path whenever the present one is doubtful."""
        while True:
            await peer.doubt.wait()
            connection, link = peer.connection, peer.link
            if connection is None:
                continue  # it ended: ``_keep_connecting`` tries all paths
            found = await self._caller.detour(link)
            if peer.connection is not connection:
                if isinstance(found, Offer):
                    found.close()
            elif isinstance(found, Offer):
                peer.offer = found
                connection.close("doubtful, and the peer answers on another path")
            elif found is not None:
                connection.close("another incarnation answers")  # and will be asked again

    async def _back_off(self, peer: _Peer, pause: float) -> float:
        """Wait about ``pause`` seconds, report the end of the grace; return the next pause."""
        link = peer.link
        now = self._clock.monotonic()
        self._report(peer, link.expired(now))
        jittered = self._rng.uniform(pause / 2, pause)
        await self._clock.sleep(max(0.0, min(jittered, link.deadline - now)))
        self._report(peer, link.expired(self._clock.monotonic()))
        return min(pause * 2, BACKOFF_SECONDS_MAX)

    async def _keep_accepting(self, peer: _Peer) -> None:
        while True:
            if peer.offer is None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._probe, peer)
                    await peer.offered.wait()
                    nursery.cancel_scope.cancel()
            offer, peer.offer = peer.offer, None
            if offer is not None:
                await self._serve(peer, offer)

    async def _probe(self, peer: _Peer) -> None:
        """Ask a peer that should connect to us whether it is there at all."""
        pause = BACKOFF_SECONDS_MIN
        while True:
            self._report(peer, await self._caller.ask(peer.link))
            pause = await self._back_off(peer, pause)

    async def _serve(self, peer: _Peer, offer: Offer) -> None:
        """Use a proven connection until it ends."""
        link = peer.link
        self._report(peer, link.established(offer.agreement, self._clock.monotonic()))
        if link.phase != UP:
            offer.close()
            return
        link.paths.used(offer.host)
        peer.pulse.connected()
        self._connects += 1
        self._sessions += not offer.agreement.resumed
        self._reconnects += link.connections > 1
        connection = peer.connection = Connection(
            offer.sock, link.session, offer.agreement, peer.traffic, peer.pulse, self._clock
        )
        node, inbox, gatherer = link.address.node, self._inbox, self._gatherer

        async def deliver(messages: list[bytes]) -> None:
            gatherer.cork()
            inbox.hand([Delivery(node, message) for message in messages])
            gatherer.uncork()
            if inbox.crowded:
                await inbox.wait_room()

        peer.outbox.link = connection
        try:
            await connection.run(deliver)
        finally:
            peer.connection = peer.outbox.link = None
            link.lost(self._clock.monotonic())

    def _peer_of(self, instance: Instance) -> _Peer | None:
        peer = self._peers.get(instance.node)
        return peer if peer is not None and peer.link.address.incarnation == instance.incarnation else None

    def resume_point_of(self, instance: Instance) -> ResumePoint:
        """For the door: what we have of a session with this caller."""
        peer = self._peer_of(instance)
        return NOTHING if peer is None else peer.link.resume_point

    def hand_over(self, offer: Offer) -> None:
        """For the door: give a proven connection to its peer's task, or park it."""
        instance = offer.agreement.peer
        peer = self._peer_of(instance)
        if peer is None:
            self._park(offer)
            return
        if peer.offer is not None:
            peer.offer.close()
        peer.offer = offer
        peer.offered.set()
        if peer.connection is not None:
            peer.connection.close("the peer connected anew")

    def _park(self, offer: Offer) -> None:
        node = offer.agreement.peer.node
        older = self._parked.pop(node, None)
        if older is not None:
            older.close()
        elif len(self._parked) >= PARKED_MAX:
            offer.close()
            return
        self._parked[node] = offer


def _status(peer: _Peer, now: float) -> LinkStatus:
    link, pulse = peer.link, peer.pulse
    return LinkStatus(
        node=link.address.node,
        incarnation=link.address.incarnation,
        phase=link.phase,
        seconds=now - link.since,
        queued=link.session.queued,
        queued_bytes=link.session.queued_bytes,
        silence=pulse.silence(now),
        round_trip_us=pulse.round_trip * 1e6,
        round_trip_max_us=pulse.round_trip_max * 1e6,
        resumes=max(0, link.connections - link.sessions),
        losses=link.losses,
        trouble=link.trouble,
        path=link.paths.host,
        moves=link.paths.moves,
        traffic=peer.traffic,
    )
