"""All filesystems on the administrator: reports, admissions, and the loop of Figure 7B over them (pure; 002-29).

A new administrator knows nothing: it asks every member of the header for its mounts and acts only when all have
answered (or are confirmed fenced).  From the reports it rebuilds each filesystem's state and, unless all is quiet
and complete, begins a new attempt with a greater number (its generation is greater).

Who got a ``Rebuild`` knows every journal that may be dirty: nobody writes before all members of its attempt, and
so of every later one, have got theirs.  When no mount that lives got one, the journals are read (R-7 of recovery.py).
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from membership.errors import BadMessage
from membership.messages import (
    AskReport,
    MountAdmit,
    MountForgotten,
    MountJoin,
    MountLeft,
    MountRefuse,
    OrderTo,
    ReplyFrom,
    Report,
)
from membership.orders import Stuck, Told, order_to_dict, reply_from_dict_untrusted
from membership.san.evictions import Evictions
from membership.san.lost_links import ATTEMPTS_MAX, COLLECT_SECONDS
from membership.san.recovery import FilesystemRecovery, Finished, Member, Phase
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.effects import Outbox
    from membership.label import Timing
    from membership.messages import MountReport
    from membership.orders import Order
    from membership.san.header import SanHeader

FilesystemBody = Report | MountJoin | MountLeft | ReplyFrom


class Filesystems:
    """The administrator's book of mounts; made anew whenever a node becomes administrator."""

    def __init__(
        self, header: SanHeader, timing: Timing, outbox: Outbox, heard_at: Callable[[int], float] = lambda _: inf
    ) -> None:
        """Args: heard_at: when a node was heard last, monotonic seconds, for the time that detection took."""
        self.by_uuid: dict[bytes, FilesystemRecovery] = {}
        self.reports_missing: set[int] = set()
        self._header = header
        self._timing = timing
        self._out = outbox
        self._heard_at = heard_at
        self._evictions = Evictions(timing, outbox, self._send)
        self._reports: dict[int, tuple[MountReport, ...]] = {}
        self._is_open = False  # all reports are in
        self._asked_at = float("-inf")
        self._buried: set[Instance] = set()  # matrixds confirmed dead
        self.reports_missing = set(header.members)
        self._since = header.generation

    # -- inputs ------------------------------------------------------------------------------------------------

    def header_changed(self, header: SanHeader, now: float) -> None:
        """A later header of ours: who was evicted is suspect, who is new has no mounts yet."""
        for node in set(self._header.members) - set(header.members):
            self.reports_missing.discard(node)
            self._reports.pop(node, None)  # what it said is over before we act on it
            if node in header.fencing:
                for fs in self.by_uuid.values():
                    fs.suspect(node, now, self._heard_at(node))
        off = self._header.fencing.items() - header.fencing.items()
        self._header = header
        for node, incarnation in off:  # confirmed (S4), maybe to those before us
            self.node_dead(node, incarnation, now)
        self._open_if_complete(now)

    def node_dead(self, node: int, incarnation: int, now: float) -> None:
        """Its fence is confirmed: its mounts are dead (R5)."""
        self._buried.add(Instance(node, incarnation))
        for fs in self.by_uuid.values():
            fs.fenced(node, now)

    def receive(self, node: int, body: FilesystemBody, now: float) -> None:
        """A message of a member about its mounts."""
        if isinstance(body, Report):
            self._on_report(node, body, now)
        elif not self._is_open or node not in self._header.members:
            return  # asked again until answered
        elif isinstance(body, MountJoin):
            self._on_join(node, body.mount, now)
        elif isinstance(body, MountLeft):
            self._on_left(node, body, now)
        else:
            fs = self.by_uuid.get(body.fs_uuid)
            if fs is not None:
                try:
                    reply = reply_from_dict_untrusted(body.reply)
                except BadMessage:
                    return  # of another version: the phase waits for it, and status says for whom
                if isinstance(reply, Stuck):
                    self._on_stuck(fs, node, body.incarnation, reply, now)
                elif not isinstance(reply, Told):
                    fs.reply(node, body.incarnation, reply, now)

    def tick(self, now: float) -> None:
        """Ask again for what did not come, and evict who makes all others wait."""
        if now - self._asked_at < self._timing.heartbeat * 2:
            return
        for fs in self.by_uuid.values():
            fs.tick(now)
            for node in fs.links.verdict({n: m.address for n, m in fs.members.items()}):
                reason = f"its lock links to other mounts stay lost, {ATTEMPTS_MAX} attempts of recovery failed by that"
                self._evictions.evict(fs, node, reason, ATTEMPTS_MAX * COLLECT_SECONDS, now)
        self._evictions.tick(self.by_uuid, now)
        self.ask_again(now)

    def ask_again(self, now: float) -> None:
        """Reports and answers that are outstanding; also at once when a view was installed."""
        self._asked_at = now
        for node in sorted(self.reports_missing):
            self._out.post(node, AskReport(self._header.generation))
        for fs in self.by_uuid.values():
            fs.ask_again()

    # -- internals ---------------------------------------------------------------------------------------------

    def _on_report(self, node: int, body: Report, now: float) -> None:
        if body.generation < self._since:
            return  # an answer to an earlier administrator, or to ourselves in an earlier term: mounts have gone since
        if node in self.reports_missing and node in self._header.members:
            self._reports[node] = body.mounts
            self.reports_missing.discard(node)
            self._open_if_complete(now)

    def _open_if_complete(self, now: float) -> None:
        if self._is_open or self.reports_missing:
            return
        self._is_open = True
        mounts = [(node, mount) for node, reported in sorted(self._reports.items()) for mount in reported]
        for uuid in sorted({mount.fs_uuid for _, mount in mounts}):
            self._take_over(uuid, [(node, m) for node, m in mounts if m.fs_uuid == uuid], now)
        self._reports.clear()

    def _take_over(self, uuid: bytes, mounts: list[tuple[int, MountReport]], now: float) -> None:
        """Rebuild one filesystem's state from what its mounts know."""
        latest = max((m for _, m in mounts), key=lambda m: m.attempt)
        fs = self._new(uuid, latest.fs_name, max(len(m.journals) for _, m in mounts))
        fs.attempt, fs.is_known = latest.attempt, latest.attempt > 0
        for node, mount in mounts:
            fs.adopt(mount, node, mount.journal)
            fs.history += [view for view in mount.history if view not in fs.history]
        reported = {Instance(node, mount.incarnation) for node, mount in mounts}
        over = reported | {instance for _, mount in mounts for instance in mount.released}
        for _, mount in mounts:
            fs.dead.update({d.instance: d for d in mount.dead if d.instance not in over})
        quiet = all(m.resumed and m.attempt == latest.attempt for _, m in mounts) and not fs.dead
        quiet &= {Instance(o.node, o.incarnation) for o in latest.owners} == reported
        self._bury(fs, latest, over, now)
        if not quiet:
            fs.restart(now)

    def _bury(self, fs: FilesystemRecovery, latest: MountReport, over: set[Instance], now: float) -> None:
        """Members of the last attempt that nobody reported are dead, or wait for their fence; not those in ``over``."""
        for owner in latest.owners:
            instance = Instance(owner.node, owner.incarnation)
            if instance in over or instance in fs.dead or owner.journal < 0:
                continue
            if owner.node not in fs.members and owner.node in self._header.fencing and not self._is_buried(owner.node):
                fs.members[owner.node] = Member(PeerAddress(owner.node, owner.incarnation, "", 0), "", owner.journal)
                fs.suspect(owner.node, now, self._heard_at(owner.node))
            else:
                views = tuple(view for view in fs.history if instance in view)
                fs.dead[instance] = DeadInstance(owner.node, owner.incarnation, owner.journal, views)

    def _is_buried(self, node: int) -> bool:
        return Instance(node, self._header.fencing[node]) in self._buried

    def _on_stuck(self, fs: FilesystemRecovery, node: int, incarnation: int, stuck: Stuck, now: float) -> None:
        member = fs.members.get(node)
        if member is not None and member.address.incarnation == incarnation:
            self._evictions.evict(fs, node, stuck.reason, stuck.seconds, now)

    def _send(self, uuid: bytes, node: int, incarnation: int, order: Order) -> None:
        self._out.post(node, OrderTo(self._header.generation, uuid, incarnation, order_to_dict(order)))

    def _new(self, uuid: bytes, name: str, journals: int) -> FilesystemRecovery:
        def send(node: int, incarnation: int, order: Order) -> None:
            self._send(uuid, node, incarnation, order)

        def tell(finished: Finished) -> None:
            self._out.tell(finished)

        fs = FilesystemRecovery(
            uuid, name, journals, send=send, tell=tell, generation=lambda: self._header.generation,
            may_survey=lambda: all(self._is_buried(node) for node in self._header.fencing),
        )  # fmt: skip
        self.by_uuid[uuid] = fs
        return fs

    def _on_join(self, node: int, mount: MountReport, now: float) -> None:
        fs = self.by_uuid.get(mount.fs_uuid) or self._new(mount.fs_uuid, mount.fs_name, len(mount.journals))
        answer = fs.join(mount, node)
        if isinstance(answer, int):
            self._out.post(node, MountAdmit(self._header.generation, mount.fs_uuid, mount.incarnation, answer))
        elif answer is not None:
            self._out.post(node, MountRefuse(self._header.generation, mount.fs_uuid, mount.incarnation, answer))
        fs.drive(now)

    def _on_left(self, node: int, body: MountLeft, now: float) -> None:
        fs = self.by_uuid.get(body.fs_uuid)
        if fs is not None:
            fs.left(node, body.incarnation, now, clean=body.clean)
            if not fs.members and not fs.dead and fs.phase is Phase.IDLE:
                del self.by_uuid[body.fs_uuid]
        self._out.post(node, MountForgotten(body.fs_uuid, body.incarnation))
