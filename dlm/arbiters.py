"""Who arbitrates a resource now (pure): the fixed map, or of two members the last who wrote (003-37, 003-38).

With one member, or three and more, the map of ``directory`` decides alone.  With two, arbitration goes to a node
together with its write lock, so that it reads under its own write, demotes and promotes without a message, and the
other asks it.  How it moves (numbers as in ``docs/decisions/0010-two-peers-last-writer-arbitrates.md``):

T1. The arbiter that grants PW or EX to the other member puts a hand-over into the grant: its own lock, its own
    waiting request.  It keeps no record, and from here on asks the other.
T2. The record of a resource that moved, when nobody holds it any more, is dropped, and the member that the map
    names is told (Return): it arbitrates again.  So ``moved`` is never longer than the list of locks held.
T3. A request, release or cancel that comes to a member which does not arbitrate the resource crossed a T1 or T2 on
    the wire, and is void: the links keep order, so its sender learns of the move after it spoke, and says again
    to itself what still counts (a request; a value).
T4. Nothing moves while a dead instance waits for its replay: ghosts stay where ``recovery`` looks for them.
T5. A rebuild forgets all moves.  In a view of two members and no dead, EX is arbitrated by its holder from the
    start: it knows that, and the member that the map names learns it from the holder's report.
"""

from __future__ import annotations

from collections.abc import Collection

from dlm.directory import Directory
from dlm.names import Resource


class Arbiters:
    """The map under the present view, and what moved.

    Args:
        node: this node.
        members: of the view.
        placement_shift: objects that agree above this bit have one place in the map.
    """

    __slots__ = ("directory", "moved", "node", "peer")

    def __init__(self, node: int, members: Collection[int], placement_shift: int) -> None:
        self.node = node
        self.directory = Directory(members, placement_shift)
        others = [member for member in members if member != node]
        self.peer = others[0] if len(others) == 1 else None  # the other of two
        self.moved: dict[Resource, int] = {}  # arbitrated by this member, though the map names the other

    def of(self, resource: Resource) -> int:
        """The node to ask."""
        moved = self.moved
        if moved and resource in moved:
            return moved[resource]
        return self.directory.master(resource)

    def move(self, resource: Resource, node: int) -> None:
        """From now on ``node`` arbitrates."""
        if self.directory.master(resource) == node:
            self.moved.pop(resource, None)
        else:
            self.moved[resource] = node

    def given(self) -> dict[Resource, int]:
        """What the map names us for and the other member arbitrates."""
        return {resource: node for resource, node in self.moved.items() if node != self.node}
