"""A cluster that is fenced by the reservations of its LUN: real daemons and mounts, each with its own nexus (tgt).

Each node is a machine of its own, so nobody can kill another's processes, and the lease is longer than the test may
take: what fences within it is the LUN.  A node that wakes up still believes in its lease, so its writes leave it, and
only the LUN refuses them.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from matrixfs.blockstore.scsi.address import identity_of, parse_address
from matrixfs.blockstore.scsi.probe_nexus import IscsiProbeNexus
from membership.fence.keys import CLAIMANT, node_of
from membership.label import BLOCK_BYTES, Label
from membership.lease.records import slot_block
from tests.mount.conftest import Tree
from tests.mount.guard import guarded
from tests.mount.lab import LabNode, is_settled, wait_gone, wait_until
from tests.net.lab import NetLab
from tests.net.machine import Machine, share
from tests.net.watch import data_digest
from tests.net.work import Load, wait_recovered
from tests.san.lab import MIB, Target, san

TEST_SECONDS = 200  # for a broken product; less than the lease
LEASE_MS = 300_000
NODES = 3
REFUSED = re.compile("took its registration away|RESERVATION CONFLICT|registration is gone")


class SanLab(NetLab):
    """Nodes of their own boot and initiator names on this machine's loopback, and a LUN that fences."""

    def __init__(self, directory: Path, target: Target) -> None:
        super().__init__(directory, nodes=NODES, name="san")
        self.target = target
        self.store, self.size = target.url(), ()  # type: ignore[assignment]
        for number, node in enumerate(self.nodes, 1):
            node.address = f"127.0.0.{number}"

    def open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        share(self.directory)
        for node in self.nodes:
            self._machines[node.name] = Machine(self.directory, node.name, own=True, net=False)

    def format(self, *options: str) -> None:
        super().format(*options)
        lengthen_lease(self.target.luns[0].path)

    def inside(self, node: LabNode, *command: str | Path) -> list[str]:
        initiator = f"MATRIXFS_INITIATOR=iqn.2026-11.lab:{node.name}"
        return super().inside(node, "env", initiator, *command)

    def fences(self, node: LabNode) -> list[tuple[str, str, bool]]:
        """(name, driver, confirmed) of what a node fenced as administrator."""
        return [(each["name"], each["driver"], each["confirmed"]) for each in self.status(node)["fences"]]

    def events(self, node: LabNode) -> str:
        return "\n".join(event["text"] for event in self.status(node)["events"])

    def keys(self) -> list[int | None]:
        """To which nodes the registrations on the LUN belong, sorted."""

        async def read() -> list[int]:
            who = identity_of("looks at keys", "test", {})
            nexus = await IscsiProbeNexus.open(parse_address(str(self.store), {}), who)
            try:
                return await nexus.read_keys()
            finally:
                await nexus.aclose()

        return sorted(node_of(key) or 0 for key in trio.run(read))

    def slot(self, number: int) -> bytes:
        """The heartbeat slot of a node as it is on the disk."""
        return self.target.read(0, slot_block(number) * BLOCK_BYTES, BLOCK_BYTES)


def lengthen_lease(path: Path) -> None:
    last = path.stat().st_size // BLOCK_BYTES - 1
    with path.open("r+b") as file:
        for block in (last, 0):
            file.seek(block * BLOCK_BYTES)
            label = Label.decode_untrusted(file.read(BLOCK_BYTES), "label", address=block)
            assert label.pr_kind
            label.lease_ms = LEASE_MS
            file.seek(block * BLOCK_BYTES)
            file.write(label.encode())


@pytest.fixture(scope="module")
def lab() -> Iterator[SanLab]:
    directory = Path(f"/var/tmp/mfs-tests-pr-{os.getpid()}")
    with san("tgt", size=256 * MIB) as target, guarded(directory) as ear:
        ear.write(f"{TEST_SECONDS}\n")
        ear.flush()
        lab = SanLab(directory, target)
        try:
            lab.up()
            yield lab
        finally:
            lab.remove()


def number_of(lab: SanLab, node: LabNode) -> int:
    return next(each["id"] for each in lab.status(lab.nodes[0])["nodes"] if each["name"] == node.name)


@pytest.mark.seed("002-22", "002-31", "002-38")
def test_each_process_is_registered(lab: SanLab) -> None:
    numbers = [number_of(lab, node) for node in lab.nodes]
    assert lab.keys() == sorted(2 * numbers)
    for number, node in zip(numbers, lab.nodes, strict=True):
        assert f"registered as node {number} with {lab.store}" in lab.events(node)


@pytest.mark.seed("002-31")
def test_the_key_of_a_dead_mount_is_taken_away(lab: SanLab) -> None:
    """Its matrixd lives and does that; then its journal is replayed by another, and what it had synced is there."""
    victim, *others = lab.nodes
    number = number_of(lab, victim)
    with (victim.mountpoint / "synced").open("wb") as file:
        file.write(b"synced" * 1000)
        os.fsync(file.fileno())
    mount = victim.mount_pid
    os.kill(mount, signal.SIGKILL)
    wait_gone([mount])
    wait_until(lambda: is_settled(lab, victim, others), "the others have recovered")
    assert (others[0].mountpoint / "synced").read_bytes() == b"synced" * 1000
    assert "was taken away on iscsi://" in lab.events(victim)
    assert lab.keys().count(number) == 1
    assert [lab.fences(node) for node in lab.nodes] == [[], [], []]
    lab.detach(victim)
    lab.mount(victim)
    assert lab.keys().count(number) == 2
    wait_until(lambda: is_settled(lab, victim, lab.nodes), "it is mounted again")


@pytest.mark.seed("002-22", "002-31", "002-38")
def test_a_frozen_node_is_fenced_by_the_lun_and_refused_when_it_wakes_up(lab: SanLab, tmp_path: Path) -> None:
    tree = Tree(lab, "frozen")
    tree.a.mkdir()
    victim = lab.nodes[2]
    survivors = lab.nodes[:2]
    number, mount = number_of(lab, victim), victim.mount_pid
    load = Load(tree, tmp_path, survivors, [victim])
    with load.running():
        lab.freeze(victim, "stop")
        wait_recovered(lab, survivors)
        load.wait_progress()
        load.stop()
        fences = [fence for node in survivors for fence in lab.fences(node)]
        assert fences == [(victim.name, "scsi-pr", True)]
        assert number not in lab.keys()  # noqa: SIM118
        load.check_acknowledged(survivors)
        for node in survivors:
            lab.umount(node)
        before, slot = data_digest(lab.target.luns[0].path), lab.slot(number)
        lab.thaw()
        lab.wait_end(victim, mount)
        load.wait_failed()
    assert (data_digest(lab.target.luns[0].path), lab.slot(number)) == (before, slot)
    for log in (victim.state / "matrixd.log", *victim.state.glob("mount*.log")):
        assert REFUSED.search(log.read_text()), log
    lab.start(victim)
    lab.mount_all(lab.nodes)
    load.check_acknowledged(lab.nodes)
    assert lab.keys().count(number) == 2


def test_who_repairs_locks_everybody_out(lab: SanLab) -> None:
    """The last that left keeps the LUN locked (A4); fsck takes it over, and so does the next matrixd."""
    lab.down()
    assert len(lab.keys()) == 1
    checked = lab.fsck("-y")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert lab.keys() == [CLAIMANT]
    lab.start(lab.nodes[0])
    lab.mount(lab.nodes[0])
    (lab.nodes[0].mountpoint / "after").write_bytes(b"1")
    lab.down()
