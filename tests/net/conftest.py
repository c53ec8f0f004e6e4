"""Clusters of four nodes in namespaces for the tests of this directory, one a module.

``guard.py`` of ``tests/mount`` watches from outside: whatever a test leaves behind, or is killed amid, is thawed, ended
and unmounted.  The namespaces have no names; they go with their processes.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from membership.pauses import VARIABLE
from tests.mount.conftest import Tree, left_clean
from tests.mount.guard import guarded_run, watched_for
from tests.net.holds import Holds
from tests.net.lab import NetLab
from tests.net.work import bring_back

_numbers = itertools.count(1)

TEST_SECONDS = 90  # for a broken product, not a bound under test


@pytest.fixture(scope="session")
def base() -> Iterator[tuple[Path, TextIO]]:
    """This run's directory, and the guard's ear."""
    with guarded_run("net") as found:
        yield found


@pytest.fixture
def watched(base: tuple[Path, TextIO]) -> Iterator[None]:
    """Whoever hangs longer than TEST_SECONDS loses his cluster."""
    with watched_for(TEST_SECONDS, base[1]):
        yield


@pytest.fixture(scope="module")
def holds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holds]:
    """A directory of pauses, known to every process that is started from now on."""
    top = tmp_path_factory.mktemp("pauses")
    os.environ[VARIABLE] = str(top)
    yield Holds(top)
    del os.environ[VARIABLE]


@pytest.fixture(scope="module")
def lab(base: tuple[Path, TextIO], request: pytest.FixtureRequest) -> Iterator[NetLab]:
    """Four nodes, all mounted.  At the module's end the store must be clean.

    A module may say ``OWN_MACHINES = False``, ``SUBNETS = 2``, and ``HELD = True`` when it uses ``holds``.
    """
    if getattr(request.module, "HELD", False):
        request.getfixturevalue("holds")
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    own, subnets = getattr(request.module, "OWN_MACHINES", True), getattr(request.module, "SUBNETS", 1)
    with left_clean(NetLab(base[0] / name, name=name, own_machines=own, subnets=subnets)) as lab:
        lab.up()
        yield lab
        bring_back(lab)


@pytest.fixture
def tree(lab: NetLab, watched: None) -> Tree:
    """All nodes up, mounted and settled, whatever the last test did; and a fresh directory."""
    bring_back(lab)
    tree = Tree(lab, f"{next(_numbers)}")
    tree.a.mkdir()
    return tree
