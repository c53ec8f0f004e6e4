"""The device contract on every device there is, with 512- and 4096-byte sectors (R13, style.md 3.17)."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import trio

from matrixfs.blockstore import FencingGate, Window, open_store
from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.file import FileDevice
from membership.clock import SystemClock
from membership.errors import DeviceError, Fenced
from tests.contract.device import CHECKS, MIB, Subject, pattern
from tests.contract.stores import directory_with_sectors, loop_device, make_file
from tests.sim.disk import SimDisk

SIZE = 16 * MIB


@pytest.fixture(scope="module", params=[512, 4096])
def sector_bytes(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def block_path(sector_bytes: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    backing = make_file(str(tmp_path_factory.mktemp("block") / "backing"), SIZE)
    with loop_device(backing, sector_bytes) as path:
        yield path


@pytest.fixture(scope="module")
def file_path(sector_bytes: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    backing = make_file(str(tmp_path_factory.mktemp("file") / "backing"), 4 * SIZE)
    with directory_with_sectors(backing, sector_bytes) as directory:
        yield make_file(f"{directory}/store", SIZE)


Maker = Callable[[pytest.FixtureRequest, int], Subject]


def on_file(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    path = request.getfixturevalue("file_path")
    device = open_store(path)
    assert isinstance(device, FileDevice)
    return Subject(device, lambda: open_store(path))


def on_block(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    path = request.getfixturevalue("block_path")
    device = open_store(path)
    assert isinstance(device, BlockDevice)
    return Subject(device, lambda: open_store(path))


def on_window(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    disk = SimDisk(SIZE, sector_bytes)
    return Subject(Window(disk, MIB, 9 * MIB), lambda: Window(disk, MIB, 9 * MIB))


def on_gate(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    path = request.getfixturevalue("block_path")

    def gate() -> FencingGate:
        made = FencingGate(open_store(path), SystemClock())
        made.extend(math.inf, 1)
        return made

    return Subject(gate(), gate, (DeviceError, Fenced))


def on_sim(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    disk = SimDisk(SIZE, sector_bytes)
    return Subject(disk, lambda: disk.port("other"))


def on_sim_port(request: pytest.FixtureRequest, sector_bytes: int) -> Subject:
    disk = SimDisk(SIZE, sector_bytes)
    return Subject(disk.port("a"), lambda: disk.port("b"))


KINDS: dict[str, tuple[Maker, str]] = {
    "file-uring": (on_file, "uring"),
    "file-threads": (on_file, "threads"),
    "block-uring": (on_block, "uring"),
    "block-threads": (on_block, "threads"),
    "gate": (on_gate, ""),
    "window": (on_window, ""),
    "sim": (on_sim, ""),
    "sim-port": (on_sim_port, ""),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
async def test_contract(
    check: Callable[[Subject], Awaitable[None]],
    kind: str,
    sector_bytes: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, engine = KINDS[kind]
    monkeypatch.setenv("MATRIXFS_IO", engine)
    subject = make(request, sector_bytes)
    assert subject.device.sector_bytes == sector_bytes
    try:
        await check(subject)
    finally:
        await subject.device.aclose()


# --- discard, where there is one -----------------------------------------------------------------------------------


def taken(path: str) -> int:
    """Bytes that a file takes."""
    return os.stat(path).st_blocks * 512


@pytest.mark.parametrize("kind", ["file", "block"])
async def test_a_discard_gives_space_back(kind: str, sector_bytes: int, tmp_path: Path) -> None:
    backing = make_file(str(tmp_path / "backing"), SIZE)
    with loop_device(backing, sector_bytes) if kind == "block" else nullcontext(backing) as path:
        gate = FencingGate(open_store(path), SystemClock())
        gate.extend(math.inf, 1)
        data = pattern(1, 8 * MIB)
        await gate.write(0, data, durable=True)
        await gate.flush()
        before = taken(backing)
        await gate.discard(2 * MIB, 4 * MIB)
        await gate.flush()
        assert before - taken(backing) == 4 * MIB
        assert await gate.read(0, 8 * MIB) == data[: 2 * MIB] + bytes(4 * MIB) + data[6 * MIB :]
        with pytest.raises(DeviceError, match="outside"):
            await gate.discard(SIZE - MIB, 2 * MIB)
        gate.fence("a test")
        with pytest.raises(Fenced):
            await gate.discard(0, MIB)
        await gate.aclose()
        assert before - taken(backing) == 4 * MIB


async def test_a_discard_that_is_cancelled_is_over(tmp_path: Path) -> None:
    """D3."""
    path = make_file(str(tmp_path / "store"), SIZE)
    device = open_store(path)
    await device.write(0, pattern(1, 8 * MIB), durable=True)
    before = taken(path)
    with trio.CancelScope() as scope:
        scope.cancel()
        await device.discard(0, MIB)
    assert before == taken(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.discard, MIB, 4 * MIB)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert taken(path) in {before, before - 4 * MIB}
    await device.discard(0, 8 * MIB, guard=lambda: None)
    with pytest.raises(Fenced):
        await device.discard(8 * MIB, MIB, guard=_refuse)
    counters = device.statistics()
    assert counters["discards"] in {1, 2}
    await device.aclose()


def _refuse() -> None:
    raise Fenced("a test")
