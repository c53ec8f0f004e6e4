"""Names of the bits of ``features_incompatible`` (R12), and what a version that does not know a bit can't do."""

from __future__ import annotations

INCOMPATIBLE_NAMES = {
    1: "extended attributes",
    2: "unwritten extents",
    4: "journals in several runs",
    8: "flags and projects of files",
    16: "file data in journals",
}


def feature_names(bits: int) -> list[str]:
    """The features in ``bits``, the lowest first; a bit that this version does not know by its number."""
    found = []
    while bits:
        lowest = bits & -bits
        found.append(INCOMPATIBLE_NAMES.get(lowest, f"unknown {lowest:#x}"))
        bits ^= lowest
    return found
