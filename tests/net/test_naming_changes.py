"""Figure 12 on real processes: the administrator is killed in each step of a change of the disks (002-43, 002-46).

The nodes share one machine, so the dead are fenced at once.  The operator's command was given on another node and is
carried out all the same, once, by the next administrator: all living nodes have the same naming, and the trees work on.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import BIN, LabNode, wait_until
from tests.net.holds import Holds
from tests.net.lab import NetLab
from tests.net.watch import HeaderWatch
from tests.net.work import Load, wait_recovered

pytestmark = pytest.mark.seed("002-43", "002-46", "002-47")
OWN_MACHINES = False
HELD = True
STEPS = [
    "Change.1604",  # stored, and no header names it yet
    *(pytest.param(f"Change.{step}", marks=pytest.mark.long) for step in (1602, 1606, 1608)),  # also in test_changes.py
]
_numbers = itertools.count(2)


class Disks:
    """The operator's view of the cluster's disks."""

    def __init__(self, lab: NetLab, holds: Holds) -> None:
        self.lab = lab
        self._holds = holds
        statuses = {node.name: lab.status(node) for node in lab.nodes}
        holds.ids = {name: status["node"] for name, status in statuses.items()}
        (administrator,) = {status["administrator"] for status in statuses.values()}
        self.administrator = next(node for node in lab.nodes if holds.ids[node.name] == administrator)
        self.others = [node for node in lab.nodes if node is not self.administrator]

    def listed(self, node: LabNode) -> Any:
        found = json.loads(self.lab.run("matrixctl", "--state", node.state, "disk", "list", "--json").stdout)
        return found["naming"]["version"], [(disk["name"], disk["area"], disk["state"]) for disk in found["disks"]]

    def wait_same(self, living: list[LabNode], wanted: list[tuple[str, str, str]]) -> None:
        """All have one version, and it is the wanted one."""
        wait_until(
            lambda: len({str(self.listed(node)) for node in living}) == 1 and self.listed(living[0])[1] == wanted,
            f"all know {wanted}",
        )

    def command_in_whose_step_the_administrator_dies(self, step: str, *words: str | Path) -> None:
        """Given on another node; it ends well all the same."""
        self._holds.hold(step, self.administrator)
        line = [str(BIN / "matrixctl"), "--state", str(self.others[-1].state), "disk", *map(str, words)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as command:
            try:
                self._holds.wait_held(step, self.administrator)
                self.lab.kill(self.administrator)
                self._holds.let_go()
                wait_recovered(self.lab, self.others)
                said, _ = command.communicate(timeout=60)
                assert command.returncode == 0, said
            finally:
                command.kill()


@pytest.fixture
def disks(lab: NetLab, tree: Tree, holds: Holds) -> Iterator[Disks]:
    yield Disks(lab, holds)
    holds.let_go()


@pytest.mark.parametrize("step", STEPS)
def test_the_administrator_dies_while_a_disk_is_added(disks: Disks, tree: Tree, tmp_path: Path, step: str) -> None:
    lab, living = disks.lab, disks.others
    before = disks.listed(living[0])[1]
    name = f"d{next(_numbers)}"
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        disks.command_in_whose_step_the_administrator_dies(step, "add", name, lab.directory / name, "--size", "600M")
        disks.wait_same(living, sorted([*before, (name, "", "present")]))
        load.wait_progress()
    headers.check()
    lab.run("matrixctl", "--state", living[0].state, "disk", "remove", name)
    disks.wait_same(living, before)


def test_the_administrator_dies_while_the_membership_areas_move(disks: Disks, tree: Tree, tmp_path: Path) -> None:
    """Between the joint set and the new one: the next administrator finishes it."""
    lab, living = disks.lab, disks.others
    ((first, _, _),) = disks.listed(living[0])[1]
    names = [f"d{next(_numbers)}" for _ in range(2)]
    for name in names:
        lab.run("matrixctl", "--state", living[0].state, "disk", "add", name, lab.directory / name, "--size", "600M")
    load = Load(tree, tmp_path, living)
    with load.running():
        disks.command_in_whose_step_the_administrator_dies("Change.1608", "areas", first, *names)
        disks.wait_same(living, sorted((name, "yes", "present") for name in (first, *names)))
        load.wait_progress()
    lab.run("matrixctl", "--state", living[0].state, "disk", "areas", first)
    for name in names:
        lab.run("matrixctl", "--state", living[0].state, "disk", "remove", name)
    disks.wait_same(living, [(first, "yes", "present")])
