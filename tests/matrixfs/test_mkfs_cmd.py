"""``mkfs.matrixfs`` as people meet it: what it prints, refuses and leaves behind (issue 2: commands, bad input)."""

from __future__ import annotations

import errno
import os
import random
import re
import shlex

import pytest
import trio
from click.testing import CliRunner, Result

from matrixfs.blockstore import data_window, open_store
from matrixfs.cli import fsck_cmd, mkfs_cmd
from matrixfs.cli.mkfs_cmd import Request, main, make, parse_size
from matrixfs.ondisk.superblock import Superblock
from membership.clock import SystemClock
from membership.errors import DeviceError, OperatorError
from membership.label import BLOCK_BYTES, HEARTBEAT_BLOCK, Label, read_label
from membership.seams import Clock, Rng, SectorDevice
from tests.contract.stores import loop_device, make_file

MIB = 1 << 20
SIZE = 64 * MIB


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="mkfs.matrixfs")


def refused(*arguments: str) -> str:
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    line = done.stderr.removesuffix("\n")
    assert line.startswith("mkfs.matrixfs: ")
    assert "\n" not in line
    return line


def label_of(path: str) -> Label:
    async def look() -> Label:
        device = open_store(path)
        try:
            return await read_label(device)
        finally:
            await device.aclose()

    return trio.run(look)


def superblock_of(path: str) -> Superblock:
    async def look() -> Superblock:
        device = open_store(path)
        try:
            window = data_window(device, await read_label(device))
            return Superblock.decode_untrusted(await window.read(0, BLOCK_BYTES), "superblock")
        finally:
            await device.aclose()

    return trio.run(look)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.seed("002-21")
def test_a_file_becomes_a_cluster_disk(tmp_path) -> None:
    store = str(tmp_path / "a store")
    done = run("-n", "web", "--size", "64M", "-j", "3", "--journal-size", "1M", store)
    assert done.exit_code == 0, done.output
    label, superblock = label_of(store), superblock_of(store)
    assert (label.cluster_name, superblock.name) == ("web", "web")
    assert (superblock.journals, superblock.journal_blocks) == (3, 256)
    assert superblock.owner.hex() in done.stdout.replace("-", "")
    assert label.owner.hex() in done.stdout.replace("-", "")
    assert "size      64.0 MiB" in done.stdout
    assert "journals  3 of 1.0 MiB" in done.stdout
    assert "quotas    none" in done.stdout
    assert "fencing   by lease time (only a LUN has reservations)" in done.stdout
    assert shlex.split(done.stdout.splitlines()[-1])[:4] == ["matrixd", "--daemon", "--store", store]
    assert label.cluster_key.hex() not in done.stdout
    assert os.stat(store).st_mode & 0o777 == 0o600, "the label holds the cluster's key"
    assert os.stat(store).st_blocks * 512 < SIZE // 2, "sparse"


def test_quotas_are_asked_for(tmp_path) -> None:
    store = str(tmp_path / "store")
    done = run("-n", "web", "--size", "64M", "--quota", store)
    assert "quotas    counted" in done.stdout
    assert superblock_of(store).has_quotas
    assert fsck_cmd.run(["-n", store]) == 0


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_block_device_becomes_a_cluster_disk(tmp_path, sector: int) -> None:
    with loop_device(make_file(str(tmp_path / "backing"), SIZE), sector) as path:
        assert run("-n", "web", path).exit_code == 0
        assert label_of(path).cluster_name == "web"
        assert superblock_of(path).name == "web"
        assert "leave --size out" in refused("-n", "web", "-f", "--size", "1G", path)


def test_only_a_disk_with_reservations_can_be_vouched_for(tmp_path) -> None:
    with loop_device(make_file(str(tmp_path / "backing"), SIZE), 512) as path:
        before = content(path)
        assert "is for SCSI, multipath and NVMe disks" in refused("-n", "web", "--trust-reservations", path)
        assert content(path) == before
    store = tmp_path / "store"
    assert "is for SCSI" in refused("-n", "web", "--size", "64M", "--trust-reservations", str(store))
    assert not store.exists()


def test_force_overwrites_a_cluster_nobody_uses(tmp_path) -> None:
    store = str(tmp_path / "store")
    assert run("-n", "old", "--size", "64M", store).exit_code == 0
    before = content(store)
    line = refused("-n", "new", store)
    assert "the cluster 'old', made" in line
    assert "--force overwrites it" in line
    assert content(store) == before
    assert run("-n", "new", "--force", store).exit_code == 0
    assert label_of(store).cluster_name == "new"


