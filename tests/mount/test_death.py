"""Nodes die under load: the others go on, what was fsynced is there, the store is clean, and the dead come back.

One cluster for all tests: each begins by bringing back whoever died in the last one, with no more than ``matrixd`` and
``mount``.  That the store is clean in the end is checked by the ``lab`` fixture.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from matrixfs.fuse import registry
from membership.processes import process_start
from tests.mount.conftest import Tree
from tests.mount.crowd import Crowd
from tests.mount.lab import Lab, LabError, LabNode, is_settled, wait_gone, wait_until

pytestmark = pytest.mark.seed("002-01", "002-04", "002-10", "002-22")
SYNCED_MIN = 5  # files fsynced before a kill
TABLE_BYTES = 24 * 1024  # overwritten at once: within one transaction
PROGRESS_MIN = 10  # rounds that a survivor must get done after the recovery


@pytest.fixture
def cluster(tree_names: Iterator[str], lab: Lab, watched: None) -> Tree:
    """All nodes up and mounted, whatever the last test did, and a fresh directory."""
    for node in lab.nodes:
        bring_back(lab, node)
    wait_until(lambda: is_settled(lab, lab.nodes[0], lab.nodes), "all nodes are members")
    tree = Tree(lab, next(tree_names))
    tree.a.mkdir()
    return tree


@pytest.fixture(scope="module")
def tree_names() -> Iterator[str]:
    return (f"death-{i}" for i in itertools.count())


def is_running(pid: Callable[[], int]) -> bool:
    try:
        return process_start(pid()) is not None
    except (OSError, ValueError, LabError):
        return False


def bring_back(lab: Lab, node: LabNode) -> None:
    """What an administrator does after a crash: start and mount again, no reboot (R9)."""
    mount = registry.mount_at(str(node.mountpoint))
    server = registry.read(mount.device) if mount is not None else None
    served = server is not None and process_start(server.pid) is not None
    if not is_running(lambda: node.daemon_pid):
        served = False
    if not served:
        lab.detach(node)
    if not is_running(lambda: node.daemon_pid):
        lab.start(node)
    if not served:
        lab.mount(node)


# --- load ---------------------------------------------------------------------------------------------------


def write_and_sync(top: Path, who: str, acknowledged: Path) -> None:
    """Create, write and fsync files until the mount dies; note outside of it what fsync promised."""
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for i in itertools.count():
            data = os.urandom(200 + i * 7919 % 60_000)
            fd = os.open(top / f"{who}-{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, data)
            os.fsync(fd)
            os.write(log, f"{who}-{i} {len(data)} {hashlib.sha256(data).hexdigest()}\n".encode())
            os.close(fd)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), error


def work_until(top: Path, who: str, stop: Path, rounds: Path) -> None:
    """Use the directory as a healthy node does until ``stop`` exists; any error fails the test."""
    count = os.open(rounds, os.O_WRONLY | os.O_CREAT)
    for i in itertools.count():
        if stop.exists():
            return
        path = top / f"{who}-{i % 10}"
        path.write_bytes(b"%06d" % i * 1000)
        assert path.read_bytes() == b"%06d" % i * 1000
        if i % 3 == 0:
            os.rename(path, top / f"{who}-renamed")
        os.listdir(top)
        os.pwrite(count, b"%d" % i, 0)


def value(path: Path) -> int:
    return int(path.read_text() or "0") if path.exists() else 0


def synced(acknowledged: Path) -> list[str]:
    return acknowledged.read_text().splitlines() if acknowledged.exists() else []


def check_synced(acknowledged: Path, tops: Sequence[Path]) -> None:
    lines = synced(acknowledged)
    assert len(lines) >= SYNCED_MIN
    for line in lines:
        name, size, digest = line.split()
        for top in tops:
            data = (top / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), digest), f"{top}/{name}"


def under_load(
    tree: Tree, victims: Sequence[LabNode], survivors: Sequence[LabNode], kill: Callable[[], Any], outside: Path
) -> None:
    """Load on all nodes, in one directory; ``kill``; wait for the recovery; check what must hold then."""
    lab = tree.lab
    stop = outside / "stop"
    with Crowd() as dying, Crowd() as living:
        for node in victims:
            dying.start(write_and_sync, tree.on(node), node.name, outside / f"acknowledged-{node.name}")
        for node in survivors:
            living.start(work_until, tree.on(node), node.name, stop, outside / f"rounds-{node.name}")
        for node in victims:
            wait_until(lambda node=node: len(synced(outside / f"acknowledged-{node.name}")) >= SYNCED_MIN, "load runs")
        for node in survivors:
            wait_until(lambda node=node: value(outside / f"rounds-{node.name}") > 3, "load runs")
        kill()
        dying.wait()
        if survivors:
            wait_until(lambda: is_settled(lab, survivors[0], survivors), "the others have recovered")
        for node in survivors:
            rounds = outside / f"rounds-{node.name}"
            at = value(rounds)
            wait_until(lambda rounds=rounds, at=at: value(rounds) > at + PROGRESS_MIN, f"{node.name} goes on")
        stop.touch()
        living.wait()
    for victim, survivor in itertools.product(victims, survivors):
        check_synced(outside / f"acknowledged-{victim.name}", [tree.on(survivor)])


# --- one dies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2], ids=["the-coordinator", "another"])
def test_a_node_dies(cluster: Tree, index: int, tmp_path: Path) -> None:
    lab = cluster.lab
    victim = lab.nodes[index]
    survivors = [node for node in lab.nodes if node is not victim]
    under_load(cluster, [victim], survivors, lambda: lab.kill(victim), tmp_path)
    bring_back(lab, victim)
    check_synced(tmp_path / f"acknowledged-{victim.name}", [cluster.on(victim)])
    (cluster.on(victim) / "again").write_text("again")
    assert (cluster.on(survivors[0]) / "again").read_text() == "again"


def test_matrixd_dies_and_its_mount_fences_itself(cluster: Tree, tmp_path: Path) -> None:
    lab = cluster.lab
    victim, survivors = lab.nodes[1], [lab.nodes[0], lab.nodes[2]]
    mount_pid = victim.mount_pid

    def kill() -> None:
        os.kill(victim.daemon_pid, signal.SIGKILL)
        wait_gone([mount_pid])

    under_load(cluster, [victim], survivors, kill, tmp_path)
    bring_back(lab, victim)
    check_synced(tmp_path / f"acknowledged-{victim.name}", [cluster.on(victim)])


def test_a_mount_dies_alone(cluster: Tree, tmp_path: Path) -> None:
    """Its matrixd holds its pidfd: no fence is needed, and the node stays a member."""
    lab = cluster.lab
    victim, survivors = lab.nodes[2], lab.nodes[:2]
    daemon = victim.daemon_pid
    generation, fences = [lab.status(lab.nodes[0])[key] for key in ("generation", "fences")]

    def kill() -> None:
        pid = victim.mount_pid
        os.kill(pid, signal.SIGKILL)
        wait_gone([pid])
        with pytest.raises(OSError, match="not connected"):
            os.listdir(victim.mountpoint)
        done = lab.run("umount", victim.mountpoint, check=False)
        assert done.returncode == 32
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert f"process {pid} died before its last flush" in done.stderr

    under_load(cluster, [victim], survivors, kill, tmp_path)
    after = lab.status(lab.nodes[0])
    assert (after["generation"], after["fences"]) == (generation, fences)
    assert victim.daemon_pid == daemon
    lab.mount(victim)
    check_synced(tmp_path / f"acknowledged-{victim.name}", [cluster.on(victim)])


@pytest.mark.seed("002-20", "002-38")
def test_a_stopped_node_is_evicted_and_does_no_harm(cluster: Tree, tmp_path: Path) -> None:
    """SIGSTOP for longer than the dead time: the process fence ends it, so nothing of it can wake up and write."""
    lab = cluster.lab
    victim, survivors = lab.nodes[1], [lab.nodes[0], lab.nodes[2]]
    pids = [victim.daemon_pid, victim.mount_pid]
    generation = lab.status(survivors[0])["generation"]

    def stop() -> None:
        lab.pause(victim)
        wait_gone(pids)  # who waits for it is the fence, not a timer
        lab.detach(victim)

    under_load(cluster, [victim], survivors, stop, tmp_path)
    status = lab.status(survivors[0])
    assert status["generation"] > generation
    assert status["fences"][-1]["confirmed"]
    assert status["fences"][-1]["driver"] == "process"
    assert status["fences"][-1]["name"] == victim.name
    bring_back(lab, victim)
    check_synced(tmp_path / f"acknowledged-{victim.name}", [cluster.on(victim)])


@pytest.mark.seed("002-22")
def test_a_matrixd_that_hangs_takes_its_mount_with_it(cluster: Tree, tmp_path: Path) -> None:
    """No renewals come, so the mount's right to write ends whether or not a fence reaches it (R3)."""
    lab = cluster.lab
    victim, survivors = lab.nodes[0], lab.nodes[1:]
    pids = [victim.daemon_pid, victim.mount_pid]

    def hang() -> None:
        os.kill(pids[0], signal.SIGSTOP)
        wait_gone(pids)
        lab.detach(victim)

    under_load(cluster, [victim], survivors, hang, tmp_path)


