"""One mounted tree: mounts, serves until unmounted, and stops in good order or at once.

Order of a mount's life, as ``matrixfs.node`` drives it::

    caches = KernelCaches(clock)            # before the volume, whose callouts purge through it
    session = Session(SessionConfig(…), volume, filesystem, caches)
    session.start()                         # mounted; requests queue in the kernel
    await session.run()                     # serves until unmounted or withdrawn
    …the volume flushes and leaves the cluster…
    session.close(error)                    # lets umount.fuse.matrixfs return

``withdraw`` cuts the mount off from its applications at once: the kernel answers ENOTCONN to everything (R9).
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from matrixfs.fuse import connection, libfuse, registry
from matrixfs.fuse.handles import HandleTable
from matrixfs.fuse.libfuse import pyfuse3
from matrixfs.fuse.notifier import KernelNotifier
from matrixfs.fuse.operations import Operations
from membership.errors import OperatorError
from membership.processes import process_start

if TYPE_CHECKING:
    from matrixfs.fuse.api import ClusterLocks, Filesystem, Volume
    from matrixfs.fuse.kernel_caches import KernelCaches

log = logging.getLogger(__name__)

READAHEAD_KIB = 1024  # one request of the largest size
TASKS_IDLE = 16  # readers kept waiting for requests
TASKS_MAX = 1_000_000  # a blocked handler must leave room for the one that frees it (coherence.md 11)
STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """What is mounted where.

    Attributes:
        mountpoint: absolute path of a directory, without symbolic links.
        source: what ``mount`` shows as the device: the filesystem's name.
        root_ino: inode number of the root directory.
        read_only: mount read-only.
        local_locks: file locks hold on this node only; in return the kernel opens and closes files without asking.
        options: further options for libfuse, for example ``nodev``.
        registry_directory: where ``registry`` keeps its records; "" for its default.
    """

    mountpoint: str
    source: str
    root_ino: int
    read_only: bool = False
    local_locks: bool = False
    options: tuple[str, ...] = ()
    registry_directory: str = ""


def check_extension(*, local_locks: bool) -> None:
    """Raise OperatorError when a mount of this kind can't be had; worth asking before the cluster is joined."""
    if local_locks and not libfuse.available():
        raise OperatorError(f"localflocks is not to be had: {libfuse.missing()}")


def _ignore(error: BaseException) -> None:
    log.debug("withdrawn for %r", error)


