"""Thousands of small cases, each on a local ext4 and on three mounts of MatrixFS: errno, results and what is left.

Changes are done on one mount, looks at them on the others in turn; at a case's end all three must show the same, and
what ext4 shows.  What differs on purpose is in ``differences``, with its reason.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.mount.conftest import Tree
from tests.mount.crowd import together
from tests.posix import attributes, contents, flags, moves, names
from tests.posix.cases import OTHER, OWNER, Case, Step, as_user, numbered
from tests.posix.chance import NAMES, one_file, one_tree
from tests.posix.differences import DIFFERENCES, Difference
from tests.posix.runner import Trace, differing, run
from tests.posix.steps import tree as whole

MODULES = (names, moves, attributes, contents, flags)
GROUPS = {group.__name__: numbered(group()) for module in MODULES for group in module.GROUPS}
ACROSS = {"nameless", "reading_and_writing", "reserving", "within", "moving_times"}  # about what others see
FOUND = {  # cases that have found something: always run
    "gone/dir-in-use", "io/append-later", "moving/ahead-1000000", "nameless/dir-1", "reading/names", "reading/read",
    "reserve/punched-whole", "set-id/append/6777-0", "set-id/trunc/6777-65534", "times-far/1099511627776",
}  # fmt: skip
CASES_MAX = 12  # of a group, unless the long tests are run
KIB = 1024
# what names that others move meanwhile may lead to; everything else is an error of the filesystem
MEANWHILE = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.EPERM,
}  # fmt: skip
SHOWN_MAX = 60  # differences that a failure prints


def expected(case: Case) -> Difference | None:
    """What is said about a case in the table of differences."""
    found = [each for each in DIFFERENCES if each.is_about(case)]
    assert len(found) <= 1, (case.name, found)
    return found[0] if found else None


def check(cases: Sequence[Case], reference: Path, tree: Tree, **how: Any) -> None:
    """Do the cases on ext4 and on the mounts; ``how``: see ``run``."""
    model = reference / tree.name
    model.mkdir()
    assert_equal(cases, run(cases, [model] * len(tree.paths), **how), run(cases, tree.paths, **how))


def some(cases: Sequence[Case]) -> Sequence[Case]:
    """One of two cases, or of fifty: as many as the default run has time for."""
    step = -(-len(cases) // CASES_MAX)
    return [case for at, case in enumerate(cases) if at % step == 0 or case.name in FOUND]


def assert_equal(cases: Sequence[Case], wanted: Sequence[Trace], got: Sequence[Trace]) -> None:
    found = dict(differing(cases, wanted, got))
    unexpected = [f"{case.name}: {'; '.join(wrong)}" for case, wrong in found.items() if expected(case) is None]
    assert not unexpected, f"{len(unexpected)} cases differ\n" + "\n".join(unexpected[:SHOWN_MAX])
    stale = [case.name for case in cases if expected(case) is not None and case not in found]
    assert not stale, f"these differ no more: {stale}"


@pytest.mark.seed("002-09")
@pytest.mark.parametrize("group", GROUPS)
def test_as_ext4_does_it(reference: Path, tree: Tree, group: str) -> None:
    check(some(GROUPS[group]), reference, tree, across=group in ACROSS, everywhere=False)


PROJECTS: dict[str, tuple[tuple[Step, object], ...]] = {  # what ext4's sources say: few kernels have projects of ext4
    "handed down": (
        (("mkdir", "d", 0o755), None), (("set_project", "d", "PS", 0xFFFFFFFE), None), (("put", "d/x", b"x"), None),
        (("mkdir", "d/sub", 0o755), None), (("put", "d/sub/y", b"y"), None), (("symlink", "x", "d/l"), None),
        (("project", "d/x"), ("S", 0, 0xFFFFFFFE)), (("project", "d/sub"), ("SP", 0, 0xFFFFFFFE)),
        (("project", "d/sub/y"), ("S", 0, 0xFFFFFFFE)), (("link", "d/x", "d/x2"), None),
        (("link", "d/l", "d/l2"), None), (("rename", "d/x", "x"), None), (("project", "x"), ("S", 0, 0xFFFFFFFE)),
        (("rename", "x", "d/sub/x"), None), (("set_project", "d", "", 3), None),
        (("put", "d/z", b"z"), None), (("project", "d/z"), ("", 0, 0)),
    ),
    "another's": (
        (("mkdir", "d", 0o755), None), (("set_project", "d", "P", 9), None), (("put", "x", b"x"), None),
        (("put", "d/y", b"y"), None), (("link", "x", "d/x"), "EXDEV"), (("rename", "x", "d/x"), "EXDEV"),
        (("rename", "x", "d/y"), "EXDEV"), (("link", "x", "d/y"), "EEXIST"), (("renameat2", "x", "d/y", 2), "EXDEV"),
        (("renameat2", "d/y", "x", 2), "EXDEV"), (("set_project", "d/y", "", 8), None),
        (("rename", "d/y", "d/z"), "EXDEV"), (("rename", "d/y", "y"), None), (("set_project", "x", "", 9), None),
        (("rename", "x", "d/x"), None), (("names", "d"), ["x"]), (("mkdir", "e", 0o755), None),
        (("rename", "e", "d/e"), "EXDEV"), (("set_project", "e", "", 9), None), (("rename", "e", "d/e"), None),
    ),
    "whose": (
        (("put", "x", b"x"), None), (("chown", "x", OWNER, 0), None), *((step, None) for step in as_user(
            OWNER, ("set_project", "x", "", 5))), (("project", "x"), ("", 0, 5)),
        *zip(as_user(OTHER, ("set_project", "x", "", 6)), (None, "EPERM", None), strict=True),
        (("set_flags_to", "x", "i"), None), (("set_project", "x", "i", 6), "EPERM"), (("project", "x"), ("i", 0, 5)),
        (("set_project", "x", "P", 6), "ENOTSUP"), (("set_project", "x", "", 6), None), (("flags", "x"), ""),
    ),
}  # fmt: skip


def test_projects(tree: Tree) -> None:
    cases = [Case(name, tuple(step for step, _ in steps)) for name, steps in PROJECTS.items()]
    for case, trace in zip(cases, run(cases, tree.paths), strict=True):
        wanted = [result for _, result in PROJECTS[case.name]]
        wrong = [each for each in zip(case.steps, wanted, trace, strict=False) if each[1] != each[2]]
        assert not wrong, case.name


def told(*command: object) -> list[str]:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout.split()


def test_chattr_and_lsattr(tree: Tree) -> None:
    (tree.a / "d").mkdir()
    (tree.a / "d" / "f").write_text("f")
    told("chattr", "+SdA", tree.a / "d" / "f")
    assert set(told("lsattr", tree.b / "d" / "f")[0]) == set("SdA-")
    told("chattr", "-A", "+i", tree.b / "d" / "f")
    assert set(told("lsattr", tree.c / "d" / "f")[0]) == set("Sdi-")
    with pytest.raises(PermissionError):
        (tree.c / "d" / "f").write_text("g")
    told("chattr", "-R", "=", tree.c / "d")
    told("chattr", "-p", 77, "+P", tree.a / "d")
    (tree.b / "d" / "g").write_text("g")
    assert told("lsattr", "-p", tree.c / "d" / "g")[0] == "77"
    project, flags, _path = told("lsattr", "-pd", tree.a / "d")
    assert (project, set(flags)) == ("77", {"-", "P"})
    assert int(told("lsattr", "-v", tree.a / "d" / "g")[0]) == int(told("lsattr", "-v", tree.b / "d" / "g")[0]) != 0
    refused = subprocess.run(["chattr", "+C", str(tree.a / "d" / "g")], capture_output=True, text=True, check=False)
    assert "Operation not supported" in refused.stderr


def test_two_mounts_of_one_tree_are_two_filesystems(tree: Tree) -> None:
    """As with NFS: names are moved and linked within a mount; mv then copies."""
    (tree.a / "f").write_text("f")
    for call in (os.rename, os.link):
        with pytest.raises(OSError) as caught:
            call(tree.a / "f", tree.b / "g")
        assert caught.value.errno == errno.EXDEV


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_as_many_names_as_there_can_be(tree: Tree) -> None:
    """65,000 of a file, and more directories in a directory than that."""
    (tree.a / "f").touch()
    (tree.a / "links").mkdir()
    (tree.a / "directories").mkdir()
    for number in range(64_999):
        os.link(tree.a / "f", tree.a / "links" / str(number))
    with pytest.raises(OSError) as caught:
        os.link(tree.b / "f", tree.b / "links" / "more")
    assert caught.value.errno == errno.EMLINK
    for number in range(66_000):
        (tree.a / "directories" / str(number)).mkdir()
    assert [os.stat(path / "f").st_nlink for path in tree.paths] == [65_000] * 3
    assert [os.stat(path / "directories").st_nlink for path in tree.paths] == [66_002] * 3


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first_mount", range(3))
@pytest.mark.parametrize("group", GROUPS)
def test_as_ext4_does_it_with_a_look_from_elsewhere_after_each_step(
    reference: Path, tree: Tree, group: str, first_mount: int
) -> None:
    check(GROUPS[group], reference, tree, first_mount=first_mount)


# --- by chance: in turn, with ext4 as the model; and at once, where all mounts must agree in the end ---------------


def test_one_file(reference: Path, tree: Tree) -> None:
    check([one_file(seed, 90, 200 * KIB) for seed in range(2)], reference, tree)


def test_one_tree(reference: Path, tree: Tree) -> None:
    check([one_tree(seed, 250) for seed in range(2)], reference, tree)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 130))
def test_one_file_long(reference: Path, tree: Tree, seed: int) -> None:
    check([one_file(seed, 1500, size) for size in (5000, 100 * KIB, 3000 * KIB)], reference, tree)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(100, 130))
def test_one_tree_long(reference: Path, tree: Tree, seed: int) -> None:
    check([one_tree(seed, 3000)], reference, tree)


def work(top: Path, seed: int, count: int) -> None:
    """Random operations in a tree where others do the same."""
    rng = random.Random(seed)

    def path() -> str:
        return os.path.join(top, *rng.choices(NAMES, k=rng.choice((1, 2, 2, 3))))

    for _ in range(count):
        call = rng.choice((
            lambda: os.mkdir(path()), lambda: os.mkdir(path()), lambda: os.rmdir(path()),
            lambda: Path(path()).write_bytes(rng.randbytes(rng.choice((5, 9000)))), lambda: os.unlink(path()),
            lambda: os.rename(path(), path()), lambda: os.rename(path(), path()),
            lambda: os.link(path(), path(), follow_symlinks=False), lambda: os.listdir(path()), lambda: os.stat(path()),
            lambda: Path(path()).read_bytes(), lambda: os.truncate(path(), rng.randrange(9000)),
            lambda: os.chmod(path(), rng.choice((0o700, 0o755))),
        ))  # fmt: skip
        try:
            call()
        except OSError as error:
            if error.errno not in MEANWHILE:
                raise


def agree(tree: Tree) -> None:
    """All mounts show the same; at the module's end fsck looks at it, too."""
    shown = []
    for path in tree.paths:
        with contextlib.chdir(path):
            shown.append(whole("."))
    assert shown[0] == shown[1] == shown[2]


def test_one_tree_at_once(tree: Tree) -> None:
    together(*((work, path, seed, 120) for seed, path in enumerate(tree.paths)))
    agree(tree)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(20))
def test_one_tree_at_once_long(tree: Tree, seed: int) -> None:
    together(*((work, path, 10 * seed + at, 3000) for at, path in enumerate(tree.paths * 2)))
    agree(tree)
