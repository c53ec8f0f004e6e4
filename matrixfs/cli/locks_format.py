"""``matrixctl locks`` for people: a line for each lock, or chains from waiters to processes (pure; R14).

The golden tests are in tests/matrixfs/test_cli_locks.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matrixfs.cli.common import printable, table
from matrixfs.cli.locks_chain import Contention, Side, purpose

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def format_locks(locks: Sequence[Contention], name: Callable[[int], str], *, chains: bool) -> list[str]:
    """The locks, as lines.

    Args:
        locks: longest wait first.
        name: of a node.
        chains: everything about each, instead of one line.
    """
    if chains:
        return [line for lock in locks for line in _chain(lock, name)]
    rows: list[Sequence[object]] = [("LOCK", "HELD BY", "MASTER", "WAITING", "LONGEST")]
    for lock in locks:
        rows.append(
            (
                printable(lock.name),
                _brief(lock, name),
                name(lock.master),
                " ".join(name(node) for node in lock.waiters) or "-",
                f"{lock.longest:.1f} s" if lock.waiters else "-",
            )
        )
    return table(rows, right={4}) if len(rows) > 1 else []


def _brief(lock: Contention, name: Callable[[int], str]) -> str:
    held = [f"{name(side.node)} ({printable(side.mode)})" for side in lock.holders.values()]
    held += [f"{name(node)}, dead ({printable(mode)})" for node, mode in lock.ghosts]
    return " ".join(held) or "nobody"


def _chain(lock: Contention, name: Callable[[int], str]) -> list[str]:
    """Waiter -> resource -> master -> holder -> process -> what it is doing."""
    lines = [f"{printable(lock.name)}   (domain {lock.domain}, number {lock.object})"]
    for side in lock.waiters.values():
        what = f"{purpose(side.mode)} ({printable(side.mode)})"
        lines.append(f"  waits   {name(side.node)} {what}{_wait(side)}{_mount(side)}")
    told = "" if lock.told else ", which has told nothing of it"
    lines.append(f"  master  {name(lock.master)}{told}")
    for side in lock.holders.values():
        doing = printable(side.doing) or "its mount did not answer"
        asked = f", asked {side.asked:.1f} s ago" if side.asked is not None else ""
        lines.append(f"  held    {printable(side.mode)} by {name(side.node)}{_mount(side)}{asked}: {doing}")
        lines += [f"            open in {_process(user)}" for user in side.users]
    for node, mode in lock.ghosts:
        lines.append(f"  held    {printable(mode)} by {name(node)}, which died: free when its journal is replayed")
    if not lock.holders and not lock.ghosts:
        lines.append("  held    by nobody")
    return lines


def _wait(side: Side) -> str:
    if side.seconds is None:
        return ", for how long nobody said"
    more = f", {side.count} operations" if side.count > 1 else ""
    return f", for {side.seconds:.1f} s{more}"


def _mount(side: Side) -> str:
    return f", mount process {side.pid}" if side.pid else ""


def _process(user: dict[str, Any]) -> str:
    pid, command, doing = (user.get(key) for key in ("pid", "command", "doing"))
    return printable(f"process {pid} ({command}), {doing}")
