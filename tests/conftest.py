"""For all tests: ``--long`` also runs the matrices that take minutes (marked ``long``; else they are not collected).

The modules whose tests take seconds each come first: they wait more than they compute, so four workers keep two cores
busy, and end at about the same time.
"""

from __future__ import annotations

import pytest

SLOW = ("tests/net/", "tests/san/", "tests/mount/", "tests/posix/", "tests/stress/", "tests/sim/", "tests/crash/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that are marked long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((at for at, top in enumerate(SLOW) if item.nodeid.startswith(top)), len(SLOW)))
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]
