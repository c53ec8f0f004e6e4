"""A simulated mount process: answers orders, writes its own journal through a real gate and a real patience.

It keeps no files.  What it writes says who it is; the checkers look at every write that lands (checkers.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from matrixfs.blockstore.fencing.gate import FencingGate
from matrixfs.blockstore.fencing.patience import PatientDevice
from membership.errors import DeviceError, Fenced
from membership.label import BLOCK_BYTES, DATA_BLOCK, timing_of
from membership.mount_watch import LOOK_SECONDS, Activity, MountWatch, Pulse
from membership.orders import (
    GhostsReleased,
    Lease,
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

if TYPE_CHECKING:
    from tests.sim.membership.machines import Machine
    from tests.sim.membership.world import World

JOURNAL_BLOCKS = 8
WRITE_SECONDS = (0.05, 0.5)


@dataclass(eq=False)
class SimMount:
    """A mount process without data; dies dirty, leaves clean."""

    world: World
    machine: Machine
    pid: int
    incarnation: int
    channel: object = None
    attempt: int = 0
    journal: int = -1
    granting: bool = False
    deadline: float = float("-inf")
    alive: bool = True
    hold_replay: trio.Event | None = None
    frozen: bool = False  # SIGSTOP: it reads nothing, answers nothing
    immortal: bool = False  # SIGKILL does not end it either
    thawed: trio.Event = field(default_factory=trio.Event)
    fail_replay: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.port = self.machine.make_port(0, f"{self.machine.name}-mount-{self.pid}", self)
        self.gate = FencingGate(self.port, self.machine.clock)
        self.device = PatientDevice(self.gate)

    @property
    def instance(self) -> tuple[int, int]:
        return self.machine.node.node_id, self.incarnation

    def may_write(self) -> bool:
        return self.alive and self.granting and self.has_right()

    def has_right(self) -> bool:
        """Whether its gate would let a write pass now."""
        return self.alive and self.gate.fenced is None and trio.current_time() < self.gate.deadline

    def die(self) -> None:
        """SIGKILL of this process; its matrixd, if it lives, notices, and waits for what is in flight (0004)."""
        if self.alive:
            self.alive = False
            self.world.pids.pop(self.pid, None)
            self.world.note(self, "died")
            self._end()
            if self.channel is None or not self.machine.running:
                return
            if self.port.in_flight.count or self.machine.freezer.is_frozen:
                self.world.start_soon(self._say_died)
            else:
                self.channel.left(clean=False)

    async def _say_died(self) -> None:
        await self.port.in_flight.wait_idle()
        await self.machine.freezer.passed()
        if self.machine.running:
            self.channel.left(clean=False)

    def _end(self) -> None:
        self.gate.fence("ended")
        self.port.kill()
        self.scope.cancel()

    def freeze(self) -> None:
        """SIGSTOP of this process alone."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.thawed.set()
        self.thawed = trio.Event()

    async def _runs(self) -> None:
        await self.machine.freezer.passed()
        while self.frozen:
            await self.thawed.wait()

    async def watched(self) -> None:
        """What its matrixd does beside carrying orders (control_mounts.py): look after it, kill it when evicted."""
        watch = MountWatch(timing_of(self.world.label), trio.current_time(), self.deadline)
        while self.alive and self.machine.running:
            complaint = watch.look(Activity("T" if self.frozen else "S", 0), trio.current_time())
            if complaint is not None:
                self.channel.reply(complaint)
            if watch.may_ping():
                serial = watch.ping()
            if not self.frozen:
                watch.answered(serial, Pulse())
            if self.channel.evicted and not self.immortal:
                self.die()
            await self.machine.clock.sleep(LOOK_SECONDS)

    def leave(self) -> None:
        """A clean unmount."""
        assert not self.port.in_flight.count
        self.alive = False
        self.world.pids.pop(self.pid, None)
        if self.journal >= 0:  # else it never had one
            self.world.journals[self.journal] = None
        self.world.note(self, "left")
        self._end()
        self.channel.left(clean=True)

    async def run(self) -> None:
        """Read orders and obey them, one after the other; Lease, Withdraw and the end of the stream act at once."""
        orders_in, orders = trio.open_memory_channel(float("inf"))
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, orders_in)
                if self.world.writing:
                    nursery.start_soon(self._write_always)
                async for order in orders:
                    if isinstance(order, Withdraw):
                        break
                    await self._obey(order)
                nursery.cancel_scope.cancel()
        if self.alive:
            self.alive = False  # withdrawn: exits, unreplayed
            self.granting = False
            self.world.pids.pop(self.pid, None)
            self.world.note(self, "withdrew")
            self._end()
            self.world.start_soon(self._say_died)

    async def _read(self, orders: trio.MemorySendChannel) -> None:
        async for order in self.channel.orders:
            await self._runs()
            if isinstance(order, Lease):
                self.renewed(order.deadline, order.generation)
                continue
            await self.world.mount_delay()
            await self._runs()
            while type(order) in self.world.held:
                await self.world.let_go.wait()
            self.world.note(self, order)
            if isinstance(order, Withdraw):
                self.gate.fence(order.reason)
            orders.send_nowait(order)
        self.gate.fence("the control socket ended")
        orders.send_nowait(Withdraw("the control socket ended"))

    def renewed(self, deadline: float, generation: int) -> None:
        """The lease moved."""
        self.deadline = deadline
        if self.gate.fenced is None:
            self.gate.extend(deadline, generation)

    async def _write_always(self) -> None:
        """Held locks work on through a recovery (R6), so it writes as long as it has a journal."""
        block = 0
        try:
            while True:
                await self.machine.clock.sleep(self.world.mount_rng.uniform(*WRITE_SECONDS))
                await self._runs()
                if self.journal >= 0:
                    block = (block + 1) % (JOURNAL_BLOCKS - 1)
                    await self._write(self.journal, 1 + block)
        except Fenced:
            return

    async def _write(self, journal: int, block: int) -> None:
        at = (DATA_BLOCK + journal * JOURNAL_BLOCKS + block) * BLOCK_BYTES
        while True:
            try:
                await self.device.write(at, self.incarnation.to_bytes(8, "little") * 512, durable=True)
                return
            except DeviceError:
                await self.machine.clock.sleep(0.5)  # a real one withdraws, or a layer above tries again

    async def _obey(self, order) -> None:
        reply = self.channel.reply
        if isinstance(order, Suspend):
            self.attempt, self.granting = order.attempt, False
            reply(Suspended(order.attempt, self.world.journal_states() if order.survey else ()))
        elif getattr(order, "attempt", 0) != self.attempt:
            return
        elif isinstance(order, Rebuild):
            self.world.checkers.rebuilding(self, order)
            missed = [m.node for m in order.view.members if self.world.is_link_cut(self.machine.node.node_id, m.node)]
            if missed:  # it waits for reports that never come
                self.world.start_soon(self._tell_lost_links, order.attempt, missed)
            else:
                reply(Rebuilt(order.attempt))
        elif isinstance(order, Resume):
            self.journal, self.granting = order.journal, True
            self.world.checkers.resumed(self, order)
            self.world.journals[order.journal] = self.instance
            reply(Resumed(order.attempt))
        elif isinstance(order, Replay):
            await self._replay(order)
        elif isinstance(order, ReleaseGhosts):
            reply(GhostsReleased(order.attempt, order.node, order.incarnation))

    async def _replay(self, order: Replay) -> None:
        if self.hold_replay is not None:
            await self.hold_replay.wait()
        dead = order.dead
        if not self.fail_replay:
            with self.world.checkers.replaying(self, dead):
                if self.world.writing and self.world.journals.get(dead.journal) == (dead.node, dead.incarnation):
                    try:
                        await self._write(dead.journal, 0)
                    except Fenced:
                        return  # ends, like everything of this process
                    await self._runs()
                if self.world.journals.get(dead.journal) == (dead.node, dead.incarnation):
                    self.world.journals[dead.journal] = None
        ok = not self.fail_replay
        self.channel.reply(
            Replayed(order.attempt, dead.node, dead.incarnation, ok, "" if ok else "bad checksum")
        )

    async def _tell_lost_links(self, attempt: int, missed: list[int]) -> None:
        """As matrixfs/member.py does."""
        while self.alive and self.attempt == attempt:
            for node in missed:
                self.channel.reply(LinkLost(attempt, node))
            await self.machine.clock.sleep(1.0)
