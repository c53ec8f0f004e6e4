"""Judges the history of one round: turns operations into what they say about each object, and has each object checked.

Objects: all names of the round together (``names``) and the size of each file (``files``) must be linearizable; places
in files, mapped pages, the log and the counters have checks of their own.  Every error must be one that the state of
some instant explains.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.stress import files, names
from tests.stress.contents import Excuses, Stale, check_place, pages_of, slots_of
from tests.stress.files import SLOT
from tests.stress.history import DIRECTORY, FILE, SYMLINK, Op, kind_of
from tests.stress.linear import Apply, Step, TooHard, check
from tests.stress.logs import check_counter, check_log
from tests.stress.worker import DIRECTORIES, HOT, NAMES, PAGE, SLOTS

SLOTS_OF_PAGE = PAGE // SLOT
NAMES_ALL = frozenset(range(DIRECTORIES * NAMES))

Problem = str


@dataclass
class Verdict:
    """``problems``: what no order of the operations explains.  ``excused``: how often which known limit was met.

    ``stale``: every look that saw what had been replaced before, excused or not.
    """

    problems: list[Problem] = field(default_factory=list)
    excused: Counter[str] = field(default_factory=Counter)
    stale: list[Stale] = field(default_factory=list)


def judge(history: Sequence[Op], *, epochs: bool = True, strict: bool = False) -> Verdict:
    """Check everything.

    Args:
        epochs: whether the mounts use the kernel's epoch notification.
        strict: excuse nothing.
    """
    excuses = Excuses(strict)
    ordered = sorted(op for op in history if strict or not _excused(op, excuses, epochs))
    verdict = Verdict(excused=excuses.counts, stale=excuses.stale)
    found = verdict.problems
    found += [f"unexpected: {op}" for op in ordered if not explained(op)]
    found += _linearizable("names", _name_steps(ordered, excuses), names.initial(DIRECTORIES * NAMES))
    places = pages_of(ordered)
    for identity, ops in _by_file(ordered).items():
        found += _linearizable(f"size of file {identity}", _size_steps(ops), 0)
        places += slots_of(identity, ops, SLOTS)
    for place in places:
        found += check_place(place, excuses)
    found += check_log([op for op in ordered if op.kind in ("append", "read_log", "log_size")], excuses)
    for kind in ("posix", "flock"):
        found += check_counter(kind, [op for op in ordered if op.kind == "count" and op.args == (kind,)])
    return verdict


def _linearizable(what: str, steps: Iterable[Step], initial: Any) -> list[Problem]:
    try:
        violation = check(steps, initial)
    except TooHard as error:
        return [f"{what}: undecided: {error}"]
    return [] if violation is None else [f"{what}: {violation}"]


# --- what may be -----------------------------------------------------------------------------------------

_NAMING = {errno.ENOENT, errno.EEXIST}
_ERRORS: dict[str, set[int]] = {
    "create": {errno.EEXIST},
    "mkdir": {errno.EEXIST},
    "symlink": {errno.EEXIST},
    "open": {errno.ENOENT, errno.EISDIR, errno.ELOOP},
    "unlink": {errno.ENOENT, errno.EISDIR},
    "rmdir": {errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY},
    "rename": {errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY},
    "link": _NAMING,
    "look": {errno.ENOENT},
    "child_create": _NAMING,
    "child_unlink": {errno.ENOENT},
}
_BY_PATH = (
    "rename", "look", "open", "create", "mkdir", "symlink", "unlink", "rmdir", "link", "child_create", "child_unlink"
)  # fmt: skip
_COUNTS = ("list", "read", "sendfile", "look", "size", "open", "log_size", "count")  # whose result is not just success


def _excused(op: Op, excuses: Excuses, epochs: bool) -> bool:
    """Whether an operation met a known limit (docs/testing.md), which says nothing about the state then."""
    if op.failed and -op.result == errno.ESTALE and op.kind in _BY_PATH:
        return excuses.grant(f"{op.kind}: ESTALE")
    if epochs and op.kind == "getcwd" and op.failed and -op.result == errno.ENOENT:
        return excuses.grant("getcwd: ENOENT")
    return False


def explained(op: Op) -> bool:
    """Whether this kind of operation can have this kind of result at all."""
    if op.failed:
        return -op.result in _ERRORS.get(op.kind, set())
    return op.kind in _COUNTS or type(op.result) is not int or op.result == 0


# --- names ----------------------------------------------------------------------------------------------------


def _name_steps(ordered: Sequence[Op], excuses: Excuses) -> Iterator[Step]:
    for op in ordered:
        beside = op.kind == "rename" and _may_find_one_inode_twice(op, ordered)
        for apply, changes, keys in about_names(op):
            wanted = _or_nothing(apply, op.args[0], op.args[1]) if beside and not excuses.strict else apply
            yield Step(op.start, op.end, wanted, changes, keys, op)


def _may_find_one_inode_twice(op: Op, ordered: Sequence[Op]) -> bool:
    """Whether the kernel may have found one inode under both names of a rename, at two instants, and done nothing.

    It looks at the old name first and at the new one then; two names of one file: POSIX wants nothing done.  For that
    the inode must have come under the new name meanwhile: by a rename from the old one, or by a link.
    """
    return not op.failed and any(
        other.start <= op.end
        and op.start <= other.end
        and other is not op
        and not other.failed
        and (
            (other.kind == "rename" and set(op.args[:2]) <= set(other.args[:2]))
            or (other.kind == "link" and other.args[1] == op.args[1])
        )
        for other in ordered
    )


def _or_nothing(apply: Apply, old: int, new: int) -> Apply:
    """As reported; or nothing done, where the old name means nothing any more and the new one something."""

    def either(state: Any) -> Any:
        after = apply(state)
        if after is None and names.is_there(new)(state) is not None and names.is_there(old)(state) is None:
            return state
        return after

    return either


_Said = tuple[Apply, bool, frozenset[Any]]


def about_names(op: Op) -> Iterator[_Said]:
    """What an operation says about names."""
    code = -op.result if op.failed else 0
    first = frozenset(op.args[:1])
    match op.kind:
        case "create" | "mkdir" | "symlink":
            at, identity = op.args
            yield (names.is_there(at), False, first) if code else (names.made(at, identity, op.node), True, first)
        case "open":
            yield from _about_open(op, code)
        case "unlink" | "rmdir":
            yield _about_removal(op, code)
        case "rename":
            yield from _about_rename(op, code)
        case "link":
            yield from _about_link(op, code)
        case "look" if code:
            yield names.absent(op.args[0], op.node), False, first
        case "look":
            yield names.saw(op.args[0], op.result[0], op.node), False, first
            yield from _about_links(op.result)
        case "size" if not code:
            yield from _about_links(op.result)
        case "list" if not code:
            for name in range(NAMES):
                at = op.args[0] * NAMES + name
                apply = names.is_there(at) if f"n{name}" in op.result else names.absent(at, op.node)
                yield apply, False, frozenset((at,))
        case "child_create" | "child_unlink":
            yield from _about_child(op, code)


def _about_open(op: Op, code: int) -> Iterator[_Said]:
    at, identity, _ = op.args
    key = frozenset((at,))
    if code == errno.ENOENT:
        yield names.absent(at, op.node), False, key
    elif code:
        kind = DIRECTORY if code == errno.EISDIR else SYMLINK
        yield names.is_there(at, lambda value: kind_of(value) == kind), False, key
    elif op.result == identity:
        yield names.made(at, identity, op.node), True, key
    else:
        yield names.saw(at, op.result, op.node), False, key


def _about_removal(op: Op, code: int) -> _Said:
    (at,) = op.args
    key = frozenset((at,))
    if not code:
        return names.removed(at, op.node, directory=op.kind == "rmdir"), True, frozenset((at, "children"))
    if code == errno.ENOENT:
        return names.absent(at, op.node), False, key
    if code == errno.ENOTEMPTY:
        return (lambda state: state if state[0][at] in state[1] else None), False, frozenset((at, "children"))
    return names.is_there(at, lambda value: (kind_of(value) == DIRECTORY) == (code == errno.EISDIR)), False, key


def _about_rename(op: Op, code: int) -> Iterator[_Said]:
    old, new, flags = op.args
    if not code:
        yield names.renamed(old, new, flags, op.node), True, frozenset((old, new, "children"))
        return
    apply = names.refused(code, old, new, flags, op.node)
    if apply is not None:
        yield apply, False, frozenset((old, new, "children"))


def _about_link(op: Op, code: int) -> Iterator[_Said]:
    identity, at = op.args
    if code == errno.EEXIST:
        yield names.is_there(at), False, frozenset((at,))
    elif code:
        yield names.nameless(identity), False, NAMES_ALL
    elif identity == HOT:
        yield names.made(at, identity, op.node), True, frozenset((at,))
    else:
        yield names.linked(at, identity, op.node), True, NAMES_ALL


def _about_links(result: tuple[int, int, int]) -> Iterator[_Said]:
    identity, links, _ = result
    if kind_of(identity) == FILE:
        yield names.link_count(identity, links - (identity == HOT)), False, NAMES_ALL


def _about_child(op: Op, code: int) -> Iterator[_Said]:
    (identity,) = op.args
    if not code:
        apply = names.child_made(identity) if op.kind == "child_create" else names.child_removed(identity)
        yield apply, True, NAMES_ALL | {"children"}
    elif op.kind == "child_create" and code == errno.ENOENT:
        yield names.nameless(identity), False, NAMES_ALL
    else:
        yield names.child_is(identity, code == errno.EEXIST), False, frozenset(("children",))


# --- files ----------------------------------------------------------------------------------------------------


def _by_page(op: Op) -> Iterator[Op]:
    """A write as the kernel may send it: one request up to each end of a page that it doesn't have in its cache."""
    identity, first, count, value = op.args
    end = first + count
    while first < end:
        upto = min(end, first + SLOTS_OF_PAGE - first % SLOTS_OF_PAGE)
        yield op._replace(args=(identity, first, upto - first, value))
        first = upto


def _by_file(ordered: Iterable[Op]) -> dict[int, list[Op]]:
    found: defaultdict[int, list[Op]] = defaultdict(list)
    for op in ordered:
        if op.failed:
            continue
        if op.kind == "write":
            found[op.args[0]] += _by_page(op)
        elif op.kind in ("read", "sendfile", "truncate", "size"):
            found[op.args[0]].append(op)
        elif op.kind == "look" and kind_of(op.result[0]) == FILE:
            found[op.result[0]].append(op)
        elif op.kind == "open" and op.args[2] & os.O_TRUNC and op.result != op.args[1]:
            found[op.result].append(op)
    return found


_ONE = frozenset((0,))  # each of these objects has one part


def _size_steps(ops: Iterable[Op]) -> Iterator[Step]:
    for op in ops:
        match op.kind:
            case "write":
                apply, changes = files.size_at_least((op.args[1] + op.args[2]) * SLOT), True
            case "truncate":
                apply, changes = files.size_set(op.args[1] * SLOT), True
            case "open":
                apply, changes = files.size_set(0), True
            case "look" | "size":
                apply, changes = files.size_seen(op.result[2]), False
            case _:
                continue
        yield Step(op.start, op.end, apply, changes, _ONE, op)
