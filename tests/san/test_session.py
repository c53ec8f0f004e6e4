"""One login at a real target: what goes wrong at it, many commands at once, and its end."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from matrixfs.blockstore.scsi import answers, commands
from matrixfs.blockstore.scsi.address import identity_of, parse_address
from matrixfs.blockstore.scsi.libiscsi import Direction
from matrixfs.blockstore.scsi.session import DEPTH, LoginRefused, Session
from matrixfs.blockstore.scsi.session import _forget_at_close as forget_at_close
from matrixfs.blockstore.scsi.status import CheckCondition, Miscompare, NoSuchUnit, SessionLost
from membership.errors import DeviceError
from tests.san.lab import KINDS, MIB, Istgt, Target, san


@asynccontextmanager
async def login(url: str, identity: str = "a session", **options: float) -> AsyncIterator[Session]:
    session = await Session.login(parse_address(url, {}), identity_of(identity, "testhost", {}), **options)
    try:
        yield session
    finally:
        await session.aclose()


async def test_it_writes_and_reads(target: Target) -> None:
    async with login(target.url()) as session:
        await session.command(commands.write_one(8, b"x" * 1024, 512))
        assert await session.command(commands.read_one(8, 2, 512)) == b"x" * 1024
        assert target.read(0, 8 * 512, 1024) == b"x" * 1024
        found = answers.capacity_untrusted(await session.command(commands.read_capacity()))
        assert found.size_bytes == 64 * MIB
    with pytest.raises(SessionLost, match="closed"):
        await session.command(commands.test_unit_ready())


async def test_header_digests(target: Target) -> None:
    async with login(f"{target.url()}?header_digest=crc32c") as session:
        await session.command(commands.test_unit_ready())


async def test_more_at_once_than_go_at_once(target: Target) -> None:
    """Guards are asked at the hand-over: the last ones only after the first were answered."""
    answered: list[int] = []
    handed: list[int] = []
    async with login(target.url()) as session:
        await session.command(commands.test_unit_ready())  # has what the unit wants to tell us told
        memory = ctypes.create_string_buffer(4096)

        async def one(i: int) -> None:
            def guard() -> None:
                handed.append(len(answered))

            await session.transfer(
                "read", commands.read_16(i * 8, 8), Direction.READ, ctypes.addressof(memory), 4096, guard=guard
            )
            answered.append(i)

        async with trio.open_nursery() as nursery:
            for i in range(3 * DEPTH):
                nursery.start_soon(one, i)
    assert len(handed) == len(answered) == 3 * DEPTH
    assert handed[:DEPTH] == [0] * DEPTH
    assert all(handed[DEPTH:]), "asked only when there was room"


async def test_errors_of_the_unit_leave_the_session_alone(target: Target) -> None:
    async with login(target.url()) as session:
        with pytest.raises(CheckCondition):
            await session.command(commands.read_one(64 * MIB // 512, 1, 512))
        big = commands.write_one(64 * MIB // 512 - 8, bytes(MIB), 512)
        with pytest.raises(CheckCondition):  # refused with data still to be sent
            await session.command(big)
        await session.command(commands.write_one(0, bytes(MIB), 512))
        assert not session.ended.is_set()


async def test_compare_and_write(target: Target) -> None:
    async with login(target.url()) as session:
        await session.command(commands.write_one(0, b"1" * 512, 512))
        swap = commands.compare_and_write(0, b"1" * 512, b"2" * 512, 512)
        if isinstance(target, Istgt):
            await session.command(swap)
            with pytest.raises(Miscompare):
                await session.command(swap)
        else:
            with pytest.raises(CheckCondition) as refused:
                await session.command(swap)
            assert refused.value.unsupported


async def test_task_management(target: Target) -> None:
    async with login(target.url()) as session:
        await session.abort_task_set()
        await session.lun_reset()
        await session.command(commands.test_unit_ready())


async def test_nobody_listens(target: Target) -> None:
    url = target.url().replace(str(target.port), "1")
    with pytest.raises(DeviceError, match="nobody answers at 127.0.0.1:1"):
        await Session.login(parse_address(url, {}), identity_of("x", "y", {}))


async def test_no_such_host(target: Target) -> None:
    url = target.url().replace("127.0.0.1", "host.invalid")
    with pytest.raises(DeviceError, match="no host 'host.invalid'"):
        await Session.login(parse_address(url, {}), identity_of("x", "y", {}))


async def test_no_such_target(target: Target) -> None:
    with pytest.raises(LoginRefused, match="login refused"):
        await Session.login(parse_address(target.url().replace("lab:san", "lab:no"), {}), identity_of("x", "y", {}))


async def test_no_such_lun(target: Target) -> None:
    async with login(target.url().rpartition("/")[0] + "/77") as session:
        with pytest.raises(NoSuchUnit, match="no such LUN"):
            await session.command(commands.test_unit_ready())


async def test_a_target_that_hangs_at_the_login(target: Target) -> None:
    target.freeze()
    try:
        with pytest.raises(DeviceError, match="doesn't answer"):
            await Session.login(parse_address(target.url(), {}), identity_of("x", "y", {}), login_timeout=0.2)
    finally:
        target.thaw()


async def test_an_idle_session_notices_its_end() -> None:
    with san("tgt") as target:
        async with login(target.url()) as session:
            target.kill()
            await session.ended.wait()
            assert "broken" in session.reason


async def test_a_timed_out_write_is_not_a_failed_write() -> None:
    """Why a session ends at a time-out, and why nothing is told to have failed before its successor stands."""
    with san("tgt") as target:
        async with login(target.url(), timeout=0.2) as session:
            await session.command(commands.write_one(100, b"a" * 512, 512))
            target.freeze()
            try:
                with pytest.raises(SessionLost):
                    await session.command(commands.write_one(100, b"b" * 512, 512))
                assert target.read(0, 100 * 512, 1) == b"a"
            finally:
                target.thaw()
            with trio.fail_after(10):
                while target.read(0, 100 * 512, 1) != b"b":  # noqa: ASYNC110 - another process's file
                    await trio.sleep(0.01)


async def test_a_process_that_stood_still_reads_before_it_judges(target: Target) -> None:
    async with login(target.url(), timeout=0.3) as session:
        await session.command(commands.test_unit_ready())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.command, commands.read_one(0, 1, 512))
            await trio.testing.wait_all_tasks_blocked()
            time.sleep(0.6)  # noqa: ASYNC251 - all of us, as under SIGSTOP
        await session.command(commands.test_unit_ready())


def test_nothing_is_sent_after_the_end() -> None:
    """A closed connection is reset: what was not sent is forgotten, and the other end learns of it at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        there, _ = server.accept()
        with there:
            forget_at_close(client.fileno())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(bytes(MIB))
            client.close()
            with pytest.raises(ConnectionResetError):
                while there.recv(MIB):
                    pass


async def test_reinstatement() -> None:
    """By RFC 7143 6.3.5 the same initiator port ends its old session; istgt does, tgt does not (see scsi/nexus.py)."""
    with san("istgt") as target:
        async with login(target.url(), "same") as old, login(target.url(), "other") as other:
            async with login(target.url(), "same") as new:
                await new.command(commands.test_unit_ready())
                with pytest.raises(SessionLost):
                    await old.command(commands.test_unit_ready())
                await other.command(commands.test_unit_ready())


@pytest.fixture(scope="module", params=KINDS)
def guarded_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with san(request.param, chap=("joe", "a long secret")) as made:
        yield made


async def test_chap(guarded_target: Target) -> None:
    async with login(guarded_target.url(credentials="joe%a long secret@")) as session:
        await session.command(commands.test_unit_ready())


@pytest.mark.parametrize("credentials", ["", "joe%another secret@", "ann%a long secret@"])
async def test_wrong_chap(guarded_target: Target, credentials: str) -> None:
    url = guarded_target.url(credentials=credentials)
    with pytest.raises(DeviceError) as refused:
        await Session.login(parse_address(url, {}), identity_of("x", "y", {}))
    assert isinstance(refused.value, LoginRefused)
    assert "secret" not in str(refused.value)
