"""How names behave: a few directories' entries as one object, because a rename touches two of them at one instant.

The state is (values, children, owners): what each name means (None: nothing), the directories that hold an entry of
their own, and, where nodes may die, per name who changed it last and what else it may mean should that node die now.
A value may be a set of possibilities after such a death, or ``ANYTHING``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable
from typing import Any

from tests.stress.history import DIRECTORY, FILE, SYMLINK, kind_of
from tests.stress.linear import Apply

ANYTHING = "anything"
NOREPLACE, EXCHANGE = 1, 2
Value = Any
Names = tuple[tuple[Value, ...], frozenset[Any], tuple[Any, ...]]


def initial(count: int, *, deaths: bool = False) -> Names:
    """No name means anything."""
    return (None,) * count, frozenset(), (None,) * count if deaths else ()


def possibilities(value: Value) -> frozenset[Any] | None:
    """All that a value may be; None for ``ANYTHING``."""
    if value == ANYTHING:
        return None
    return value if isinstance(value, frozenset) else frozenset((value,))


def may(value: Value, test: Callable[[Any], bool]) -> bool:
    """Whether the value may be one that passes the test."""
    if type(value) is frozenset:
        return any(map(test, value))
    return value == ANYTHING or test(value)


def _unknown(value: Value) -> bool:
    return value == ANYTHING or type(value) is frozenset


def _put(state: Names, at: int, value: Value, node: int) -> Names:
    values, children, owners = state
    if owners:
        before, owner = possibilities(values[at]), owners[at]
        older: frozenset[Any] | None = owner[1] if owner is not None and owner[0] == node else frozenset()
        fallback = None if before is None or older is None else before | older
        owners = (*owners[:at], (node, fallback), *owners[at + 1 :])
    return (*values[:at], value, *values[at + 1 :]), children, owners


def saw(at: int, value: Hashable, node: int) -> Apply:
    """The name was seen to mean ``value``."""

    def apply(state: Names) -> Names | None:
        values, children, owners = state
        now = values[at]
        if now != value:
            if not may(now, lambda each: each == value):
                return None
            values = (*values[:at], value, *values[at + 1 :])
        if owners and owners[at] is not None and owners[at][0] != node:  # handed over, so it is safe
            owners = (*owners[:at], None, *owners[at + 1 :])
        return state if values is state[0] and owners is state[2] else (values, children, owners)

    return apply


def is_there(at: int, test: Callable[[Any], bool] = lambda _: True) -> Apply:
    """The name was seen to mean something that passes the test."""
    return lambda state: state if may(state[0][at], lambda each: each is not None and test(each)) else None


def absent(at: int, node: int) -> Apply:
    """The name was seen to mean nothing."""
    return saw(at, None, node)


def made(at: int, identity: Hashable, node: int) -> Apply:
    """A new inode, or a link to one, was put under an absent name."""
    return lambda state: _put(state, at, identity, node) if may(state[0][at], lambda each: each is None) else None


def linked(at: int, identity: int, node: int) -> Apply:
    """A further name for an inode that still has one."""
    fits = made(at, identity, node)
    return lambda state: fits(state) if identity in state[0] else None


def removed(at: int, node: int, *, directory: bool, kind: Callable[[Any], int] = kind_of) -> Apply:
    """unlink or rmdir: the latter only of an empty directory."""

    def apply(state: Names) -> Names | None:
        def fits(value: Any) -> bool:
            return value is not None and (kind(value) == DIRECTORY) == directory and value not in state[1]

        return _put(state, at, None, node) if may(state[0][at], fits) else None

    return apply


def renamed(old: int, new: int, flags: int, node: int, kind: Callable[[Any], int] = kind_of) -> Apply:
    """rename(2) that reported success."""

    def apply(state: Names) -> Names | None:
        moved, replaced = state[0][old], state[0][new]
        if not may(moved, lambda each: each is not None):
            return None
        if flags == NOREPLACE and not may(replaced, lambda each: each is None):
            return None
        if flags == EXCHANGE and not may(replaced, lambda each: each is not None):
            return None
        unknown = _unknown(moved) or _unknown(replaced)
        if old == new or (moved == replaced and not unknown):  # two names of one file: POSIX wants nothing done
            return state if flags != NOREPLACE else None
        if unknown and flags == 0:
            return _put(_put(state, new, ANYTHING, node), old, ANYTHING, node)
        if flags == EXCHANGE:
            return _put(_put(state, new, moved, node), old, replaced, node)
        if flags == 0 and not _may_replace(moved, replaced, state[1], kind):
            return None
        return _put(_put(state, new, moved, node), old, None, node)

    return apply


def _may_replace(moved: Value, replaced: Value, children: frozenset[Any], kind: Callable[[Any], int]) -> bool:
    same_kind = replaced is None or (kind(moved) == DIRECTORY) == (kind(replaced) == DIRECTORY)
    return same_kind and replaced not in children


def child_made(identity: Hashable) -> Apply:
    """An entry was made in a directory that has a name."""

    def apply(state: Names) -> Names | None:
        values, children, owners = state
        return (values, children | {identity}, owners) if identity in values and identity not in children else None

    return apply


def child_removed(identity: Hashable) -> Apply:
    """The entry was removed."""
    return lambda state: (state[0], state[1] - {identity}, state[2]) if identity in state[1] else None


def child_is(identity: Hashable, there: bool) -> Apply:
    """The entry was seen to be there or not."""
    return lambda state: state if (identity in state[1]) == there else None


def nameless(identity: Hashable) -> Apply:
    """The inode was seen to have no name any more."""
    return lambda state: state if identity not in state[0] else None


def link_count(identity: Hashable, count: int) -> Apply:
    """stat(2) showed that many names."""
    return lambda state: state if state[0].count(identity) == count else None


def refused(code: int, old: int, new: int, flags: int, node: int) -> Apply | None:
    """What must be true when a rename was refused with ``code``; None: no reason to refuse so.

    The kernel may refuse by one of the two names alone, looked at in different instants: so one condition each.
    """
    if code == errno.ENOENT:
        if flags == EXCHANGE:
            return lambda state: state if any(may(state[0][at], lambda v: v is None) for at in (old, new)) else None
        return absent(old, node)
    tests: dict[int, Callable[[Any], bool]] = {
        errno.EEXIST: lambda _: True,
        errno.EISDIR: lambda each: kind_of(each) == DIRECTORY,
        errno.ENOTDIR: lambda each: kind_of(each) in (FILE, SYMLINK),
    }
    if code == errno.ENOTEMPTY:
        return lambda state: state if state[0][new] in state[1] else None
    return is_there(new, tests[code]) if code in tests else None


def died(node: int) -> Apply:
    """``node`` is gone with whatever was not safe."""

    def apply(state: Names) -> Names:
        values, children, owners = list(state[0]), state[1], list(state[2])
        for at, owner in enumerate(owners):
            if owner is not None and owner[0] == node:
                now = possibilities(values[at])
                values[at] = ANYTHING if now is None or owner[1] is None else now | owner[1]
                owners[at] = None
        return tuple(values), children, tuple(owners)

    return apply
