"""The process fence: kill matrixd and its mounts on this machine, wait for their exit, and for their last writes.

Architecture 4.  The exit alone proves nothing: what a process had in flight may land after it (``presence``).

This module is the implementation of a seam towards the operating system: /proc, pidfd and signals.  A pid is
only ever signalled through a pidfd whose start time was compared with the slot's, so a reused pid is never hit.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from membership.errors import DeviceError
from membership.processes import open_process, process_start
from membership.san.fence import FenceResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from membership.lease.records import HeartbeatSlot
    from membership.presence import Lands
    from membership.seams import Clock

KILL_WAIT_SECONDS = 10.0  # a process in an uninterruptible call is not gone: say so and let the caller ask again


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """Which process on which boot of which machine a node is."""

    boot_id: bytes
    machine_id: bytes
    pid: int
    start_time: int  # clock ticks since boot


def this_host() -> HostIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    start_time = process_start(pid)
    assert start_time is not None
    boot = _hex_file("/proc/sys/kernel/random/boot_id")
    # Without a machine id no other boot can be recognised; the boot id then stands for both.
    return HostIdentity(boot, _hex_file("/etc/machine-id") or boot, pid, start_time)


def _hex_file(path: str) -> bytes:
    try:
        with open(path, encoding="ascii") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))[:16]
    except (OSError, ValueError):
        return b""


async def wait_exit(pid: int, start_time: int) -> None:
    """Return when that process is gone (its whole thread group).  Raises OSError when it can't be watched."""
    fd = open_process(pid, start_time)
    if fd is None:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


class ProcessFence:
    """Kills through pidfds; certain for nodes of this boot, and for nodes of an earlier boot of this machine."""

    name = "process"

    def __init__(
        self, host: HostIdentity, clock: Clock, landing: Lands, cut_off: Callable[[int, int], None]
    ) -> None:
        """Fence from ``host``.

        Args:
            host: this machine, and this boot of it.
            clock: for the waits.
            landing: knows when what a dead process left in flight has reached the store.
            cut_off: aborts what the kernel still has of a killed process (pid, start time) as a file server: a
                thread of it may wait in the kernel for an application that waits for its answer, and so never end.
        """
        self._host = host
        self._clock = clock
        self._landing = landing
        self._cut_off = cut_off

    def is_gone(self, target: HeartbeatSlot) -> bool | None:
        """Looks for the matrixd process."""
        if target.boot_id != self._host.boot_id:
            return True if self._rebooted(target) else None
        return process_start(target.pid) != target.start_time

    async def fence(self, target: HeartbeatSlot, evicted_at: float) -> FenceResult:
        """SIGKILL matrixd and all its mounts, and wait for each to exit."""
        if target.boot_id != self._host.boot_id:
            if self._rebooted(target):
                return FenceResult(confirmed=True, driver=self.name, detail="its machine has rebooted since")
            return FenceResult(confirmed=False, driver=self.name, detail="it runs on another machine")
        processes = [(target.pid, target.start_time), *((m.pid, m.start_time) for m in target.mounts)]
        killed: list[int] = []
        try:
            for pid, start_time in processes:
                if not await self._kill(pid, start_time, killed):
                    detail = f"process {pid} did not exit in {KILL_WAIT_SECONDS:g} s after SIGKILL"
                    return FenceResult(confirmed=False, driver=self.name, detail=detail)
            for pid, _ in processes:
                if process_start(pid) is not None:
                    continue  # another process has the pid by now, and the mark may be its own
                if not await self._bounded(self._landing.wait(pid)):
                    detail = f"process {pid} is gone, but a write of it is still in flight"
                    return FenceResult(confirmed=False, driver=self.name, detail=detail)
        except (OSError, DeviceError) as error:
            return FenceResult(confirmed=False, driver=self.name, detail=f"can't make sure: {error}")
        names = ", ".join(str(pid) for pid in killed)
        return FenceResult(
            confirmed=True, driver=self.name, detail=f"killed {names}" if killed else "its processes were gone"
        )

    async def _kill(self, pid: int, start_time: int, killed: list[int]) -> bool:
        fd = open_process(pid, start_time)
        if fd is None:
            return True
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            killed.append(pid)
            self._cut_off(pid, start_time)
            return await self._bounded(_wait_readable(fd))
        except ProcessLookupError:
            return True  # it exited between the two calls
        finally:
            os.close(fd)

    async def _bounded(self, waiting: Awaitable[object]) -> bool:
        """Wait at most ``KILL_WAIT_SECONDS``; whether that was enough.  Raises what ``waiting`` raises, bare."""
        over = False
        failure: Exception | None = None

        async def give_up() -> None:
            await self._clock.sleep(KILL_WAIT_SECONDS)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(give_up)
            try:
                await waiting
                over = True
            except (OSError, DeviceError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return over

    def _rebooted(self, target: HeartbeatSlot) -> bool:
        return bool(target.machine_id) and target.machine_id == self._host.machine_id


async def _wait_readable(fd: int) -> None:
    await trio.lowlevel.wait_readable(fd)
