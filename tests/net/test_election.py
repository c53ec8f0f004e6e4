"""Figure 11 on real processes, held in each of its steps (membership/pauses.py) while somebody is killed.

The nodes share one machine, so the dead are fenced at once.  Whoever dies in whichever step: the others end up with one
administrator, no generation ever has two, generations only grow, and the work of the survivors goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import LabNode
from tests.net.holds import Holds
from tests.net.lab import NetLab
from tests.net.watch import HeaderWatch, header_of
from tests.net.work import Load, wait_recovered

pytestmark = pytest.mark.seed("002-38", "002-39", "002-40", "002-41", "002-45")
OWN_MACHINES = False
HELD = True
POINTS = ["Ballot", "Decided", "Header", "HeaderHalf", "HeaderDone", "Fence", "Fenced"]
ALWAYS = ("Decided", "HeaderHalf", "Fence")  # the others with --long, and all of them in the simulation


class Election:
    """The parts of Figure 11 among the nodes of a lab, as they are before the administrator dies."""

    def __init__(self, lab: NetLab, holds: Holds) -> None:
        self.lab = lab
        statuses = {node.name: lab.status(node) for node in lab.nodes}
        self._ids = holds.ids = {name: status["node"] for name, status in statuses.items()}
        (administrator,) = {status["administrator"] for status in statuses.values()}
        self.administrator = next(node for node in lab.nodes if self._ids[node.name] == administrator)
        # Lowest address first: the first is the coordinator, and its own first candidate (002-39).
        self.others = [node for node in lab.nodes if node is not self.administrator]
        self._known: dict[int, int] = {}  # administrator by generation, as anybody ever said

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
def election(lab: NetLab, tree: Tree, holds: Holds) -> Iterator[Election]:
    yield Election(lab, holds)
    holds.let_go()


@pytest.mark.parametrize(
    "point", [each if each in ALWAYS else pytest.param(each, marks=pytest.mark.long) for each in POINTS]
)
def test_the_next_administrator_dies_too(
    election: Election, holds: Holds, tree: Tree, tmp_path: Path, point: str
) -> None:
    """In each step: as candidate, elected, committed, in office.  It is the coordinator as well."""
    lab, (second, *living) = election.lab, election.others
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        holds.hold(point, second)
        lab.kill(election.administrator)
        holds.wait_held(point, second)
        election.check_known([second, *living])
        lab.kill(second)
        holds.let_go()
        wait_recovered(lab, living)
        load.wait_progress()
    election.check_over(living, headers)


@pytest.mark.parametrize(
    "point", ["HeaderHalf", *(pytest.param(each, marks=pytest.mark.long) for each in POINTS if each != "HeaderHalf")]
)
def test_the_administrator_dies_while_it_evicts(
    election: Election, holds: Holds, tree: Tree, tmp_path: Path, point: str
) -> None:
    """In office, in each step from its ballot for the next generation (1710) to the recovery (1712)."""
    lab, (*living, victim) = election.lab, election.others
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        holds.hold(point, election.administrator)
        lab.kill(victim)
        holds.wait_held(point, election.administrator)
        election.check_known([election.administrator, *living])
        lab.kill(election.administrator)
        holds.let_go()
        wait_recovered(lab, living)
        load.wait_progress()
    election.check_over(living, headers)


def test_a_candidate_that_gets_nowhere_is_passed_over(
    election: Election, holds: Holds, tree: Tree, tmp_path: Path
) -> None:
    """1724: it is alive, but can't reach the SAN locks in time.  When it can, it finds that it is too late."""
    lab, living = election.lab, election.others
    slow, next_one = living[:2]
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        holds.hold("Ballot", slow)
        lab.kill(election.administrator)
        holds.wait_held("Ballot", slow)
        wait_recovered(lab, living)
        assert lab.status(slow)["administrator"] == lab.status(next_one)["node"]
        holds.let_go()
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
    election: Election, holds: Holds, tree: Tree, tmp_path: Path, point: str, dies: str
) -> None:
    """The coordinator itself failed as a candidate, so the next one is nominated; then one of the two dies."""
    lab, (coordinator, candidate, last) = election.lab, election.others
    victim, living = (coordinator, [candidate, last]) if dies == "coordinator" else (candidate, [coordinator, last])
    load = Load(tree, tmp_path, living)
    with HeaderWatch(lab.store) as headers, load.running():
        holds.hold("Ballot", coordinator)
        holds.hold(point, candidate)
        lab.kill(election.administrator)
        holds.wait_held(point, candidate)
        election.check_known(election.others)
        lab.kill(victim)
        holds.let_go()
        wait_recovered(lab, living)
        load.wait_progress()
    election.check_over(living, headers)
