"""The cluster's disks for people, in ``matrixctl status`` and ``disk list`` (pure; 002-16, 002-25, 002-38)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matrixfs.cli.common import printable, size_text, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Fields = dict[str, Any]

_AREAS: Final = {"yes": "membership", "coming": "membership (coming)", "leaving": "membership (leaving)", "": "-"}


def disk_lines(status: Mapping[str, Any]) -> list[str]:
    """A table of the disks, what is wrong with them, and whether their naming is being changed."""
    rows: list[Sequence[object]] = [("DISK", "SIZE", "FILESYSTEM", "AREA", "FENCE", "STATE HERE", "PATH HERE")]
    rows += [_row(disk) for disk in status["disks"]]
    if len(rows) == 1:
        return []
    lines = ["Disks", *table(rows, right={1})]
    for disk in status["disks"]:
        trouble = disk["failure"] or (disk["area_failure"] if disk["area"] else "")
        if trouble and trouble != "not tried yet":
            lines.append(f"  TROUBLE with {printable(disk['name'])}: {printable(trouble)}")
    naming = status["naming"]
    if naming["step"] != "idle":
        names = {node["id"]: node["name"] for node in status["nodes"]}
        waiting = " ".join(printable(names.get(node, f"node {node}")) for node in naming["waiting_for"])
        lines.append(
            f"  CHANGING to version {naming['version']}: {naming['step']}" + (f" {waiting}" if waiting else "")
        )
    return lines


def _row(disk: Fields) -> tuple[object, ...]:
    return (
        printable(disk["name"]),
        size_text(disk["size_bytes"]),
        printable(disk["filesystem"]) or "-",
        _AREAS[disk["area"]],
        fence_of(disk["traits"]),
        disk["state"],
        printable(disk["path_here"]) or f"- (added as {printable(disk['path'])})",
    )


def fence_of(traits: Sequence[int]) -> str:
    """What its reservations are worth to stop a node, as the probe found."""
    from membership.errors import CorruptRecord
    from membership.fence.reservations import LunTraits

    try:
        found = LunTraits.from_words_untrusted(*traits)
    except CorruptRecord:
        return "unknown"
    return "time" if found.fence == "none" else found.fence
