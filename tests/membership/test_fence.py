"""Fence drivers, on real processes: never the wrong one, never confirmed before the exit (002-31, 002-38)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import trio

from membership.clock import SystemClock
from membership.fence.lease import LeaseFence
from membership.fence.process import HostIdentity, ProcessFence, this_host, wait_exit
from membership.label import DEFAULT_TIMING
from membership.lease.records import HeartbeatSlot, MountProcess
from membership.presence import Landing
from membership.processes import process_start
from membership.san.fence import FenceResult, fence_target, is_gone
from tests.sim.network import SimClock

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def child():
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def mount():
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def slot(pid: int, start: int, *, boot: bytes | None = None, machine: bytes | None = None, mounts=()) -> HeartbeatSlot:
    host = this_host()
    made = HeartbeatSlot(
        owner=b"C" * 16, address=66, incarnation=1, counter=1, hears=0,
        boot_id=boot if boot is not None else host.boot_id,
        machine_id=machine if machine is not None else host.machine_id,
        flags=0, pid=pid, start_time=start, port=1, name="a", host="h",
        mount_pids=(), mount_starts=(), mount_incarnations=(),
    )  # fmt: skip
    made.set_mounts(mounts)
    return made


def process_fence(clock, store=__file__) -> ProcessFence:
    return ProcessFence(this_host(), clock, Landing(str(store), clock), lambda _pid, _start: None)


async def test_kills_matrixd_and_its_mounts_and_waits_for_both(child, mount):
    target = slot(child.pid, process_start(child.pid), mounts=(MountProcess(mount.pid, process_start(mount.pid), 5),))
    driver = process_fence(SystemClock())
    assert driver.is_gone(target) is False
    result = await driver.fence(target, 0.0)
    assert result == FenceResult(confirmed=True, driver="process", detail=f"killed {child.pid}, {mount.pid}")
    assert process_start(child.pid) is None  # zombies, for we are their parent: gone
    assert process_start(mount.pid) is None
    assert child.wait() == mount.wait() == -signal.SIGKILL
    assert driver.is_gone(target) is True


async def test_gone_counts_as_confirmed(child):
    target = slot(child.pid, process_start(child.pid))
    child.kill()
    child.wait()
    result = await process_fence(SystemClock()).fence(target, 0.0)
    assert (result.confirmed, result.detail) == (True, "its processes were gone")


async def test_a_reused_pid_is_never_killed(child):
    target = slot(child.pid, process_start(child.pid) - 1)
    driver = process_fence(SystemClock())
    assert driver.is_gone(target) is True
    assert (await driver.fence(target, 0.0)).confirmed
    assert child.poll() is None


async def test_another_boot_of_this_machine_is_gone_and_another_machine_is_unknown(child):
    driver = process_fence(SystemClock())
    rebooted = slot(child.pid, process_start(child.pid), boot=b"x" * 16)
    assert driver.is_gone(rebooted) is True
    assert (await driver.fence(rebooted, 0.0)).confirmed
    elsewhere = slot(child.pid, process_start(child.pid), boot=b"x" * 16, machine=b"y" * 16)
    assert driver.is_gone(elsewhere) is None
    assert not (await driver.fence(elsewhere, 0.0)).confirmed
    unknown = HostIdentity(b"b" * 16, b"", 1, 1)
    nobody_knows = ProcessFence(unknown, SystemClock(), Landing(__file__, SystemClock()), lambda _pid, _start: None)
    assert nobody_knows.is_gone(slot(1, 1, boot=b"x" * 16, machine=b"")) is None
    assert child.poll() is None


async def test_a_process_that_does_not_exit_is_not_confirmed(child, monkeypatch, autojump_clock):
    target = slot(child.pid, process_start(child.pid))
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda fd, number: None)
    result = await process_fence(SimClock()).fence(target, 0.0)
    assert not result.confirmed
    assert "did not exit" in result.detail


async def test_a_store_that_cant_be_asked_is_not_confirmed(child, tmp_path):
    """Nor does it end the matrixd that asks."""
    target = slot(child.pid, process_start(child.pid))
    child.kill()
    child.wait()
    result = await process_fence(SystemClock(), tmp_path / "gone").fence(target, 0.0)
    assert not result.confirmed
    assert "can't tell whether process" in result.detail


async def test_no_permission_is_not_confirmed(child, monkeypatch):
    def refuse(fd, number):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    result = await process_fence(SystemClock()).fence(slot(child.pid, process_start(child.pid)), 0.0)
    detail = "can't make sure: [Errno 1] Operation not permitted"
    assert result == FenceResult(confirmed=False, driver="process", detail=detail)


async def test_wait_exit(child):
    start = process_start(child.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_exit, child.pid, start)
        await trio.testing.wait_all_tasks_blocked()
        child.kill()
    child.wait()
    await wait_exit(child.pid, start)


async def test_lease_fence_waits_the_formula_of_r4(autojump_clock):
    driver = LeaseFence(DEFAULT_TIMING, SimClock())
    evicted_at = trio.current_time() - 1.0
    result = await driver.fence(slot(1, 1), evicted_at)
    assert result.confirmed
    assert trio.current_time() == pytest.approx(evicted_at + DEFAULT_TIMING.dead)
    assert driver.is_gone(slot(1, 1)) is None


async def test_drivers_are_tried_in_order_until_one_confirms():
    class Driver:
        def __init__(self, name: str, confirmed: bool, gone: bool | None) -> None:
            self.name, self.confirmed, self.gone, self.calls = name, confirmed, gone, 0

        def is_gone(self, target) -> bool | None:
            return self.gone

        async def fence(self, target, evicted_at: float) -> FenceResult:
            self.calls += 1
            return FenceResult(self.confirmed, self.name, f"{self.name} says")

    first, second, third = Driver("a", False, None), Driver("b", True, False), Driver("c", True, True)
    assert (await fence_target([first, second, third], slot(1, 1), 0.0)).driver == "b"
    assert third.calls == 0
    assert is_gone([first, second, third], slot(1, 1)) is False
    refused = await fence_target([first], slot(1, 1), 0.0)
    assert (refused.confirmed, refused.detail) == (False, "a: a says")
    assert "no fence driver" in (await fence_target([], slot(1, 1), 0.0)).detail


def test_this_host_knows_itself():
    host = this_host()
    assert host.pid == os.getpid()
    assert host.start_time == process_start(host.pid)
    assert len(host.boot_id) == 16
    assert process_start(2**22 + 1) is None


HOLDER = """
import os, sys
from membership import presence
presence.mark(os.open(sys.argv[1], os.O_RDWR))
if os.fork() == 0:  # keeps the open file, as a write in flight does
    print("marked", flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""


async def test_a_write_in_flight_holds_the_confirmation_back(tmp_path, autojump_clock):
    """The exit of a process proves nothing about its io_uring requests (R5; matrixfs/../test_uring_exit.py)."""
    store = tmp_path / "store"
    store.write_bytes(bytes(4096))
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, store], stdin=pipe, stdout=pipe) as process:  # noqa: ASYNC220
        assert process.stdout.readline() == b"marked\n"
        target = slot(process.pid, process_start(process.pid))
        process.kill()
        process.wait()
        first = await process_fence(SimClock(), store).fence(target, 0.0)
        assert not first.confirmed
        assert "in flight" in first.detail
        process.stdin.close()
        process.stdout.read()  # ends with the holder
        assert (await process_fence(SystemClock(), store).fence(target, 0.0)).confirmed
