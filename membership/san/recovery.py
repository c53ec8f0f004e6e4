"""Recovery of one filesystem's lockspace, driven by the administrator (pure; 7A to 7C, 002-28 to 002-30; R5, R6).

Attempts are numbered ``generation << 32 | counter`` and only grow.  Every change of members begins a new one::

    WAITING for the fence of a member's node
      -> SUSPEND (all) -> REBUILD (all) -> [REPLAY_FIRST, RELEASE_FIRST]* -> RESUME (all)
      -> [REPLAY, RELEASE (all)]* -> IDLE

Invariants:

R-1. Nothing of an instance on an evicted node begins before its fence is confirmed; while one is outstanding no
     attempt begins at all (its answer would never come).
R-2. A phase begins only when every member answered the one before, in this attempt.
R-3. A journal is given to a mount only when it is clean and nobody's; a dirty one only after its replay *and* the
     release of its owner's ghosts.
R-4. At most one replay runs per filesystem.  With contract O2 of orders.py no journal is replayed by two at once.
R-5. A dead instance is forgotten only after every member released its ghosts.
R-6. ``history`` holds the last view that was rebuilt by all its members and every view begun since: what V4 of
     membership/views.py asks for.
R-7. What an administrator was not told it reads.  As long as ``is_known`` is false there may be journals that an
     earlier administrator gave to mounts that are dead now, and the states in a mount's request are of some time
     ago.  So one member reads them all (``Suspend.survey``), once every evicted node is fenced: the mounts of all
     others are members, so nobody lives who could still dirty one.
R-8. ``Resume`` names the journal that the ``Rebuild`` of its attempt named to all members: whoever takes over knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from membership.messages import PHASES_MAX
from membership.orders import (
    JOURNALS_MAX,
    AttemptWanted,
    GhostsReleased,
    JournalOwner,
    LinkLost,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Resumed,
    Suspend,
    Suspended,
    Withdraw,
)
from membership.san.lost_links import COLLECT_SECONDS, LostLinks
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.messages import MountReport
    from membership.orders import AttemptReply, JournalState, Order

NO_JOURNAL = -1
COUNTER_BITS = 32


class Phase(Enum):
    """Where an attempt stands; the value is what people read."""

    IDLE = "idle"
    WAITING = "waiting for fence"
    SUSPEND = "suspend"
    REBUILD = "rebuild"
    REPLAY_FIRST = "replay first"
    RELEASE_FIRST = "release first"
    RESUME = "resume"
    REPLAY = "replay"
    RELEASE = "release"
    ERROR = "error"


DEAF = (Phase.ERROR, Phase.WAITING, Phase.SUSPEND)  # to lost links: what was lost before the rebuild, it sends anew

ANSWERS: dict[type[AttemptReply], frozenset[Phase]] = {
    Suspended: frozenset({Phase.SUSPEND}),
    Rebuilt: frozenset({Phase.REBUILD}),
    Resumed: frozenset({Phase.RESUME}),
    Replayed: frozenset({Phase.REPLAY, Phase.REPLAY_FIRST}),
    GhostsReleased: frozenset({Phase.RELEASE, Phase.RELEASE_FIRST}),
}


@dataclass(slots=True)
class Member:
    """One mount."""

    address: PeerAddress
    mountpoint: str
    journal: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Event: an attempt ended, all dead are replayed (or the filesystem is in error)."""

    fs_name: str
    attempt: int
    members: tuple[int, ...]
    dead: tuple[int, ...]
    phases: tuple[tuple[str, float], ...]  # (phase, seconds), beginning with "detect" and "fence" where there were any
    error: str
    ago: float = 0.0  # seconds since then, when it is told later


@dataclass(slots=True)
class _Course:
    """Times of the phases since recovery began, over all its attempts."""

    phases: list[tuple[str, float]] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)


