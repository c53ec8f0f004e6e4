"""One acknowledged operation, as the workers of the stress note it."""

from __future__ import annotations

from typing import Any, NamedTuple

FILE, DIRECTORY, SYMLINK = range(3)


class Op(NamedTuple):
    """Times are nanoseconds of the machine's one monotonic clock; ``result`` is -errno for an error."""

    start: float
    end: float
    node: int
    who: int  # the process
    kind: str
    args: tuple[Any, ...]
    result: Any

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return type(self.result) is int and self.result < 0

    def __str__(self) -> str:
        return f"n{self.node + 1} p{self.who} {self.kind}{self.args!r} = {self.result!r}"


def new_identity(number: int, kind: int) -> int:
    """What tells an inode from all others of a round: it is created with this group id, which stat(2) shows."""
    return 4 * number + kind + 4


def kind_of(identity: int) -> int:
    """FILE, DIRECTORY or SYMLINK."""
    return identity % 4
