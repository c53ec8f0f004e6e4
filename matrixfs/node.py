"""A mount process: the composition root, where every layer meets the next.

Order of its life: connect to matrixd, look at the filesystem (read only), listen for peers, be admitted, be
let in by the first RESUME, mount, serve, unmount, flush, leave.  Losing the right to write at any point means:
fence the gate, cut the tree off, end (R3, R9); the others then recover us like a dead node.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from matrixfs.answers import Answers
from matrixfs.blockstore import FencingGate, PatientDevice, Window, opened_store
from matrixfs.blockstore.fencing.luns import discard_of, mount_access
from matrixfs.freezing import Freezer
from matrixfs.fs import attributes, data, fileattr, namespace, ranges, readdir, xattrs
from matrixfs.fs.opening import check_may_journal_data
from matrixfs.fuse.api import ClusterLocks, Filesystem
from matrixfs.fuse.kernel_caches import KernelCaches
from matrixfs.fuse.session import Session, SessionConfig, check_extension
from matrixfs.growing import Grower, current_superblock
from matrixfs.limiting import Limiter
from matrixfs.locks.file_locks import Kind
from matrixfs.locks.pressure import MemoryPressure
from matrixfs.member import Member, journal_states
from matrixfs.named_locks import NamedLocks
from matrixfs.ondisk.superblock import ROOT_INODE, Superblock
from matrixfs.options import MountOptions
from matrixfs.scrubbing import Scrubber
from matrixfs.trimming import Trimmer
from matrixfs.watch import Watch
from membership.clock import SystemClock, SystemRng
from membership.control_client import MountSession, Query, is_listed
from membership.errors import CorruptionError, Fenced, OperatorError
from membership.fence.reservations import LunTraits
from membership.mount_watch import Pulse
from membership.orders import Lease, MountRequest, Withdraw
from membership.pauses import VARIABLE as PAUSES
from membership.pauses import pauses_of
from membership.seams import PeerAddress
from membership.transport.links import LinkMesh

if TYPE_CHECKING:
    from matrixfs.blockstore.device.api import Store
    from matrixfs.fs.trim import Discard
    from membership.fence.storage_access import StorageAccess

# Locks and inodes are long-lived and many, and hold few cycles: the default would walk them all again and again.
GC_THRESHOLDS = (50_000, 20, 100)
# Buffers of up to a request's size stay with malloc instead of going back to the kernel, which would have to clear
# them each time: 4,000 us of system time per MiB written became 250 (mallopt(3), malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 32 << 20

TRACE_LOGGED = 100  # events in the log of a mount that withdraws

log = logging.getLogger(__name__)


def run_mount(options: MountOptions, ready: Callable[[str | None], None]) -> None:
    """Mount, serve until unmounted, leave.

    Args:
        options: what and where.
        ready: called with None once the tree is mounted.

    Raises:
        MatrixError: it could not be mounted, or had to withdraw.
    """
    _tune_memory()
    trio.run(_Mount(options, ready).run)


def _tune_memory() -> None:
    """Spare the process what costs more than the work itself."""
    gc.freeze()  # modules and tables live for ever
    gc.set_threshold(*GC_THRESHOLDS)
    with contextlib.suppress(AttributeError, OSError):  # another libc than glibc: slower, never wrong
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, 4 * KEPT_BYTES)


class _Mount:
    """One mount process, from admission to leaving."""

    def __init__(self, options: MountOptions, ready: Callable[[str | None], None]) -> None:
        self._options = options
        self._ready = ready
        self._clock = SystemClock()
        self._rng = SystemRng()
        self._incarnation = int.from_bytes(self._rng.randbytes(8), "little") | 1
        self._caches = KernelCaches(self._clock)
        self._fuse: Session | None = None
        self._failure: BaseException | None = None
        self._answers = Answers({"counters": lambda _: self._counters()})
        self._scope = trio.CancelScope()
        self._session: MountSession
        self._store: Store
        self._gate: FencingGate
        self._access: StorageAccess  # our registration with the LUN, where it has reservations
        self._member: Member
        self._grower: Grower
        self._freezer: Freezer
        self._scrubber: Scrubber
        self._limiter: Limiter
        self._trimmer: Trimmer
        self._discard: Discard
        self._mesh: LinkMesh

    async def run(self) -> None:
        """See ``run_mount``."""
        check_extension(local_locks=self._options.local_locks)
        self._session = await MountSession.connect(self._options.state_dir, self._options.source)
        cluster = self._session.cluster
        self._store = await opened_store(
            cluster.store_path, identity=f"mount {self._incarnation:016x}", host=cluster.node_name
        )
        try:
            self._gate = FencingGate(self._store, self._clock)
            traits = LunTraits.from_words_untrusted(*cluster.traits)
            self._access = self._make_access(traits)
            raw = Window(self._store, cluster.data_offset, cluster.data_length)
            superblock = await current_superblock(self._store, self._store, raw)
            if superblock.name != self._options.source:
                raise OperatorError(
                    f"no filesystem {self._options.source!r} here: the matrixd of {self._options.state_dir} "
                    f"serves {superblock.name!r}"
                )
            if self._options.journal_data:
                check_may_journal_data(superblock)
            self._mesh = self._make_mesh(superblock)
            port = await self._mesh.listen(cluster.node_address, others=cluster.node_others)
            request = await self._request(raw, superblock, port)
            admission = await self._session.join(request)
            if self._access.is_needed:
                await self._access.admit(cluster.node_id, self._incarnation, heir=False)
            self._gate.extend(admission.lease_deadline, admission.generation)
            disk = PatientDevice(self._gate)
            area = Window(disk, cluster.data_offset, raw.size_bytes)
            self._member = Member(
                area,
                superblock,
                self._mesh,
                self._clock,
                self._rng,
                cluster.node_id,
                self._incarnation,
                self._session.reply,
                self._fail,
                pauses_of(os.environ.get(PAUSES), cluster.node_id, self._clock),
                MemoryPressure().stalled,
                lambda: current_superblock(self._store, disk, area),
            )
            self._grower = Grower(self._member, self._store, disk, area)
            self._freezer = Freezer(self._member)
            self._scrubber = Scrubber(self._member)
            self._limiter = Limiter(self._member)
            self._trimmer = Trimmer(self._member)
            self._discard = discard_of(disk, area, traits, cluster.data_offset)
            self._session.pulse = self._pulse
            self._answer_more()
            await self._live()
        finally:
            self._session.close()
            with trio.CancelScope(shield=True):
                await self._store.aclose()
        if self._failure is not None:
            raise self._failure

    def _answer_more(self) -> None:
        """What can only be answered once there is a member."""
        named = NamedLocks(self._member.file_locks)
        watch = Watch(self._member, named, self._session.cluster.node_id, self._device, self._peers)
        for part in (
            watch, named, self._grower, self._freezer, self._scrubber, self._limiter, self._trimmer,
        ):  # fmt: skip
            self._answers.add(part.handlers())

    def _make_mesh(self, superblock: Superblock) -> LinkMesh:
        cluster = self._session.cluster
        return LinkMesh(
            PeerAddress(cluster.node_id, self._incarnation, cluster.node_address, 0),
            f"lockspace:{superblock.owner.hex()}",
            cluster.cluster_uuid,
            cluster.cluster_key,
            self._clock,
            self._rng,
            encrypt=cluster.encrypt,
        )

    def _make_access(self, traits: LunTraits) -> StorageAccess:
        return mount_access(
            self._store,
            traits,
            self._clock,
            allowed=lambda: is_listed(self._options.state_dir, self._incarnation),
            lost=lambda reason: self._fail(Fenced(reason)),
        )

    async def _request(self, raw: Window, superblock: Superblock, port: int) -> MountRequest:
        return MountRequest(
            fs_uuid=superblock.owner,
            fs_name=superblock.name,
            pid=os.getpid(),
            start_time=0,  # matrixd takes both from the kernel
            incarnation=self._incarnation,
            host=self._session.cluster.node_address,
            port=port,
            mountpoint=self._options.mountpoint,
            journals=await journal_states(raw, superblock),
            others=self._session.cluster.node_others,
        )

    async def _live(self) -> None:
        """Everything after admission.  Whatever goes wrong here ends in ``_fail``: fenced first, then cut off."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(self._mesh.run)
                    await nursery.start(self._member.run)
                    nursery.start_soon(self._take_orders, nursery)
                    nursery.start_soon(self._take_signals)
                    nursery.start_soon(self._grower.run)
                    nursery.start_soon(self._freezer.run)
                    nursery.start_soon(self._scrubber.run)
                    nursery.start_soon(self._limiter.run)
                    nursery.start_soon(self._trimmer.run)
                    await self._serve()
                    nursery.cancel_scope.cancel()
        except Exception as error:
            self._fail(error)
        if self._failure is not None and self._fuse is not None:
            self._fuse.close(str(self._failure))

    async def _serve(self) -> None:
        volume = await self._member.wait_ready()
        volume.kernel = self._caches
        volume.journal_data = self._options.journal_data
        volume.trims.discard = self._discard
        volume.trims.automatic = self._options.discard and not self._options.read_only
        volume.atimes.enabled = not self._options.read_only and "noatime" not in self._options.kernel_options
        try:
            await volume.opens.adopt(volume.journal.index)
        except CorruptionError as error:
            log.error("orphans of journal %d stay, and deleting here will fail: %s", volume.journal.index, error)
        config = SessionConfig(
            self._options.mountpoint,
            self._options.source,
            ROOT_INODE,
            self._options.read_only,
            self._options.local_locks,
            self._options.kernel_options,
        )
        filesystem = Filesystem(namespace, attributes, data, readdir, xattrs, ranges, fileattr)
        locks = ClusterLocks(self._member.file_locks, Kind.FLOCK, Kind.POSIX, self._session.cluster.node_id)
        self._fuse = Session(config, volume, filesystem, self._caches, self._fail, locks)
        self._fuse.start()
        self._ready(None)
        log.info("%s mounted on %s", self._options.source, self._options.mountpoint)
        await self._fuse.run()
        log.info("unmounted; flushing")
        self._scrubber.close()
        self._trimmer.close()
        await self._freezer.close()
        await self._limiter.close()
        await self._grower.close()
        await self._member.leave()
        await self._gate.drained()
        for line in await self._access.withdraw():
            log.info("%s", line)
        await self._session.left()
        self._fuse.close()

    async def _take_orders(self, nursery: trio.Nursery) -> None:
        try:
            async for order in self._session:
                if isinstance(order, Query):
                    nursery.start_soon(self._answer, order)
                elif isinstance(order, Lease):
                    self._gate.extend(order.deadline, order.generation)
                elif isinstance(order, Withdraw):
                    self._fail(Fenced(order.reason))
                else:
                    self._member.order(order)
        except Fenced as error:
            self._fail(error)

    async def _answer(self, query: Query) -> None:
        """Answer matrixctl, beside the orders: a question may wait."""
        answer = await self._answers.answer(query.what, query.arguments)
        with contextlib.suppress(Fenced):  # _take_orders notices
            await self._session.answer(query, answer)

    async def _take_signals(self) -> None:
        """SIGTERM and SIGINT: unmount as umount(8) would."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                if self._fuse is not None:
                    self._fuse.stop()

    def _fail(self, error: BaseException) -> None:
        """Write nothing more, cut the tree off, end (R9).  Idempotent."""
        if self._failure is not None:
            return
        self._failure = error
        log.error("withdrawing: %s", error)
        if hasattr(self, "_member"):
            log.error("what happened to its locks before, newest last:\n%s", self._member.trace.text(TRACE_LOGGED))
        self._gate.fence(str(error) or type(error).__name__)
        self._access.conflict(str(error))
        if self._fuse is not None:
            self._fuse.withdraw(str(error))
        self._scope.cancel()

    def _pulse(self) -> Pulse:
        """For matrixd, four times a second: every I/O that ends is a sign of life."""
        pulse = self._member.locks.pulse()
        return dataclasses.replace(pulse, moved=pulse.moved + self._store.counters.calls)

    def _device(self) -> str:
        return self._fuse.device if self._fuse is not None else ""

    def _peers(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(link) for link in self._mesh.links()]

    def _counters(self) -> dict[str, object]:
        """For ``matrixctl status`` and ``metrics``."""
        found: dict[str, object] = {"store": self._store.statistics(), "links": self._mesh.statistics()}
        found["peers"] = self._peers()
        if hasattr(self, "_member"):
            found |= self._member.counters()
            found["gate"] = self._gate.statistics()
            found["freeze"] = self._freezer.state()
        if self._fuse is not None:
            found["fuse"] = self._fuse.counters()
        return found
