"""A cluster on a LUN that fences: each node is a machine with a boot id and an initiator name of its own.

They share this machine's loopback, so there is no switch that could harm their network.
"""

from __future__ import annotations

from pathlib import Path

import trio

from matrixfs.blockstore.scsi.address import identity_of, parse_address
from matrixfs.blockstore.scsi.probe_nexus import IscsiProbeNexus
from membership.fence.keys import node_of
from membership.label import BLOCK_BYTES, Label
from membership.lease.records import slot_block
from tests.mount.lab import LabNode
from tests.net.lab import NetLab
from tests.net.machine import Machine, share
from tests.san.lab import Target

NODES = 3


class SanLab(NetLab):
    """See the module.

    Args:
        directory: as for Lab.
        target: its first LUN is the store.
        lease_ms: another lease than mkfs gives.
    """

    def __init__(self, directory: Path, target: Target, lease_ms: int | None = None) -> None:
        super().__init__(directory, nodes=NODES, name="san")
        self.target = target
        self._lease_ms = lease_ms
        self.store, self.size = target.url(), ()  # type: ignore[assignment]
        for number, node in enumerate(self.nodes, 1):
            node.address = f"127.0.0.{number}"

    def open(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        share(self.directory)
        for node in self.nodes:
            self._machines[node.name] = Machine(self.directory, node.name, own=True, net=False)

    def format(self, *options: str) -> None:
        super().format(*options)
        label = _read_label(self.target.luns[0].path)
        assert label.pr_kind
        label.lease_ms = self._lease_ms or label.lease_ms
        _write_label(self.target.luns[0].path, label)

    def inside(self, node: LabNode, *command: str | Path) -> list[str]:
        initiator = f"MATRIXFS_INITIATOR=iqn.2026-11.lab:{node.name}"
        return super().inside(node, "env", initiator, *command)

    def fences(self, node: LabNode) -> list[tuple[str, str, str]]:
        """(name, driver, detail) of what a node fenced as administrator."""
        return [(each["name"], each["driver"], each["detail"]) for each in self.status(node)["fences"]]

    def events(self, node: LabNode) -> str:
        return "\n".join(event["text"] for event in self.status(node)["events"])

    def registered(self, index: int = 0) -> list[int]:
        """To which nodes the registrations on a LUN belong, sorted."""

        async def read() -> list[int]:
            who = identity_of("looks at keys", "test", {})
            nexus = await IscsiProbeNexus.open(parse_address(self.target.url(index), {}), who)
            try:
                return await nexus.read_keys()
            finally:
                await nexus.aclose()

        return sorted(node_of(key) or 0 for key in trio.run(read))

    def slot(self, number: int) -> bytes:
        """The heartbeat slot of a node as it is on the disk."""
        return self.target.read(0, slot_block(number) * BLOCK_BYTES, BLOCK_BYTES)


def _read_label(path: Path) -> Label:
    with path.open("rb") as file:
        return Label.decode_untrusted(file.read(BLOCK_BYTES), "label", address=0)


def _write_label(path: Path, label: Label) -> None:
    with path.open("r+b") as file:
        for block in (path.stat().st_size // BLOCK_BYTES - 1, 0):
            label.address = block
            file.seek(block * BLOCK_BYTES)
            file.write(label.encode())
