"""What an IscsiDevice sends: how writes become durable, how long ones are cut, and what mkfs asks it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from matrixfs.blockstore import open_store, opened_store
from matrixfs.blockstore.device.iscsi import IscsiDevice
from matrixfs.blockstore.scsi import commands
from matrixfs.blockstore.scsi import reservation_commands as pr
from matrixfs.blockstore.scsi.answers import BlockLimits, Caching
from matrixfs.blockstore.scsi.session import Session
from matrixfs.cli.storage import clear_reservations
from membership.clock import SystemRng
from membership.errors import DeviceError, Fenced, OperatorError
from tests.san.lab import MIB, Istgt, Target, Tgt

Open = Callable[..., Awaitable[IscsiDevice]]
FUA = 0x08


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Descriptor blocks, in the order in which they were asked for."""
    seen: list[bytes] = []
    transfer = Session.transfer

    async def spy(self: Session, name: str, cdb: bytes, *rest: object, **options: object) -> None:
        seen.append(cdb)
        await transfer(self, name, cdb, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "transfer", spy)
    return seen


def pretend(device: IscsiDevice, **changes: object) -> None:
    device._caching = Caching(**changes)  # type: ignore[arg-type]


async def test_what_the_targets_say_of_their_caches(target: Target, opened: Open) -> None:
    device = await opened(target.url())
    has_fua = not isinstance(target, Istgt)
    assert device.nexus.unit.caching == Caching(write_cache=True, fua=has_fua, write_protected=False)
    assert device.nexus.unit.name
    assert device.nexus.unit.maker


async def test_a_target_that_mixes_up_answers_gets_one_command_at_a_time(target: Target, opened: Open) -> None:
    device = await opened(target.url())
    session = await device.nexus.session()
    under_way: list[int] = []

    class Watched(dict[int, Any]):
        def __setitem__(self, key: int, value: object) -> None:
            super().__setitem__(key, value)
            under_way.append(len(self))

    session._operations = Watched(session._operations)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(device.read, 0, 4096)
    assert len(under_way) == 8
    assert max(under_way) == 1 if isinstance(target, Istgt) else max(under_way) > 1


async def test_it_is_measured_again(target: Target, opened: Open) -> None:
    device = await opened(target.url())
    assert await device.measure() == device.size_bytes


@pytest.mark.parametrize(
    ("write_cache", "fua", "expected"),
    [
        (True, True, [(commands.WRITE_16, FUA)]),
        (True, False, [(commands.WRITE_16, 0), (commands.SYNCHRONIZE_CACHE_16, 0)]),
        (False, True, [(commands.WRITE_16, 0)]),
        (False, False, [(commands.WRITE_16, 0)]),
    ],
)
async def test_a_durable_write(
    target: Target, opened: Open, sent: list[bytes], write_cache: bool, fua: bool, expected: list[tuple[int, int]]
) -> None:
    device = await opened(target.url())
    pretend(device, write_cache=write_cache, fua=fua, write_protected=False)
    sent.clear()
    await device.write(4096, b"d" * 4096, durable=True)
    assert [(cdb[0], cdb[1]) for cdb in sent] == expected
    assert [cdb[2:14] for cdb in sent] == [(8).to_bytes(8, "big") + (8).to_bytes(4, "big")] * len(expected)
    sent.clear()
    await device.write(4096, b"p" * 4096)
    assert [(cdb[0], cdb[1]) for cdb in sent] == [(commands.WRITE_16, 0)]
    sent.clear()
    await device.flush()
    assert [cdb[0] for cdb in sent] == [commands.SYNCHRONIZE_CACHE_16] * write_cache
    counters = device.counters
    assert (counters.writes, counters.durable_writes, counters.flushes, counters.bytes_written) == (2, 1, 1, 8192)


async def test_caution_while_the_question_is_forbidden(target: Target, opened: Open, sent: list[bytes]) -> None:
    """A node opens its store before it is registered: MODE SENSE is refused to it then, and asked again later."""
    owner = await opened(target.url())
    await owner.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xA))
    await owner.command(pr.reserve_out(pr.Action.RESERVE, 0xA, 0, pr.Type.WRITE_EXCLUSIVE_REGISTRANTS))
    try:
        device = await opened(target.url())
        assert device.nexus.unit.caching is None
        assert await device.read(0, 4096) is not None
        await device.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xB))
        sent.clear()
        await device.write(0, bytes(4096), durable=True)
        await device.write(0, bytes(4096), durable=True)
        write = [commands.WRITE_16, *([commands.SYNCHRONIZE_CACHE_16] if isinstance(target, Istgt) else [])]
        assert [cdb[0] for cdb in sent] == [0x1A, *write, *write]
    finally:
        await clear_reservations(owner, SystemRng())


async def test_long_transfers_are_cut(target: Target, opened: Open, sent: list[bytes]) -> None:
    device = await opened(target.url())
    sent.clear()
    await device.write(0, bytes(2 * MIB + 4096))
    assert sorted(int.from_bytes(cdb[10:14], "big") for cdb in sent) == [8, 2048, 2048]


