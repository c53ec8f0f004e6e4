"""Real mounts while a recovery is held in one phase (membership/pauses.py): who works on, who waits, who may die now.

One cluster for all tests, as in test_death.py.  Nothing is timed: what must go on is counted, and what must wait is
looked at before and after the phase is let go.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from matrixfs.fuse import connection
from membership.pauses import VARIABLE
from membership.processes import process_start
from tests.mount.conftest import Tree
from tests.mount.lab import Lab, LabNode, is_settled, wait_gone, wait_until
from tests.mount.test_death import bring_back

pytestmark = pytest.mark.seed("002-04", "002-28", "002-29", "002-30")
PHASES = ["Suspend", "Rebuild", "Resume", "Replay", "ReleaseGhosts"]
ROUNDS = 30
_numbers = itertools.count()


@pytest.fixture(scope="module", autouse=True)
def pauses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of pauses, known to every mount process started from now on."""
    top = tmp_path_factory.mktemp("pauses")
    os.environ[VARIABLE] = str(top)
    yield top
    del os.environ[VARIABLE]


@pytest.fixture
def cluster(pauses: Path, lab: Lab, watched: None) -> Iterator[Tree]:
    """All nodes up, mounted and settled; afterwards nothing is held any more."""
    for node in lab.nodes:
        bring_back(lab, node)
    wait_until(lambda: is_settled(lab, lab.nodes[0], lab.nodes), "all nodes are members")
    tree = Tree(lab, f"held-{next(_numbers)}")
    tree.a.mkdir()
    yield tree
    for file in pauses.iterdir():
        file.unlink()


def node_of(lab: Lab, via: LabNode, number: int) -> LabNode:
    """The lab's node of a node id."""
    names = {node["id"]: node["name"] for node in lab.status(via)["nodes"]}
    return next(node for node in lab.nodes if node.name == names[number])


def kill_mount(lab: Lab, node: LabNode) -> None:
    """SIGKILL of the mount process alone; what hangs in the kernel goes with it."""
    pid = node.mount_pid
    start = process_start(pid) or 0
    os.kill(pid, signal.SIGKILL)
    connection.cut_off(pid, start)
    wait_gone([pid])
    lab.detach(node)


def in_thread(action: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(action()), daemon=True)
    thread.start()
    return thread, done


def work(top: Path, who: str, rounds: int) -> None:
    """Everything a node does every day, on what nobody else has dirtied."""
    mine = top / who
    mine.mkdir(exist_ok=True)
    for i in range(rounds):
        path = mine / f"f{i}"
        path.write_bytes(b"%06d" % i * 500)
        assert path.read_bytes() == b"%06d" % i * 500
        os.rename(path, mine / f"g{i}")
        os.listdir(mine)
        with (mine / "log").open("ab") as log:
            log.write(b"line\n")
            os.fsync(log.fileno())


def test_survivors_work_on_while_a_replay_is_held_open(cluster: Tree, pauses: Path) -> None:
    """R6: create, read, write, rename on all that the dead had not dirtied; that waits, and is whole afterwards."""
    lab = cluster.lab
    a, b, victim = lab.nodes
    for node in (a, b):
        work(cluster.on(node), node.name, 1)
    (cluster.a / "read-by-all").write_text("read")
    for path in cluster.paths:
        assert (path / "read-by-all").read_text() == "read"
    dirty = cluster.on(victim) / "of the dead"
    dirty.mkdir()
    (dirty / "synced").write_bytes(b"synced")
    fd = os.open(dirty / "synced", os.O_WRONLY)
    os.fsync(fd)
    for node in (a, b):
        assert "of the dead" in os.listdir(cluster.on(node))  # the directory above it is clean again
    (pauses / "Replay").touch()
    with pytest.raises(OSError, match="not connected"):
        kill_mount(lab, victim)
        os.close(fd)
        os.listdir(dirty)
    wait_until(lambda: list(pauses.glob("Replay.*.reached")), "the replay is held open")
    reader, read = in_thread((cluster.a / "of the dead" / "synced").read_bytes)
    for node in (a, b):
        work(cluster.on(node), node.name, ROUNDS)
        assert (cluster.on(node) / "read-by-all").read_text() == "read"
    for node, other in ((a, b), (b, a)):  # and on what is the other survivor's
        names = os.listdir(cluster.on(node) / other.name)
        assert len(names) == ROUNDS + 1
        assert (cluster.on(node) / other.name / "log").read_bytes() == b"line\n" * (ROUNDS + 1)
    status = lab.status(a)
    assert [fs["phase"] for fs in status["filesystems"]] == ["replay"]
    assert not read, "what the dead had dirtied waits"
    waits = [wait for node in (a, b) for wait in lab.counters(node)["waits"]]
    assert len(waits) == 1, "and nothing else"
    (pauses / "Replay").unlink()
    reader.join(30)
    assert read == [b"synced"]
    wait_until(lambda: is_settled(lab, a, [a, b]), "the recovery ends")


@pytest.mark.parametrize("phase", PHASES)
def test_the_administrator_s_node_dies_in_every_phase(cluster: Tree, pauses: Path, phase: str) -> None:
    """The first death is a mount's; then the whole node that drives the recovery dies while it is held there."""
    lab = cluster.lab
    administrator = node_of(lab, lab.nodes[0], lab.status(lab.nodes[0])["administrator"])
    victim, survivor = [node for node in lab.nodes if node is not administrator]
    for node in (administrator, victim):
        path = cluster.on(node) / node.name
        with path.open("wb", buffering=0) as file:
            file.write(node.name.encode() * 1000)
            os.fsync(file.fileno())
    (pauses / phase).touch()
    kill_mount(lab, victim)
    wait_until(lambda: list(pauses.glob(f"{phase}.*.reached")), f"{phase} is held")
    lab.kill(administrator)
    (pauses / phase).unlink()
    wait_until(lambda: is_settled(lab, survivor, [survivor]), "the survivor has recovered both")
    for node in (administrator, victim):
        assert (cluster.on(survivor) / node.name).read_bytes() == node.name.encode() * 1000
    work(cluster.on(survivor), survivor.name, 3)


def test_a_mount_joins_while_a_replay_is_held_open(cluster: Tree, pauses: Path) -> None:
    """It waits for no more than the replay, and disturbs nobody."""
    lab = cluster.lab
    a, b, victim = lab.nodes
    lab.umount(b)
    (cluster.on(victim) / "f").write_bytes(b"synced")
    assert os.listdir(cluster.a) == ["f"]  # the directory is clean again
    (pauses / "Replay").touch()
    kill_mount(lab, victim)
    wait_until(lambda: list(pauses.glob("Replay.*.reached")), "the replay is held open")
    joining, _ = in_thread(lambda: lab.mount(b))
    work(cluster.on(a), a.name, 3)
    (pauses / "Replay").unlink()
    joining.join(30)
    wait_until(lambda: is_settled(lab, a, [a, b]), "both are members")
    assert sorted(os.listdir(cluster.on(b))) == sorted(os.listdir(cluster.on(a)))
