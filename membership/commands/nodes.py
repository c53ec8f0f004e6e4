"""Commands on nodes: list, remove, fence and let in again (002-31, 002-46, 002-47)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from membership.administration import BARRED
from membership.control_wire import take
from membership.errors import OperatorError, PeerError
from membership.label import NAME_BYTES_MAX
from membership.san.evictions import Expel

if TYPE_CHECKING:
    from membership.administration import Administration
    from membership.control_wire import Message


def name_of(arguments: Message) -> str:
    """The argument ``name``.  Raises BadMessage, OperatorError."""
    name = take(arguments, "name", str)
    if not 0 < len(name.encode(errors="replace")) <= NAME_BYTES_MAX:
        raise OperatorError(f"a node's name has 1 to {NAME_BYTES_MAX} bytes")
    return name


def _slot(admin: Administration, name: str) -> tuple[int, int] | None:
    """Node id and incarnation of who has, or had, a slot under this name."""
    core = admin.node.membership
    for node, sight in core.watch.sights.items():
        if sight.slot.name == name:
            return node, sight.slot.incarnation
    return (core.me.node, core.me.incarnation) if core.admin.own_name == name else None


async def roster(admin: Administration, _: Message) -> Any:
    """The operator's words."""
    async with admin.keeper.changing() as database:
        return database.roster()


async def fence(admin: Administration, arguments: Message) -> Any:
    """Evict a node, make certain that it writes no more, and keep it out."""
    name = name_of(arguments)
    found, core = _slot(admin, name), admin.node.membership
    if found is None:
        raise OperatorError(f"no node called {name!r} has ever been here: see matrixctl node list")
    async with admin.keeper.changing() as database:
        admin.say(name, "fenced", database)
    if found[0] == core.me.node:  # ourselves: the next administrator is asked again, fences us, and answers
        admin.node.apply(lambda _: core.tell(Expel(core.me.node, "the operator fenced it")))
    await expel(admin, found, "the operator fenced it")
    return {"fence": _last_fence(admin, found)}


async def expel(admin: Administration, found: tuple[int, int], reason: str) -> None:
    """Evict an instance and wait until its fence is confirmed."""
    core = admin.node.membership
    if core.admin.header.members.get(found[0]) == found[1]:
        admin.node.apply(lambda _: core.admin.expel(*found, reason))
    await admin.until(
        lambda: found not in core.admin.header.members.items() and found not in core.admin.header.fencing.items()
    )


def _last_fence(admin: Administration, found: tuple[int, int]) -> str:
    """How it was made certain."""
    for each in reversed(admin.node.book.fences):
        if (each["node"], each["incarnation"]) == found and each["confirmed"]:
            return f"by {each['driver']}: {each['detail']}"
    return "it was no member"


async def unfence(admin: Administration, arguments: Message) -> Any:
    """Let a node in again that the operator had fenced; again: it may come in."""
    name = name_of(arguments)
    word = admin.roster().get(name, "")
    if word in BARRED and word != "fenced":
        raise OperatorError(f"{name}: {BARRED[word]}")
    if not word and _slot(admin, name) is None:
        raise OperatorError(f"no node called {name!r} has ever been here: see matrixctl node list")
    if take(arguments, "power_on", bool):
        result = await admin.node.agents.unfence(name)
        if not result.confirmed:
            raise PeerError(f"{name} is not on, and still kept out: {result.detail}")
    async with admin.keeper.changing() as database:
        admin.say(name, "known", database)
    return {}


async def remove(admin: Administration, arguments: Message) -> Any:
    """A node that is gone for good: its slot is free, and it is not admitted any more."""
    name, force = name_of(arguments), take(arguments, "force", bool)
    found, core = _slot(admin, name), admin.node.membership
    if found is None and name not in admin.roster():
        raise OperatorError(f"no node called {name!r} has ever been here: see matrixctl node list")
    if found is not None and found[0] == core.me.node:
        raise OperatorError(f"{name} is the administrator itself: stop it first, then remove it from another node")
    if found is not None and found in core.admin.header.members.items() and not force:
        raise OperatorError(f"{name} is a member: stop it first (matrixctl stop there), or --force to fence it")
    async with admin.keeper.changing() as database:
        admin.say(name, "removed", database)
    if found is not None:
        await expel(admin, found, "the operator removed it")
        await admin.free_slot(*found)
    admin.log("node", f"{name} was removed from the cluster")
    return {}
