"""``matrixctl disk``: the cluster's disks (002-21, 002-24, 002-43)."""

from __future__ import annotations

import click

from matrixfs.cli.matrixctl_disk_change import add, areas, list_disks, probe, remove
from matrixfs.cli.matrixctl_disk_lock import disk_lock, disk_locks


@click.group()
def disk() -> None:
    """The disks of the cluster, and locks on them."""


for _command in (add, areas, disk_lock, disk_locks, list_disks, probe, remove):
    disk.add_command(_command)
