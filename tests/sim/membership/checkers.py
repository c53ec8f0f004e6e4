"""What must hold in a simulated cluster at every instant, whatever happens (R2 to R5).

The checkers see every write that reaches the disk, every step of every node and every order that a mount obeys.  They
know the true state of the world, which no node does.

C1. A generation has one content, ever.  The generation on the disk only grows, but for late writes of an older one,
    and those stand no more when all is quiet.
C2. At no instant are two nodes administrator by the generation in force, or by one generation.  A node that is no
    member, or whose lease ended, calls nobody dead.
C3. A lease never ends later than ``lease`` after the last moment at which the header on a majority of the areas listed
    its node (R4).
C4. Of a node that was called dead, or a mount that is dead in a view or replayed, nothing lands any more; nor may it
    write.  What lands in a journal is of its owner, or of the one mount that replays it.
C5. Mounts that may write at one instant are in one attempt, with a journal each.
C6. No header drops more living members than it keeps, nor as many when the lowest address is among them.  Living:
    running, with the disk at hand, for longer than it takes to be seen.  Leavers and the expelled don't count.
C7. Nobody gets lost: who was a member or to be fenced in one generation is so in the next, or left, or was called dead
    (S4 of san/header.py), or never had a mount (A8 of san/admin.py).

Not checked: what ballots and slots contain, the membership database, times of recovery.  C6 is silent while the writer
itself was in trouble a moment ago: what it decided then may be carried out now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from membership.errors import CorruptRecord
from membership.group.connectivity import address_key
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK
from membership.lease.core import LeaseState
from membership.san.events import NodeDead
from membership.san.evictions import Expel
from membership.san.header import SanHeader, header_untrusted, make_header
from membership.san.roles import Role
from tests.sim.membership.mounts import JOURNAL_BLOCKS, SimMount

if TYPE_CHECKING:
    from membership.orders import Rebuild, Resume
    from membership.views import DeadInstance
    from tests.sim.membership.machines import Machine
    from tests.sim.membership.paths import Flight, Port
    from tests.sim.membership.world import World

EPSILON = 1e-6


class Checkers:
    """All of one world; what they find goes to ``world.broken``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.newest: SanHeader = make_header(world.label.owner, 0, members={}, fencing={})
        self.visible: list[SanHeader] = [self.newest] * len(world.disks)  # on each area
        self.went_back = 0  # how often a late write put an older generation back
        self.dead_nodes: set[tuple[int, int]] = set()  # (node, incarnation of its matrixd)
        self.leavers: set[tuple[int, int]] = set()  # wanted to leave, and ended; a header may drop them later
        self.dead_mounts: set[tuple[int, int]] = set()  # (node, incarnation of the mount)
        self._contents: dict[int, bytes] = {}
        self._listed_until: list[dict[tuple[int, int], float]] = [{} for _ in world.disks]
        self._sets: list[tuple[tuple[int, ...], ...]] = [(tuple(range(world.areas)),)]  # as headers named them
        self._expelled: set[tuple[int, int]] = set()
        self._replaying: dict[int, SimMount] = {}  # by journal

    def broke(self, text: str) -> None:
        """An invariant does not hold."""
        self.world.broken.append(f"{trio.current_time():.3f}: {text}")

    # -- what the world tells ----------------------------------------------------------------------------------

    def landed(self, port: Port, flight: Flight, offset: int, piece: bytes) -> None:
        """A piece of a write reached the disk."""
        late = trio.current_time() - flight.handed_at
        assert late <= self.world.timing.io_bound + EPSILON
        if HEADER_BLOCK * BLOCK_BYTES <= offset < (HEADER_BLOCK + 1) * BLOCK_BYTES:
            self._header_landed(port.who, port.path.area)
        elif offset >= DATA_BLOCK * BLOCK_BYTES:
            self._data_landed(port.who, (offset // BLOCK_BYTES - DATA_BLOCK) // JOURNAL_BLOCKS)

    def stepped(self, machine: Machine) -> None:
        """A node took a step."""
        core = machine.node.core
        lease, me = core.lease, (core.me.node, core.me.incarnation)
        if lease.state is LeaseState.MEMBER:
            latest = self._last_listed(me) + self.world.timing.lease
            if lease.deadline > latest + EPSILON:
                self.broke(f"C3: {machine.name} has a lease until {lease.deadline:.3f}, not {latest:.3f} at most")
        if core.admin.role is Role.ADMIN:
            self._check_administrators(machine)

    def told(self, machine: Machine, event: object) -> None:
        """A node's core wants something done."""
        core = machine.node.core
        if isinstance(event, NodeDead):
            state = core.lease.state
            if state is not LeaseState.MEMBER or trio.current_time() >= core.lease.deadline:
                self.broke(f"C2: {machine.name} calls node {event.node} dead, its own lease is {state.value}")
            self.dead_nodes.add((event.node, event.incarnation))
            self._check_dead()
        elif isinstance(event, Expel):
            self._expelled.add((event.node, core.admin.header.members.get(event.node, 0)))

    def rebuilding(self, mount: SimMount, order: Rebuild) -> None:
        """A mount begins to rebuild a view."""
        self.dead_mounts |= {(dead.node, dead.incarnation) for dead in order.view.dead}
        self._check_dead()

    def resumed(self, mount: SimMount, order: Resume) -> None:
        """A mount grants again."""
        writers = self.world.granting()
        if len({w.journal for w in writers}) != len(writers):
            self.broke(f"C5: two mounts share a journal: {[(w.machine.name, w.journal) for w in writers]}")
        if len({w.attempt for w in writers}) > 1:
            self.broke(f"C5: writers of several attempts: {[(w.machine.name, w.attempt) for w in writers]}")
        owner = self.world.journals.get(order.journal)
        if owner not in (None, mount.instance):
            self.broke(f"C5: {mount.machine.name} got journal {order.journal}, which is dirty by {owner}")

    @contextlib.contextmanager
    def replaying(self, mount: SimMount, dead: DeadInstance) -> Iterator[None]:
        """A mount replays a journal."""
        self.dead_mounts.add((dead.node, dead.incarnation))
        self._check_dead()
        other = self._replaying.get(dead.journal)
        if other is not None:
            self.broke(f"C4: journal {dead.journal} is replayed by {other.machine.name} and {mount.machine.name}")
        self._replaying[dead.journal] = mount
        try:
            yield
        finally:
            del self._replaying[dead.journal]

    def is_quiet(self) -> bool:
        """The newest generation stands on a majority of the areas (C1)."""
        return all(
            sum(self.visible[area].generation == self.newest.generation for area in group) > len(group) // 2
            for group in self._sets[-1]
        )

    # -- internals ---------------------------------------------------------------------------------------------

    def _last_listed(self, instance: tuple[int, int]) -> float:
        """When a majority of the areas listed it last; not all at one moment, for nobody reads them all at once."""
        node, incarnation = instance
        now = trio.current_time()
        times = [
            now if header.members.get(node) == incarnation else until.get(instance, float("-inf"))
            for header, until in zip(self.visible, self._listed_until, strict=True)
        ]

        def by_majority(group: tuple[int, ...]) -> float:
            return sorted((times[area] for area in group), reverse=True)[len(group) // 2]

        # While the set changes some nodes go by the one before, which then counts as well.
        return max(min(map(by_majority, groups)) for groups in self._sets[-3:])

    def _note_set(self, header: SanHeader) -> None:
        area_of = {label.disk_uuid: area for area, label in enumerate(self.world.labels)}
        found = tuple(tuple(area_of[disk] for disk in group) for group in (header.areas, header.areas_before) if group)
        if found and found != self._sets[-1]:
            self._sets.append(found)

    def _header_landed(self, writer: Machine, area: int) -> None:
        block = self.world.disks[area].media.read(HEADER_BLOCK * BLOCK_BYTES, BLOCK_BYTES)
        try:
            header = header_untrusted(block, self.world.label.owner)
        except CorruptRecord as error:
            self.broke(f"C1: no copy of the SAN header is whole: {error}")
            return
        before, self.visible[area] = self.visible[area], header
        if header.generation > self.newest.generation:
            self._note_set(header)
        for instance in before.members.items():
            if header.members.get(instance[0]) != instance[1]:
                self._listed_until[area][instance] = trio.current_time()
        if self._contents.setdefault(header.generation, header.encode()) != header.encode():
            self.broke(f"C1: two headers of generation {header.generation}")
        if header.generation < before.generation:
            self.went_back += 1
        for instance in self.dead_nodes & set(header.members.items()) - set(before.members.items()):
            self._check_return(instance)
        if (writer.node.node_id, writer.node.incarnation) in self.dead_nodes:
            self.broke(f"C4: a header of {writer.name}, which was called dead, lands: generation {header.generation}")
        if header.generation > self.newest.generation:
            self._check_eviction(writer, self.newest, header)
            self._check_nobody_is_lost(writer, self.newest, header)
            self.newest = header

    def _check_return(self, instance: tuple[int, int]) -> None:
        """Who was called dead is listed again: only an instance that never had a lease may be (L2)."""
        machines = {(m.node.node_id, m.node.incarnation): m for m in self.world.machines.values()}
        machine = machines.get(instance)
        if machine is not None and machine.running and machine.node.core.lease.state is not LeaseState.OUT:
            self.broke(f"C4: {machine.name} was called dead and is listed again")
        self.dead_nodes.discard(instance)

    def _data_landed(self, writer: SimMount, journal: int) -> None:
        who = f"{writer.machine.name}, mount {writer.pid}"
        if self._is_dead(writer):
            self.broke(f"C4: a write of {who}, which is dead, lands in journal {journal}")
            return
        is_theirs = self.world.journals[journal] == writer.instance or self._replaying.get(journal) is writer
        if writer.alive and not is_theirs:  # a dead replayer's write may still land until it is called dead
            self.broke(f"C4: a write of {who} lands in journal {journal} of {self.world.journals[journal]}")

    def _is_dead(self, mount: SimMount) -> bool:
        node = mount.machine.node
        return (node.node_id, node.incarnation) in self.dead_nodes or mount.instance in self.dead_mounts

    def _check_dead(self) -> None:
        for machine in self.world.machines.values():
            for mount in machine.mounts:
                if mount.has_right() and self._is_dead(mount):
                    self.broke(f"C4: mount {mount.pid} of {machine.name} is called dead and may write")

    def _check_administrators(self, machine: Machine) -> None:
        mine = machine.node.core.admin.header.generation
        for other in self.world.machines.values():
            core = other.node.core
            if other is machine or not other.running or core is None or core.admin.role is not Role.ADMIN:
                continue
            if core.admin.header.generation == mine:
                self.broke(f"C2: {machine.name} and {other.name} are administrators of generation {mine}")

    def _check_eviction(self, writer: Machine, old: SanHeader, new: SanHeader) -> None:
        if not self._is_steady(writer):
            return
        machines = {(m.node.node_id, m.node.incarnation): m for m in self.world.machines.values()}
        kept = {
            i  # who leaves by this header has its say in it
            for i in old.members.items()
            if new.members.get(i[0]) == i[1] or (i in machines and machines[i].node.core.admin.is_leaving)
        }
        evicted = {
            i
            for i in old.members.items()
            if i not in kept | self._expelled and i in machines and self._is_steady(machines[i])
        }  # fmt: skip
        lowest = min(
            (machines[i] for i in kept | evicted if i in machines),
            key=lambda m: address_key(m.node.core.me), default=None,
        )  # fmt: skip
        is_tie = len(evicted) == len(kept) and lowest is not None and lowest in {machines[i] for i in evicted}
        if len(evicted) > len(kept) or (evicted and is_tie):
            self.broke(
                f"C6: generation {new.generation} by {writer.name} drops living {sorted(evicted)}, keeps {sorted(kept)}"
            )

    def _check_nobody_is_lost(self, writer: Machine, old: SanHeader, new: SanHeader) -> None:
        machines = {(m.node.node_id, m.node.incarnation): m for m in self.world.machines.values()}
        before = {*old.members.items(), *old.fencing.items()}
        gone = before - {*new.members.items(), *new.fencing.items()}
        for instance in gone - self.dead_nodes - self.leavers:
            machine = machines.get(instance)
            has_left = machine is not None and (machine.node.core.admin.is_leaving or not machine.mounts)
            if not has_left and instance[0] != writer.node.node_id:  # its own slot is only claimed after a fence (H1)
                self.broke(f"C7: generation {new.generation} by {writer.name} forgets node {instance[0]}")

    def _is_steady(self, machine: Machine) -> bool:
        timing = self.world.timing
        seen = timing.link_dead + 2 * timing.renew + timing.io_bound
        return machine.is_healthy and trio.current_time() - machine.disturbed_at > seen
