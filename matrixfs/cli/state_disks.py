"""What a node writes into its state directory about the disks: a path for each, and which lead to the cluster.

STATE/disk/NAME is a cluster disk under its name, which is the same on all nodes, wherever it is (002-25).

A link is a convenience: it is made after the disk was found by its label, and what can't be made costs a line in the
log.  A LUN that matrixd reaches by itself (iscsi://...) has no path on this host, so no link.

Invariant: it is written in a thread.  The disk below STATE may hang, and the lease is renewed beside it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Final

import trio

from matrixfs.store_names import is_iscsi
from membership.enrol.credentials import FILE_NAME, load, save
from membership.errors import OperatorError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

DIRECTORY: Final = "disk"  # in the state directory

log = logging.getLogger(__name__)


class StateDisks:
    """Of one matrixd.

    Args:
        state: its state directory.
    """

    def __init__(self, state: str) -> None:
        self._state = state
        self._paths: Mapping[str, str] = {}
        self._areas: Collection[str] = ()
        self._news = trio.Event()

    def show(self, paths: Mapping[str, str], areas: Collection[str]) -> None:
        """See ``membership.disks.Opener``; ``run`` writes it down."""
        self._paths, self._areas = paths, areas
        self._news.set()

    async def run(self) -> None:
        """Write down what is shown, until cancelled; what was shown before that is written, too."""
        try:
            while True:
                await self._news.wait()
                await self._write()
        finally:
            if self._news.is_set():
                with trio.CancelScope(shield=True):
                    await self._write()

    async def _write(self) -> None:
        paths, areas = self._paths, self._areas
        await trio.to_thread.run_sync(show_disks, os.path.join(self._state, DIRECTORY), paths)
        await trio.to_thread.run_sync(keep_stores, self._state, [paths[name] for name in areas])
        if (paths, areas) == (self._paths, self._areas):
            self._news = trio.Event()


def keep_stores(state: str, stores: Sequence[str]) -> None:
    """The credentials name the disks that have the membership areas today, not those of the day of joining (002-44).

    Args:
        state: directory of the credentials; there may be none.
        stores: paths or URLs.
    """
    try:
        found = load(state) if os.path.lexists(os.path.join(state, FILE_NAME)) else None
        if found is not None and stores and set(found.stores) != set(stores):
            save(state, dataclasses.replace(found, stores=tuple(stores)))
    except OperatorError as error:
        log.warning("not written down where the membership areas are now: %s", error)


def show_disks(directory: str, paths: Mapping[str, str]) -> None:
    """Make the links of a directory those.

    Args:
        directory: made when it is not there; what it holds besides links is left alone.
        paths: of each disk, by its name, which is one component of a path (blockstore/initialize.py).
    """
    wanted = {name: path for name, path in paths.items() if not is_iscsi(path) and os.path.basename(name) == name}
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        for name in os.listdir(directory):
            link = os.path.join(directory, name)
            if os.path.islink(link) and wanted.get(name) != os.readlink(link):
                os.unlink(link)
        for name, path in wanted.items():
            link = os.path.join(directory, name)
            if not os.path.lexists(link):
                os.symlink(path, link)
    except OSError as error:
        log.warning("%s does not show the disks: %s", directory, error.strerror)
