"""A disk that vanishes and comes back, hangs, shrinks, or refuses: what an IscsiDevice makes of it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest
import trio
import trio.testing

from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.scsi import reservation_commands as pr
from matrixfs.blockstore.scsi.nexus import State
from matrixfs.blockstore.scsi.session import Session
from matrixfs.blockstore.scsi.status import SessionLost
from membership.errors import DeviceError, Fenced, OperatorError
from tests.san.conftest import device_on
from tests.san.lab import KINDS, MIB, Istgt, Target, san

Open = Callable[..., Awaitable[IscsiDevice]]
OLD, NEW, NEWER = b"o" * 4096, b"n" * 4096, b"N" * 4096


@pytest.fixture(params=KINDS)
def disk(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A target that the test may ill-treat."""
    with san(request.param, size=16 * MIB) as made:
        yield made


async def lost(device: IscsiDevice) -> None:
    """Until the device has noticed that its target is gone."""
    with trio.fail_after(20):
        while device.nexus.state is not State.OUTAGE:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.01)


async def back(device: IscsiDevice) -> None:
    with trio.fail_after(20):
        while device.nexus.state is not State.UP:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.01)


async def test_a_target_that_comes_back(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())
    await device.write(0, OLD, durable=True)
    disk.kill()
    found: list[bytes] = []

    async def reader() -> None:
        found.append(await device.read(0, 4096))

    async with trio.open_nursery() as nursery:
        for i in range(8):
            nursery.start_soon(partial(device.write, 8192 + i * 4096, NEW, durable=True))
        nursery.start_soon(reader)
        await lost(device)
        disk.start()
    assert found == [OLD]
    assert disk.read(0, 8192, 8 * 4096) == 8 * NEW
    assert device.nexus.reconnects == 1
    assert device.counters.errors == 0


async def test_a_target_that_hangs(disk: Target, opened: Open) -> None:
    """The timed-out write may have landed or not; after it was issued again nothing old comes behind it."""
    device = await opened(disk.url(), timeout=0.2)
    await device.write(0, OLD)
    disk.freeze()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(device.write, 0, NEW))
            await lost(device)
            assert disk.read(0, 0, 4096) == OLD
            disk.thaw()
    finally:
        disk.thaw()
    assert await device.read(0, 4096) == NEW
    assert device.statistics()["reissued"] >= 1
    for _ in range(20):
        await device.write(0, NEWER)
        await trio.sleep(0.01)
        assert disk.read(0, 0, 4096) == NEWER


async def test_the_guard_is_asked_before_each_issue(disk: Target, opened: Open) -> None:
    device = await opened(disk.url(), timeout=0.2)
    await device.write(0, OLD)
    asked: list[State] = []

    def guard() -> None:
        asked.append(device.nexus.state)
        if len(asked) > 1:
            raise Fenced("the right has ended")

    disk.kill()
    await lost(device)
    disk.start()
    await back(device)
    disk.freeze()
    try:
        with pytest.raises(Fenced, match="has ended"):
            await device.write(0, NEW, guard=guard)
    finally:
        disk.thaw()
    assert asked[0] is State.UP


async def test_an_outage_that_lasts(disk: Target, opened: Open) -> None:
    device = await opened(disk.url(), outage=0.3)
    await device.write(0, OLD)
    disk.kill()
    with pytest.raises(DeviceError, match="gone for 0.3 s") as gone:
        await device.write(0, NEW)
    assert gone.value.errno == errno.ETIMEDOUT
    with pytest.raises(DeviceError, match="gone for"):
        await device.read(0, 4096)
    disk.start()
    await back(device)
    assert await device.read(0, 4096) == OLD


async def test_a_cancelled_write_waits_for_its_old_session_to_be_ended(disk: Target, opened: Open) -> None:
    device = await opened(disk.url(), timeout=0.2)
    await device.write(0, OLD)
    disk.freeze()
    ended = trio.Event()

    async def writer(scope: trio.CancelScope) -> None:
        with scope:
            await device.write(0, NEW)
        ended.set()

    scope = trio.CancelScope()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer, scope)
            await lost(device)
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set(), "it may still land"
            disk.thaw()
    finally:
        disk.thaw()
    assert ended.is_set()
    assert scope.cancelled_caught
    assert device.nexus.state is State.UP
    await device.write(0, NEWER)
    assert await device.read(0, 4096) == NEWER


async def test_closing_in_an_outage_ends_the_wait(disk: Target) -> None:
    device = device_on(disk.url())
    await device.open()
    disk.kill()
    await lost(device)
    errors: list[DeviceError] = []

    async def writer() -> None:
        try:
            await device.write(0, NEW)
        except DeviceError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        await device.aclose()
    assert [error.errno for error in errors] == [errno.EBADF]


async def test_closing_when_it_hangs_ends_the_wait(disk: Target) -> None:
    device = device_on(disk.url(), timeout=0.2)
    await device.open()
    errors: list[DeviceError] = []

    async def writer() -> None:
        try:
            await device.write(0, NEW)
        except DeviceError as error:
            errors.append(error)

    disk.freeze()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            await trio.testing.wait_all_tasks_blocked()
            await device.aclose()
    finally:
        disk.thaw()
    assert [error.errno for error in errors] == [errno.EBADF]


async def test_a_disk_that_shrank_is_another_disk(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())
    disk.kill()
    with disk.luns[0].path.open("r+b") as file:
        file.truncate(8 * MIB)
    disk.start()
    for _ in range(2):
        with pytest.raises(DeviceError, match="shrunk to 8388608") as refused:
            await device.write(0, NEW)
        assert refused.value.errno == errno.ENXIO
    assert disk.read(0, 0, 4096) == bytes(4096)


