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


DIFFERENCES: tuple[Difference, ...] = (
    Difference("whiteout/*", "RENAME_WHITEOUT is for upper layers of overlayfs, which takes none on FUSE: EINVAL"),
    Difference("times-far/*", "an inode holds 1677 to 2262, of ext4 1901 to 2446; both cut what is beyond"),
    Difference("reading/read-end", "the kernel answers a read at the end of file without us: it is no access"),
    Difference(
        "size/4611686018427387904|size/9223372036854775807|write-at/922*|seek/bad",
        "files may be 2^63 - 1 bytes long, on ext4 16 TiB less one block: EFBIG and EINVAL come later",
    ),
    Difference(
        "direct/100-0-0|direct/4096-100-0|direct/4096-0-1",
        "FUSE takes direct I/O of any alignment; ext4 refuses what the disk could not do",
    ),
    Difference("reserve/8|reserve/32", "FUSE passes no collapsing and no inserting of ranges: EOPNOTSUPP"),
    Difference(
        "fixed-dir/*-unlink|fixed-dir/*-rmdir",
        "unlink of a directory, or rmdir of a file, in an immutable directory: the kernel tells by itself that it is "
        "the wrong type; to ext4 EPERM comes first",
    ),
    Difference(
        "fixed-denied/i|fixed-denied/ia",
        "the kernel checks permissions by itself and knows nothing of immutable files: EACCES where neither permits "
        "it, and access(2) says that it may be written",
    ),
    Difference(
        "map/append",
        "descriptors opened with O_APPEND go around the page cache, so that appends of several nodes don't overwrite "
        "one another: a shared mapping of such a one is ENODEV",
    ),
)
