"""Figure 11 on real processes, held in each of its steps (membership/pauses.py) while somebody is killed.

The nodes share one machine, so the dead are fenced at once.  Whoever dies in whichever step: the others end up with one
administrator, no generation ever has two, generations only grow, and the work of the survivors goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from membership.pauses import VARIABLE
from tests.mount.conftest import Tree
from tests.mount.lab import LabNode, wait_until
from tests.net.lab import NetLab
from tests.net.watch import HeaderWatch, header_of
from tests.net.work import Load, wait_recovered

pytestmark = pytest.mark.seed("002-38", "002-39", "002-40", "002-41", "002-45")
OWN_MACHINES = False
POINTS = ["Ballot", "Decided", "Header", "HeaderHalf", "HeaderDone", "Fence", "Fenced"]


@pytest.fixture(scope="module", autouse=True)
def pauses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of pauses, known to every process started from now on."""
    top = tmp_path_factory.mktemp("pauses")
    os.environ[VARIABLE] = str(top)
    yield top
    del os.environ[VARIABLE]


class Election:
    """The parts of Figure 11 among the nodes of a lab, as they are before the administrator dies."""

    def __init__(self, lab: NetLab, pauses: Path) -> None:
        self.lab = lab
        self._pauses = pauses
        statuses = {node.name: lab.status(node) for node in lab.nodes}
        self._ids = {name: status["node"] for name, status in statuses.items()}
        (administrator,) = {status["administrator"] for status in statuses.values()}
        self.administrator = next(node for node in lab.nodes if self._ids[node.name] == administrator)
        # Lowest address first: the first is the coordinator, and its own first candidate (002-39).
        self.others = [node for node in lab.nodes if node is not self.administrator]
        self._known: dict[int, int] = {}  # administrator by generation, as anybody ever said

    def hold(self, point: str, node: LabNode) -> None:
        (self._pauses / f"{point}.{self._ids[node.name]}").touch()

    def wait_held(self, point: str, node: LabNode) -> None:
        reached = self._pauses / f"{point}.{self._ids[node.name]}.reached"
        wait_until(reached.exists, f"{node.name} is held at {point}")

    def let_go(self) -> None:
        for file in self._pauses.iterdir():
            file.unlink()

    def check_known(self, living: list[LabNode]) -> None:
        """No two of them know another administrator of one generation."""
        for node in living:
            status = self.lab.status(node)
            assert self._known.setdefault(status["generation"], status["administrator"]) == status["administrator"]

    def check_over(self, living: list[LabNode], headers: HeaderWatch) -> None:
        """One of the living is administrator, of them and nobody else, and all know that."""
        header = header_of(self.lab.store)
        ids = {self._ids[node.name] for node in living}
        assert header.members.keys() == ids
        assert not header.fencing
        assert header.administrator in ids
        self.check_known(living)
        assert self._known[header.generation] == header.administrator
        headers.check()
        for seen in headers.seen:
            assert self._known.get(seen.generation, seen.administrator) == seen.administrator


@pytest.fixture
def election(lab: NetLab, tree: Tree, pauses: Path) -> Iterator[Election]:
    election = Election(lab, pauses)
    yield election
    election.let_go()


@pytest.mark.parametrize("point", POINTS)
def test_the_next_administrator_dies_too(election: Election, tree: Tree, tmp_path: Path, point: str) -> None:
    """In each step: as candidate, elected, committed, in office.  It is the coordinator as well."""
    lab, (second, *living) = election.lab, election.others
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        election.hold(point, second)
        lab.kill(election.administrator)
        election.wait_held(point, second)
        election.check_known([second, *living])
        lab.kill(second)
        election.let_go()
        wait_recovered(lab, living)
        load.wait_progress()
    election.check_over(living, headers)


def test_a_candidate_that_gets_nowhere_is_passed_over(election: Election, tree: Tree, tmp_path: Path) -> None:
    """1724: it is alive, but can't reach the SAN locks in time.  When it can, it finds that it is too late."""
    lab, living = election.lab, election.others
    slow, next_one = living[:2]
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        election.hold("Ballot", slow)
        lab.kill(election.administrator)
        election.wait_held("Ballot", slow)
        wait_recovered(lab, living)
        assert lab.status(slow)["administrator"] == lab.status(next_one)["node"]
        election.let_go()
        load.wait_progress()
    election.check_over(living, headers)
    assert header_of(lab.store).administrator == lab.status(next_one)["node"]


@pytest.mark.parametrize(
    ("point", "dies"),
    [
        ("Decided", "coordinator"),
        ("Header", "candidate"),
        *(
            pytest.param(point, dies, marks=pytest.mark.long)
            for point, dies in [
                ("Ballot", "coordinator"), ("Header", "coordinator"), ("HeaderHalf", "coordinator"),
                ("HeaderDone", "coordinator"), ("Ballot", "candidate"), ("Decided", "candidate"),
                ("HeaderHalf", "candidate"), ("HeaderDone", "candidate"),
            ]
        ),
    ],
)  # fmt: skip
def test_coordinator_and_candidate_are_two(
    election: Election, tree: Tree, tmp_path: Path, point: str, dies: str
) -> None:
    """The coordinator itself failed as a candidate, so the next one is nominated; then one of the two dies."""
    lab, (coordinator, candidate, last) = election.lab, election.others
    victim, living = (coordinator, [candidate, last]) if dies == "coordinator" else (candidate, [coordinator, last])
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        election.hold("Ballot", coordinator)
        election.hold(point, candidate)
        lab.kill(election.administrator)
        election.wait_held(point, candidate)
        election.check_known(election.others)
        lab.kill(victim)
        election.let_go()
        wait_recovered(lab, living)
        load.wait_progress()
    election.check_over(living, headers)