async def test_a_disk_that_grew_is_the_same(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())
    disk.kill()
    with disk.luns[0].path.open("r+b") as file:
        file.truncate(32 * MIB)
    disk.start()
    await device.write(0, NEW)
    assert device.size_bytes == 16 * MIB


async def test_the_lun_is_gone(opened: Open) -> None:
    for kind in KINDS:
        with san(kind, luns=2, size=16 * MIB) as target:
            device = await opened(target.url(1), outage=3.0)
            target.kill()
            target.luns.pop()
            target.start()
            with pytest.raises(DeviceError, match="no such LUN"):
                await device.read(0, 4096)


async def test_the_owner_is_asked_before_anything_is_issued_again(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())
    order: list[str] = []

    async def on_reconnected(session: Session) -> None:
        assert pr.keys_untrusted(await session.command(pr.read_keys())).keys == ()
        await session.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xA))
        order.append("owner")

    device.nexus.on_reconnected = on_reconnected
    disk.kill()
    await lost(device)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(device.write, 0, NEW, guard=lambda: order.append("write")))
        await trio.testing.wait_all_tasks_blocked()
        order.clear()  # the guard is also asked while it waits
        disk.start()
    assert "owner" in order
    assert order[-1] == "write"
    assert pr.keys_untrusted(await device.command(pr.read_keys())).keys == (0xA,)


async def test_an_owner_who_is_not_admitted_any_more(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())

    async def on_reconnected(session: Session) -> None:
        raise Fenced("evicted meanwhile")

    device.nexus.on_reconnected = on_reconnected
    disk.restart()
    for _ in range(2):
        with pytest.raises(Fenced, match="evicted meanwhile"):
            await device.write(0, NEW)
    assert disk.read(0, 0, 4096) == bytes(4096)


async def test_an_owner_whose_session_is_lost_again(disk: Target, opened: Open) -> None:
    device = await opened(disk.url())
    attempts: list[Session] = []

    async def on_reconnected(session: Session) -> None:
        attempts.append(session)
        if len(attempts) < 3:
            raise SessionLost("again")

    device.nexus.on_reconnected = on_reconnected
    disk.restart()
    await device.write(0, NEW)
    assert len(attempts) == 3


async def reserve(device: IscsiDevice, key: int) -> None:
    await device.command(pr.reserve_out(pr.Action.REGISTER, 0, key))
    await device.command(pr.reserve_out(pr.Action.RESERVE, key, 0, pr.Type.WRITE_EXCLUSIVE_REGISTRANTS))


async def test_a_conflict_fences_for_good(disk: Target, opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    owner, stranger = await opened(disk.url()), await opened(disk.url())
    await stranger.write(0, OLD)
    await reserve(owner, 0xA)
    with pytest.raises(Fenced, match="RESERVATION CONFLICT"):
        await stranger.write(0, NEW)
    for call in (stranger.read(0, 4096), stranger.write(0, NEW), stranger.flush()):
        with pytest.raises(Fenced, match="RESERVATION CONFLICT"):
            await call
    assert stranger.nexus.state is State.FENCED
    assert await owner.read(0, 4096) == OLD
    await owner.write(0, NEWER)
    assert [each.levelno for each in caplog.records] == [logging.ERROR], "said once"


async def test_a_preempted_node_is_fenced(disk: Target, opened: Open) -> None:
    """tgt tells its victim at the next command, also a read; istgt lets it find out at its next write."""
    victim, winner = await opened(disk.url()), await opened(disk.url())
    await reserve(victim, 0xA)
    await winner.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xB))
    await winner.write(0, OLD)
    await winner.command(pr.reserve_out(pr.Action.PREEMPT, 0xB, 0xA, pr.Type.WRITE_EXCLUSIVE_REGISTRANTS))
    if isinstance(disk, Istgt):
        assert await victim.read(0, 4096) == OLD
        with pytest.raises(Fenced):
            await victim.write(0, NEW)
    else:
        with pytest.raises(Fenced, match="2A/03"):
            await victim.read(0, 4096)
    with pytest.raises(Fenced):
        await victim.read(0, 4096)
    await winner.write(0, NEWER)
    assert disk.read(0, 0, 4096) == NEWER


async def test_a_device_that_lost_its_registration_with_its_nexus(opened: Open) -> None:
    """tgt forgets who was registered when a session ends: without an owner who cares, its writes are refused."""
    with san("tgt", size=16 * MIB) as disk:
        other, device = await opened(disk.url()), await opened(disk.url(), timeout=0.2)
        await reserve(other, 0xA)
        await device.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xB))
        await device.write(0, OLD)
        session = await device.nexus.session()
        session.drop("a test")
        with pytest.raises(Fenced):
            await device.write(0, NEW)
        assert disk.read(0, 0, 4096) == OLD


async def test_refusals_of_open(disk: Target) -> None:
    with pytest.raises(OperatorError, match="nobody answers"):
        await device_on(disk.url().replace(str(disk.port), "1")).open()
    with pytest.raises(OperatorError, match="no such LUN"):
        await device_on(disk.url().rpartition("/")[0] + "/88").open()
    with pytest.raises(OperatorError, match="too small for a cluster disk"):
        await device_on(disk.url(), size_min=17 * MIB).open()


async def test_reading_only(disk: Target, opened: Open) -> None:
    device = await opened(disk.url(), read_only=True)
    assert await device.read(0, 4096) == bytes(4096)
    with pytest.raises(DeviceError, match="reading only"):
        await device.write(0, NEW)
