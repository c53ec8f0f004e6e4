"""Real clusters for the tests of this directory: three nodes a module, a fresh directory in their tree a test.

Stores and mount points lie in /var/tmp, which does direct I/O (many a /tmp is a tmpfs).  ``guard.py`` watches from
outside, so that nothing stays behind when a test hangs in a mount or pytest is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import pytest

from tests.mount.guard import guarded_run, watched_for
from tests.mount.lab import Lab, LabNode

_Lab = TypeVar("_Lab", bound=Lab)
_numbers = itertools.count(1)

TEST_SECONDS = 60  # for a broken product, not a bound under test
STORE_SIZE = "512M"


@dataclass(frozen=True)
class Tree:
    """One directory of the shared tree, as each node's mount shows it."""

    lab: Lab
    name: str

    def on(self, node: LabNode) -> Path:
        return node.mountpoint / self.name

    @property
    def paths(self) -> list[Path]:
        return [self.on(node) for node in self.lab.nodes]

    @property
    def a(self) -> Path:
        return self.on(self.lab.nodes[0])

    @property
    def b(self) -> Path:
        return self.on(self.lab.nodes[1])

    @property
    def c(self) -> Path:
        return self.on(self.lab.nodes[2])


@pytest.fixture(scope="session")
def base() -> Iterator[tuple[Path, TextIO]]:
    """This run's directory, and the guard's ear."""
    with guarded_run("tests") as found:
        yield found


@pytest.fixture
def watched(base: tuple[Path, TextIO], request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever hangs longer than TEST_SECONDS, of the module or else of here, loses his cluster."""
    with watched_for(getattr(request.module, "TEST_SECONDS", TEST_SECONDS), base[1]):
        yield


def new_lab(base: tuple[Path, TextIO], name: str, nodes: int = 3, size: str = STORE_SIZE) -> Lab:
    """A lab below this run's directory; not formatted yet."""
    directory = base[0] / name
    shutil.rmtree(directory, ignore_errors=True)
    return Lab(directory, nodes=nodes, size=size, name=name)


@contextlib.contextmanager
def left_clean(lab: _Lab) -> Iterator[_Lab]:
    """Taken down at the end, when its store must be clean; removed in any case."""
    try:
        yield lab
        lab.down()
        found = lab.fsck("-n")
        assert found.returncode == 0, found.stdout + found.stderr
    finally:
        lab.remove()


@pytest.fixture(scope="module")
def lab(base: tuple[Path, TextIO], request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three nodes, all mounted, for the tests of one module; at its end the store must be clean.

    A module may say ``STORE_SIZE``.
    """
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    with left_clean(new_lab(base, name, size=getattr(request.module, "STORE_SIZE", STORE_SIZE))) as lab:
        lab.up()
        yield lab


@pytest.fixture
def tree(lab: Lab, request: pytest.FixtureRequest, watched: None) -> Tree:
    """A fresh directory."""
    tree = Tree(lab, f"{next(_numbers)}-{request.node.name[:60].replace('/', '_')}")
    tree.a.mkdir()
    return tree
