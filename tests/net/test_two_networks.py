"""Four machines with two networks: any link of one of them may fail, as long as the other one's is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.net.lab import NetLab
from tests.net.switch import CUT
from tests.net.work import Load

pytestmark = pytest.mark.seed("002-19", "002-27", "003-26")
SUBNETS = 2


def test_links_fail_in_either_network_and_nobody_is_evicted(lab: NetLab, tree: Tree, tmp_path: Path) -> None:
    """First all of the first network, in one instant; then of every pair of nodes one or the other link."""
    before = [lab.status(node)["generation"] for node in lab.nodes]
    daemons = [node.daemon_pid for node in lab.nodes]
    places = [lab.place(node) for node in lab.nodes]
    load = Load(tree, tmp_path, lab.nodes)
    with load.running():
        cut = lab.switch.counts().get("cut", 0)
        lab.switch.between(places, places, CUT, subnet=0)
        load.wait_progress()
        assert lab.switch.counts()["cut"] > cut, "they did use it"
        lab.switch.heal()
        for one in places:
            for other in places[one:]:
                lab.switch.between([one], [other], CUT, subnet=(one + other) % 2)
        load.wait_progress()
        lab.switch.heal()
        load.wait_progress()
    assert [lab.status(node)["generation"] for node in lab.nodes] == before
    assert [node.daemon_pid for node in lab.nodes] == daemons