class Session:
    """The FUSE session of this process; pyfuse3 carries one.

    Args:
        config: what and where.
        volume: the filesystem.
        filesystem: the modules that work on it.
        caches: made before the volume; the session attaches the kernel to it.
        on_withdraw: told why, once, when a handler met a broken invariant or a lost right (R9), after the mount was
            cut off.  It should stop everything that writes.
        locks: the cluster's file locks; None, or no extension, leaves them to the kernel: for this node alone.
    """

    def __init__(
        self,
        config: SessionConfig,
        volume: Volume,
        filesystem: Filesystem,
        caches: KernelCaches,
        on_withdraw: Callable[[BaseException], None] = _ignore,
        locks: ClusterLocks | None = None,
    ) -> None:
        self._config = config
        self._volume = volume
        self._caches = caches
        self._handles = HandleTable()
        self._on_withdraw = on_withdraw
        self._operations = Operations(
            volume, filesystem, caches, self._handles, self._withdraw_for,
            None if config.local_locks or not libfuse.available() else locks,
            opened_by_kernel=config.local_locks,
        )  # fmt: skip
        self._device = ""
        self._server: registry.Server | None = None
        self._mounted = False
        self._withdrawn = False
        self._serving = trio.CancelScope()

    @property
    def device(self) -> str:
        """The mount's device number, "major:minor"; "" before ``start``."""
        return self._device

    def start(self) -> None:
        """Mount.  Raises OperatorError when libfuse refuses (it prints why on stderr)."""
        check_extension(local_locks=self._config.local_locks)
        libfuse.open_by_kernel(self._config.local_locks)
        locks, ranges, flags = (
            self._operations.lock_requests, self._operations.range_requests, self._operations.flag_requests,
        )  # fmt: skip
        libfuse.serve_statx(self._operations.statx_requests.request)
        if locks is not None:
            libfuse.serve_locks(locks.request, self._operations.parked.interrupted)
        if ranges is not None:
            libfuse.serve_ranges(ranges.request)
        if flags is not None:
            libfuse.serve_flags(flags.request)
        try:
            pyfuse3.init(self._operations, self._config.mountpoint, self._mount_options())
        except RuntimeError as error:
            raise OperatorError(f"can't mount on {self._config.mountpoint}: {error}") from None
        self._mounted = True
        mount = registry.mount_at(self._config.mountpoint)
        self._device = mount.device if mount is not None else ""
        self._caches.attach(KernelNotifier(), root_ino=self._config.root_ino, opened_by_kernel=self._config.local_locks)
        self._raise_readahead()
        self._register()
        if problem := libfuse.missing():
            log.warning("slower mount, and file locks hold on this node only: %s", problem)
        if not self._caches.has_epoch:
            log.warning("kernel without FUSE epochs (before 6.16): names are cached for a tenth of a second only")

    def _mount_options(self) -> set[str]:
        options = {
            "default_permissions",
            "allow_other",
            "subtype=matrixfs",
            "fsname=" + self._config.source.replace("\\", "\\\\").replace(",", "\\,"),
            *self._config.options,
        }
        if self._config.read_only:
            options.add("ro")
        if not libfuse.available():
            options.discard("suid")  # see libfuse
        return options

    def _raise_readahead(self) -> None:
        """The kernel never reads ahead more than the device's figure, whatever was negotiated; 128 KiB by default."""
        with contextlib.suppress(OSError), open(f"/sys/class/bdi/{self._device}/read_ahead_kb", "w") as file:
            file.write(str(READAHEAD_KIB))

    def _register(self) -> None:
        if not self._device:
            return
        ticks = process_start(os.getpid())
        self._server = registry.Server(os.getpid(), ticks or 0, self._config.mountpoint, self._config.source)
        registry.prune(directory=self._config.registry_directory)
        try:
            registry.write(self._device, self._server, directory=self._config.registry_directory)
        except OSError as error:
            log.warning("umount won't wait for the last flush: %s", error)

    async def run(self) -> None:
        """Serve until the tree is unmounted or withdrawn."""
        with self._serving:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._operations.parked.run)
                nursery.start_soon(self._caches.run)
                await pyfuse3.main(min_tasks=TASKS_IDLE, max_tasks=TASKS_MAX)
                nursery.cancel_scope.cancel()
        self._caches.detach()
        if not self._withdrawn:
            for ino in self._caches.nodes.kept():  # the kernel is gone, and tells no more what it forgets
                self._volume.opens.closed(ino)

    def stop(self) -> None:
        """Unmount as umount(8) would, without waiting: ``run`` returns when it is done.  A busy tree stays mounted."""
        threading.Thread(target=self._umount, name="umount", daemon=True).start()  # it may ask us for attributes

    def _umount(self) -> None:
        command = ["umount", "-i", self._config.mountpoint]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            log.warning("not unmounted: %s", done.stderr.strip())

    def _withdraw_for(self, error: BaseException) -> None:
        self.withdraw(str(error) or type(error).__name__)
        self._on_withdraw(error)

    def withdraw(self, reason: str) -> None:
        """Cut the tree off: every waiting and later operation fails with ENOTCONN.  Idempotent, doesn't block."""
        if self._withdrawn:
            return
        self._withdrawn = True
        log.error("withdrawing from %s: %s", self._config.mountpoint, reason)
        self._abort()
        self._serving.cancel()

    def _abort(self) -> None:
        if not self._mounted:
            return
        try:
            connection.abort(self._device)
        except OSError as error:  # no control filesystem: closing the descriptor does the same later
            log.warning("connection not aborted at once: %s", error)

    def close(self, error: str = "") -> None:
        """End the session.  Call when all is flushed; ``error`` says what of it failed, for umount to report.

        Idempotent, and harmless when ``start`` failed.
        """
        if not self._mounted:
            return
        settled = self._caches.stop(STOP_SECONDS)
        if not settled:  # blocked in the kernel behind an operation that will get no answer
            self._abort()
            self._caches.stop(STOP_SECONDS)
        self._mounted = False
        self._unregister(error)
        # A withdrawn tree stays mounted and answers ENOTCONN: were it unmounted, programs would go on in the
        # directory below, on the local disk.  umount(8), or the next mount(8) there, frees the mount point.
        pyfuse3.close(unmount=not self._withdrawn)
        if not self._withdrawn:
            self._detach()

    def _unregister(self, error: str) -> None:
        if self._server is None:
            return
        directory = self._config.registry_directory
        if not error:
            registry.remove(self._device, self._server.pid, directory=directory)
            return
        server = self._server
        told = registry.Server(server.pid, server.start_ticks, server.mountpoint, server.source, error)
        with contextlib.suppress(OSError):
            registry.write(self._device, told, directory=directory)

    def _detach(self) -> None:
        """Free the mount point when the kernel still holds our mount: libfuse leaves an aborted one in place."""
        mount = registry.mount_at(self._config.mountpoint)
        if mount is not None and mount.device == self._device:
            subprocess.run(["umount", "-i", "-l", self._config.mountpoint], check=False, capture_output=True)

    def counters(self) -> dict[str, object]:
        """Calls by operation, failures, open handles, what the kernel negotiated, and the caches' counters."""
        features = libfuse.kernel_features()
        quick = {
            "flush_of_readers": libfuse.lock_counters().get("quick_flushes", 0),
            "xattr_of_bare": libfuse.bare_answers(),
        }
        return {
            "calls": {**self._operations.edge.calls, **quick},
            "failures": self._operations.edge.failures,
            "open_handles": len(self._handles),
            "protocol_minor": features.protocol_minor,
            "max_write": features.max_write,
            "max_readahead": features.max_readahead,
            "capabilities": sorted(features.capabilities),
            "epoch": self._caches.has_epoch,
            "caches": self._caches.counters(),
        }
