"""What a mount process answers to who looks at locks: ``matrixctl locks``, ``top``, ``trace`` (R14).

Every answer is bounded (``ROWS_MAX``) and made from what is in memory; only a path is followed with locks, each for a
moment (``matrixfs.fs.paths``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from matrixfs import processes
from matrixfs.fs import paths
from matrixfs.locks import view
from matrixfs.locks.resources import ATTEMPT, GROUP, INODE, OPEN, Resource, describe
from matrixfs.ondisk.superblock import ORPHANS_START, ROOT_INODE
from membership.control_wire import Message, take, take_natural
from membership.errors import BadMessage, OperatorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matrixfs.answers import Handler
    from matrixfs.member import Member
    from matrixfs.named_locks import NamedLocks

ROWS_MAX: Final = 100  # resources, and file locks, in one answer
EVENTS_MAX: Final = 600  # of the trace in one answer
_ROOT_NODE: Final = 1  # the root's st_ino (fuse/handles.py, H2)


class Watch:
    """See the module.

    Args:
        member: whose locks.
        named: its application locks.
        node: its node id.
        device: the mount's device number, "major:minor"; "" while there is none.
        links: state of the links to the other mounts.
    """

    def __init__(
        self,
        member: Member,
        named: NamedLocks,
        node: int,
        device: Callable[[], str],
        links: Callable[[], list[dict[str, Any]]],
    ) -> None:
        self._member = member
        self._named = named
        self._node = node
        self._device = device
        self._links = links

    def handlers(self) -> Mapping[str, Handler]:
        """The questions, for ``Answers``."""
        return {
            "resolve": self.resolve, "locks": self.locks, "files": self.files, "top": self.top, "trace": self.trace,
        }  # fmt: skip

    async def resolve(self, arguments: Message) -> Message:
        """A path's inode: ``path`` (bytes, from the tree's root); ``rest`` is what could not be followed.

        Raises OperatorError, BadMessage, CorruptionError, DeviceError, Fenced.
        """
        volume = self._member.volume
        if volume is None:
            raise OperatorError("the tree is still being mounted: try again")
        found = await paths.resolve(volume, take(arguments, "path", bytes))
        return {"object": found.ino, "rest": found.rest}

    async def locks(self, arguments: Message) -> Message:
        """Who holds and who waits: of the inode ``object``, or with 0 of everything that somebody waits for.

        Raises BadMessage.
        """
        object_ = take_natural(arguments, "object")
        locks, manager = self._member.locks, self._member.manager
        if object_:
            resources = [Resource(INODE, object_), Resource(OPEN, object_)]
        else:
            resources = view.contended(locks, manager)
        rows = view.rows(locks, manager, resources[:ROWS_MAX], self._member.clock.monotonic())
        answer: Message = {
            "node": self._node,
            "resources": [row | self.name(Resource(row["domain"], row["object"])) for row in rows],
            "more": max(0, len(resources) - ROWS_MAX),
        }
        if object_:
            device = self._device()
            number = _ROOT_NODE if object_ == ROOT_INODE else object_
            answer["users"] = await trio.to_thread.run_sync(processes.users_of, number, device) if device else []
        return answer

    def files(self, arguments: Message) -> list[dict[str, Any]]:
        """File and application locks of this mount: ``objects``, [kind, number] each, or if that is empty, the waits.

        Raises BadMessage.
        """
        wanted = {(str(kind), number) for kind, number in _pairs(take(arguments, "objects", list))}
        rows = self._named.rows(wanted or None)[:ROWS_MAX]
        for row in rows:
            if row["kind"] == "NAMED":  # matrixctl asked for it, the command that it runs is what people look for
                row["pid"] = processes.child_of(row["pid"]) or row["pid"]
            else:
                row |= self.name(Resource(INODE, row["object"]))
            row["command"] = processes.name_of(row["pid"]) if row["pid"] else ""
        return rows

    def top(self, arguments: Message) -> Message:
        """The hottest locks (``matrixfs.locks.hottest``), and the links.  Raises BadMessage."""
        hot = self._member.locks.hottest(min(ROWS_MAX, take_natural(arguments, "count")))
        return {
            "node": self._node,
            "hot": [row | self.name(Resource(row["domain"], row["object"])) for row in hot],
            "links": self._links(),
        }

    def trace(self, arguments: Message) -> list[dict[str, Any]]:
        """The newest of the last events (``matrixfs.locks.trace``), at most ``count``.  Raises BadMessage."""
        events = self._member.trace.dump()[-min(EVENTS_MAX, take_natural(arguments, "count")) or None :]
        names: dict[Resource, dict[str, Any]] = {}
        for event in events:
            resource = Resource(event["domain"], event["object"])
            if resource not in names:
                names[resource] = self.name(resource)
            event |= names[resource]
        return events

    def name(self, resource: Resource) -> dict[str, Any]:
        """What people call a resource: ``text``, and if known ``path`` (bytes, from the tree's root) and ``sure``."""
        volume = self._member.volume
        domain, number = resource.domain, resource.object
        if domain == ATTEMPT:
            return {"text": f"recovery {number >> 32}.{number & 0xFFFF_FFFF}"}
        if volume is None:
            return {"text": describe(resource)}
        if domain == GROUP:
            block = number - volume.superblock.group_start
            return {"text": f"allocation group {block >> volume.superblock.group_shift}"}
        if domain in (INODE, OPEN):
            if ORPHANS_START <= number < ORPHANS_START + volume.superblock.journals:
                return {"text": f"list of deleted files of journal {number - ORPHANS_START}"}
            path = paths.path_of(volume, number)
            if path is not None:
                return {"text": describe(resource), "path": path.path, "sure": path.sure}
        return {"text": describe(resource)}


def _pairs(value: list[Any]) -> list[list[Any]]:
    """[kind, number] each.  Raises BadMessage."""
    if not all(isinstance(each, list) and len(each) == 2 and type(each[1]) is int for each in value):
        raise BadMessage("objects are no pairs of a kind and a number")
    return value
