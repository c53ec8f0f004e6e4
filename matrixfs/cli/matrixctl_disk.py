"""``matrixctl disk``: the cluster's disks (002-21, 002-24, 002-43)."""

from __future__ import annotations

import click

from matrixfs.cli.matrixctl_disk_lock import disk_lock, disk_locks


@click.group()
def disk() -> None:
    """The disks of the cluster, and locks on them."""


for _command in (disk_lock, disk_locks):
    disk.add_command(_command)
