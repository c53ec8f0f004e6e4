"""One mount as a member of its filesystem's lockspace: lock manager, lock cache, journal, volume, and the orders
of recovery that drive them (R5; the contract O1 to O5 is in ``membership.orders``).

Between SUSPEND and RESUME of every attempt the superblock is read anew.  It is written by a member that was asked to
suspend and has not said yet that it is (``at_barrier``), and read when all have said so: so all that resume know the
same one (fs/grow.py).

This is the whole data path without FUSE: a mount process and the simulation run the same object.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable

import trio

from matrixfs.fs.journal import Journal
from matrixfs.fs.opening import read_superblock
from matrixfs.fs.overtaken import Overtaken, OvertakenDevice
from matrixfs.fs.replay import ReplayReport, read_journal_header, replay
from matrixfs.fs.volume import Volume
from matrixfs.locks import lockspace
from matrixfs.locks.cache import LockCache
from matrixfs.locks.file_locks import FileLocks
from matrixfs.locks.resources import ATTEMPT, DOMAIN_NAMES, Resource
from matrixfs.locks.trace import Trace
from matrixfs.ondisk.journal import DIRTY
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptionError, DeviceError, Fenced, MatrixError
from membership.orders import (
    AttemptWanted,
    GhostsReleased,
    JournalState,
    LinkLost,
    Order,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Reply,
    Resume,
    Resumed,
    Suspend,
    Suspended,
)
from membership.pauses import Pause, never
from membership.seams import Clock, Rng, SectorDevice, Transport
from membership.views import Instance

log = logging.getLogger(__name__)

ASK_INTERVAL = 1.0  # seconds between requests for a new attempt
SILENT_SECONDS = 10.0  # a peer that answers no ping for so long: longer than its own matrixd needs to see that it hangs
ORDERS_MAX = 1000  # orders under way; an administrator has at most a handful outstanding


class Member:
    """See the module.

    Args:
        device: the filesystem's area, behind the fencing gate.
        superblock: already checked.
        transport: to the other members; read only by the lock manager.
        clock: time.
        rng: journal salts and inode incarnations.
        node: this node's id.
        incarnation: of this mount.
        reply: sends a reply to the administrator.
        on_fatal: told why the mount must withdraw (R9).
        pause: called before an order is carried out, with its name; tests hold a recovery there.
        stalled: whether memory is short, so that cached locks go.
        reread: reads the superblock from an area that may have become larger; as ``fs.opening.read_superblock``.
    """

    def __init__(
        self,
        device: SectorDevice,
        superblock: Superblock,
        transport: Transport,
        clock: Clock,
        rng: Rng,
        node: int,
        incarnation: int,
        reply: Callable[[Reply], Awaitable[None]],
        on_fatal: Callable[[BaseException], None],
        pause: Pause = never,
        stalled: Callable[[], bool] = lambda: False,
        reread: Callable[[], Awaitable[Superblock]] | None = None,
    ) -> None:
        self._device = device
        self._superblock = superblock
        self._transport = transport
        self.clock = clock
        self._rng = rng
        self._instance = Instance(node, incarnation)
        self.reply = reply
        self._on_fatal = on_fatal
        self._reread = reread or (lambda: read_superblock(device))
        self._at_barrier: Callable[[], Awaitable[None]] | None = None
        self._resumed = trio.Event()  # set by a RESUME, when what was to be done at the barrier is done
        self._pause = pause
        self._pausing = trio.CancelScope()
        self.trace = Trace(clock)
        self.locks = LockCache(clock, on_fatal, self.trace, stalled)
        self.manager = lockspace.join(
            self.locks, node, incarnation, transport, superblock.group_shift, self._link_lost, self._link_up
        )
        self.file_locks = FileLocks(self.manager, clock)
        self._volume: Volume | None = None
        self._ready = trio.Event()
        self._attempt = 0
        self._lost: dict[int, bool] = {}  # links that broke in this attempt: node -> its host refused
        self._down: dict[int, bool] = {}  # links that are down now
        self._peers: set[int] = set()  # the other members, by node
        self._send, self._receive = trio.open_memory_channel[Order](ORDERS_MAX)
        self._nursery: trio.Nursery | None = None
        self.replays: list[dict[str, int]] = []

    @property
    def volume(self) -> Volume | None:
        """The volume; None until this mount was let in."""
        return self._volume

    async def wait_ready(self) -> Volume:
        """The volume, once this mount was let in and may use it."""
        await self._ready.wait()
        assert self._volume is not None
        return self._volume

    def order(self, order: Order) -> None:
        """Take an order; it is carried out in turn, but granting stops at once."""
        self.trace.note(type(order).__name__.lower(), Resource(ATTEMPT, getattr(order, "attempt", self._attempt)))
        if isinstance(order, Suspend):
            if order.attempt > self._attempt:
                self._attempt = order.attempt
                self._lost.clear()
                self._pausing.cancel()
            self.manager.suspend(order.attempt)
        elif isinstance(order, Rebuild):
            self._peers = {member.node for member in order.view.members} - {self._instance.node}
            self._down = {node: refused for node, refused in self._down.items() if node in self._peers}
        self._send.send_nowait(order)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry out orders, and run the parts below; until cancelled.  A fatal error goes to ``on_fatal``."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.manager.run)
            await nursery.start(self.locks.run)
            await nursery.start(self.file_locks.run)
            nursery.start_soon(self._tell_lost_links)
            task_status.started()
            async for order in self._receive:
                try:
                    await self._carry_out(order)
                except (DeviceError, Fenced, CorruptionError) as error:
                    self._on_fatal(error)

    async def _carry_out(self, order: Order) -> None:
        with trio.CancelScope() as self._pausing:
            await self._pause(type(order).__name__)
        if isinstance(order, Suspend):
            if self._at_barrier is not None:
                await self._at_barrier()
                self._at_barrier = None
            journals = await journal_states(self._device, self._superblock) if order.survey else ()
            await self.reply(Suspended(order.attempt, journals))  # no replay runs: this task would be in it (O2)
        elif isinstance(order, Rebuild | Resume | ReleaseGhosts | Replay) and order.attempt >= self._attempt:
            if isinstance(order, Replay):
                with contextlib.suppress(Overtaken):  # it is ordered again in the attempt that has begun
                    await self.reply(await self._replay(order))
            elif isinstance(order, Rebuild):
                self._superblock.take_over(await self._reread())
                if await self.manager.rebuild(order.view):
                    await self.reply(Rebuilt(order.attempt, self._superblock.journals))
            elif isinstance(order, Resume):
                if self._volume is None:
                    await self._open(order.journal)
                self.manager.resume(order.attempt)
                await self.reply(Resumed(order.attempt))
                self._ready.set()
                if self._at_barrier is None:
                    self._resumed.set()
            else:
                self.manager.release_ghosts(Instance(order.node, order.incarnation))
                await self.reply(GhostsReleased(order.attempt, order.node, order.incarnation))
                if self._volume is not None and self._nursery is not None:  # what only the dead still had open
                    self._nursery.start_soon(self._adopt, self._volume.journal.index)

    async def at_barrier(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run ``action`` once, while every member is suspended; return when all have read the superblock and resumed.

        What it raises withdraws the mount.  One at a time.
        """
        assert self._at_barrier is None
        self._at_barrier = action
        self._resumed = resumed = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._want_attempt)
            await resumed.wait()
            nursery.cancel_scope.cancel()

    async def _want_attempt(self) -> None:
        while True:
            if self._at_barrier is not None:
                await self.reply(AttemptWanted(self._attempt))
            await self.clock.sleep(ASK_INTERVAL)

    def _link_up(self, node: int) -> None:
        self._down.pop(node, None)

    def _link_lost(self, node: int, refused: bool) -> None:
        assert self._nursery is not None
        self._down[node] = self._lost[node] = refused
        self._nursery.start_soon(self.reply, LinkLost(self._attempt, node, refused))

    async def _tell_lost_links(self) -> None:
        """Every second, to whoever is administrator: links that broke in this attempt, are down, or silent."""
        while True:
            await self.clock.sleep(ASK_INTERVAL)
            silent = {node: False for node in self._peers if self._transport.silence(node) >= SILENT_SECONDS}
            for node, refused in sorted({**silent, **self._lost, **self._down}.items()):
                await self.reply(LinkLost(self._attempt, node, refused))

    async def _open(self, index: int) -> None:
        """Take our journal and make the volume."""
        header = await read_journal_header(self._device, self._superblock, index)
        journal = Journal(self._device, self._superblock, index, self.clock)
        node, incarnation = self._instance
        journal.open(header, node, incarnation, int.from_bytes(self._rng.randbytes(8), "little"))
        self._volume = Volume(
            self._device,
            self._superblock,
            self.locks,
            journal,
            self.clock,
            self._rng,
            self.manager.master_is_local,
            node,
        )
        assert self._nursery is not None
        self._nursery.start_soon(self._run_volume, self._volume)

    async def _run_volume(self, volume: Volume) -> None:
        try:
            await volume.run()
        except* (MatrixError, AssertionError) as group:
            self._on_fatal(group.exceptions[0])

    async def _replay(self, order: Replay) -> Replayed:
        """Replay a dead member's journal; a failure is the filesystem's, not this mount's (002-30)."""
        dead = order.dead
        expect = (dead.node, dead.incarnation)
        try:
            device = OvertakenDevice(self._device, lambda: order.attempt < self._attempt)
            report = await replay(device, self._superblock, dead.journal, expect=expect)
        except CorruptionError as error:
            log.error("journal %d of node %d can't be replayed: %s", dead.journal, dead.node, error)
            return Replayed(order.attempt, dead.node, dead.incarnation, False, str(error)[:200])
        detail = _describe(report)
        log.info("journal %d of node %d: %s", dead.journal, dead.node, detail)
        self.replays.append({"journal": dead.journal, "node": dead.node, "written": report.written})
        assert self._nursery is not None
        self._nursery.start_soon(self._adopt, dead.journal)
        return Replayed(order.attempt, dead.node, dead.incarnation, True, detail)

    async def _adopt(self, journal: int) -> None:
        """Delete the orphans that a replayed journal's owner left, once this mount may."""
        volume = await self.wait_ready()
        try:
            count = await volume.opens.adopt(journal)
            if count:
                log.info("%d orphans of journal %d to delete", count, journal)
        except (MatrixError, OSError) as error:
            log.error("orphans of journal %d stay: %s", journal, error)

    async def leave(self) -> None:
        """Flush all, release all locks, leave a clean journal: after this a death needs no recovery."""
        volume = await self.wait_ready()
        await volume.close()
        self.manager.leave()

    def counters(self) -> dict[str, object]:
        """What ``matrixctl status`` shows of this mount."""
        domains = self.manager.domains()
        found: dict[str, object] = {
            "locks": self.locks.statistics(),
            "waits": self.locks.waits(),
            "dlm": self.manager.statistics(),
            "domains": {name: domains[d] for d, name in DOMAIN_NAMES.items() if d in domains},
            "replays": list(self.replays),
        }
        if self._volume is not None:
            found |= {
                "journal": self._volume.journal.statistics,
                "deleted": self._volume.opens.deleted,
                "buffered_bytes": self._volume.write_back.length,
                "trim": self._volume.trims.statistics,
            }
        return found


async def journal_states(device: SectorDevice, superblock: Superblock) -> tuple[JournalState, ...]:
    """What the journals are, one read each, in order.

    Raises:
        CorruptRecord: a header is damaged.
        DeviceError, Fenced: I/O failed.
    """
    states = []
    for index in range(superblock.journals):
        header = await read_journal_header(device, superblock, index)
        states.append(JournalState(index, header.node, header.incarnation, header.state == DIRTY))
    return tuple(states)


def _describe(report: ReplayReport) -> str:
    return (
        f"{report.transactions} transactions, {report.written} blocks written, "
        f"{report.skipped} newer in place, {report.revoked} revoked"
    )
