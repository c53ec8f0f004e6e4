"""What the tests of this directory share: bringing nodes back, load on some of them, and what must hold after harm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from matrixfs.fuse import registry
from tests.mount.conftest import Tree
from tests.mount.crowd import Crowd
from tests.mount.lab import LabNode, is_settled, wait_until
from tests.mount.test_death import (
    SYNCED_MIN,
    check_synced,
    is_running,
    synced,
    value,
    work_until,
    write_and_sync,
)
from tests.net.lab import NetLab
from tests.net.watch import data_digest

ROUNDS_MIN = 10  # of work that a node must get done


def bring_back(lab: NetLab) -> None:
    """Heal, thaw, and start and mount whatever is down: no more than the service manager and fstab do."""
    lab.switch.heal()
    lab.thaw()
    down = [node for node in lab.nodes if not is_running(lambda node=node: node.daemon_pid)]
    unmounted = [node for node in lab.nodes if node in down or not is_mounted(node)]
    for node in unmounted:
        lab.detach(node)
    for node in down:
        lab.launch(node)
    for node in down:
        lab.wait_member(node)
    lab.mount_all(unmounted)
    wait_until(lambda: is_settled(lab, lab.nodes[0], lab.nodes), "all nodes are members")


def is_mounted(node: LabNode) -> bool:
    """Its tree is there, and served."""
    return registry.mount_at(str(node.mountpoint)) is not None and is_running(lambda: node.mount_pid)


class Load:
    """Work on some nodes, in one directory, that must not fail; and on others, until it does.

    Args:
        tree: whose directory.
        outside: for notes, outside of the tree.
        survivors: nodes that work.
        victims: nodes that create and fsync files until they fail; what was acknowledged is noted.
    """

    def __init__(
        self, tree: Tree, outside: Path, survivors: Sequence[LabNode], victims: Sequence[LabNode] = ()
    ) -> None:
        self.survivors = survivors
        self.victims = victims
        self._tree = tree
        self._outside = outside
        self._stop = outside / "stop"
        self._living = Crowd()
        self._dying = Crowd()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While it runs; at the end the survivors are joined."""
        with self._dying, self._living:
            for node in self.victims:
                self._dying.start(write_and_sync, self._tree.on(node), node.name, self._notes(node))
            for node in self.survivors:
                self._living.start(work_until, self._tree.on(node), node.name, self._stop, self._rounds(node))
            for node in self.victims:
                wait_until(lambda node=node: len(self.acknowledged(node)) >= SYNCED_MIN, "load runs")
            self.wait_progress()
            yield
            self.stop()

    def wait_progress(self, rounds: int = ROUNDS_MIN) -> None:
        """Each node that works gets some more done."""
        before = {node.name: self._done(node) for node in self.survivors}
        for node in self.survivors:
            wait_until(lambda node=node: self._done(node) >= before[node.name] + rounds, f"{node.name} goes on")

    def stop(self) -> None:
        """The survivors have worked enough; any error they met is raised here."""
        self._stop.touch()
        self._living.wait()

    def wait_failed(self) -> None:
        """Every victim's work came to its end, with an error that says that the tree is gone."""
        self._dying.wait()

    def acknowledged(self, node: LabNode) -> list[str]:
        """What fsync promised a victim."""
        return synced(self._notes(node))

    def check_acknowledged(self, on: Sequence[LabNode]) -> None:
        """All of it is there."""
        for node in self.victims:
            check_synced(self._notes(node), [self._tree.on(other) for other in on])

    def _done(self, node: LabNode) -> int:
        return value(self._rounds(node))

    def _notes(self, node: LabNode) -> Path:
        return self._outside / f"acknowledged-{node.name}"

    def _rounds(self, node: LabNode) -> Path:
        return self._outside / f"rounds-{node.name}"


def wait_recovered(lab: NetLab, survivors: Sequence[LabNode]) -> None:
    """All of the survivors see each other, and nobody else, with nothing left to recover."""
    for node in survivors:
        wait_until(lambda node=node: is_settled(lab, node, survivors), "the others have recovered")


def quiet_digest(lab: NetLab, survivors: Sequence[LabNode]) -> str:
    """The bytes of the data area after the survivors unmounted: from now on nobody has a right to write there."""
    for node in survivors:
        lab.umount(node)
    return data_digest(lab.store)
