"""Random work from a seed: in turn, with ext4 as the model; and at once, where all mounts must agree in the end."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path

import pytest

from tests.mount.conftest import Tree
from tests.mount.crowd import together
from tests.posix.chance import NAMES, one_file, one_tree
from tests.posix.steps import tree as whole
from tests.posix.test_posix import check

KIB = 1024
# what names that others move meanwhile may lead to; everything else is an error of the filesystem
MEANWHILE = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.EPERM,
}  # fmt: skip


def test_one_file(reference: Path, tree: Tree) -> None:
    check([one_file(seed, 90, 200 * KIB) for seed in range(4)], reference, tree)


def test_one_tree(reference: Path, tree: Tree) -> None:
    check([one_tree(seed, 250) for seed in range(4)], reference, tree)


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
    together(*((work, path, seed, 250) for seed, path in enumerate(tree.paths)))
    agree(tree)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(20))
def test_one_tree_at_once_long(tree: Tree, seed: int) -> None:
    together(*((work, path, 10 * seed + at, 3000) for at, path in enumerate(tree.paths * 2)))
    agree(tree)
