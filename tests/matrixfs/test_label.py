"""Making a cluster disk (002-21): what refuses it, what is written, in which order, and every crash on the way."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess

import pytest
import trio

from matrixfs.blockstore import data_window, in_use, initialize_disk, prepare_disk, write_label
from matrixfs.blockstore.device.store import STORE_BYTES_MIN
from matrixfs.blockstore.in_use import describe, refuse_if_host_uses
from matrixfs.blockstore.initialize import new_identity
from membership.errors import CorruptRecord, DeviceError, OperatorError
from membership.label import (
    BALLOT_BLOCK,
    BLOCK_BYTES,
    DATA_BLOCK,
    DATABASE_BLOCK,
    DATABASE_SLOT_BLOCKS,
    DATABASE_SLOTS,
    DEFAULT_TIMING,
    HEARTBEAT_BLOCK,
    Label,
    read_label,
    timing_of,
)
from membership.seams import SectorDevice
from tests.contract.stores import directory_with_sectors, loop_device, make_file
from tests.sim.disk import SimDisk
from tests.sim.network import SimClock

SIZE = 16 << 20
LAST = SIZE // BLOCK_BYTES - 1


async def make(device: SectorDevice, name: str = "web", *, force: bool = False, seed: int = 1) -> Label:
    return await initialize_disk(device, name, DEFAULT_TIMING, random.Random(seed), SimClock(), force=force)


def filled(sector: int = 512) -> SimDisk:
    disk = SimDisk(SIZE, sector)
    for block in range(0, SIZE // BLOCK_BYTES, 64):
        disk.media._visible.write(block * BLOCK_BYTES, b"\xa5" * (64 * BLOCK_BYTES))
    disk.media._platter = disk.media._visible.copy()
    disk.mark()
    return disk


@pytest.mark.seed("002-21")
@pytest.mark.parametrize("sector", [512, 4096])
async def test_a_new_cluster_disk(sector: int, autojump_clock: trio.testing.MockClock) -> None:
    disk = filled(sector)
    made = await make(disk, force=True)
    disk.power_loss(mode="drop")  # all of it was safe when the call returned
    label = await read_label(disk)
    made.address = 0
    assert label == made
    assert (label.cluster_name, label.data_block, label.data_blocks) == ("web", DATA_BLOCK, LAST - DATA_BLOCK)
    assert len({label.owner, label.disk_uuid, label.cluster_key}) == 3
    assert len(label.cluster_key) == 32
    assert any(label.cluster_key)
    assert timing_of(label) == DEFAULT_TIMING
    assert not any(await disk.read(BLOCK_BYTES, (DATA_BLOCK - 1) * BLOCK_BYTES)), "an empty membership area"
    assert set(await disk.read(DATA_BLOCK * BLOCK_BYTES, label.data_blocks * BLOCK_BYTES)) == {0xA5}, "data left alone"
    window = data_window(disk, label)
    assert window.size_bytes == label.data_blocks * BLOCK_BYTES
    await window.write(0, b"d" * 4096)
    assert await disk.read(DATA_BLOCK * BLOCK_BYTES, 4096) == b"d" * 4096


async def test_the_copy_serves_when_the_first_is_damaged(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    made = await make(disk)
    disk.corrupt(100)
    label = await read_label(disk)
    assert (label.disk_uuid, label.address) == (made.disk_uuid, LAST)
    disk.corrupt(LAST * BLOCK_BYTES + 100)
    with pytest.raises(CorruptRecord, match="block 0"):
        await read_label(disk)
    with pytest.raises(OperatorError, match="--force overwrites it"):
        await make(disk)
    await make(disk, force=True)


@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear", "keep-all"])
async def test_every_crash_leaves_no_cluster_disk_or_a_whole_one(mode, autojump_clock: trio.testing.MockClock) -> None:
    """I2, over an old cluster: never the old label over a cleared area, never a new one over a half-cleared area."""
    disk = SimDisk(SIZE)
    old = await make(disk, "old", seed=1)
    await disk.write(HEARTBEAT_BLOCK * BLOCK_BYTES, b"h" * BLOCK_BYTES, durable=True)
    disk.mark()
    new = await make(disk, "new", force=True, seed=2)
    seen = set()
    for k in range(len(disk.log) + 1):
        image = disk.crash_image(k, mode, seed=k)
        slot = await image.read(HEARTBEAT_BLOCK * BLOCK_BYTES, BLOCK_BYTES)
        try:
            label = await read_label(image)
        except OperatorError:
            seen.add("none")
            continue
        seen.add(label.cluster_name)
        if label.cluster_name == "old":
            assert label.disk_uuid == old.disk_uuid
            assert any(slot)
        else:
            assert label.disk_uuid == new.disk_uuid
            assert not any(slot)
    assert seen == {"old", "none", "new"}


async def test_label_comes_after_what_it_vouches_for(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    label = await prepare_disk(disk, new_identity("web", DEFAULT_TIMING, random.Random(1)), SimClock())
    with pytest.raises(OperatorError, match="no MatrixFS cluster disk"):
        await read_label(disk)
    await data_window(disk, label).write(0, b"f" * 4096)  # not flushed by whoever formats
    await write_label(disk, label)
    disk.power_loss(mode="drop")
    assert (await read_label(disk)).disk_uuid == label.disk_uuid
    assert await data_window(disk, label).read(0, 4096) == b"f" * 4096


async def test_refusals_write_nothing(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    await make(disk, "old")
    disk.mark()
    with pytest.raises(OperatorError, match="the cluster 'old', made 2023-11-14 .* UTC; --force overwrites it"):
        await make(disk)
    for name in ("", "a b", "-x", "a/b", "ü", "x" * 65, "a\n"):
        with pytest.raises(OperatorError, match="is no cluster name"):
            await make(disk, name, force=True)
    foreign = filled()
    with pytest.raises(OperatorError, match="not blank"):
        await make(foreign)
    small = SimDisk((DATA_BLOCK + 1) * BLOCK_BYTES)
    with pytest.raises(OperatorError, match="too small"):
        await make(small, force=True)
    assert disk.log == foreign.log == small.log == []
    least = SimDisk(STORE_BYTES_MIN)
    assert (await make(least)).data_blocks == 1


async def test_a_live_node_is_never_overwritten(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    await make(disk)

    async def heartbeat() -> None:
        node = disk.port("n1")
        for counter in range(1000):
            await node.write((HEARTBEAT_BLOCK + 3) * BLOCK_BYTES, counter.to_bytes(8, "little") * 512, durable=True)
            await trio.sleep(DEFAULT_TIMING.renew)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat)
        await trio.sleep(1.1)
        with pytest.raises(OperatorError, match="a node is working on it now"):
            await make(disk, force=True)
        assert all(write.port == "n1" for write in disk.writes[-5:])
        nursery.cancel_scope.cancel()
    await make(disk, force=True)  # silent for two renewals


async def test_an_absurd_label_does_not_make_us_wait(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    label = await make(disk)
    label.renew_ms = 0xFFFFFFFF
    label.created_ns = (1 << 63) - 1
    await write_label(disk, label)
    begin = trio.current_time()
    await make(disk, force=True)
    assert trio.current_time() - begin <= 20
    label.created_ns = -(1 << 63)
    assert "web" in describe(label)


async def test_store_that_fails_on_the_way_is_no_cluster_disk(autojump_clock: trio.testing.MockClock) -> None:
    disk = SimDisk(SIZE)
    await make(disk, "old")
    disk.fail("write", 512 * BLOCK_BYTES, 512)
    with pytest.raises(DeviceError):
        await make(disk, force=True)
    disk.faults.clear()
    with pytest.raises(OperatorError, match="no MatrixFS cluster disk"):
        await read_label(disk)


@pytest.mark.parametrize("seed", range(200))
async def test_hostile_first_blocks(seed: int) -> None:
    """R11: whatever stands on the disk, read_label raises one of its named errors."""
    rng = random.Random(seed)
    image = bytearray(Label(cluster_name="web", owner=bytes(16)).encode())
    if seed % 3 == 0:
        image[:] = rng.randbytes(BLOCK_BYTES)
    for _ in range(rng.randrange(1, 20)):
        image[rng.randrange(BLOCK_BYTES)] = rng.randrange(256)
    disk = SimDisk(SIZE)
    await disk.write(0, bytes(image))
    with contextlib.suppress(OperatorError, CorruptRecord):  # bytes hit may have been the same
        await read_label(disk)


# -- what the host uses


def test_blank_file_is_free(tmp_path) -> None:
    refuse_if_host_uses(make_file(str(tmp_path / "f"), SIZE), force=False)


def test_foreign_signatures(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_file(str(tmp_path / "f"), SIZE)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    with pytest.raises(OperatorError, match=r"holds data of another kind \(ext4\); --force overwrites it"):
        refuse_if_host_uses(path, force=False)
    refuse_if_host_uses(path, force=True)
    monkeypatch.setattr(in_use.shutil, "which", lambda *_, **__: None)
    refuse_if_host_uses(path, force=False)  # then the check for zeros says it


def test_mounted_claimed_and_swap(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loop_device(make_file(str(tmp_path / "f"), SIZE), 512) as path:
        refuse_if_host_uses(path, force=True)
        fd = os.open(path, os.O_RDONLY | os.O_EXCL)
        try:
            with pytest.raises(OperatorError, match="in use by another driver"):
                refuse_if_host_uses(path, force=True)
        finally:
            os.close(fd)
        tables = tmp_path / "tables"
        monkeypatch.setattr(in_use, "_MOUNTS", str(tables))
        os.symlink(path, tmp_path / "by id")
        name = str(tmp_path / "by id").replace(" ", "\\040")
        tables.write_text(f"proc /proc proc rw 0 0\n{name} /mnt/a\\040b ext4 rw 0 0\n")
        with pytest.raises(OperatorError, match=r"is in use \(mounted on /mnt/a b\)"):
            refuse_if_host_uses(path, force=True)
        monkeypatch.setattr(in_use, "_MOUNTS", str(tmp_path / "none"))
        monkeypatch.setattr(in_use, "_SWAPS", str(tables))
        tables.write_text(f"Filename Type Size Used Priority\n{path} partition 1 0 -2\n")
        with pytest.raises(OperatorError, match=r"is in use \(swap\)"):
            refuse_if_host_uses(path, force=True)


def test_really_mounted(tmp_path) -> None:
    """The filesystem is unmounted from the tree lazily, so /proc/mounts is silent; the kernel's claim is not."""
    backing = make_file(str(tmp_path / "f"), 4 * SIZE)
    with loop_device(backing, 512) as path:
        subprocess.run(["mkfs.ext4", "-q", path], check=True)
        place = tmp_path / "m"
        place.mkdir()
        subprocess.run(["mount", "-t", "ext4", path, str(place)], check=True)
        try:
            with pytest.raises(OperatorError, match=f"mounted on {place}"):
                refuse_if_host_uses(path, force=True)
        finally:
            subprocess.run(["umount", str(place)], check=True)


