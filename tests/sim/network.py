"""A network inside one process, under trio's virtual clock and from one seed (R2, R11; style.md 3.5).

``SimNetwork`` makes a ``Transport`` per process of a simulated node.  What production has above TCP runs here
unchanged (``session``, ``peer``, ``inbox``); below it every message travels alone, with its own seeded delay, so
messages overtake each other, some arrive twice, and those in flight when a link breaks are lost.

    async with trio.open_nursery() as nursery:
        net = SimNetwork(seed=7)
        await nursery.start(net.run)
        a, b = net.transport(0, incarnation=1), net.transport(1, incarnation=1)
        a.set_peers([b.address]); b.set_peers([a.address])
        a.send(1, b"hello")
        await b.receive()          # LinkUp(0), then Delivery(0, b"hello")
        net.cut(0, 1); net.heal(0, 1); net.partition({0}, {1}); net.kill(1)

Faults: ``cut`` in one or both directions, ``partition``, ``heal``, ``kill`` (the others get LinkDown(refused=True)),
``freeze`` and ``thaw`` (SIGSTOP: connections stay, nothing is sent or heard); ``transport`` with a new incarnation
restarts a process.  ``silence`` is told from these, without pings.  Not simulated: bandwidth, gathering, the bytes of
frames and handshake (they have their own tests), a handshake that only one side finished, and parking (a link comes up
when both ends know of each other).  There is no polling: an idle network schedules nothing.

Deterministic: equal seeds and equal calls give equal ``trace``s, provided that trio's scheduler is deterministic too:
wrap the run in ``deterministic_scheduling(seed)``, because trio shuffles the tasks of a pass by default.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NoReturn

import trio

from membership.seams import Delivery, LinkDown, LinkUp, PeerAddress, TransportEvent
from membership.transport.handshake import Agreement, Instance
from membership.transport.inbox import Inbox, Signal
from membership.transport.peer import UP, PeerLink
from membership.transport.session import Packet

WALL_EPOCH_NS = 1_700_000_000 * 10**9
BACKOFF_SECONDS = (0.010, 0.200)


class SimClock:
    """Clock of the simulation: trio's, virtual under MockClock; wall time starts at a fixed date."""

    def monotonic(self) -> float:
        """Seconds of trio's clock."""
        return trio.current_time()

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, in step with ``monotonic``."""
        return WALL_EPOCH_NS + round(trio.current_time() * 1e9)

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await trio.sleep(seconds)


class SimRng(random.Random):
    """Seeded Rng seam: ``random.Random`` has both its methods."""


@contextlib.contextmanager
def deterministic_scheduling(seed: int = 0) -> Iterator[None]:
    """Within, trio runs the tasks of a pass in a fixed order; enter it before ``trio.run``.

    Uses the same private switches as trio's own Hypothesis support (style.md 2, note on ``_core/_run.py``).
    """
    run: Any = trio._core._run
    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        run._r.setstate(before[1])


class SimTransport:
    """Transport of one simulated process; made by ``SimNetwork.transport``."""

    def __init__(self, net: SimNetwork, address: PeerAddress, purpose: str) -> None:
        self.address = address
        self.purpose = purpose
        self.alive = True
        self.frozen_since: float | None = None
        self.ended = 0.0  # when it was killed
        self.links: dict[int, PeerLink] = {}
        self.sent = 0
        self.delivered = 0
        self._net = net
        self._inbox = Inbox()
        self._held: list[Callable[[], None]] = []  # what arrived while frozen

    @property
    def instance(self) -> Instance:
        """Which process this is."""
        return Instance(self.address.node, self.address.incarnation)

    def set_peers(self, peers: Collection[PeerAddress]) -> None:
        """See the seam."""
        if not self.alive:
            return
        wanted = {peer.node: peer for peer in peers if peer.node != self.address.node}
        for node, link in list(self.links.items()):
            if node not in wanted or wanted[node].incarnation != link.address.incarnation:
                del self.links[node]
                self._inbox.forget(node)
                self._net._forgotten(self, link)
        for node in sorted(wanted.keys() - self.links.keys()):
            self.links[node] = PeerLink(wanted[node], trio.current_time(), self._net.grace)
            self._net._added(self, self.links[node])

    def send(self, node: int, payload: bytes) -> None:
        """See the seam."""
        if not self.alive:
            return
        link = self.links.get(node)
        if link is None:
            if node == self.address.node:
                self._inbox.put((Delivery(node, payload),))
            return
        self.sent += 1
        if link.session.queue(payload):
            self._net._transmit(self, link)
        else:
            self.report(link.stuck(trio.current_time()), later=True)
            self._net._broken(self, link)

    async def receive(self) -> TransportEvent:
        """See the seam.  A killed process receives nothing more, for ever."""
        return await self._inbox.get()

    async def serve(self, handler: Callable[[TransportEvent], None]) -> NoReturn:
        """See the seam."""
        await self._inbox.serve(handler)

    def silence(self, node: int) -> float:
        """See the seam."""
        link = self.links.get(node)
        return 0.0 if link is None else self._net._silence(self, link)

    def report(self, events: Iterable[LinkUp | LinkDown], *, later: bool = False) -> None:
        """Hand link events up; ``later``: not now, because the process is in a call of ours."""
        if self.frozen_since is not None:
            late = list(events)
            self._held.append(lambda: self.report(late))
            return
        for event in events:
            self._net._note("event", self.purpose, self.instance, event)
            (self._inbox.put if later else self._inbox.hand)((event,))

    def hand_up(self, node: int, messages: list[bytes]) -> None:
        """Hand messages up."""
        if self.frozen_since is not None:
            self._held.append(lambda: self.hand_up(node, messages) if node in self.links else None)
            return
        self.delivered += len(messages)
        for message in messages:
            self._net._note("deliver", self.purpose, self.instance, (node, message))
        self._inbox.hand([Delivery(node, message) for message in messages])

    def statistics(self) -> dict[str, int]:
        """Messages to and from others."""
        return {"messages_sent": self.sent, "messages_received": self.delivered}


class _Pair:
    """The connection between two instances: the ``epoch``-th one, and whether it still carries anything."""

    __slots__ = ("epoch", "up")

    def __init__(self) -> None:
        self.epoch = 0
        self.up = False


class SimNetwork:
    """All simulated links; ``run`` it in a nursery."""

    def __init__(
        self,
        seed: int = 0,
        *,
        delay: tuple[float, float] = (0.0001, 0.002),
        duplicate: float = 0.05,
        detect: tuple[float, float] = (0.0, 0.2),
        grace: float = 1.0,
        rng: random.Random | None = None,
    ) -> None:
        """Make a network without faults.

        Args:
            seed: of everything random here, unless ``rng`` is given.
            delay: seconds, least and most, of one message.
            duplicate: probability that a message arrives twice.
            detect: seconds, least and most, after which the ends of a cut connection notice.
            grace: as for ``LinkMesh``.
            rng: a stream to share instead of ``seed``.
        """
        self.rng = rng if rng is not None else random.Random(seed)
        self.delay, self.duplicate, self.detect, self.grace = delay, duplicate, detect, grace
        self.trace: list[tuple[float, str, str, Instance, object]] = []
        self._processes: dict[tuple[str, Instance], SimTransport] = {}
        self._latest: dict[tuple[str, int], SimTransport] = {}
        self._pairs: dict[tuple[str, Instance, Instance], _Pair] = {}
        self._cuts: dict[tuple[int, int], float] = {}  # and since when
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()
        self._ports = itertools.count(7000)
        self._wake = Signal()

    # ---- what a test calls

    def transport(self, node: int, incarnation: int = 1, purpose: str = "matrixd") -> SimTransport:
        """Start a process; an older one of the same node and purpose is killed."""
        old = self._latest.get((purpose, node))
        if old is not None and old.alive:
            self._kill(old)
        address = PeerAddress(node, incarnation, f"sim-{node}", next(self._ports))
        made = SimTransport(self, address, purpose)
        assert (purpose, made.instance) not in self._processes, "an incarnation is used once"
        self._processes[purpose, made.instance] = self._latest[purpose, node] = made
        return made

    def cut(self, a: int, b: int, *, both: bool = True) -> None:
        """Nothing sent by node ``a`` reaches node ``b`` from now on, and (``both``) the reverse."""
        for way in [(a, b), (b, a)] if both else [(a, b)]:
            self._cuts.setdefault(way, trio.current_time())
        for process in self._sorted():
            for link in process.links.values():
                if {process.address.node, link.address.node} == {a, b} and self._pair(process, link).up:
                    self._lose_later(process, link, self.rng.uniform(*self.detect))

    def heal(self, a: int, b: int) -> None:
        """Undo every cut between two nodes."""
        for way in (a, b), (b, a):
            self._cuts.pop(way, None)
        self._kick(lambda process, link: {process.address.node, link.address.node} == {a, b})

    def heal_all(self) -> None:
        """Undo every cut."""
        self._cuts.clear()
        self._kick(lambda process, link: True)

    def partition(self, *groups: Collection[int]) -> None:
        """Heal all, then cut every pair of nodes that stand in different groups."""
        self.heal_all()
        for one, other in itertools.combinations(groups, 2):
            for a, b in itertools.product(sorted(one), sorted(other)):
                self.cut(a, b)

    def kill(self, node: int, purpose: str | None = None) -> None:
        """SIGKILL: the node's processes (or those of one purpose) vanish; reachable peers get a refusal."""
        for process in self._sorted():
            if process.alive and process.address.node == node and purpose in (None, process.purpose):
                self._kill(process)

    def freeze(self, node: int, purpose: str | None = None) -> None:
        """SIGSTOP: the node's processes (or those of one purpose) send and hear nothing, but keep their connections.

        What their tasks do meanwhile in this program is theirs; it leaves when they thaw.
        """
        for process in self._sorted():
            if process.alive and process.address.node == node and purpose in (None, process.purpose):
                process.frozen_since = trio.current_time()

    def thaw(self, node: int) -> None:
        """SIGCONT: what arrived is heard, what was held back leaves."""
        for process in self._sorted():
            if process.alive and process.address.node == node and process.frozen_since is not None:
                process.frozen_since = None
                held, process._held = process._held, []
                for late in held:
                    late()
                for _, link in sorted(process.links.items()):
                    self._transmit(process, link)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Move messages until cancelled."""
        task_status.started()
        while True:
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2]()
            deadline = self._heap[0][0] if self._heap else float("inf")
            with trio.move_on_at(deadline):
                await self._wake.wait()

    # ---- inside

    def _note(self, what: str, purpose: str, who: Instance, detail: object) -> None:
        self.trace.append((trio.current_time(), what, purpose, who, detail))

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._at(trio.current_time() + seconds, action)

    def _at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._counter), action))
        if self._heap[0][2] is action:
            self._wake.set()

    def _sorted(self) -> list[SimTransport]:
        return [self._processes[key] for key in sorted(self._processes)]

    def _pair(self, process: SimTransport, link: PeerLink) -> _Pair:
        one, other = sorted((process.instance, _instance(link)))
        return self._pairs.setdefault((process.purpose, one, other), _Pair())

    def _valid(self, process: SimTransport, link: PeerLink) -> bool:
        return process.alive and process.links.get(link.address.node) is link

    def _cut_between(self, a: int, b: int) -> bool:
        return (a, b) in self._cuts or (b, a) in self._cuts

    def _far_end(self, process: SimTransport, link: PeerLink) -> tuple[SimTransport, PeerLink] | None:
        """The other process and its link to this one, if both are there."""
        other = self._processes.get((process.purpose, _instance(link)))
        back = other.links.get(process.address.node) if other is not None and other.alive else None
        return (other, back) if other is not None and back is not None and _instance(back) == process.instance else None

    def _silence(self, process: SimTransport, link: PeerLink) -> float:
        """What pings would tell: for how long something has kept their answers away."""
        a, b = process.address.node, link.address.node
        far = self._processes.get((process.purpose, _instance(link)))
        since = [self._cuts[way] for way in ((a, b), (b, a)) if way in self._cuts]
        if link.phase != UP:
            since.append(link.away_since)
        if far is not None and not far.alive:
            since.append(far.ended)
        elif far is not None and far.frozen_since is not None:
            since.append(far.frozen_since)
        return trio.current_time() - min(since) if since else 0.0

    def _added(self, process: SimTransport, link: PeerLink) -> None:
        self._at(link.deadline, lambda: self._expire(process, link))
        self._attempt_later(process, link, self.delay)

    def _forgotten(self, process: SimTransport, link: PeerLink) -> None:
        """One end dropped the link: the other sees its connection end."""
        self._pair(process, link).up = False
        far = self._far_end(process, link)
        if far is not None:
            self._lose_later(*far, self.rng.uniform(*self.delay))

    def _broken(self, process: SimTransport, link: PeerLink) -> None:
        """One end dropped the session but wants the peer: both ends start over."""
        self._forgotten(process, link)
        self._attempt_later(process, link, BACKOFF_SECONDS)

    def _kill(self, process: SimTransport) -> None:
        process.alive = False
        process.ended = trio.current_time()
        process.links.clear()
        for node in [process.address.node, *{other.address.node for other in self._sorted()}]:
            process._inbox.forget(node)
        self._note("kill", process.purpose, process.instance, None)
        for other in self._sorted():
            link = other.links.get(process.address.node)
            if link is None or other.purpose != process.purpose or _instance(link) != process.instance:
                continue
            cut = self._cut_between(other.address.node, process.address.node)
            seconds = self.rng.uniform(*(self.detect if cut else self.delay))
            self._lose_later(other, link, seconds)
            self._later(seconds, lambda other=other, link=link: self._attempt(other, link))  # type: ignore[misc]

    def _lose_later(self, process: SimTransport, link: PeerLink, seconds: float) -> None:
        """This end notices after ``seconds`` that the present connection ended."""
        epoch = self._pair(process, link).epoch

        def lose() -> None:
            pair = self._pair(process, link)
            if self._valid(process, link) and pair.epoch == epoch:
                pair.up = False
                link.lost(trio.current_time())
                self._at(link.deadline, lambda: self._expire(process, link))
                self._attempt_later(process, link, BACKOFF_SECONDS)

        self._later(seconds, lose)

    def _expire(self, process: SimTransport, link: PeerLink) -> None:
        if self._valid(process, link):
            process.report(link.expired(trio.current_time()))

    def _kick(self, chosen: Callable[[SimTransport, PeerLink], bool]) -> None:
        for process in self._sorted():
            for _, link in sorted(process.links.items()):
                if chosen(process, link):
                    self._attempt_later(process, link, BACKOFF_SECONDS)

    def _attempt_later(self, process: SimTransport, link: PeerLink, within: tuple[float, float]) -> None:
        self._later(self.rng.uniform(*within), lambda: self._attempt(process, link))

    def _attempt(self, process: SimTransport, link: PeerLink) -> None:
        """Connect, if the network and the other end permit; whatever changes that later tries again."""
        pair = self._pair(process, link)
        if pair.up or not self._valid(process, link) or self._cut_between(process.address.node, link.address.node):
            return
        other = self._processes.get((process.purpose, _instance(link)))
        if other is None or not other.alive:
            process.report(link.refused("connection refused", trio.current_time()))
            return
        far = self._far_end(process, link)
        if far is not None:
            pair.epoch += 1
            pair.up = True
            self._establish((process, link), far)

    def _establish(self, *ends: tuple[SimTransport, PeerLink]) -> None:
        stated = [link.resume_point for _, link in ends]
        resumed = stated[0].session == stated[1].session != 0
        session = stated[0].session if resumed else self.rng.getrandbits(63) | 1
        for (process, link), mine, theirs in zip(ends, stated, reversed(stated), strict=True):
            agreement = Agreement(_instance(link), session, resumed, mine, theirs.received if resumed else 0, b"", b"")
            process.report(link.established(agreement, trio.current_time()))
        for process, link in ends:
            self._transmit(process, link)

    def _transmit(self, process: SimTransport, link: PeerLink) -> None:
        """Put the session's unsent messages on the wire, each on its own way."""
        pair = self._pair(process, link)
        while pair.up and process.frozen_since is None and (packet := link.session.take()) is not None:
            for i, message in enumerate(packet.messages):
                self._post(process, link, pair.epoch, Packet(packet.first + i, packet.ack, [message]))
            if not packet.messages:
                self._post(process, link, pair.epoch, packet)

    def _post(self, process: SimTransport, link: PeerLink, epoch: int, packet: Packet) -> None:
        for _ in range(1 + (self.rng.random() < self.duplicate)):
            self._later(self.rng.uniform(*self.delay), lambda: self._arrive(process, link, epoch, packet))

    def _arrive(self, process: SimTransport, link: PeerLink, epoch: int, packet: Packet) -> None:
        """A packet reaches the other end, unless its connection or its way is gone."""
        pair = self._pair(process, link)
        far = self._far_end(process, link)
        lost = (process.address.node, link.address.node) in self._cuts
        if lost or far is None or not pair.up or pair.epoch != epoch:
            return
        other, back = far
        ready = back.session.receive_untrusted(packet)
        if ready:
            other.hand_up(process.address.node, ready)
        if back.session.ack_due:
            self._transmit(other, back)


def _instance(link: PeerLink) -> Instance:
    return Instance(link.address.node, link.address.incarnation)