@pytest.mark.seed("002-10", "002-20")
def test_a_frozen_mount_process_is_evicted_and_its_node_stays(cluster: Tree, tmp_path: Path) -> None:
    """SIGSTOP to the mount process alone: its own matrixd notices, the administrator evicts, nobody waits for ever."""
    lab = cluster.lab
    victim, survivors = lab.nodes[0], lab.nodes[1:]
    daemon, pid = victim.daemon_pid, victim.mount_pid
    generation, fences = [lab.status(survivors[0])[key] for key in ("generation", "fences")]

    def freeze() -> None:
        os.kill(pid, signal.SIGSTOP)
        wait_gone([pid])
        lab.detach(victim)

    under_load(cluster, [victim], survivors, freeze, tmp_path)
    after = lab.status(survivors[0])
    assert (after["generation"], after["fences"]) == (generation, fences)
    assert victim.daemon_pid == daemon
    recoveries = [lab.status(node)["recoveries"][-1] for node in lab.nodes]
    assert [recovery["phases"] for recovery in recoveries] == [recoveries[0]["phases"]] * 3  # every node knows
    assert [name for name, _ in recoveries[0]["phases"]] == [
        "detect", "fence", "suspend", "rebuild", "resume", "replay", "release",
    ]  # fmt: skip
    lab.mount(victim)
    check_synced(tmp_path / f"acknowledged-{victim.name}", [cluster.on(victim)])


