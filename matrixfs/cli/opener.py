"""How this host opens the disks of a cluster: the seam of membership/disks.py (002-21, 002-25)."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import trio

from matrixfs.blockstore import open_store
from matrixfs.blockstore.initialize import data_window
from matrixfs.fs.opening import read_superblock
from membership.errors import CorruptionError, OperatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from membership.label import Label
    from membership.seams import SectorDevice

class HostOpener:
    """Stores by path.

    Args:
        stores: those that matrixd was given: looked at first.
        patterns: shell patterns of paths where else a disk may be.
    """

    def __init__(self, stores: Sequence[str], patterns: Sequence[str]) -> None:
        self._stores = stores
        self._patterns = patterns

    async def open(self, path: str) -> SectorDevice:
        """See ``membership.disks.Opener``."""
        await trio.lowlevel.checkpoint()
        return open_store(path)

    def candidates(self) -> list[str]:
        """See ``membership.disks.Opener``."""
        found = [path for pattern in self._patterns for path in sorted(glob.glob(pattern))]
        return list(dict.fromkeys([*self._stores, *found]))

    async def filesystem_of(self, device: SectorDevice, label: Label) -> tuple[bytes, str]:
        """See ``membership.disks.Opener``."""
        try:
            superblock = await read_superblock(data_window(device, label))
        except (CorruptionError, OperatorError):
            return b"", ""  # a disk without a filesystem, or a damaged one: its mount will say what is wrong
        return superblock.owner, superblock.name
