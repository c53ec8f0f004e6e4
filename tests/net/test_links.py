"""Links between four machines are cut, in one direction or both, or lose packets: who goes on, and who stops.

Each node is a machine of its own, so nobody can kill anybody: who is evicted must stop by itself, and the others wait
for the end of its lease (R4).  One cluster for all tests; each heals the network and brings everybody back first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.lab import LabNode, wait_until
from tests.net.lab import NetLab
from tests.net.switch import CUT, Rule
from tests.net.watch import HeaderWatch, data_digest
from tests.net.work import Load, bring_back, quiet_digest, wait_recovered

pytestmark = pytest.mark.seed("002-27", "002-31", "002-38", "003-26")

LOST_MIN = 300  # packets
ROUNDS_LOSSY = 1  # of work on each node: four of them fight for one directory, and every second message is 0.2 s late


def evicted(tree: Tree, victims: Sequence[LabNode], cut: Callable[[], None], outside: Path) -> list[LabNode]:
    """After the cut the victims end by themselves, the others go on, nothing acknowledged is lost.  The others."""
    lab = tree.lab
    assert isinstance(lab, NetLab)
    survivors = [node for node in lab.nodes if node not in victims]
    mounts = {node.name: node.mount_pid for node in victims}
    load = Load(tree, outside, survivors, victims)
    with HeaderWatch(lab.store) as headers, load.running():
        cut()
        for node in victims:
            lab.wait_end(node, mounts[node.name])
        load.wait_failed()
        wait_recovered(lab, survivors)
        load.wait_progress()
    headers.check()
    assert headers.seen[-1].members.keys() == {lab.status(node)["node"] for node in survivors}
    load.check_acknowledged(survivors)
    fences = [fence for node in survivors for fence in lab.status(node)["fences"] if fence["confirmed"]]
    assert {fence["driver"] for fence in fences} == {"lease"}
    return survivors


def generations(lab: NetLab) -> set[int]:
    return {lab.status(node)["generation"] for node in lab.nodes}


@pytest.mark.seed("002-46")
def test_a_node_leaves_and_joins_while_the_others_work(lab: NetLab, tree: Tree, tmp_path: Path) -> None:
    """In good order: nobody is fenced, nobody fails, and the generation counts both."""
    goer, others = lab.nodes[3], lab.nodes[:3]
    (before,) = generations(lab)
    fences = lab.status(others[0])["fences"]
    load = Load(tree, tmp_path, others)
    with load.running():
        lab.umount(goer)
        lab.stop(goer)
        load.wait_progress()
        wait_recovered(lab, others)
        lab.start(goer)
        lab.mount(goer)
        wait_recovered(lab, lab.nodes)
        load.wait_progress()
    assert generations(lab) == {before + 2}
    assert lab.status(others[0])["fences"] == fences
    assert sorted(tree.on(goer).iterdir()) == sorted(tree.on(goer) / path.name for path in tree.a.iterdir())


def test_a_fifth_of_all_packets_is_lost_and_nobody_evicted(lab: NetLab, tree: Tree, tmp_path: Path) -> None:
    """TCP carries it: slower, but every call comes to its end and every heartbeat arrives in time."""
    before = generations(lab)
    daemons = [node.daemon_pid for node in lab.nodes]
    lost = lab.switch.counts().get("lost", 0)
    load = Load(tree, tmp_path, lab.nodes)
    with load.running():
        lab.switch.everywhere(Rule(loss=0.2))
        load.wait_progress(ROUNDS_LOSSY)
        wait_until(lambda: lab.switch.counts().get("lost", 0) > lost + LOST_MIN, "packets are lost")
        lab.switch.heal()
        load.wait_progress()
    assert generations(lab) == before
    assert [node.daemon_pid for node in lab.nodes] == daemons


@pytest.mark.seed("002-12", "002-20")
def test_a_node_that_is_cut_off_ends_and_comes_back_by_itself(lab: NetLab, tree: Tree, tmp_path: Path) -> None:
    """It reaches the store all the time.  Started again while it is cut off it waits, and joins when the link heals."""
    victim = lab.nodes[3]
    survivors = evicted(tree, [victim], lambda: lab.switch.isolate(lab.place(victim)), tmp_path)
    before = quiet_digest(lab, survivors)
    lab.launch(victim)
    status = ("matrixctl", "--state", victim.state, "status")
    wait_until(lambda: lab.run(*status, check=False).returncode == 0, "it answers")
    wait_until(lambda: lab.status(victim)["state"] == "joining", "it has its slot")
    slot = lab.status(victim)["node"]
    wait_until(lambda: seen_as(lab, survivors[0], slot) == "alive", "the others see it on the disk")
    assert lab.status(victim)["state"] == "joining"
    assert data_digest(lab.store) == before
    lab.mount_all(survivors)
    (tree.a / "meanwhile").write_text("written while it was away")
    lab.switch.heal()
    lab.wait_member(victim)
    lab.mount(victim)
    assert (tree.on(victim) / "meanwhile").read_text() == "written while it was away"
    wait_recovered(lab, lab.nodes)


def seen_as(lab: NetLab, via: LabNode, slot: int) -> str:
    return next(node["state"] for node in lab.status(via)["nodes"] if node["id"] == slot)


@pytest.mark.parametrize("direction", ["from it", pytest.param("to it", marks=pytest.mark.long)])
def test_one_direction_of_a_node_is_cut(lab: NetLab, tree: Tree, tmp_path: Path, direction: str) -> None:
    victim = lab.nodes[2]

    def cut() -> None:
        place = lab.place(victim)
        for other in (lab.place(node) for node in lab.nodes if node is not victim):
            pair = (place, other) if direction == "from it" else (other, place)
            lab.switch.rule(*pair, CUT)

    evicted(tree, [victim], cut, tmp_path)


@pytest.mark.seed("002-39")
@pytest.mark.parametrize("ends", [(0, 1), pytest.param((2, 3), marks=pytest.mark.long)])
def test_one_link_is_cut_and_both_ends_see_the_others(
    lab: NetLab, tree: Tree, tmp_path: Path, ends: tuple[int, int]
) -> None:
    """A chain has no set in which all hear all but without one of its ends: the one of the higher address goes."""
    one, other = (lab.place(lab.nodes[end]) for end in ends)
    evicted(tree, [lab.nodes[ends[1]]], lambda: lab.switch.between([one], [other], CUT), tmp_path)


@pytest.mark.parametrize(
    "losers",
    [
        pytest.param((2, 3), id="equal halves: the one with the lowest address stays"),
        pytest.param((1, 2), id="whoever else is in it", marks=pytest.mark.long),
        pytest.param((0,), id="the lowest address alone is a minority", marks=pytest.mark.long),
    ],
)
def test_the_cluster_falls_apart_and_one_part_goes_on(
    lab: NetLab, tree: Tree, tmp_path: Path, losers: tuple[int, ...]
) -> None:
    gone = [lab.nodes[index] for index in losers]
    parts = [[lab.place(node) for node in lab.nodes if (node in gone) is of_gone] for of_gone in (False, True)]
    evicted(tree, gone, lambda: lab.switch.between(*parts, CUT), tmp_path)
    bring_back(lab)
    assert {lab.status(node)["administrator"] for node in lab.nodes} == {lab.status(lab.nodes[0])["administrator"]}
