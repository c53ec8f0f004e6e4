"""The paths to a peer: which address is tried next, and what it means when none answers (pure).

A process listens on up to ``PATHS_MAX`` addresses with one port; a link uses one of them at a time.

- P1. The path in use, or used last, is tried first, then the others in turn, and each once before any is tried again.
- P2. A path that is back is not gone back to: only a failure moves a link.
- P3. A process is gone when its host refuses on *every* path.  One refusal may come from whoever has the address now,
  or from a router; the process may live behind another path, from which nothing is heard for the moment.
"""

from __future__ import annotations

PATHS_MAX = 4  # addresses of one process
OTHERS_BYTES_MAX = 200  # of all but the first, with a comma between: so they stand in the heartbeat slot


class Paths:
    """One peer's."""

    __slots__ = ("host", "moves", "position")

    def __init__(self) -> None:
        self.position = 0  # in the peer's addresses: the path in use, or tried first
        self.host = ""  # of the peer, on the present connection or the last one; "": there was none
        self.moves = 0  # times that a connection took another path than the one before

    def order(self, count: int) -> list[int]:
        """Positions of ``count`` addresses in the order to try them (P1)."""
        return [(self.position + i) % count for i in range(count)]

    def used(self, host: str) -> None:
        """A connection begins, with this address at the peer's end."""
        self.moves += self.host not in ("", host)
        self.host = host


def others_problem(hosts: tuple[str, ...]) -> str:
    """What is wrong with the addresses of a process after its first one; "" if nothing."""
    if len(hosts) >= PATHS_MAX:
        return f"{len(hosts) + 1} addresses, at most {PATHS_MAX}"
    if len(",".join(hosts).encode(errors="replace")) > OTHERS_BYTES_MAX:
        return f"further addresses of more than {OTHERS_BYTES_MAX} bytes"
    if any(not host or "," in host or "\0" in host for host in hosts):
        return "an address that is empty or has a comma or NUL in it"
    return ""
