"""What a matrixd answers itself, instead of its mount processes, to a question of any node (002-24, 002-26; R14).

The answers are cut into pieces that fit one message each (``relay.py``); whoever asked puts them together:

================ ==========================================================================
``node.events``     a list of events: node, name, incarnation, seq, wall_ns, kind, text
``node.disk-locks`` administrator (whether this node is), generation, unknown (nodes that have
                    not yet said what they hold), rows: disk, node, owner, exclusive, state
``node.disks``      a list of the disks that the node has open: uuid, size_bytes (of the store, as
                    measured in the last seconds), data_blocks (as its label says)
================ ==========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.service import Node

TEXT_MAX: Final = 1000  # characters of an event that the others are shown
EVENTS_MAX: Final = 25  # of one piece: at most 4 bytes a character, it stays under messages.ANSWER_BYTES_MAX
ROWS_MAX: Final = 80  # locks or disks of one piece; all nodes together may have 51 locks
PIECES_MAX: Final = 60


def own_answer(node: Node, what: str) -> list[Any] | None:
    """The pieces of an answer, at least one once there is a core; None: the question is for the mounts."""
    answer = _TABLE.get(what)
    return answer(node)[:PIECES_MAX] if answer is not None else None


def _events(node: Node) -> list[Any]:
    common = {"node": node.node_id, "name": node.config.name, "incarnation": node.incarnation}
    found = [{**common, "seq": seq, **event, "text": event["text"][:TEXT_MAX]} for seq, event in node.book.numbered()]
    return _cut(found, EVENTS_MAX)


def _disk_locks(node: Node) -> list[Any]:
    if node.core is None:
        return []
    known = node.disk_locks.table()
    return [{**known, "rows": rows} for rows in _cut(known["rows"], ROWS_MAX)]


def _cut(rows: list[Any], most: int) -> list[list[Any]]:
    return [rows[start : start + most] for start in range(0, len(rows), most)] or [[]]


def _disks(node: Node) -> list[Any]:
    rows = [
        {"uuid": uuid, "size_bytes": disk.device.size_bytes, "data_blocks": disk.label.data_blocks}
        for uuid, disk in node.disks.opened.items()
    ]
    return _cut(rows, ROWS_MAX)


_TABLE: Final[dict[str, Callable[[Node], list[Any]]]] = {
    "node.events": _events,
    "node.disk-locks": _disk_locks,
    "node.disks": _disks,
}
