"""File and application locks of the whole cluster for people: who holds, who waits, and for whom (pure; R14).

Each mount tells those of its own processes; who stands in whose way is worked out here, as the kernel would: same
object and kind, ranges that overlap, another owner, one of the two exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matrixfs.cli.common import printable, table
from matrixfs.cli.locks_chain import Names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixfs.cli.asking import Answers

END_MAX: Final = 2**63 - 1
_CALLS: Final = {"FLOCK": "flock", "POSIX": "fcntl", "NAMED": "named"}


@dataclass(frozen=True, slots=True)
class FileLock:
    """One lock, held or waited for."""

    filesystem: str
    kind: str
    object: int
    name: str  # path, or NAME
    node: int
    owner: int
    pid: int
    command: str
    start: int
    end: int  # included
    exclusive: bool
    waiting: float | None  # seconds; None: it is held

    def blocks(self, other: FileLock) -> bool:
        """Whether ``other`` has to wait for this one."""
        return (
            self.waiting is None
            and (self.filesystem, self.kind, self.object) == (other.filesystem, other.kind, other.object)
            and (self.node, self.owner) != (other.node, other.owner)
            and (self.exclusive or other.exclusive)
            and self.start <= other.end
            and other.start <= self.end
        )


def combine_files(answers: Answers) -> list[FileLock]:
    """The locks in the answers to ``files``; made by others, so what makes no sense is left out."""
    told = [(m, [row for row in m.value if _is_lock(row)]) for m in answers.mounts if isinstance(m.value, list)]
    names = Names(answers)
    for mount, rows in told:
        names.learn(mount.filesystem, rows)
    found = []
    for mount, rows in told:
        for row in rows:
            given = row.get("name")
            name = given.decode(errors="backslashreplace") if isinstance(given, bytes) and given else ""
            if row["kind"] != "NAMED":
                name = names.name(mount.filesystem, row)
            found.append(
                FileLock(
                    mount.filesystem, row["kind"], row["object"], name, mount.node, row["owner"], row["pid"],
                    str(row.get("command", "")), row["start"], row["end"], row["exclusive"], row["waiting"],
                )
            )  # fmt: skip
    return sorted(found, key=lambda lock: (lock.kind, lock.name, lock.object, lock.waiting is not None, lock.start))


def _is_lock(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.get("kind") in _CALLS
        and all(type(row.get(key)) is int for key in ("object", "owner", "pid", "start", "end"))
        and type(row.get("exclusive")) is bool
        and (row.get("waiting", 0) is None or type(row.get("waiting")) is float)
    )


def format_files(locks: Sequence[FileLock], answers: Answers) -> list[str]:
    """A table of them: held ones, and below those that wait with whom they wait for."""
    rows: list[Sequence[object]] = [("LOCK", "KIND", "MODE", "BYTES", "NODE", "PROCESS", "STATE")]
    for lock in locks:
        state = "held"
        if lock.waiting is not None:
            holders = [f"{answers.name(o.node)} process {o.pid}" for o in locks if o.blocks(lock)]
            state = f"waits {lock.waiting:.1f} s" + (f" for {', '.join(holders)}" if holders else "")
        process = f"{lock.pid} ({lock.command})" if lock.command else str(lock.pid)
        row = (lock.name, _CALLS[lock.kind], "exclusive" if lock.exclusive else "shared", _range(lock))
        rows.append([printable(cell) for cell in (*row, answers.name(lock.node), process, state)])
    return table(rows) if locks else []


def _range(lock: FileLock) -> str:
    if lock.start == 0 and lock.end == END_MAX:
        return "all"
    return f"{lock.start}-{'end' if lock.end == END_MAX else lock.end}"
