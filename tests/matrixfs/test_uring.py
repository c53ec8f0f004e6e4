"""The engines and the direct device: batching, back-pressure, cancellation, short I/O, closing, refusals (R13)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest
import trio

from matrixfs.blockstore.device import choice, uring
from matrixfs.blockstore.device.buffers import RETAINED_BYTES, SLAB_BYTES, TRANSFER_BYTES_MAX, BufferPool
from matrixfs.blockstore.device.choice import make_engine
from matrixfs.blockstore.device.direct import DirectDevice
from matrixfs.blockstore.device.engine import Engine, Kind, Operation
from matrixfs.blockstore.device.store import open_store
from matrixfs.blockstore.device.threads import THREADS, perform
from membership.errors import DeviceError, Fenced, OperatorError
from tests.contract.stores import make_file

SIZE = 32 << 20
ENGINES = pytest.mark.parametrize("engine", ["uring", "threads"])


@pytest.fixture
def store(tmp_path) -> str:
    return make_file(str(tmp_path / "store"), SIZE)


class ScriptedEngine(Engine):
    """Does operations in this thread when told to; ``script`` may replace results, ``limits`` acceptance."""

    kind = "scripted"

    def __init__(self, capacity: int = 100) -> None:
        super().__init__(capacity)
        self.script: list[int | None] = []
        self.limits: list[int] = []
        self.started: list[Operation] = []
        self.hold = False

    def _start(self, operations: Sequence[Operation]) -> int:
        accepted = min(len(operations), self.limits.pop(0)) if self.limits else len(operations)
        self.started.extend(operations[:accepted])
        if not self.hold:
            self._wake()
        return accepted

    def release(self) -> None:
        self.hold = False
        self._wake()

    def _collect(self) -> Iterator[Operation]:
        while self.started:
            operation = self.started.pop(0)
            scripted = self.script.pop(0) if self.script else None
            if scripted is not None and scripted > 0:
                whole = operation.view
                operation.view = whole[: scripted - scripted % 512]
                perform(operation)
                operation.view, operation.result = whole, scripted
            else:
                operation.result = perform(operation) if scripted is None else scripted
            yield operation

    def _shut(self) -> None:
        pass


def scripted(store: str, monkeypatch: pytest.MonkeyPatch, capacity: int = 100) -> tuple[DirectDevice, ScriptedEngine]:
    engine = ScriptedEngine(capacity)
    monkeypatch.setattr(choice, "make_engine", lambda: engine)
    return open_store(store), engine


@ENGINES
async def test_descriptor_is_direct(store: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXFS_IO", engine)
    device = open_store(store)
    assert fcntl.fcntl(device._fd, fcntl.F_GETFL) & os.O_DIRECT
    await device.write(0, bytes(4096))
    assert device.statistics()["engine"] == {"uring": "io_uring"}.get(engine, engine)
    await device.aclose()


@ENGINES
async def test_one_hand_over_per_tick_and_shared_by_devices(
    store: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIXFS_IO", engine)
    one, two = open_store(store), open_store(store)
    await one.read(0, 512)
    before = one.statistics()
    async with trio.open_nursery() as nursery:
        for i in range(THREADS // 2):
            nursery.start_soon(one.read, i * 4096, 4096)
            nursery.start_soon(two.read, i * 4096, 4096)
    after = two.statistics()
    assert int(after["operations"]) - int(before["operations"]) == THREADS
    assert int(after["submits"]) - int(before["submits"]) == 1
    assert one._engine is two._engine
    await one.aclose()
    assert len(await two.read(0, 512)) == 512
    await two.aclose()


@ENGINES
async def test_far_more_operations_than_the_rings_hold(
    store: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIXFS_IO", engine)
    device = open_store(store)
    finished = []

    async def worker(i: int) -> None:
        assert await device.read(i * 512, 512) == bytes(512)
        finished.append(i)

    async with trio.open_nursery() as nursery:
        for i in range(3 * uring.COMPLETIONS):
            nursery.start_soon(worker, i)
    assert len(finished) == 3 * uring.COMPLETIONS
    assert device.statistics()["in_flight"] == 0
    await device.aclose()


async def test_a_long_request_is_one_batch(store: str) -> None:
    device = open_store(store)
    await device.read(0, 512)
    before = device.statistics()
    data = os.urandom(5 * TRANSFER_BYTES_MAX + 512)
    await device.write(512, data)
    after = device.statistics()
    assert int(after["operations"]) - int(before["operations"]) == 6
    assert int(after["submits"]) - int(before["submits"]) == 1
    assert await device.read(512, len(data)) == data
    await device.aclose()


@ENGINES
async def test_callers_memory_is_free_at_the_first_checkpoint(
    store: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATRIXFS_IO", engine)
    device = open_store(store)
    memory = mmap.mmap(-1, 2 * TRANSFER_BYTES_MAX)
    memory[:] = data = os.urandom(len(memory))
    async with trio.open_nursery() as nursery:
        with memoryview(memory) as view:
            nursery.start_soon(device.write, 0, view)
            while not device.statistics().get("queued"):
                await trio.lowlevel.checkpoint()
                if device.statistics().get("in_flight"):
                    break
            view[:] = bytes(len(view))
    memory.close()
    assert await device.read(0, len(data)) == data
    await device.aclose()


async def test_kernel_short_of_memory(
    store: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """EAGAIN from io_uring_enter: what was not taken is rewound and tried again, after a rest, nothing lost."""
    device = open_store(store)
    await device.read(0, 512)
    assert isinstance(device._engine, uring.UringEngine)
    ring = device._engine._ring
    real, answers = uring._call, [0, 0, 0, 3, 0, 0]

    def call(number: int, *arguments: object) -> int:
        if number == uring._ENTER and answers:
            take = answers.pop(0)
            if take == 0:
                raise OSError(errno.EAGAIN, "again")
            tail = ring._words[ring._sq_tail]
            count = arguments[1].value
            ring._words[ring._sq_tail] = tail - count + take
            return real(number, arguments[0], type(arguments[1])(take), *arguments[2:])
        return real(number, *arguments)

    monkeypatch.setattr(uring, "_call", call)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(device.write, i * 512, bytes([i]) * 512)
    assert not answers
    assert trio.current_time() - begin >= 0.003, "no busy loop: it rested while nothing was in flight"
    assert await device.read(0, 20 * 512) == b"".join(bytes([i]) * 512 for i in range(20))
    await device.aclose()


async def test_short_transfers_are_continued(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, engine = scripted(store, monkeypatch)
    data = os.urandom(8192)
    engine.script = [-errno.EINTR, 512, 1024 + 7, -errno.EAGAIN, 4096]
    await device.write(4096, data)
    assert not engine.script
    engine.script = [512] * 16
    await device.write(4096, data)
    engine.script = [512, 4096 + 3]
    assert await device.read(4096, 8192) == data
    await device.aclose()


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        ([-errno.EIO], errno.EIO, "write of 4096 bytes at 8192 failed: Input/output error"),
        ([-errno.ENOSPC], errno.ENOSPC, "No space left"),
        ([512, -errno.EREMOTEIO], errno.EREMOTEIO, "write of 3584 bytes at 8704"),
        ([0], errno.EIO, "did the store shrink"),
        ([511], errno.EIO, "did the store shrink"),
        ([-errno.EAGAIN] * 16, errno.EAGAIN, "temporarily"),
    ],
)
async def test_failures_are_device_errors(
    store: str, monkeypatch: pytest.MonkeyPatch, script: list[int | None], code: int, text: str
) -> None:
    device, engine = scripted(store, monkeypatch)
    engine.script = script
    with pytest.raises(DeviceError, match=text) as caught:
        await device.write(8192, bytes(4096))
    assert caught.value.errno == code
    assert device.name in str(caught.value)
    assert device.counters.errors == 1
    assert device.counters.writes == 0
    await device.write(8192, bytes(4096))
    await device.aclose()


async def test_store_that_shrank(store: str) -> None:
    device = open_store(store)
    os.truncate(store, SIZE // 2)
    with pytest.raises(DeviceError, match="did the store shrink"):
        await device.read(SIZE - 4096, 4096)
    await device.aclose()


@pytest.mark.seed("002-22")
async def test_guard_is_asked_at_hand_over(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R3: an operation that waited behind others is refused when the right has gone meanwhile."""
    device, engine = scripted(store, monkeypatch, capacity=1)
    engine.hold = True
    allowed = True

    def guard() -> None:
        if not allowed:
            raise Fenced("lease over")

    async def second() -> None:
        with pytest.raises(Fenced):
            await device.write(4096, b"s" * 4096, guard=guard)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"f" * 4096)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        assert device.statistics()["queued"] == 1
        allowed = False
        engine.release()
    assert await device.read(0, 8192) == b"f" * 4096 + bytes(4096)
    await device.aclose()