def test_a_live_node_stops_force(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = str(tmp_path / "store")
    assert run("-n", "old", "--size", "64M", store).exit_code == 0
    with open(store, "r+b") as file:

        class NodeWhileWeWait(SystemClock):
            async def sleep(self, seconds: float) -> None:
                file.seek(HEARTBEAT_BLOCK * BLOCK_BYTES)
                file.write(b"counter")
                file.flush()
                os.fsync(file.fileno())

        with pytest.raises(OperatorError, match="stop matrixd on all nodes first"):
            make(Request(store, "new", force=True), _never, NodeWhileWeWait(), random.Random(1))
    assert label_of(store).cluster_name == "old"


def test_a_process_of_this_host_stops_force(tmp_path) -> None:
    """Also a stopped one, whose heartbeat does not move."""
    store = make_file(str(tmp_path / "store"), SIZE)
    device = open_store(store)
    assert f"process {os.getpid()} has it open" in refused("-n", "web", "--force", store)
    device.close_unused()
    assert run("-n", "web", store).exit_code == 0


async def _never(
    device: SectorDevice, *, name: str, journals: int, journal_blocks: int | None, clock: Clock, rng: Rng
) -> Superblock:
    raise AssertionError("formatted in spite of a refusal")


def test_bad_stores_are_one_line(tmp_path) -> None:
    assert "does not exist" in refused("-n", "web", str(tmp_path / "nothing"))
    assert "is a directory" in refused("-n", "web", str(tmp_path))
    assert "neither" in refused("-n", "web", "/dev/null")
    assert "too small" in refused("-n", "web", make_file(str(tmp_path / "small"), MIB))
    assert "larger store" in refused("-n", "web", make_file(str(tmp_path / "tight"), 5 * MIB))
    assert "no cluster name" in refused("-n", "a b", make_file(str(tmp_path / "f"), SIZE))
    assert "journals" in refused("-n", "web", "-j", "0", str(tmp_path / "f"))
    assert "journals" in refused("-n", "web", "-j", "65", str(tmp_path / "f"))
    assert "journals" in refused("-n", "web", "--journal-size", "60M", str(tmp_path / "f"))
    assert "leave --size out" in refused("-n", "web", "--size", "32M", str(tmp_path / "f"))
    assert not any(content(str(tmp_path / "f")))


def test_foreign_data_needs_force(tmp_path) -> None:
    store = make_file(str(tmp_path / "f"), SIZE)
    with open(store, "r+b") as file:
        file.seek(MIB - 1)
        file.write(b"x")
    assert "not blank" in refused("-n", "web", store)
    assert run("-n", "web", "-f", store).exit_code == 0


def test_refusal_leaves_no_new_file_and_no_new_size(tmp_path) -> None:
    store = str(tmp_path / "store")
    refused("-n", "web", "--size", "5M", store)
    refused("-n", "a b", "--size", "64M", store)
    assert not os.path.exists(store)
    assert "No such file" in refused("-n", "web", "--size", "64M", f"{store}/x/y")
    assert run("-n", "old", "--size", "64M", store).exit_code == 0
    refused("-n", "new", "--size", "128M", store)
    assert os.path.getsize(store) == SIZE
    assert run("-n", "new", "-f", "--size", "128M", store).exit_code == 0
    assert os.path.getsize(store) == 2 * SIZE
    assert label_of(store).data_blocks == 2 * SIZE // BLOCK_BYTES - 1024 - 1


def test_no_space_is_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(mkfs_cmd.os, "truncate", full)
    store = str(tmp_path / "store")
    assert "No space left" in refused("-n", "web", "--size", "64M", store)
    assert not os.path.exists(store)


def test_failure_on_the_way_leaves_no_cluster_disk(tmp_path) -> None:
    async def fails(
        device: SectorDevice,
        *,
        name: str,
        journals: int,
        journal_blocks: int | None,
        clock: Clock,
        rng: Rng,
        quotas: bool = False,
    ) -> Superblock:
        await device.write(0, bytes(4096))
        raise DeviceError(f"{device.name}: write failed")

    store = str(tmp_path / "store")
    assert run("-n", "old", "--size", "64M", store).exit_code == 0
    with pytest.raises(DeviceError):
        make(Request(store, "new", force=True), fails, SystemClock(), random.Random(1))
    with pytest.raises(OperatorError, match="no MatrixFS cluster disk"):
        label_of(store)
    other = str(tmp_path / "other")
    with pytest.raises(DeviceError):
        make(Request(other, "new", size=SIZE), fails, SystemClock(), random.Random(1))
    assert not os.path.exists(other)


def test_device_errors_have_their_exit_code(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DeviceError("disk: write of 4096 bytes at 0 failed: Input/output error")

    monkeypatch.setattr(mkfs_cmd, "make", fail)
    done = run("-n", "web", str(tmp_path / "store"))
    assert done.exit_code == 4
    assert done.stderr == "mkfs.matrixfs: disk: write of 4096 bytes at 0 failed: Input/output error\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("5000", 4096), ("64k", 65536), ("1M", MIB), ("2G", 2 << 30), ("1T", 1 << 40), ("3GiB", 3 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "4095", "-1M", "1.5G", "M", "1P", "9" * 40, "9" * 18 + "T", "1 M"])
def test_no_sizes(text: str, tmp_path) -> None:
    done = run("-n", "web", f"--size={text}", str(tmp_path / "x"))
    assert done.exit_code == 2
    assert "is no size; write for example" in done.stderr
    assert not os.path.exists(tmp_path / "x")


def test_names_with_escapes_are_not_sent_to_the_terminal(tmp_path) -> None:
    line = refused("-n", "web", str(tmp_path / "\x1b[31mred"))
    assert "\x1b" not in line


def test_help_and_version() -> None:
    assert re.search(r"--journals", run("--help").stdout)
    assert run("--version").exit_code == 0
    assert run("store").exit_code == 2