async def test_the_targets_limit_is_kept(
    target: Target, opened: Open, sent: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matrixfs.blockstore.scsi.answers.block_limits_untrusted", lambda _: BlockLimits(16, 0))
    device = await opened(target.url())
    sent.clear()
    data = bytes(range(256)) * 96  # 24 KiB
    await device.write(0, data)
    assert [int.from_bytes(cdb[10:14], "big") for cdb in sent] == [16, 16, 16]
    assert await device.read(0, len(data)) == data


async def test_a_part_that_fails_fails_the_whole(target: Target, opened: Open) -> None:
    device = await opened(target.url())
    asked: list[int] = []

    def guard() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise DeviceError("no more")

    with pytest.raises(DeviceError, match="no more"):
        await device.write(0, bytes(3 * MIB), guard=guard)
    await device.write(0, bytes(3 * MIB))


async def test_stores_by_url(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    unused = open_store(target.url())
    unused.close_unused()
    with pytest.raises(DeviceError, match="is closed"):
        await unused.open()
    store = await opened_store(target.url(), identity="a test", host="n1")
    assert store.name == target.url()
    await store.open()
    await store.aclose()
    with pytest.raises(OperatorError, match="is no address of a LUN"):
        open_store("iscsi://nonsense")
    with pytest.raises(OperatorError, match="no such LUN"):
        await opened_store(target.url().rpartition("/")[0] + "/99")


async def test_one_identity_on_two_luns_of_a_target(target: Target) -> None:
    """A node has three membership disks, or two clusters: their sessions must not throw each other out."""
    stores = [await opened_store(target.url(i), identity="matrixd", host="n1") for i in (0, 1)]
    for _ in range(2):
        for store in stores:
            assert len(await store.read(0, 4096)) == 4096
    assert [store.statistics()["reconnects"] for store in stores] == [0, 0]
    for store in stores:
        await store.aclose()


async def test_keys_are_a_sign_of_use(target: Target, opened: Open) -> None:
    user, device = await opened(target.url(2)), await opened(target.url(2))
    assert not await device.refuse_if_used(force=False)
    await user.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xA))
    await user.command(pr.reserve_out(pr.Action.RESERVE, 0xA, 0, pr.Type.WRITE_EXCLUSIVE_REGISTRANTS))
    with pytest.raises(OperatorError, match="1 reservation keys are registered"):
        await device.refuse_if_used(force=False)
    assert await device.refuse_if_used(force=True)
    await clear_reservations(device, SystemRng())
    assert not await device.refuse_if_used(force=False)
    await device.write(0, bytes(4096))
    assert pr.reservation_untrusted(await device.command(pr.read_reservation())) is None


def mkfs(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "mkfs.matrixfs"
    return subprocess.run([program, "-n", "san", *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("mkfs.matrixfs", "-n", "x"), 2),
        (("fsck.matrixfs", "-n"), 8),
        (("matrixd", "--address", "127.0.0.1", "--store"), 2),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_commands_say_what_is_wrong(target: Target, tmp_path: Path, command: tuple[str, ...], code: int) -> None:
    state = ["--state", str(tmp_path)] if command[0] == "matrixd" else []
    program = Path(sys.executable).parent / command[0]
    wrong = {
        target.url().replace(str(target.port), "1"): "nobody answers at 127.0.0.1:1",
        target.url().replace("lab:san", "lab:other"): "login refused",
        f"{target.url()}7": "no such LUN",
        "iscsi://joe%secret@host": "iscsi.env" if state else "is no address of a LUN",
    }
    for url, said in wrong.items():
        done = subprocess.run([program, *command[1:], url, *state], check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert said in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert "secret" not in done.stderr


async def test_mkfs_on_a_disk_whose_cluster_died(target: Target, opened: Open) -> None:
    dead = await opened(target.url(1))
    await dead.command(pr.reserve_out(pr.Action.REGISTER, 0, 0xA))
    await dead.command(pr.reserve_out(pr.Action.RESERVE, 0xA, 0, pr.Type.WRITE_EXCLUSIVE_REGISTRANTS))
    refused = await trio.to_thread.run_sync(mkfs, target.url(1))
    assert refused.returncode == 2
    assert "1 reservation keys are registered on it" in refused.stderr
    made = await trio.to_thread.run_sync(mkfs, "--force", target.url(1))
    assert (made.returncode, made.stderr) == (0, "")
    assert f"matrixd --daemon --store {target.url(1)}" in made.stdout
    fences = "by reservations (registrants only, preempt and LUN reset)"
    fences_not = "by lease time: its reservations stop nobody for certain (its list of keys is wrong after a preempt"
    assert f"  fencing   {fences_not if isinstance(target, Istgt) else fences}" in made.stdout
    with pytest.raises(Fenced) if not isinstance(target, Istgt) else contextlib.nullcontext():
        await dead.read(0, 4096)  # tgt tells who was registered


async def test_a_unit_that_says_so_is_told_what_nobody_needs(
    target: Target, opened: Open, sent: list[bytes]
) -> None:
    device = await opened(target.url(2))
    with pytest.raises(DeviceError, match="takes no UNMAP") as caught:
        await device.discard(0, MIB)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert not [cdb for cdb in sent if cdb[0] == commands.UNMAP]
    if not isinstance(target, Tgt):
        return
    target.make_thin(2)
    device = await opened(target.url(2))
    unit = device.nexus.unit
    assert unit.unmaps
    assert unit.limits.unmap_blocks_max
    await device.write(0, b"x" * 4 * MIB, durable=True)
    few = dataclasses.replace(unit, limits=dataclasses.replace(unit.limits, unmap_blocks_max=1024))
    device.nexus._unit = few
    before = target.luns[2].path.stat().st_blocks
    await device.discard(MIB, 2 * MIB)
    assert before - target.luns[2].path.stat().st_blocks == 2 * MIB // 512
    assert len([cdb for cdb in sent if cdb[0] == commands.UNMAP]) == 2 * MIB // device.sector_bytes // 1024
    assert await device.read(0, 4 * MIB) == b"x" * MIB + bytes(2 * MIB) + b"x" * MIB
    with pytest.raises(Fenced):
        await device.discard(0, MIB, guard=_refuse)
    assert await device.read(0, MIB) == b"x" * MIB


def _refuse() -> None:
    raise Fenced("a test")
