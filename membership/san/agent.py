"""A node's own mounts: between the administrator and the mount processes (pure; 002-10, R5, R9).

The agent drops what a deposed administrator says, drops repetitions, repeats answers that may be lost, and remembers
per mount what a new administrator must know (views since the last complete one, the unreplayed dead).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from membership.errors import BadMessage
from membership.messages import (
    AskReport,
    MountAdmit,
    MountForgotten,
    MountJoin,
    MountLeft,
    MountRefuse,
    MountReport,
    OrderTo,
    ReplyFrom,
    Report,
)
from membership.orders import (
    JOURNALS_MAX,
    AttemptWanted,
    GhostsReleased,
    JournalState,
    LinkLost,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Stuck,
    Suspend,
    Told,
    order_from_dict_untrusted,
    reply_to_dict,
)
from membership.views import DeadInstance, Instance

if TYPE_CHECKING:
    from membership.effects import Outbox
    from membership.orders import JournalOwner, MountRequest, Order, Reply
    from membership.seams import PeerAddress

AgentBody = AskReport | MountAdmit | MountRefuse | MountForgotten | OrderTo


@dataclass(frozen=True, slots=True)
class Admitted:
    """Event: the administrator assigned a journal (-1: Resume will)."""

    fs_uuid: bytes
    incarnation: int
    journal: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Event: not admitted; the mount is forgotten."""

    fs_uuid: bytes
    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class ToMount:
    """Event: pass this order to the mount."""

    fs_uuid: bytes
    incarnation: int
    order: Order


@dataclass(slots=True)
class LocalMount:
    """One mount of this node."""

    request: MountRequest
    journal: int = -1
    is_admitted: bool = False
    attempt: int = 0  # of the last Suspend
    rebuilt: int = 0  # of the last Rebuild
    is_resumed: bool = False
    owners: tuple[JournalOwner, ...] = ()
    addresses: tuple[PeerAddress, ...] = ()
    history: list[tuple[Instance, ...]] = field(default_factory=list)
    dead: dict[Instance, DeadInstance] = field(default_factory=dict)
    released: set[Instance] = field(default_factory=set)
    answers: dict[object, Reply | None] = field(default_factory=dict)  # per order of this attempt; None: not yet

    def learn(self, journals: int) -> None:
        """The filesystem has so many journals now: some were added since the mount asked in."""
        known = self.request.journals
        added = (JournalState(index, 0, 0, dirty=False) for index in range(len(known), min(journals, JOURNALS_MAX)))
        self.request = replace(self.request, journals=(*known, *added))

    def report(self) -> MountReport:
        """What a new administrator must know."""
        r = self.request
        return MountReport(
            fs_uuid=r.fs_uuid,
            fs_name=r.fs_name,
            incarnation=r.incarnation,
            host=r.host,
            port=r.port,
            mountpoint=r.mountpoint,
            journal=self.journal,
            journals=r.journals,
            attempt=self.rebuilt,
            resumed=self.is_resumed and self.rebuilt == self.attempt,
            owners=self.owners,
            history=tuple(self.history),
            dead=tuple(self.dead.values()),
            released=tuple(self.released),
            others=r.others,
        )


def _key(item: Order | Reply) -> object:
    """What makes an order and its answer belong together within an attempt."""
    if isinstance(item, Replay):
        return ("replay", item.dead.node, item.dead.incarnation)
    if isinstance(item, Replayed):
        return ("replay", item.node, item.incarnation)
    if isinstance(item, ReleaseGhosts | GhostsReleased):
        return ("release", item.node, item.incarnation)
    if isinstance(item, LinkLost):
        return ("link lost", item.node)
    if isinstance(item, AttemptWanted):
        return "attempt wanted"
    names = {"Suspend": "suspend", "Rebuild": "rebuild", "Resume": "resume"}
    names |= {"Suspended": "suspend", "Rebuilt": "rebuild", "Resumed": "resume"}
    return names[type(item).__name__]


