"""A node's part in the naming: follow it, and the areas that it names (trio; 002-36, 002-43, 002-44; Figure 12).

Invariant N1: a header is acted on only when it was read on majorities of the very areas that it names
(B1 of ``areas/bootstrap.py``); until then it is read again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

from membership.areas.bootstrap import groups_of
from membership.errors import CorruptRecord, DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from membership.areas.quorum import Areas, HeaderReading
    from membership.database.keeper import DatabaseKeeper
    from membership.disks import ClusterDisks
    from membership.naming import Naming
    from membership.node_core import NodeCore
    from membership.node_events import EventBook


class Shell(Protocol):
    """What this needs of the node."""

    def apply(self, step: Callable[[float], None]) -> None:
        """Run a core step and carry out its effects, with no checkpoint."""
        ...


class NodeNaming:
    """Of one node."""

    def __init__(
        self, core: NodeCore, areas: Areas, disks: ClusterDisks, keeper: DatabaseKeeper, book: EventBook, shell: Shell
    ) -> None:
        self._core = core
        self._areas = areas
        self._disks = disks
        self._keeper = keeper
        self._book = book
        self._shell = shell
        self._ahead: Naming | None = None  # as administrator: areas that we use before a header names them
        self._loading = False
        self._failures: dict[bytes, str] = {}
        disks.changed = self.devices_changed

    # -- areas -------------------------------------------------------------------------------------------------

    def follow(self, reading: HeaderReading) -> bool:
        """Use the areas that a header names; True when it must be read again before it is acted on (N1)."""
        header, present = reading.header, set(self._areas.groups)
        wanted = groups_of(header, next(iter(self._areas.groups[0])))
        if self._ahead is not None and header.naming >= self._ahead.version:
            self._ahead = None
        if set(wanted) <= present:
            if set(wanted) != present and self._ahead is None and reading.settled:
                self._regroup(wanted)
            return False
        if not reading.settled and not present <= set(wanted):
            return False  # it may never come into force: nothing is left out because of it
        self._regroup(wanted)
        return True

    def use_ahead(self, naming: Naming) -> None:
        """As administrator: use the areas of a changed naming before it is stored there."""
        self._ahead = naming
        groups = [frozenset(naming.areas), frozenset(naming.areas_before)]
        self._regroup(tuple(group for group in groups if group))

    def devices_changed(self) -> None:
        """A disk came, or went."""
        self._regroup(self._areas.groups)

    def _regroup(self, groups: tuple[frozenset[bytes], ...]) -> None:
        wanted = frozenset().union(*groups)
        self._areas.regroup(groups, {disk: self._disks.device(disk) for disk in wanted})

    def tell_failures(self) -> None:
        """Log which areas began to fail, or answer again."""
        for area in self._areas.disks:
            before = self._failures.get(area.disk, "")
            if bool(before) != bool(area.failure) and area.failure != "not tried yet":
                self._failures[area.disk] = area.failure
                row = self._core.naming.by_uuid(area.disk)
                name = row.name if row is not None else area.disk.hex()
                text = f"fails: {area.failure}" if area.failure else "answers again"
                self._book.log("alert" if area.failure else "disk", f"the membership area on disk {name} {text}")

    # -- the naming --------------------------------------------------------------------------------------------

    def known(self) -> Naming:
        """Without the database (K3 of database/keeper.py)."""
        naming = self._disks.known()
        areas = naming.areas or tuple(sorted(self._areas.groups[0]))
        version = max(naming.version, self._core.admin.header.naming + (0 if self._core.naming.version else 1))
        return dataclasses.replace(naming, version=version, areas=areas)

    async def load(self) -> None:
        """1606: the header names a later version than we hold."""
        if self._loading:
            return
        self._loading = True
        try:
            naming = await self._keeper.read_naming()
            if naming is None or naming.version < self._core.admin.header.naming:
                return  # damaged everywhere: the administrator makes it anew, under a later version
            await self._disks.take_over(naming)
            self._shell.apply(lambda now: self._core.naming_held(naming, now))
        except (DeviceError, CorruptRecord) as error:
            self._book.log("alert", f"the naming of the disks can't be read: {error}")
        finally:
            self._loading = False
