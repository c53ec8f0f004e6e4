"""Thousands of small cases, each on a local ext4 and on three mounts of MatrixFS: errno, results and what is left.

Changes are done on one mount, looks at them on the others in turn; at a case's end all three must show the same, and
what ext4 shows.  What differs on purpose is in ``differences``, with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.posix import attributes, contents, moves, names
from tests.posix.cases import Case, numbered
from tests.posix.differences import DIFFERENCES, Difference
from tests.posix.runner import Trace, differing, run

MODULES = (names, moves, attributes, contents)
GROUPS = {group.__name__: numbered(group()) for module in MODULES for group in module.GROUPS}
ACROSS = {"nameless", "reading_and_writing", "within", "moving_times"}  # whose steps are about what others see
SHOWN_MAX = 60  # differences that a failure prints


def expected(case: Case) -> Difference | None:
    """What is said about a case in the table of differences."""
    found = [each for each in DIFFERENCES if each.is_about(case)]
    assert len(found) <= 1, (case.name, found)
    return found[0] if found else None


def check(
    cases: Sequence[Case], reference: Path, tree: Tree, first_mount: int = 0, *, across: bool = True
) -> None:
    model = reference / tree.name
    model.mkdir()
    wanted = run(cases, [model] * len(tree.paths), first_mount=first_mount, across=across)
    got = run(cases, tree.paths, first_mount=first_mount, across=across)
    assert_equal(cases, wanted, got)


def assert_equal(cases: Sequence[Case], wanted: Sequence[Trace], got: Sequence[Trace]) -> None:
    found = dict(differing(cases, wanted, got))
    unexpected = [f"{case.name}: {'; '.join(wrong)}" for case, wrong in found.items() if expected(case) is None]
    assert not unexpected, f"{len(unexpected)} cases differ\n" + "\n".join(unexpected[:SHOWN_MAX])
    stale = [case.name for case in cases if expected(case) is not None and case not in found]
    assert not stale, f"these differ no more: {stale}"


@pytest.mark.seed("002-09")
@pytest.mark.parametrize("group", GROUPS)
def test_as_ext4_does_it(reference: Path, tree: Tree, group: str) -> None:
    check(GROUPS[group], reference, tree, across=group in ACROSS)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first_mount", range(3))
@pytest.mark.parametrize("group", GROUPS)
def test_as_ext4_does_it_with_a_look_from_elsewhere_after_each_step(
    reference: Path, tree: Tree, group: str, first_mount: int
) -> None:
    check(GROUPS[group], reference, tree, first_mount)