class MountAgent:
    """All mounts of this node.  ``administrator`` is set by the owner before each input."""

    def __init__(self, outbox: Outbox) -> None:
        self.mounts: dict[bytes, LocalMount] = {}  # by filesystem uuid: one mount of a filesystem per node
        self.administrator: int | None = None
        self._leaving: dict[tuple[bytes, int], MountLeft] = {}
        self._out = outbox

    def join(self, request: MountRequest) -> None:
        """Ask the administrator for this mount; an event Admitted or Refused follows."""
        assert request.fs_uuid not in self.mounts
        self.mounts[request.fs_uuid] = LocalMount(request)
        self.ask_again()

    def left(self, fs_uuid: bytes, incarnation: int, *, clean: bool) -> None:
        """The mount left or died."""
        mount = self.mounts.get(fs_uuid)
        if mount is None or mount.request.incarnation != incarnation:
            return
        del self.mounts[fs_uuid]
        self._leaving[fs_uuid, incarnation] = MountLeft(fs_uuid, incarnation, clean)
        self.ask_again()

    def reply(self, fs_uuid: bytes, incarnation: int, reply: Reply) -> None:
        """An answer of a mount."""
        mount = self.mounts.get(fs_uuid)
        if mount is None or mount.request.incarnation != incarnation:
            return
        if not isinstance(reply, Stuck | Told):
            key = _key(reply)
            if reply.attempt == mount.attempt and key in mount.answers:
                mount.answers[key] = reply
            if isinstance(reply, Rebuilt):
                mount.learn(reply.journals)
        self._answer(mount, reply)

    def ask_again(self) -> None:
        """Say again what the administrator has not answered."""
        if self.administrator is None:
            return
        for mount in self.mounts.values():
            if not mount.is_admitted:
                self._out.post(self.administrator, MountJoin(mount.report()))
        for body in self._leaving.values():
            self._out.post(self.administrator, body)

    def is_quiet(self) -> bool:
        """No mount, and no leave that the administrator has not heard of."""
        return not self.mounts and not self._leaving

    def receive(self, body: AgentBody) -> None:
        """A message of the administrator (the caller checked that it is)."""
        if isinstance(body, AskReport):
            assert self.administrator is not None
            admitted = tuple(m.report() for m in self.mounts.values() if m.is_admitted)
            self._out.post(self.administrator, Report(body.generation, admitted))
            return
        if isinstance(body, MountForgotten):
            self._leaving.pop((body.fs_uuid, body.incarnation), None)
            return
        mount = self.mounts.get(body.fs_uuid)
        if mount is None or mount.request.incarnation != body.incarnation:
            return
        if isinstance(body, MountAdmit):
            if not mount.is_admitted:
                mount.is_admitted, mount.journal = True, body.journal
                self._out.tell(Admitted(body.fs_uuid, body.incarnation, body.journal))
        elif isinstance(body, MountRefuse):
            if not mount.is_admitted:
                del self.mounts[body.fs_uuid]
                self._out.tell(Refused(body.fs_uuid, body.incarnation, body.reason))
        elif mount.is_admitted:
            self._on_order(mount, body)

    # -- internals ---------------------------------------------------------------------------------------------

    def _answer(self, mount: LocalMount, reply: Reply) -> None:
        if self.administrator is not None:
            r = mount.request
            self._out.post(self.administrator, ReplyFrom(r.fs_uuid, r.incarnation, reply_to_dict(reply)))

    def _on_order(self, mount: LocalMount, body: OrderTo) -> None:
        try:
            order = order_from_dict_untrusted(body.order)
        except BadMessage:
            return  # an administrator of another version: the phase waits, and status says for whom
        attempt = getattr(order, "attempt", mount.attempt)
        if attempt < mount.attempt or (attempt > mount.attempt and not isinstance(order, Suspend)):
            return
        if hasattr(order, "attempt"):
            if attempt > mount.attempt:
                mount.attempt, mount.is_resumed = attempt, False
                mount.answers.clear()
            key = _key(order)
            if key in mount.answers:  # a repetition: the mount sees each order once
                answered = mount.answers[key]
                if answered is not None:
                    self._answer(mount, answered)
                return
            mount.answers[key] = None
        self._remember(mount, order)
        self._out.tell(ToMount(body.fs_uuid, body.incarnation, order))

    def _remember(self, mount: LocalMount, order: Order) -> None:
        if isinstance(order, Rebuild):
            mount.rebuilt = order.attempt
            mount.owners = order.journals
            mount.addresses = order.view.members
            own = [o.journal for o in order.journals if o.incarnation == mount.request.incarnation]
            mount.journal = own[0] if own else mount.journal  # not always the one of the admission
            mount.history.append(order.view.instances)
            mount.dead = {d.instance: d for d in order.view.dead}
            mount.released.clear()
        elif isinstance(order, Resume):
            mount.is_resumed, mount.journal = True, order.journal
            mount.history = mount.history[-1:]  # all members rebuilt this view, else there were no Resume
        elif isinstance(order, ReleaseGhosts):
            instance = Instance(order.node, order.incarnation)
            mount.dead.pop(instance, None)
            mount.released.add(instance)
