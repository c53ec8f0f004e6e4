"""Commands on fence agents: what switches a node off when it must be fenced (002-20, 002-38)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from membership.commands.nodes import name_of
from membership.control_wire import take, take_natural
from membership.database.schema import fence_levels
from membership.errors import OperatorError
from membership.fence.levels import LEVELS_MAX, Level

if TYPE_CHECKING:
    from membership.administration import Administration
    from membership.control_wire import Message


async def put(admin: Administration, arguments: Message) -> Any:
    """Set one level of a node: devices that must all be off."""
    name, number = name_of(arguments), take_natural(arguments, "level", 8)
    if not 1 <= number <= LEVELS_MAX:
        raise OperatorError(f"levels are numbered from 1 to {LEVELS_MAX}")
    level = Level.from_dict_untrusted(take(arguments, "devices", dict))
    async with admin.keeper.changing() as database:
        database.put(fence_levels, {"node": name, "level": number, "devices": level.to_dict()})
        admin.read_levels(database)
    return {"levels": described(admin, name)}


async def clear(admin: Administration, arguments: Message) -> Any:
    """Forget one level of a node, or all (level 0)."""
    name, number = name_of(arguments), take_natural(arguments, "level", 8)
    async with admin.keeper.changing() as database:
        database.remove(fence_levels, **({"node": name, "level": number} if number else {"node": name}))
        admin.read_levels(database)
    return {"levels": described(admin, name)}


async def show(admin: Administration, _: Message) -> Any:
    """All levels of all nodes, secrets hidden."""
    async with admin.keeper.changing() as database:
        admin.read_levels(database)
    return {name: described(admin, name) for name in sorted(admin.levels)}


async def test(admin: Administration, arguments: Message) -> Any:
    """Ask the devices of a node for their state; nothing is switched."""
    name = name_of(arguments)
    levels = admin.levels.get(name, {})
    if not levels:
        raise OperatorError(f"no fence agent is configured for node {name}")
    found = []
    for number, level in sorted(levels.items()):
        for check in await admin.node.agents.check(level):
            found.append({"level": number, "device": check.device, "power": check.power, "detail": check.detail})
    return found


def described(admin: Administration, name: str) -> dict[str, str]:
    """Level number and devices, for people."""
    return {str(number): level.described() for number, level in sorted(admin.levels.get(name, {}).items())}
