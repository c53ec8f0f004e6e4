"""The bench's message rows below the mounts: a message and its answer, and a lock, between two bare processes.

They show what of a remote lock is the link's, what the lock manager's, and what the mounts add: the same code, but no
FUSE, no other work, and warm caches.  Both count beside ``bench_rows.round_trips``, which is the same without our link.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable

import trio

from matrixfs.locks import lockspace
from matrixfs.locks.cache import LockCache
from matrixfs.locks.lock import Lock
from matrixfs.locks.modes import EX
from matrixfs.locks.resources import INODE, Resource
from membership.clock import SystemClock, SystemRng
from membership.seams import Delivery, PeerAddress, TransportEvent
from membership.transport.links import LinkMesh
from membership.views import LockspaceView
from scripts.bench_counters import BenchError
from scripts.bench_rows import MESSAGE

HOST = "127.0.0.1"
PORT_BYTES = 5
SERVER = 1  # node id of the answering process; the asking one is 0

Ready = Callable[[LinkMesh, tuple[PeerAddress, ...], trio.Nursery], Awaitable[None]]


class _Callouts:
    """Nothing is cached under these locks."""

    flushes = False

    async def surrender(self, lock: Lock, mode: int) -> None:
        """Nothing to do."""


def message_trips(count: int) -> list[float]:
    """Seconds of each exchange of one message of 64 bytes over our links, from ``send`` to the waiting task."""
    return _with_server(_echo, lambda *link: _messages(count, *link))


def lock_trips(count: int) -> list[float]:
    """Seconds of each lock that nobody holds and another process arbitrates, from ``hold`` to the waiting task."""
    return _with_server(_arbitrate, lambda *link: _locks(count, *link))


def _with_server(serve: Ready, ask: Callable[..., Awaitable[list[float]]]) -> list[float]:
    """Run ``ask`` here and ``serve`` in a process of its own, which ends with the pipe between them."""
    to_server, to_us = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(to_server[1])
            trio.run(_meet, SERVER, to_server[0], to_us[1], serve)
            code = 0
        finally:
            os._exit(code)
    os.close(to_server[0])
    os.close(to_us[1])
    try:
        found: list[float] = trio.run(_meet, 0, to_us[0], to_server[1], ask)
    finally:
        os.close(to_server[1])
        os.close(to_us[0])
        _, code = os.waitpid(child, 0)
    if code:
        raise BenchError("the answering process failed")
    return found


async def _meet(node: int, hear: int, tell: int, then: Callable[..., Awaitable[list[float]]]) -> list[float]:
    """Make this process's link and tell the other where it listens."""
    mesh = LinkMesh(PeerAddress(node, 1, HOST, 0), "bench", bytes(16), bytes(32), SystemClock(), SystemRng())
    port = await mesh.listen(HOST)
    os.write(tell, b"%*d" % (PORT_BYTES, port))
    ports = {node: port, 1 - node: int(os.read(hear, PORT_BYTES))}
    members = tuple(PeerAddress(each, 1, HOST, ports[each]) for each in sorted(ports))
    async with trio.open_nursery() as nursery:
        await nursery.start(mesh.run)
        found = await then(mesh, members, nursery)
        if node == SERVER:
            await trio.lowlevel.wait_readable(hear)  # until the other one has had enough
        nursery.cancel_scope.cancel()
    return found


async def _echo(mesh: LinkMesh, members: tuple[PeerAddress, ...], nursery: trio.Nursery) -> None:
    def answer(event: TransportEvent) -> None:
        if isinstance(event, Delivery):
            mesh.send(event.node, event.payload)

    nursery.start_soon(mesh.serve, answer)
    mesh.set_peers(members)


async def _messages(
    count: int, mesh: LinkMesh, members: tuple[PeerAddress, ...], nursery: trio.Nursery
) -> list[float]:
    waiting: list[trio.lowlevel.Task] = []

    def take(event: TransportEvent) -> None:
        if isinstance(event, Delivery):
            trio.lowlevel.reschedule(waiting.pop())

    nursery.start_soon(mesh.serve, take)
    mesh.set_peers(members)
    seconds = []
    for _ in range(count + 1):  # the first one waits for the connection
        began = time.perf_counter()
        mesh.send(SERVER, bytes(MESSAGE))
        waiting.append(trio.lowlevel.current_task())
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


async def _arbitrate(mesh: LinkMesh, members: tuple[PeerAddress, ...], nursery: trio.Nursery) -> None:
    await _lockspace(SERVER, mesh, members, nursery)


async def _lockspace(
    node: int, mesh: LinkMesh, members: tuple[PeerAddress, ...], nursery: trio.Nursery
) -> tuple[LockCache, lockspace.LockService]:
    """Join a lockspace of two; without an administrator each resumes when it is rebuilt itself."""
    cache = LockCache(SystemClock(), _fail)
    manager = lockspace.join(cache, node, 1, mesh, 0, lambda _node, _refused: None, lambda _node: None)
    await nursery.start(manager.run)
    await nursery.start(cache.run)
    manager.suspend(1)
    if not await manager.rebuild(LockspaceView(1, members, ())):
        raise BenchError("the lockspace was not rebuilt")
    manager.resume(1)
    return cache, manager


async def _locks(
    count: int, mesh: LinkMesh, members: tuple[PeerAddress, ...], nursery: trio.Nursery
) -> list[float]:
    cache, manager = await _lockspace(0, mesh, members, nursery)
    remote = [name for name in map(_name, range(4 * count + 64)) if not manager.master_is_local(name)]
    if len(remote) <= count:
        raise BenchError("the other process arbitrates too little")
    callouts, seconds = _Callouts(), []
    for name in remote[: count + 1]:  # the first one waits until the other has resumed too
        lock = cache.lock(name, callouts)
        await trio.lowlevel.checkpoint()
        began = time.perf_counter()
        await lock.hold(EX)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def _name(number: int) -> Resource:
    return Resource(INODE, number)


def _fail(error: BaseException) -> None:
    raise error
