"""``matrixctl disk``: the cluster's disks (002-21, 002-24, 002-43)."""

from __future__ import annotations

import click

from matrixfs.cli.matrixctl_disk_change import add, areas, list_disks, probe, remove


@click.group()
def disk() -> None:
    """The disks of the cluster."""


for _command in (add, areas, list_disks, probe, remove):
    disk.add_command(_command)
