"""A machine that hangs and wakes up after the others have gone on without it: not one byte of it reaches the store.

Each node is a machine of its own, so nobody can kill the frozen: the others go by the end of its lease, and what stops
it when it wakes up is its own gate (R3).  Its work goes on in the instant in which it is thawed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import LabNode
from tests.net.freezer import KINDS
from tests.net.lab import NetLab
from tests.net.watch import HeaderWatch, data_digest
from tests.net.work import Load, quiet_digest, wait_recovered

pytestmark = pytest.mark.seed("002-20", "002-22", "002-31", "002-38")


def frozen_and_thawed(
    tree: Tree, victim: LabNode, freeze: Callable[[], None], thaw: Callable[[], None], outside: Path
) -> None:
    """The others evict it, recover what it held, and go on; thawed, it writes nothing and ends with code 6."""
    lab = tree.lab
    assert isinstance(lab, NetLab)
    survivors = [node for node in lab.nodes if node is not victim]
    mount = victim.mount_pid
    load = Load(tree, outside, survivors, [victim])
    with HeaderWatch(lab.store) as headers, load.running():
        freeze()
        wait_recovered(lab, survivors)
        load.wait_progress()
        load.stop()
        acknowledged = load.acknowledged(victim)
        before = quiet_digest(lab, survivors)
        thaw()
        lab.wait_end(victim, mount)
        load.wait_failed()
        assert load.acknowledged(victim) == acknowledged, "nothing more was promised to its programs"
        assert data_digest(lab.store) == before
    headers.check()
    lab.mount_all(survivors)
    load.check_acknowledged(survivors)
    fences = [fence for node in survivors for fence in lab.status(node)["fences"]]
    assert {(fence["driver"], fence["confirmed"]) for fence in fences} == {("lease", True)}


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])])
def test_a_frozen_node_wakes_up_and_writes_nothing(lab: NetLab, tree: Tree, tmp_path: Path, kind: str) -> None:
    """The administrator, which is the coordinator too: the node whose loss costs most."""
    victim = lab.nodes[0]
    frozen_and_thawed(tree, victim, lambda: lab.freeze(victim, kind), lab.thaw, tmp_path)


@pytest.mark.seed("002-12")
def test_a_mount_outlives_its_matrixd_s_lease_and_writes_nothing(lab: NetLab, tree: Tree, tmp_path: Path) -> None:
    """Only matrixd hangs.  The mount process runs all the time, and its programs too: its gate alone stops it."""
    victim = lab.nodes[3]
    daemon = victim.daemon_pid
    frozen_and_thawed(
        tree, victim, lambda: os.kill(daemon, signal.SIGSTOP), lambda: os.kill(daemon, signal.SIGCONT), tmp_path
    )
