"""Random runs with ranges of files, files without a name, attributes and access control lists (R2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio.lowlevel

from matrixfs.fs import ranges, xattrs
from matrixfs.fs.inode import Inode
from matrixfs.fs.volume import Volume
from tests.sim.fs_scenario import WideScenario
from tests.sim.test_fs_sim import OPERATIONS

SEEDS_FILE = Path(__file__).with_name("wide_seeds.txt")
FRESH = range(3)
MANY = range(3, 400)


def failed_once() -> set[int]:
    """Seeds that found a bug: they run for ever."""
    lines = SEEDS_FILE.read_text().splitlines()
    return {int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()}


def run(seed: int) -> None:
    summary = WideScenario(seed, operations=OPERATIONS).run()
    assert summary.operations >= OPERATIONS
    assert summary.compared > 50


def finds(seed: int) -> bool:
    try:
        run(seed)
    except BaseExceptionGroup as error:
        assert error.subgroup(AssertionError) is not None
        return True
    return False


@pytest.mark.parametrize("seed", sorted({*failed_once(), *FRESH}))
def test_random_run(seed: int) -> None:
    run(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", MANY)
def test_many_random_runs(seed: int) -> None:
    run(seed)


async def _forgets_to_punch(volume: Volume, inode: Inode, start: int, end: int) -> None:
    await trio.lowlevel.checkpoint()


def _says_all_is_a_hole(*_: object) -> Any:
    async def at(volume: Volume, inode: Inode, block: int, stop: int) -> tuple[bool, int]:
        await trio.lowlevel.checkpoint()
        return False, stop

    return at


def _drops_an_attribute(original: Callable[..., None]) -> Callable[..., None]:
    def write(volume: Volume, inode: Inode, entries: Mapping[bytes, bytes], *rest: Any) -> None:
        original(volume, inode, dict(list(entries.items())[:1]), *rest)

    return write


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (ranges, "_punch", lambda _: _forgets_to_punch),
        (ranges.seeking, "_at", _says_all_is_a_hole),
        (xattrs, "write", _drops_an_attribute),
    ],
    ids=["punch", "hole", "attribute"],
)
def test_the_checkers_see(module: Any, name: str, broken: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the product that the plain workload doesn't call, broken."""
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    assert any(finds(seed) for seed in range(2, 8))
