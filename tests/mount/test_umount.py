"""Coming and going: mount(8) and umount(8) as people use them, and what is on the store when umount has returned."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from matrixfs.fuse import registry
from membership.label import BLOCK_BYTES, HEARTBEAT_BLOCK, NODE_SLOTS
from membership.processes import process_start
from tests.mount.conftest import new_lab
from tests.mount.lab import Lab, LabNode, wait_gone, wait_until

TEST_SECONDS = 120  # for a broken product, not a bound under test: one of them mounts twelve times

pytestmark = pytest.mark.seed("002-10", "002-13")
TIMES = 12


@pytest.fixture(scope="module")
def pair(base: tuple[Path, TextIO]) -> Iterator[Lab]:
    """Two members, nothing mounted."""
    lab = new_lab(base, "umount", nodes=2, size="128M")
    try:
        lab.format("-j", "3")
        for node in lab.nodes:
            lab.start(node)
            node.mountpoint.mkdir()
        yield lab
        lab.down()
        assert lab.fsck("-n").returncode == 0
    finally:
        lab.remove()


@pytest.fixture
def one(pair: Lab, watched: None) -> Iterator[LabNode]:
    """The first node; whatever the test left mounted is unmounted."""
    yield pair.nodes[0]
    for node in pair.nodes:
        while registry.mount_at(str(node.mountpoint)) is not None:
            pair.umount(node)


def mount(pair: Lab, *arguments: str | Path, node: int = 0) -> subprocess.CompletedProcess[str]:
    lab_node = pair.nodes[node]
    words = arguments or (pair.name, lab_node.mountpoint)
    return pair.run("mount", "-t", "fuse.matrixfs", *words, "-o", f"state={lab_node.state}", check=False)


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_umount_returns_after_the_last_byte(pair: Lab, one: LabNode) -> None:
    """No fsync anywhere: only umount says when it is safe.  The store is checked as it is when umount has returned."""
    digests: dict[str, str] = {}
    for i in range(TIMES):
        assert mount(pair).returncode == 0
        pid = one.mount_pid
        for name, digest in digests.items():
            assert hashlib.sha256((one.mountpoint / name).read_bytes()).hexdigest() == digest
        for k in range(5):
            data = os.urandom(1 + (i * 7919 + k * 104_729) % 300_000)
            (one.mountpoint / f"f{k}").write_bytes(data)
            digests[f"f{k}"] = hashlib.sha256(data).hexdigest()
        (one.mountpoint / f"d{i}").mkdir()
        pair.umount(one)
        assert process_start(pid) is None, "umount waited for the process"
        copy = pair.directory / "copy"  # of a store that two nodes' heartbeats go on writing to
        pair.run("cp", "--sparse=always", pair.store, copy)
        with copy.open("r+b") as file:  # without the heartbeats, on which fsck would wait to see whether they move
            file.seek(HEARTBEAT_BLOCK * BLOCK_BYTES)
            file.write(bytes(NODE_SLOTS * BLOCK_BYTES))
        found = json.loads(pair.run("fsck.matrixfs", "-n", "--json", copy).stdout)
        assert found["journals_replayed"] == [], "nothing was left to replay"
    assert mount(pair).returncode == 0
    assert len([name for name in os.listdir(one.mountpoint) if name.startswith("d")]) == TIMES


def test_a_busy_tree_stays_mounted(pair: Lab, one: LabNode) -> None:
    assert mount(pair).returncode == 0
    held = os.open(one.mountpoint, os.O_RDONLY)
    done = pair.run("umount", one.mountpoint, check=False)
    assert done.returncode == 32
    assert "busy" in done.stderr
    assert "Traceback" not in done.stderr
    assert (one.mountpoint).stat().st_ino == 1, "it goes on"
    os.close(held)
    pair.umount(one)


def test_matrixd_does_not_stop_under_a_mount(pair: Lab, one: LabNode) -> None:
    assert mount(pair).returncode == 0
    line = one_line(pair.run("matrixctl", "--state", one.state, "stop", check=False), 2)
    assert str(one.mountpoint) in line
    assert process_start(one.daemon_pid) is not None


def test_a_second_mount_on_one_node_is_refused(pair: Lab, one: LabNode) -> None:
    other = pair.directory / "other"
    other.mkdir(exist_ok=True)
    assert mount(pair).returncode == 0
    line = one_line(mount(pair, pair.name, other), 32)
    assert "already mounted on this node" in line
    line = one_line(mount(pair), 32)
    assert "busy" in line
    assert registry.mount_at(str(other)) is None
    (one.mountpoint / "goes-on").touch()


@pytest.mark.parametrize("kind", ["fuse.matrixfs", "matrixfs"])
def test_from_fstab(pair: Lab, one: LabNode, kind: str, tmp_path: Path) -> None:
    fstab = tmp_path / "fstab"
    options = f"_netdev,nofail,noatime,x-systemd.requires=matrixd.service,state={one.state}"
    fstab.write_text(f"{pair.name} {one.mountpoint} {kind} {options} 0 0\n")
    done = pair.run("mount", "-T", fstab, one.mountpoint, check=False)
    assert done.returncode == 0, done.stderr
    assert registry.mount_at(str(one.mountpoint)).fs_type == "fuse.matrixfs"  # type: ignore[union-attr]
    pid = one.mount_pid
    assert pair.run("mount", "-a", "-T", fstab, check=False).returncode == 0, "mounted already: mount -a leaves it"
    assert one.mount_pid == pid
    pair.umount(one)
    wait_gone([pid])


def test_a_bind_mount_keeps_the_tree(pair: Lab, one: LabNode) -> None:
    """umount of the first mount point must not wait for a process that lives on for the second."""
    bound = pair.directory / "bound"
    bound.mkdir(exist_ok=True)
    assert mount(pair).returncode == 0
    (one.mountpoint / "sub").mkdir(exist_ok=True)
    (one.mountpoint / "sub" / "f").write_text("through")
    pid = one.mount_pid
    pair.run("mount", "--bind", one.mountpoint / "sub", bound)
    try:
        pair.umount(one)
        assert (bound / "f").read_text() == "through"
        (bound / "g").write_text("and back")
        assert process_start(pid) is not None
    finally:
        pair.run("umount", bound)
    wait_gone([pid])
    assert mount(pair).returncode == 0
    assert (one.mountpoint / "sub" / "g").read_text() == "and back"


def test_read_only(pair: Lab, one: LabNode) -> None:
    assert mount(pair).returncode == 0
    (one.mountpoint / "f").write_text("f")
    there, state = pair.nodes[1].mountpoint, pair.nodes[1].state
    done = pair.run("mount", "-t", "matrixfs", pair.name, there, "-o", f"ro,state={state}")
    assert done.stderr == ""
    assert (there / "f").read_text() == "f"
    for change in ((there / "new").touch, lambda: os.unlink(there / "f"), lambda: os.chmod(there / "f", 0)):
        with pytest.raises(OSError, match="Read-only"):
            change()
    (one.mountpoint / "f").write_text("changed")
    assert (there / "f").read_text() == "changed"


def test_remount(pair: Lab, one: LabNode) -> None:
    """What the kernel enforces changes under those who use the tree; a tree mounted read-only stays so."""
    assert mount(pair).returncode == 0
    program = one.mountpoint / "true"
    shutil.copy("/bin/true", program)
    with program.open("rb") as held:
        pair.run("mount", "-o", "remount,ro", one.mountpoint)
        with pytest.raises(OSError, match="Read-only"):
            (one.mountpoint / "new").touch()
        pair.run("mount", "-o", "remount,rw,noexec", one.mountpoint)
        (one.mountpoint / "new").touch()
        with pytest.raises(PermissionError):
            subprocess.run([program], check=True)
        pair.run("mount", "-o", "remount,exec", one.mountpoint)
        subprocess.run([program], check=True)
        assert held.read() == program.read_bytes()
    with (one.mountpoint / "new").open("w"):
        assert "open for writing" in pair.run("mount", "-o", "remount,ro", one.mountpoint, check=False).stderr
    there, state = pair.nodes[1].mountpoint, pair.nodes[1].state
    pair.run("mount", "-t", "matrixfs", pair.name, there, "-o", f"ro,state={state}")
    done = pair.run("mount", "-o", "remount,rw", there, check=False)
    assert (done.returncode, "it was mounted read-only: unmount" in done.stderr) == (32, True)


def test_a_full_filesystem_keeps_what_it_accepted(pair: Lab, one: LabNode) -> None:
    """A write that found no room said so; all before it must find theirs at fsync, and be there for the next mount."""
    assert mount(pair).returncode == 0
    data = os.urandom(1 << 20)
    fd = os.open(one.mountpoint / "large", os.O_CREAT | os.O_RDWR)
    accepted = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            accepted += os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    assert accepted > 64 << 20
    pair.umount(one)
    assert mount(pair).returncode == 0
    with (one.mountpoint / "large").open("rb") as file:
        assert all(file.read(1 << 20) == data for _ in range(accepted >> 20))
    os.unlink(one.mountpoint / "large")
    wait_until(lambda: os.statvfs(one.mountpoint).f_bfree << 12 > 64 << 20, "the space is free again")


def test_more_mounts_than_journals(base: tuple[Path, TextIO], watched: None) -> None:
    """A journal a node: the third node of a filesystem with two is refused in one line, and the others go on."""
    lab = new_lab(base, "twojournals", nodes=3)
    try:
        lab.format("-j", "2")
        for node in lab.nodes:
            lab.start(node)
        for node in lab.nodes[:2]:
            lab.mount(node)
        lab.nodes[2].mountpoint.mkdir()
        line = one_line(mount(lab, node=2), 32)
        assert "journal" in line
        (lab.nodes[0].mountpoint / "f").write_text("goes on")
        assert (lab.nodes[1].mountpoint / "f").read_text() == "goes on"
        lab.umount(lab.nodes[0])
        lab.mount(lab.nodes[2])
        assert (lab.nodes[2].mountpoint / "f").read_text() == "goes on"
    finally:
        lab.remove()
