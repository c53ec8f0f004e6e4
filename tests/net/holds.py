"""Holding processes at their pauses (membership/pauses.py), by the nodes of a lab."""

from __future__ import annotations

from pathlib import Path

from tests.mount.lab import LabNode, wait_until


class Holds:
    """One directory of pauses.

    Args:
        top: the directory, as the processes were told.
    """

    def __init__(self, top: Path) -> None:
        self.ids: dict[str, int] = {}  # node id by name, as the test has found them
        self._top = top

    def hold(self, point: str, node: LabNode) -> None:
        """From now on the node's processes stop there."""
        (self._top / f"{point}.{self.ids[node.name]}").touch()

    def wait_held(self, point: str, node: LabNode) -> None:
        """Wait until one of them has."""
        reached = self._top / f"{point}.{self.ids[node.name]}.reached"
        wait_until(reached.exists, f"{node.name} is held at {point}")

    def let_go(self) -> None:
        """Nobody is held any more."""
        for file in self._top.iterdir():
            file.unlink()
