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

from membership.fence.keys import CLAIMANT
from tests.mount.conftest import Tree
from tests.mount.guard import guarded
from tests.mount.lab import LabNode, is_settled, wait_gone, wait_until
from tests.net.watch import data_digest
from tests.net.work import Load, wait_recovered
from tests.san.cluster import SanLab
from tests.san.lab import MIB, san

TEST_SECONDS = 200  # for a broken product; less than the lease
LEASE_MS = 300_000
REFUSED = re.compile("took its registration away|RESERVATION CONFLICT|registration is gone")


@pytest.fixture(scope="module")
def lab() -> Iterator[SanLab]:
    directory = Path(f"/var/tmp/mfs-tests-pr-{os.getpid()}")
    with san("tgt", luns=2, size=256 * MIB) as target, guarded(directory) as ear:
        ear.write(f"{TEST_SECONDS}\n")
        ear.flush()
        lab = SanLab(directory, target, LEASE_MS)
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
    assert lab.registered() == sorted(2 * numbers)
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
    assert lab.registered().count(number) == 1
    assert [lab.fences(node) for node in lab.nodes] == [[], [], []]
    lab.detach(victim)
    lab.mount(victim)
    assert lab.registered().count(number) == 2
    wait_until(lambda: is_settled(lab, victim, lab.nodes), "it is mounted again")


@pytest.mark.seed("002-25", "002-31")
def test_a_disk_that_is_added_is_registered_with(lab: SanLab) -> None:
    """By every matrixd, before its node says that it has it; a mount has nothing to do with it."""
    matrixctl = ("matrixctl", "--state", lab.nodes[0].state, "disk")
    said = lab.run(*matrixctl, "add", "second", lab.target.url(1)).stdout
    assert "nodes are fenced by reservations (registrants only, preempt and LUN reset)" in said
    assert lab.registered(1) == sorted(number_of(lab, node) for node in lab.nodes)
    assert all("second is iscsi://" in lab.events(node) for node in lab.nodes)


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
        assert fences == [(victim.name, "scsi-pr", "2 keys taken away on 2 LUN(s)")]
        assert number not in lab.registered() + lab.registered(1)
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
    assert (lab.registered().count(number), lab.registered(1).count(number)) == (2, 1)


@pytest.mark.seed("002-25")
def test_a_disk_that_is_removed_is_open_to_all(lab: SanLab) -> None:
    lab.run("matrixctl", "--state", lab.nodes[0].state, "disk", "remove", "second")
    assert lab.registered(1) == []
    lab.run("mkfs.matrixfs", "-n", "another", lab.target.url(1))
    assert lab.registered() == sorted(2 * [number_of(lab, node) for node in lab.nodes])


def test_who_repairs_locks_everybody_out(lab: SanLab) -> None:
    """The last that left keeps the LUN locked (A4); fsck takes it over, and so does the next matrixd."""
    lab.down()
    assert len(lab.registered()) == 1
    checked = lab.fsck("-y")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert lab.registered() == [CLAIMANT]
    lab.start(lab.nodes[0])
    lab.mount(lab.nodes[0])
    (lab.nodes[0].mountpoint / "after").write_bytes(b"1")
    lab.down()
