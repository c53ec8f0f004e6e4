"""The device contract on every device there is, with 512- and 4096-byte sectors (R13, style.md 3.17)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator

import pytest

from matrixfs.blockstore import FencingGate, Window, open_store
from matrixfs.blockstore.device.block import BlockDevice
from matrixfs.blockstore.device.file import FileDevice
from membership.clock import SystemClock
from membership.errors import DeviceError, Fenced
from tests.contract.device import CHECKS, MIB, Subject
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