@ENGINES
async def test_refused_at_hand_over_wakes_the_caller(store: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else happens in the process, so only the engine can wake trio."""
    monkeypatch.setenv("MATRIXFS_IO", engine)
    device = open_store(store)

    def refuse() -> None:
        raise Fenced("no")

    with pytest.raises(Fenced):
        await device.read(0, 512, guard=refuse)
    with pytest.raises(Fenced):
        await device.write(0, bytes(512), guard=refuse)
    with pytest.raises(Fenced):
        await device.flush(guard=refuse)
    await device.aclose()


async def test_cancelled_in_the_queue_is_withdrawn(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, engine = scripted(store, monkeypatch, capacity=1)
    engine.hold = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"f" * 4096)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await device.write(4096, b"s" * 4096)
        assert scope.cancelled_caught
        assert device.statistics()["queued"] == 0
        engine.release()
    assert await device.read(0, 8192) == b"f" * 4096 + bytes(4096)
    await device.aclose()


async def test_cancelled_in_flight_waits_and_keeps_its_buffer(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, engine = scripted(store, monkeypatch)
    engine.hold = True
    over = False

    async def write() -> None:
        nonlocal over
        await device.write(0, b"w" * 4096)
        over = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert not over
            assert engine.buffers.retained_bytes == SLAB_BYTES - 4096
            engine.release()
    assert over, "what is done is not reported as cancelled"
    assert engine.buffers.retained_bytes == SLAB_BYTES
    assert await device.read(0, 4096) == b"w" * 4096
    await device.aclose()


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def test_close_keeps_the_descriptor_until_the_last_operation(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, engine = scripted(store, monkeypatch)
    engine.hold = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"w" * 4096)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await device.aclose()
        assert scope.cancelled_caught
        os.fstat(device._fd)  # still ours
        with pytest.raises(DeviceError, match="closed"):
            await device.read(0, 512)
        engine.release()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(device._fd)
    assert engine.closed
    await device.aclose()


@ENGINES
def test_nothing_leaks(store: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATRIXFS_IO", engine)

    async def use(close: bool) -> None:
        device = open_store(store)
        await device.write(0, bytes(TRANSFER_BYTES_MAX))
        await device.flush()
        if close:
            await device.aclose()
        else:
            os.close(device._fd)  # the run ends with the engine in use: it ends itself

    trio.run(use, True)
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for close in (True, False, True):
        trio.run(use, close)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


def test_own_bug_ends_the_run_instead_of_hanging_it(store: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BUG, store], capture_output=True, text=True, timeout=60, check=False, env=_environment()
    )
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr


_BUG = """
import os, sys, threading, trio
from matrixfs.blockstore.device.store import open_store
def guard(): raise ZeroDivisionError
async def use():
    await open_store(sys.argv[1]).read(0, 512, guard=guard)
sys.excepthook = lambda *e: (sys.__excepthook__(*e), os._exit(1))
trio.run(use)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd()}


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_falls_back_to_threads(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = uring._call

    def call(number: int, *arguments: object) -> int:
        if number == uring._SETUP:
            raise OSError(code, os.strerror(code))
        return real(number, *arguments)

    monkeypatch.setattr(uring, "_call", call)
    monkeypatch.delenv("MATRIXFS_IO", raising=False)
    descriptors = len(os.listdir("/proc/self/fd"))
    engine = make_engine()
    assert engine.kind == "threads"
    engine._shut()
    os.close(engine._wake_fd)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    monkeypatch.setenv("MATRIXFS_IO", "uring")
    with pytest.raises(OperatorError, match="refuses io_uring"):
        make_engine()
    monkeypatch.setenv("MATRIXFS_IO", "libaio")
    with pytest.raises(OperatorError, match="uring or threads"):
        make_engine()


def test_kernel_without_the_operations_we_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uring._OPCODE, Kind.FLUSH, 63)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no operation 63"):
        uring.UringEngine()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_pool_is_aligned_and_bounded() -> None:
    pool = BufferPool()
    lengths = {1: 4096, 512: 4096, 4096: 4096, 4097: 16384, 65536: 65536, 65537: 262144, 1 << 20: TRANSFER_BYTES_MAX}
    buffers = [pool.take(length) for length in lengths]
    assert [buffer.size for buffer in buffers] == list(lengths.values())
    used: list[tuple[int, int]] = []
    for i, buffer in enumerate(buffers):
        assert buffer.address % mmap.PAGESIZE == 0
        assert ctypes.addressof(ctypes.c_char.from_buffer(buffer.view)) == buffer.address
        buffer.view[:] = bytes([i + 1]) * buffer.size
        used.append((buffer.address, buffer.address + buffer.size))
    used.sort()
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(used)), "no two overlap"
    assert all(set(buffer.view[:16]) == {i + 1} for i, buffer in enumerate(buffers))
    for buffer in buffers:
        pool.give(buffer)
    assert pool.take(8000) is buffers[3]
    many = [pool.take(TRANSFER_BYTES_MAX) for _ in range(2 * RETAINED_BYTES // TRANSFER_BYTES_MAX)]
    for buffer in many:
        pool.give(buffer)
    assert pool.retained_bytes <= RETAINED_BYTES
    pool.drain()
    assert pool.retained_bytes == 0


def test_no_buffer_is_inherited_by_a_child() -> None:
    buffer = BufferPool().take(4096)
    buffer.view[:4] = b"mine"
    inside, flags = False, []
    with open("/proc/self/smaps", encoding="ascii") as file:
        for line in file:
            if area := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                inside = int(area[1], 16) <= buffer.address < int(area[2], 16)
            elif inside and line.startswith("VmFlags:"):
                flags = line.split()
    assert "dc" in flags, "don't copy on fork"