async def test_on_a_real_file_with_4k_sectors(tmp_path) -> None:
    from matrixfs.blockstore import open_store
    from membership.clock import SystemClock, SystemRng

    with directory_with_sectors(make_file(str(tmp_path / "backing"), 4 * SIZE), 4096) as directory:
        device = open_store(make_file(f"{directory}/store", SIZE))
        made = await initialize_disk(device, "web", DEFAULT_TIMING, SystemRng(), SystemClock())
        assert (await read_label(device)).disk_uuid == made.disk_uuid
        await device.aclose()


def test_the_page_on_the_format_is_the_declaration() -> None:
    with open("docs/format/label.md", encoding="utf-8") as file:
        page = file.read()
    for name, field in Label.FIELDS.items():
        assert f"| {field.at} | {field.size} | `{name}` | {field.kind} | {field.doc} |" in page
    assert f"Magic `{Label.MAGIC.decode()}`, version {Label.VERSION}, {Label.SIZE} bytes" in page
    for first, last in [
        (BALLOT_BLOCK, HEARTBEAT_BLOCK - 1),
        (HEARTBEAT_BLOCK, DATABASE_BLOCK - 1),
        (DATABASE_BLOCK, DATABASE_BLOCK + DATABASE_SLOTS * DATABASE_SLOT_BLOCKS - 1),
    ]:
        assert f"| {first} .. {last} |" in page
    assert f"| {DATA_BLOCK} .. last-1 |" in page
    assert f"least store is {STORE_BYTES_MIN // BLOCK_BYTES} blocks" in page
