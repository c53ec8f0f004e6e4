"""The checker on histories made by hand: right ones pass, each kind of wrong one is found."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.stress import names
from tests.stress.contents import LATE_NS
from tests.stress.files import END, SLOT, ZEROS, stamp
from tests.stress.history import DIRECTORY, FILE, Op, new_identity
from tests.stress.judge import judge
from tests.stress.linear import FOREVER, Step, TooHard, check
from tests.stress.worker import HOT

A, B = new_identity(1, FILE), new_identity(2, FILE)
D = new_identity(3, DIRECTORY)
ENOENT, EEXIST = -errno.ENOENT, -errno.EEXIST
X, Y = stamp(1, 1), stamp(2, 2)
MS = 1_000_000
LATER = 3 * LATE_NS


def history(*rows: tuple[Any, ...]) -> list[Op]:
    """Rows of start, end (ms), process, kind, arguments, result; process n is on node n."""
    return [Op(start * MS, end * MS, who, who, kind, args, result) for start, end, who, kind, args, result in rows]


def problems(*rows: tuple[Any, ...]) -> list[str]:
    return judge(history(*rows)).problems


MADE = (0, 1, 0, "create", (0, A), 0)


@pytest.mark.parametrize(
    "rows",
    [
        [MADE, (2, 3, 1, "look", (0,), (A, 1, 0)), (4, 5, 1, "create", (0, B), EEXIST)],
        [MADE, (0, 2, 1, "look", (0,), ENOENT)],
        [MADE, (0, 9, 1, "create", (0, B), 0), (2, 3, 2, "unlink", (0,), 0), (10, 11, 2, "look", (0,), (B, 1, 0))],
        [MADE, (2, 3, 0, "rename", (0, 7, 0), 0), (4, 5, 1, "look", (7,), (A, 1, 0)), (4, 5, 2, "look", (0,), ENOENT)],
        [MADE, (2, 9, 0, "rename", (0, 1, 0), 0), (3, 4, 1, "look", (1,), (A, 1, 0)), (5, 6, 2, "look", (0,), ENOENT)],
        [MADE, (2, 3, 0, "link", (A, 1), 0), (4, 5, 1, "look", (0,), (A, 2, 0)), (6, 7, 1, "rename", (0, 1, 0), 0)],
        [MADE, (2, 3, 0, "create", (1, B), 0), (4, 5, 1, "rename", (0, 1, 2), 0), (6, 7, 2, "look", (0,), (B, 1, 0))],
        [MADE, (2, 5, 1, "unlink", (0,), 0), (3, 4, 2, "list", (0,), ("n0",)), (6, 7, 2, "list", (0,), ())],
        [(0, 1, 0, "mkdir", (0, D), 0), (2, 3, 1, "child_create", (D,), 0), (4, 5, 2, "rmdir", (0,), -errno.ENOTEMPTY)],
        [(0, 1, 0, "open", (0, A, os.O_CREAT), A), (2, 3, 1, "open", (0, B, os.O_CREAT), A)],
        [MADE, (2, FOREVER, 1, "unlink", (0,), 0), (3, 4, 2, "look", (0,), (A, 1, 0)), (5, 6, 2, "look", (0,), ENOENT)],
        [(0, 1, 0, "rename", (1, 2, 0), -errno.ESTALE)],
    ],
)
def test_what_may_happen_to_names(rows: list[tuple[Any, ...]]) -> None:
    assert problems(*rows) == []


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([MADE, (2, 3, 1, "look", (0,), ENOENT)], id="stale-negative"),
        pytest.param([MADE, (2, 3, 0, "unlink", (0,), 0), (4, 5, 1, "look", (0,), (A, 1, 0))], id="stale-positive"),
        pytest.param([MADE, (0.5, 2, 1, "create", (0, B), 0)], id="made-twice"),
        pytest.param([MADE, (2, 4, 1, "unlink", (0,), 0), (2, 4, 2, "unlink", (0,), 0)], id="removed-twice"),
        pytest.param([MADE, (2, 3, 0, "unlink", (0,), 0), (4, 5, 1, "list", (0,), ("n0",))], id="phantom-listed"),
        pytest.param([MADE, (2, 3, 1, "list", (0,), ())], id="not-listed"),
        pytest.param([MADE, (2, 3, 0, "rename", (0, 1, 0), 0), (4, 5, 1, "look", (0,), (A, 1, 0))], id="rename-stale"),
        pytest.param(
            [MADE, (2, 9, 0, "rename", (0, 1, 0), 0), (3, 4, 1, "look", (0,), ENOENT), (5, 6, 2, "look", (1,), ENOENT)],
            id="rename-in-two-steps",
        ),
        pytest.param([MADE, (2, 3, 1, "create", (1, B), 0), (4, 5, 0, "rename", (0, 1, 1), 0)], id="noreplace-did"),
        pytest.param([MADE, (2, 3, 0, "link", (A, 1), 0), (4, 5, 1, "look", (0,), (A, 1, 0))], id="stale-link-count"),
        pytest.param([MADE, (2, 3, 0, "rmdir", (0,), 0)], id="file-removed-as-directory"),
        pytest.param([(0, 1, 0, "mkdir", (0, D), 0), (2, 3, 1, "child_create", (D,), 0), (4, 5, 2, "rmdir", (0,), 0)],
                     id="full-directory-removed"),
        pytest.param([(2, 3, 0, "create", (0, B), EEXIST), (4, 5, 0, "look", (0,), (B, 1, 0))], id="made-but-refused"),
        pytest.param([MADE, (2, 3, 0, "unlink", (0,), -errno.EIO)], id="no-such-error"),
    ],
)  # fmt: skip
def test_what_may_not_happen_to_names(rows: list[tuple[Any, ...]]) -> None:
    assert problems(*rows)


FULL = (0, 0, 0, "truncate", (HOT, 6), 0)


def read(start: float, who: int, *values: bytes) -> tuple[Any, ...]:
    return (start, start + 1, who, "read", (HOT, 0, len(values)), tuple(frozenset((value,)) for value in values))


def wrote(start: float, who: int, value: bytes, end: float | None = None) -> tuple[Any, ...]:
    return (start, start + 1 if end is None else end, who, "write", (HOT, 0, 1, value), 0)


def test_what_may_happen_to_files() -> None:
    assert problems(FULL, read(1, 0, ZEROS, ZEROS), wrote(3, 0, X), read(5, 1, X, ZEROS)) == []
    assert problems(FULL, wrote(1, 0, X, 9), read(2, 0, X), read(4, 1, ZEROS), read(10, 1, X)) == [], "seen early"
    assert problems(FULL, wrote(1, 0, X, 9), wrote(1, 1, Y, 9), read(10, 0, X)) == []
    long = (3, 4, 0, "write", (HOT, 5, 1, X), 0)
    seen = (2, 3, 1, "size", (HOT,), (HOT, 1, 5 * SLOT))
    assert problems(FULL, (0.5, 1, 0, "truncate", (HOT, 5), 0), seen, long) == []


def test_what_may_not_happen_to_files() -> None:
    assert problems(FULL, wrote(1, 0, X), read(LATER / MS, 1, ZEROS)), "stale"
    assert problems(FULL, wrote(1, 0, X), wrote(3, 0, Y), read(LATER / MS, 1, X)), "lost update"
    assert problems(FULL, read(1, 1, X), wrote(3, 0, X)), "before it was written"
    assert problems(FULL, read(1, 1, X)), "never written"
    assert problems(FULL, wrote(1, 0, X), (3, 4, 1, "size", (HOT,), (HOT, 1, 0))), "wrong size"
    assert problems(FULL, wrote(1, 0, X), read(3, 1, END)), "short read"
    assert problems(FULL, wrote(1, 0, X), read(3, 1, ZEROS)), "stale, and nobody beside it"


def test_a_late_read_is_excused_only_beside_a_change_and_never_strictly() -> None:
    rows = (FULL, wrote(1, 0, X), read(3, 1, ZEROS), wrote(3, 2, Y, 9))
    late = judge(history(*rows))
    assert (late.problems, late.excused) == ([], {"read: stale pages": 1})
    strict = judge(history(*rows), strict=True)
    assert len(strict.problems) == 1
    assert [(stale.what, stale.late_ns) for stale in strict.stale] == [("pages", MS)]


CUT, GROWN = (2.5, 3, 0, "truncate", (HOT, 0), 0), (4, 5, 0, "truncate", (HOT, 3), 0)


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([CUT, read(4, 1, END)], True),
        ([CUT, read(4, 1, ZEROS)], False),  # behind the end
        ([CUT, read(2.5, 1, ZEROS)], True),
        ([wrote(1, 0, X), CUT, GROWN, read(6, 1, ZEROS)], True),
        ([wrote(1, 0, X), CUT, GROWN, read(6, 1, END)], False),  # too early
        ([wrote(1, 0, X), CUT, GROWN, read(6, 1, X)], False),  # what was cut off stays cut off
        ([CUT, wrote(4, 0, X), read(6, 1, ZEROS)], False),
        ([CUT, wrote(4, 0, X), read(6, 1, X, END)], True),
        ([CUT, (4, 5, 0, "write", (HOT, 1, 1, X), 0), read(6, 1, ZEROS, X)], True),
        ([(2, 3, 0, "open", (0, 0, os.O_TRUNC), HOT), read(4, 1, X)], False),
    ],
)
def test_ends_and_holes(rows: list[tuple[Any, ...]], good: bool) -> None:
    assert (problems(FULL, *rows) == []) == good


def appended(start: float, who: int, record: bytes, end: float | None = None) -> tuple[Any, ...]:
    return (start, start + 1 if end is None else end, who, "append", (record,), 0)


R1, R2 = b"1".ljust(23) + b"\n", b"2".ljust(23) + b"\n"


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([appended(0, 0, R1), appended(2, 1, R2), (4, 5, 2, "read_log", (), R1 + R2)], True),
        ([appended(0, 0, R1, 3), appended(1, 1, R2, 3), (4, 5, 2, "read_log", (), R2 + R1)], True),
        ([appended(0, 0, R1), appended(2, 1, R2), (4, 5, 2, "read_log", (), R2 + R1)], False),
        ([appended(0, 0, R1), appended(2, 1, R2), (4, 5, 2, "read_log", (), R1)], False),
        ([appended(0, 0, R1), (4, 5, 2, "read_log", (), R1 + R1)], False),
        ([appended(0, 0, R1), (4, 5, 2, "read_log", (), R1 + R2)], False),
        ([appended(0, 0, R1), (2, 3, 1, "log_size", (), 0), (4, 5, 2, "read_log", (), R1)], False),
        ([appended(0, 0, R1), (2, 3, 1, "log_size", (), 30), (4, 5, 2, "read_log", (), R1)], False),
        ([appended(0, 0, R1), (2, 3, 1, "log_size", (), 24), (4, 5, 1, "log_size", (), 0),
          (9, 10, 2, "read_log", (), R1)], False),
    ],
)  # fmt: skip
def test_the_log(rows: list[tuple[Any, ...]], good: bool) -> None:
    assert (problems(*rows) == []) == good


def test_an_end_of_the_log_is_excused_only_beside_an_append() -> None:
    late = history(
        appended(0, 0, R1, 9),
        (2, 3, 1, "log_size", (), 24),
        (4, 5, 1, "log_size", (), 0),
        (9, 10, 2, "read_log", (), R1),
    )
    assert judge(late).excused == {"fstat: stale size": 1}
    assert judge(late, strict=True).problems


def test_counters() -> None:
    assert problems((0, 1, 0, "count", ("posix",), 0), (2, 3, 1, "count", ("posix",), 1)) == []
    assert problems((0, 1, 0, "count", ("posix",), 0), (2, 3, 1, "count", ("posix",), 0)), "lost update"
    assert problems((0, 3, 0, "count", ("flock",), 0), (2, 4, 1, "count", ("flock",), 1)), "two at once"


def test_getcwd_is_excused_only_where_epochs_are_used() -> None:
    gone = history((0, 1, 0, "getcwd", (), ENOENT))
    assert judge(gone).excused == {"getcwd: ENOENT": 1}
    assert judge(gone, epochs=False).problems


def test_a_death_brings_back_only_what_was_not_safe() -> None:
    """Names whose last change the dead node made, and nobody else saw."""
    key = frozenset((0,))
    died = Step(5, 5, names.died(0), crash=True, keys=key)
    made = Step(0, 1, names.made(0, A, 0), keys=key)
    seen = Step(2, 3, names.saw(0, A, 1), changes=False, keys=key)
    gone = Step(6, 7, names.saw(0, None, 1), changes=False, keys=key)
    there = Step(6, 7, names.saw(0, A, 1), changes=False, keys=key)
    assert check([made, died, gone], names.initial(1, deaths=True)) is None
    assert check([made, died, there], names.initial(1, deaths=True)) is None
    assert check([made, seen, died, gone], names.initial(1, deaths=True)) is not None
    assert check([made, died, there, Step(8, 9, gone.apply, False, key)], names.initial(1, deaths=True)) is not None


def test_who_dies_in_the_middle_has_done_it_or_not() -> None:
    key = frozenset((0,))
    made = Step(0, 4, names.made(0, A, 0), keys=key, optional=True)
    there = Step(5, 6, names.saw(0, A, 1), changes=False, keys=key)
    gone = Step(5, 6, names.saw(0, None, 1), changes=False, keys=key)
    later = Step(7, 8, names.saw(0, A, 1), changes=False, keys=key)
    assert check([made, there], names.initial(1)) is None
    assert check([made, gone], names.initial(1)) is None
    assert check([made, gone, later], names.initial(1)) is not None


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stress.linear.CONFIGURATIONS_MAX", 100)
    steps = [Step(0, 100 + i, lambda state, i=i: state | {i}) for i in range(12)]
    for step in steps:
        step.keys = frozenset((0,))
    with pytest.raises(TooHard):
        check(steps, frozenset())
