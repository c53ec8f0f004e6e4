"""All commands by name: the table that the administrator goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from membership.commands import disks, fences, nodes, tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from membership.administration import Administration
    from membership.control_wire import Message

HANDLERS: Final[dict[str, Callable[[Administration, Message], Awaitable[Any]]]] = {
    "disk.add": disks.add,
    "disk.remove": disks.remove,
    "disk.areas": disks.move_areas,
    "node.roster": nodes.roster,
    "node.fence": nodes.fence,
    "node.unfence": nodes.unfence,
    "node.remove": nodes.remove,
    "node.add": tokens.add,
    "token.redeem": tokens.redeem,
    "fence.set": fences.put,
    "fence.clear": fences.clear,
    "fence.list": fences.show,
    "fence.test": fences.test,
}
