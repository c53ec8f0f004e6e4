"""For all tests: ``--long`` also runs the matrices that take minutes (marked ``long``; else they are not collected).

The modules whose tests take seconds each come first: they wait more than they compute, so four workers keep two cores
busy, and end at about the same time.

What ``tmp_path`` gives lies in a directory of this run, which a guard frees of mounts and deletes however the run ends.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.mount.guard import guarded_run, sweep, watched_for

SLOW = ("tests/net/", "tests/san/", "tests/mount/", "tests/posix/", "tests/stress/", "tests/sim/", "tests/crash/")
RUN_SECONDS_MAX = 24 * 3600.0  # each test has a time of its own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that are marked long")


@pytest.hookimpl(tryfirst=True)  # before the fixture of tmp_path reads the option
def pytest_configure(config: pytest.Config) -> None:
    if config.option.basetemp or config.option.collectonly:  # xdist gives its workers theirs
        return
    sweep()
    with contextlib.ExitStack() as stack:
        path, ear = stack.enter_context(guarded_run("pytest"))
        stack.enter_context(watched_for(RUN_SECONDS_MAX, ear))
        config.option.basetemp = str(path / "tmp")
        config.add_cleanup(stack.pop_all().close)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, top in enumerate(SLOW) if item.nodeid.startswith(top)), len(SLOW)))
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]