class FilesystemRecovery:
    """State of one filesystem on the administrator.

    Args:
        uuid: of the filesystem.
        name: its name, for people.
        journals: how many it has.
        generation: the administrator's SAN generation, read for every new attempt.
        may_survey: whether all evicted nodes are fenced (R-7).
        send: passes an order to the mount on a node.
        tell: passes an event to the shell.
    """

    def __init__(
        self,
        uuid: bytes,
        name: str,
        journals: int,
        *,
        generation: Callable[[], int],
        may_survey: Callable[[], bool] = lambda: True,
        send: Callable[[int, int, Order], None],
        tell: Callable[[Finished], None],
    ) -> None:
        self.uuid = uuid
        self.name = name
        self.journals = journals
        self.members: dict[int, Member] = {}
        self.dead: dict[Instance, DeadInstance] = {}  # in the order they died
        self.history: list[tuple[Instance, ...]] = []
        self.attempt = 0
        self.phase = Phase.IDLE
        self.waiting: set[int] = set()
        self.phase_since = 0.0
        self.error = ""
        self.links = LostLinks()
        self.is_known = False  # ``dead`` and ``members`` have all journals that may be dirty
        self._target: DeadInstance | None = None  # being replayed or released
        self._order: dict[int, Order] = {}  # what each member was told last, for asking again
        self._is_changed = False
        self._unfenced: set[int] = set()
        self._evicted_at: dict[int, float] = {}  # mounts that are being evicted, by node
        self._course = _Course()
        self._generation = generation
        self._may_survey = may_survey
        self._send = send
        self._tell = tell

    # -- inputs ------------------------------------------------------------------------------------------------

    def join(self, report: MountReport, node: int) -> int | str | None:
        """A mount asks in: its journal (NO_JOURNAL: after the first replays), why not, or None: ask again later.

        The caller tells it, then calls ``drive``: the answer must come before the first order.
        """
        there = self.members.get(node)
        if there is not None and there.address.incarnation == report.incarnation:
            return there.journal
        if there is not None:
            return f"{self.name} is already mounted on this node at {there.mountpoint}"
        self._forgive(report)
        if self.error:
            return f"{self.name} is isolated ({self.error}): unmount it everywhere and run fsck.matrixfs"
        self.journals = max(self.journals, len(report.journals))
        journal = self._free_journal()
        if journal == NO_JOURNAL and (self.members or not self.dead):
            if self.dead:
                return None
            return (
                f"all {self.journals} journals of {self.name} are in use: unmount it somewhere, or add some: "
                f"matrixctl fs grow {self.name} --journals N"
            )
        self.adopt(report, node, journal)
        self._is_changed = True
        return journal

    def adopt(self, report: MountReport, node: int, journal: int) -> None:
        """A mount that is a member (also: that an earlier administrator admitted)."""
        address = PeerAddress(node, report.incarnation, report.host, report.port, report.others)
        self.members[node] = Member(address, report.mountpoint, journal)

    def left(self, node: int, incarnation: int, now: float, *, clean: bool) -> None:
        """A mount left, or its process died, or its node was fenced."""
        member = self.members.get(node)
        if member is None or member.address.incarnation != incarnation:
            return
        del self.members[node]
        self._order.pop(node, None)
        evicted_at = self._evicted_at.pop(node, None)
        if evicted_at is not None and node not in self._unfenced:
            self._course.phases.append(("fence", now - evicted_at))
        instance = Instance(node, incarnation)
        if not clean and self.is_known and member.journal != NO_JOURNAL:  # else it never wrote
            views = tuple(view for view in self.history if instance in view)
            self.dead[instance] = DeadInstance(node, incarnation, member.journal, views)
            self._course.dead.append(node)
        self._is_changed = True
        if not self.members:
            self._empty()
        self.drive(now)

    def evicting(self, node: int, noticed: float, now: float) -> None:
        """A member is being evicted, because of what took ``noticed`` seconds to be sure of; ``left`` follows."""
        self._course.phases.append(("detect", noticed))
        self._evicted_at[node] = now

    def suspect(self, node: int, now: float, heard_at: float) -> None:
        """The node, heard last at ``heard_at``, is evicted; its fence is not confirmed yet (R-1)."""
        if node in self.members and node not in self._unfenced:
            self._course.phases.append(("detect", max(0.0, now - heard_at)))
        self._unfenced.add(node)
        self.drive(now)

    def fenced(self, node: int, now: float) -> None:
        """The node's fence is confirmed: its mount is dead."""
        self._unfenced.discard(node)
        member = self.members.get(node)
        if member is not None:
            self.left(node, member.address.incarnation, now, clean=False)
        self.drive(now)

    def reply(self, node: int, incarnation: int, reply: AttemptReply, now: float) -> None:
        """An answer of a mount.  Answers of other attempts are stale, except the outcome of a replay (a fact)."""
        member = self.members.get(node)
        if member is None or member.address.incarnation != incarnation:
            return
        if isinstance(reply, Replayed):
            self._on_replayed(node, reply)
        elif isinstance(reply, LinkLost):
            self._on_link_lost(node, reply, now)
        elif isinstance(reply, AttemptWanted):
            self._is_changed |= reply.attempt == self.attempt and self.phase is Phase.IDLE
        elif reply.attempt == self.attempt and self.phase in ANSWERS[type(reply)]:
            other = isinstance(reply, GhostsReleased) and not self._is_target(reply.node, reply.incarnation)
            if isinstance(reply, Rebuilt):
                self.journals = max(self.journals, min(reply.journals, JOURNALS_MAX))
            if not other and not (isinstance(reply, Suspended) and self._is_unread(node, reply)):
                self.waiting.discard(node)
        self.drive(now)

    def _is_unread(self, node: int, reply: Suspended) -> bool:
        """Learn what it read, if it had to; whether it owes that still."""
        if self.is_known or self._order.get(node) != Suspend(self.attempt, survey=True):
            return False
        if reply.journals:
            self._learn(reply.journals)
        return not self.is_known

    def restart(self, now: float) -> None:
        """Begin a new attempt: the state was taken over from reports."""
        self._course.dead = [instance.node for instance in self.dead]
        self._is_changed = True
        self.drive(now)

    def tick(self, now: float) -> None:
        """Time passed: an attempt with a link missing has waited long enough."""
        missed_at = self.links.missed_at
        if missed_at is not None and now - missed_at >= COLLECT_SECONDS and self.phase not in DEAF:
            self._is_changed = True
            self.drive(now)

    def ask_again(self) -> None:
        """Repeat the present order to all that have not answered; their matrixd drops repetitions."""
        for node in sorted(self.waiting):
            member = self.members.get(node)
            if member is not None and node in self._order:
                self._send(node, member.address.incarnation, self._order[node])

    # -- upkeep ------------------------------------------------------------------------------------------------

    def drive(self, now: float) -> None:
        """Take every step that is due."""
        while self._step(now):
            pass

    def _step(self, now: float) -> bool:
        if self.phase is Phase.ERROR or (not self.members and not self._is_changed):
            return False
        if self._is_changed:
            if not self.members:
                self._is_changed = False
                self._enter(Phase.IDLE, now)
                return False
            if self._unfenced & set(self.members) or not (self.is_known or self._may_survey()):
                if self.phase is not Phase.WAITING:
                    self._enter(Phase.WAITING, now)
                return False
            self._begin(now)
            return True
        if self.waiting or self.phase in (Phase.IDLE, Phase.WAITING):
            if self._unfenced & set(self.members) and self.phase is not Phase.WAITING:
                # The answer of an evicted member will not come; when it is fenced a new attempt begins.
                self._enter(Phase.WAITING, now)
            return False
        self._advance(now)
        return True

    def _begin(self, now: float) -> None:
        """7A step 710: a new attempt stops new grants everywhere."""
        self._is_changed = False
        floor = self._generation() << COUNTER_BITS
        self.attempt = max(self.attempt, floor) + 1
        self._target = None
        self.links.begin()
        self._enter(Phase.SUSPEND, now)
        surveyor = None if self.is_known else min(self.members)
        for node in sorted(self.members):
            self._to(node, Suspend(self.attempt, survey=node == surveyor))
        self.waiting = set(self.members)

    def _advance(self, now: float) -> None:
        """R-2: everybody answered; the next phase."""
        if self.phase is Phase.SUSPEND:
            assert self.is_known
            view = LockspaceView(self.attempt, self._addresses(), tuple(self.dead.values()))
            self.history.append(view.instances)
            self._enter(Phase.REBUILD, now)
            self._to_all(Rebuild(view, self._owners()))
        elif self.phase is Phase.REBUILD:
            self.links.completed()
            self.history = [tuple(Instance(a.node, a.incarnation) for a in self._addresses())]
            self._replay_next(now, first=True)
        elif self.phase in (Phase.REPLAY_FIRST, Phase.REPLAY):
            assert self._target is not None
            self._enter(Phase.RELEASE_FIRST if self.phase is Phase.REPLAY_FIRST else Phase.RELEASE, now)
            self._to_all(ReleaseGhosts(self.attempt, self._target.node, self._target.incarnation))
        elif self.phase in (Phase.RELEASE_FIRST, Phase.RELEASE):
            assert self._target is not None
            del self.dead[self._target.instance]
            self._replay_next(now, first=self.phase is Phase.RELEASE_FIRST)
        else:
            self._replay_next(now, first=False)

    def _replay_next(self, now: float, *, first: bool) -> None:
        """7C: the next dead instance; ``first``: those of unknown views, before anything is granted."""
        waiting = [d for d in self.dead.values() if not d.views or not first]
        if not waiting:
            self._target = None
            if first:
                self._resume(now)
            else:
                self._finish(now)
            return
        self._target = waiting[0]
        self._enter(Phase.REPLAY_FIRST if first else Phase.REPLAY, now)
        node = min(self.members)
        self._to(node, Replay(self.attempt, self._target))
        self.waiting = {node}

    def _resume(self, now: float) -> None:
        if any(member.journal == NO_JOURNAL for member in self.members.values()):
            self._give_journals()
            self._is_changed = True  # first all must hear who writes which
            return
        self._enter(Phase.RESUME, now)
        for node, member in self.members.items():
            self._to(node, Resume(self.attempt, member.journal))
        self.waiting = set(self.members)

    def _finish(self, now: float) -> None:
        self._enter(Phase.IDLE, now)
        course, self._course = self._course, _Course()
        self._tell_finished(course, "")

    # -- internals ---------------------------------------------------------------------------------------------

    def _on_link_lost(self, node: int, reply: LinkLost, now: float) -> None:
        """What was sent in this attempt is lost, so the next one must begin: at once, or when ``tick`` says so.

        Later, if it rebuilds (all may first say what they miss) or if the other end refused (it died, most likely,
        and the attempt that begins when its matrixd says so cures this too).
        """
        if reply.attempt != self.attempt or self.phase in DEAF or reply.node not in self.members or reply.node == node:
            return
        if self.phase is Phase.REBUILD or reply.refused:
            self.links.lost(node, reply.node, now, counts=self.phase is Phase.REBUILD and not reply.refused)
        else:
            self._is_changed = True

    def _on_replayed(self, node: int, reply: Replayed) -> None:
        instance = Instance(reply.node, reply.incarnation)
        if instance not in self.dead:
            return
        if not reply.ok:
            self._fail(f"journal {self.dead[instance].journal} of node {reply.node} can't be replayed: {reply.detail}")
            return
        replaying = self.phase in (Phase.REPLAY, Phase.REPLAY_FIRST)
        if replaying and self._is_target(*instance) and reply.attempt == self.attempt:
            self.waiting.discard(node)

    def _fail(self, error: str) -> None:
        """756 to 760: mark the filesystem in error, tell people, isolate it; the others go on."""
        self.error = error
        self.phase, self.waiting, self._is_changed = Phase.ERROR, set(), False
        self._to_all(Withdraw(f"{self.name} is isolated: {error}"))
        self.waiting = set()
        self._tell_finished(_Course(dead=[instance.node for instance in self.dead]), error)

    def _tell_finished(self, course: _Course, error: str) -> None:
        members = tuple(sorted(self.members))
        phases = tuple(course.phases[-PHASES_MAX:])
        self._tell(Finished(self.name, self.attempt, members, tuple(course.dead), phases, error))

    def _forgive(self, report: MountReport) -> None:
        """After fsck the journals that could not be replayed are clean: serve again, if the survey agrees."""
        dirty = {j.index for j in report.journals if j.dirty}
        if self.error and not self.members and not dirty & {d.journal for d in self.dead.values()}:
            self.error, self.phase, self.is_known = "", Phase.IDLE, False
            self.dead.clear()

    def _empty(self) -> None:
        """Nobody mounts it any more: no lock is left, only journals to replay before the next mount resumes."""
        self.history = []
        self.waiting = set()
        self.dead = {i: DeadInstance(d.node, d.incarnation, d.journal) for i, d in self.dead.items()}

    def _learn(self, journals: tuple[JournalState, ...]) -> None:
        """R-7: dirty journals are replayed before RESUME; no member ever wrote, so who got one gets another."""
        self.is_known = True
        for journal in journals:
            if journal.dirty:
                owner = Instance(journal.node, journal.incarnation)
                self.dead[owner] = DeadInstance(owner.node, owner.incarnation, journal.index)
        dirty = {d.journal for d in self.dead.values()}
        for member in self.members.values():
            if member.journal in dirty:
                member.journal = NO_JOURNAL
        self._give_journals()

    def _give_journals(self) -> None:
        for _, member in sorted(self.members.items()):
            if member.journal == NO_JOURNAL:
                member.journal = self._free_journal()

    def _free_journal(self) -> int:
        """R-3: the lowest that is nobody's and not waiting for a replay."""
        taken = {m.journal for m in self.members.values()} | {d.journal for d in self.dead.values()}
        return min(set(range(self.journals)) - taken, default=NO_JOURNAL)

    def _is_target(self, node: int, incarnation: int) -> bool:
        return self._target is not None and self._target.instance == (node, incarnation)

    def _addresses(self) -> tuple[PeerAddress, ...]:
        return tuple(self.members[node].address for node in sorted(self.members))

    def _owners(self) -> tuple[JournalOwner, ...]:
        members = sorted(self.members.items())
        return tuple(JournalOwner(n, m.address.incarnation, m.journal, m.mountpoint) for n, m in members)

    def _enter(self, phase: Phase, now: float) -> None:
        if self.phase not in (Phase.IDLE, Phase.ERROR):
            name = "fence" if self.phase is Phase.WAITING else self.phase.value
            self._course.phases.append((name, now - self.phase_since))
        self.phase, self.phase_since, self.waiting = phase, now, set()

    def _to(self, node: int, order: Order) -> None:
        self._order[node] = order
        self._send(node, self.members[node].address.incarnation, order)

    def _to_all(self, order: Order) -> None:
        self.waiting = set(self.members)
        for node in sorted(self.members):
            self._to(node, order)
