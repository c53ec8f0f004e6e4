"""How this host opens the disks of a cluster: the seam of membership/disks.py (002-21, 002-25)."""

from __future__ import annotations

import glob
import itertools
from typing import TYPE_CHECKING

from matrixfs.blockstore import open_store
from matrixfs.blockstore.initialize import data_window
from matrixfs.fs.opening import read_superblock
from membership.disks import FoundFilesystem
from membership.errors import CorruptionError, OperatorError
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from matrixfs.blockstore.device.api import Store
    from matrixfs.cli.state_disks import StateDisks
    from membership.label import Label
    from membership.seams import SectorDevice


class HostOpener:
    """Stores by path.

    Args:
        stores: those that matrixd was given: looked at first.
        patterns: shell patterns of paths where else a disk may be.
        node: name of this node, to the target of a LUN.
        life: drawn anew for each start of matrixd.  With it the nexuses are others than those of a predecessor that may
            be frozen, and would be registered with the LUN by our registration.
        state: writes down where the disks are; None: nobody does.
    """

    def __init__(
        self,
        stores: Sequence[str],
        patterns: Sequence[str],
        node: str,
        life: str,
        state: StateDisks | None = None,
    ) -> None:
        self._state = state
        self._live: dict[int, Store] = {}
        self._node = node
        self._life = life
        self._stores = stores
        self._patterns = patterns

    async def open(self, path: str) -> SectorDevice:
        """See ``membership.disks.Opener``.

        A LUN that is open here already, perhaps under another name, gets a session of another identity: its target
        would end the first one.
        """
        self._live = {number: store for number, store in self._live.items() if not store.closed}
        number = next(number for number in itertools.count(1) if number not in self._live)
        self._live[number] = store = open_store(path, identity=f"matrixd {self._life} {number}", host=self._node)
        try:
            await store.open()
        except BaseException:
            del self._live[number]
            raise
        return store

    async def measure(self, device: SectorDevice) -> None:
        """See ``membership.disks.Opener``."""
        for store in self._live.values():
            if store is device:
                await store.measure()

    def candidates(self) -> list[str]:
        """See ``membership.disks.Opener``."""
        found = [path for pattern in self._patterns for path in sorted(glob.glob(pattern))]
        return list(dict.fromkeys([*self._stores, *found]))

    def show(self, paths: Mapping[str, str], areas: Collection[str]) -> None:
        """See ``membership.disks.Opener``."""
        if self._state is not None:
            self._state.show(paths, areas)

    async def filesystem_of(self, device: SectorDevice, label: Label) -> FoundFilesystem:
        """See ``membership.disks.Opener``."""
        area = data_window(device, label)
        try:
            superblock = await read_superblock(area)
        except (CorruptionError, OperatorError) as error:
            blank = not any(await area.read(0, BLOCK_BYTES))
            return FoundFilesystem() if blank else FoundFilesystem(problem=error)
        return FoundFilesystem(superblock.owner, superblock.name)
