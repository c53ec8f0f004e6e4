"""A disk lock on the control socket: what is said and when, how it ends, and that its end gives it up (002-24)."""

from __future__ import annotations

import os
import select
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from membership import control_stream
from membership.control_ask import hold
from membership.control_disk_locks import NOT_FREE
from membership.control_wire import error_of_untrusted
from membership.errors import Fenced, MatrixError, OperatorError, PeerError
from membership.san.disk_lock_agent import DiskLockGranted, DiskLockLost, DiskLockQueued, DiskLockRefused
from tests.membership.test_control import LABEL, World, serving

pytestmark = pytest.mark.seed("002-24")

REQUEST = {"kind": "disk-lock", "disk": "d1", "exclusive": True, "wait": True, "command": "rsync", "pid": 7}


class FakeLocks:
    """NodeDiskLocks, told by the test what happens."""

    def __init__(self) -> None:
        self.asked_for: list[tuple] = []
        self.told, self._events = trio.open_memory_channel(10)
        self.wanted, self.given_up = trio.Event(), trio.Event()

    @contextmanager
    def asked(self, disk: str, owner: str, *, exclusive: bool, wait: bool):
        if disk != "d1":
            raise OperatorError("no disk of the cluster is called 'd9'")
        self.asked_for.append((disk, owner, exclusive, wait))
        self.wanted.set()
        try:
            yield self._events
        finally:
            self.given_up.set()


@asynccontextmanager
async def locking(path: Path):
    async with serving(path) as world:
        world.node.disk_locks = FakeLocks()
        yield world, world.node.disk_locks


async def request(world: World, **fields: object) -> control_stream.FrameStream:
    stream = await control_stream.connect(os.path.join(world.state, "matrixd.sock"))
    await stream.send({**REQUEST, **fields})
    return stream


async def test_waiting_held_lost(tmp_path: Path) -> None:
    async with locking(tmp_path) as (world, locks):
        stream = await request(world)
        locks.told.send_nowait(DiskLockQueued(1, "the disk is held by n2"))
        assert await stream.receive() == {"kind": "waiting", "reason": "the disk is held by n2"}
        locks.told.send_nowait(DiskLockGranted(1))
        assert await stream.receive() == {"kind": "result", "value": {"grace": LABEL.margin_ms / 2000}}
        assert not locks.given_up.is_set()
        locks.told.send_nowait(DiskLockLost(1, "evicted"))
        error = error_of_untrusted(await stream.receive())
        assert (type(error), str(error)) == (Fenced, "evicted")
        assert await stream.receive() is None
        await locks.given_up.wait()
        assert locks.asked_for == [("d1", "rsync, process 7 on n3", True, True)]
        stream.close()


async def test_the_end_of_the_connection_gives_it_up(tmp_path: Path) -> None:
    async with locking(tmp_path) as (world, locks):
        stream = await request(world, command="x" * 300, exclusive=False)
        await locks.wanted.wait()
        stream.close()
        await locks.given_up.wait()
        assert locks.asked_for == [("d1", "x" * 100 + ", process 7 on n3", False, True)]


async def test_a_refusal_is_an_error_with_its_own_exit_code(tmp_path: Path) -> None:
    async with locking(tmp_path) as (world, locks):
        locks.told.send_nowait(DiskLockRefused(1, "the disk is held by n2"))
        with pytest.raises(OperatorError, match="held by n2") as caught:
            await world.ask(**{**REQUEST, "wait": False})
        assert caught.value.exit_code == NOT_FREE
        assert locks.asked_for[0][-1] is False
        with pytest.raises(OperatorError, match="called 'd9'"):
            await world.ask(**{**REQUEST, "disk": "d9"})


async def test_a_matrixd_that_ends_says_so_first(tmp_path: Path) -> None:
    """The node tells its locks that they are lost and is cancelled in the same moment."""
    async with trio.open_nursery() as nursery:
        async with locking(tmp_path) as (world, locks):
            stream = await request(world)
            locks.told.send_nowait(DiskLockGranted(1))
            assert (await stream.receive())["kind"] == "result"
            await trio.testing.wait_all_tasks_blocked()
            locks.told.send_nowait(DiskLockLost(1, "matrixd left"))
        error = error_of_untrusted(await stream.receive())
        assert (type(error), str(error)) == (Fenced, "matrixd left")
        stream.close()
        nursery.cancel_scope.cancel()


async def test_hold_tells_who_stands_against_it_and_why_it_ended(tmp_path: Path) -> None:
    reasons: list[str] = []

    def client(state: str) -> tuple[object, str]:
        with hold(state, REQUEST, 60, reasons.append) as held:
            trio.from_thread.run_sync(locks.told.send_nowait, DiskLockLost(1, "evicted"))
            select.select([held], [], [])
            return held.value, held.why_ended()

    async with locking(tmp_path) as (world, locks):
        locks.told.send_nowait(DiskLockQueued(1, "the disk is held by n2"))
        locks.told.send_nowait(DiskLockGranted(1))
        assert await trio.to_thread.run_sync(client, world.state) == ({"grace": 0.5}, "evicted")
        assert reasons == ["the disk is held by n2"]


async def test_a_wait_has_one_limit_though_it_hears_of_it(tmp_path: Path) -> None:
    def client(state: str) -> None:
        with pytest.raises(TimeoutError), hold(state, REQUEST, 0.05):
            pytest.fail("nobody granted it")

    async with locking(tmp_path) as (world, locks):
        locks.told.send_nowait(DiskLockQueued(1, "the disk is held by n2"))
        await trio.to_thread.run_sync(client, world.state)
        await locks.given_up.wait()


@pytest.mark.parametrize(
    "wrong",
    [{"disk": 5}, {"exclusive": 1}, {"wait": None}, {"command": b"x"}, {"pid": -1}, {"pid": 1 << 40}, {"disk": None}],
)
async def test_nonsense_ends_that_connection_only(tmp_path: Path, wrong: dict) -> None:
    async with locking(tmp_path) as (world, locks):
        with pytest.raises(PeerError):
            await world.ask(**{**REQUEST, **wrong})
        assert locks.asked_for == []
        with pytest.raises(MatrixError, match="d9"):
            await world.ask(**{**REQUEST, "disk": "d9"})