def test_a_dead_node_s_open_but_removed_file_gives_its_space_back(cluster: Tree) -> None:
    lab = cluster.lab
    megabytes = 16

    def used() -> int:
        found = os.statvfs(cluster.b)
        return found.f_blocks - found.f_bfree

    before = used()
    fd = os.open(cluster.c / "f", os.O_CREAT | os.O_RDWR)
    for _ in range(megabytes):
        os.write(fd, os.urandom(1 << 20))
    os.unlink(cluster.a / "f")
    os.fsync(fd)
    assert len(os.pread(fd, 1000, 0)) == 1000
    lab.kill(lab.nodes[2])
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
    wait_until(lambda: is_settled(lab, lab.nodes[0], lab.nodes[:2]), "the others have recovered")
    wait_until(lambda: used() < before + megabytes * 256 // 2, "the space is free again")


def overwrite_and_sync(path: Path, acknowledged: Path) -> None:
    """Overwrite all of a file with one byte, another one each time, until the mount dies."""
    log = os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
    try:
        fd = os.open(path, os.O_RDWR)
        for number in itertools.count(1):
            os.pwrite(fd, bytes([number % 251]) * TABLE_BYTES, 0)
            os.fsync(fd)
            os.pwrite(log, b"%d" % number, 0)
    except OSError as error:
        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO), error


def test_with_data_journal_an_overwrite_is_whole_when_its_node_dies(cluster: Tree, tmp_path: Path) -> None:
    """Another node, which writes to the place, had the file before, and has it after."""
    lab, victim = cluster.lab, cluster.lab.nodes[2]
    lab.umount(victim)
    lab.mount(victim, "data=journal")
    (cluster.a / "table").write_bytes(bytes(TABLE_BYTES))
    number = tmp_path / "number"
    with Crowd() as dying:
        dying.start(overwrite_and_sync, cluster.c / "table", number)
        wait_until(lambda: value(number) > 20, "it overwrites")
        lab.kill(victim)
        dying.wait()
    found = (cluster.b / "table").read_bytes()
    assert found in [bytes([each % 251]) * TABLE_BYTES for each in (value(number), value(number) + 1)]
    (cluster.a / "table").write_bytes(b"next" * (TABLE_BYTES // 4))
    bring_back(lab, victim)
    assert (cluster.c / "table").read_bytes() == b"next" * (TABLE_BYTES // 4)


# --- several die --------------------------------------------------------------------------------------------


def test_two_nodes_die_at_one_instant(cluster: Tree, tmp_path: Path) -> None:
    lab = cluster.lab
    victims, survivor = lab.nodes[:2], lab.nodes[2]
    under_load(cluster, victims, [survivor], lambda: lab.kill_all(victims), tmp_path)
    for victim in victims:
        bring_back(lab, victim)
        for other in victims:
            check_synced(tmp_path / f"acknowledged-{other.name}", [cluster.on(victim)])


def test_a_second_node_dies_while_the_first_is_recovered(cluster: Tree, tmp_path: Path) -> None:
    lab = cluster.lab
    victims, survivor = [lab.nodes[2], lab.nodes[0]], lab.nodes[1]

    def kill() -> None:
        lab.kill(victims[0])
        lab.kill(victims[1])

    under_load(cluster, victims, [survivor], kill, tmp_path)


def test_all_die_and_the_next_mount_replays(cluster: Tree, tmp_path: Path) -> None:
    """Cold start: nobody is left who could tell the views, so every dirty journal is replayed before anything else."""
    lab = cluster.lab
    under_load(cluster, lab.nodes, [], lambda: lab.kill_all(lab.nodes), tmp_path)
    first = lab.nodes[1]
    bring_back(lab, first)
    assert len(lab.counters(first)["replays"]) == 3
    for node in lab.nodes:
        check_synced(tmp_path / f"acknowledged-{node.name}", [cluster.on(first)])
    for node in lab.nodes:
        bring_back(lab, node)
    (cluster.a / "on").write_text("it goes on")
    assert [(path / "on").read_text() for path in cluster.paths] == ["it goes on"] * 3
