"""What MatrixFS does otherwise than ext4, on purpose or because FUSE does, each with its reason.

A row that no longer describes a difference fails the test, as does a difference without a row.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from tests.posix.cases import Case


class Difference(NamedTuple):
    """``cases``: patterns of names, as of a shell, by "|"."""

    cases: str
    reason: str

    def is_about(self, case: Case) -> bool:
        return any(fnmatchcase(case.name, pattern) for pattern in self.cases.split("|"))


DIFFERENCES: tuple[Difference, ...] = ()
