"""What the fields of bytes hold: entries, extents, index pairs, images of a frame, the runs of a bitmap.

The decoders are those of ``matrixfs/ondisk``.  Where one refuses, what it takes is shown, up to what it refuses (D3).
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from matrixfs.fs.groups import free_runs
from matrixfs.fsck.context import printable, reason
from matrixfs.fsck.quotas import TYPE_NAMES
from matrixfs.ondisk.directory import DirectoryLeafRecord, Entry, unpack_entries_untrusted
from matrixfs.ondisk.extent import Extent, ExtentLeafRecord, unpack_extents_untrusted
from matrixfs.ondisk.group import BITMAP_BYTES, GroupRecord
from matrixfs.ondisk.index import IndexRecord, unpack_pairs_untrusted
from matrixfs.ondisk.inode import INLINE, TREE, InodeRecord
from matrixfs.ondisk.journal import FrameRecord, is_data, unpack_frame_body_untrusted
from matrixfs.ondisk.quota import Counter, Limits, QuotaRecord, iterate_counters, iterate_limits, meaning_of, spare_of
from membership.errors import CorruptRecord
from membership.records import Record

_T = TypeVar("_T")


@dataclass(slots=True)
class Content:
    """Rows of one kind, with what is wrong among them."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        shown = [[_cell(cell) for cell in row] for row in [self.columns, *self.rows]]
        widths = [max(len(row[i]) for row in shown) for i in range(len(self.columns))]
        table = ["    " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in shown]
        return [f"  {self.name}: {len(self.rows)}", *(table if self.rows else [])]

    def document(self) -> dict[str, Any]:
        """For programs."""
        rows = [dict(zip(self.columns, map(_json, row), strict=True)) for row in self.rows]
        return {self.name.replace(" ", "_"): rows}


def _cell(value: Any) -> str:
    return printable(value) if isinstance(value, bytes) else str(value)


def _json(value: Any) -> Any:
    return printable(value) if isinstance(value, bytes) else value


def content_of(kind: type[Record], data: bytes, fields: dict[str, Any], blocks_total: int) -> Content | None:
    """What the field of bytes of a structure holds; None when that is not known to have parts."""
    if kind is InodeRecord:
        return _inode(fields, blocks_total)
    if kind is IndexRecord:
        return pairs(fields["body"], fields["entries"])
    if kind is DirectoryLeafRecord:
        return entries(fields["body"], fields["entries"])
    if kind is ExtentLeafRecord:
        return extents(fields["body"], fields["entries"], blocks_total)
    if kind is GroupRecord:
        return _bitmap(fields)
    if kind is QuotaRecord:
        return _quotas(fields)
    return _frame(data) if kind is FrameRecord else None


def entries(body: bytes, count: int) -> Content:
    """Directory entries."""
    found, wrong = _longest(lambda n: unpack_entries_untrusted(body, n, ""), count, len(body))
    return Content("entries", Entry._fields, list(found), wrong)


def extents(body: bytes, count: int, blocks_total: int) -> Content:
    """Extents."""
    found, wrong = _longest(lambda n: unpack_extents_untrusted(body, n, "", blocks_total), count, len(body))
    return Content("extents", Extent._fields, list(found), wrong)


def pairs(body: bytes, count: int) -> Content:
    """Pairs of an index."""
    found, wrong = _longest(
        lambda n: list(zip(*unpack_pairs_untrusted(body, n, ""), strict=True)), count, len(body), least=1
    )
    return Content("pairs", ("key", "child"), list(found), wrong)


def _longest(
    decode: Callable[[int], Sequence[_T]], count: int, most: int, *, least: int = 0
) -> tuple[Sequence[_T], list[str]]:
    """What ``decode`` takes of ``count`` items, and why not all; no item takes less than a byte."""
    try:
        return decode(count), []
    except CorruptRecord as error:
        wrong = reason(error)
    low, high = least - 1, min(count, most)  # decoding is sound up to ``low``, not for ``high``
    while high - low > 1:
        middle = (low + high) // 2
        try:
            decode(middle)
            low = middle
        except CorruptRecord:
            high = middle
    return decode(low) if low >= least else [], [f"{wrong}: {max(low, 0)} of {count} items are shown"]


def _inode(fields: dict[str, Any], blocks_total: int) -> Content | None:
    tail, count = fields["tail"], fields["entries"]
    if fields["layout"] == INLINE:
        return Content("inline", ("bytes",), [(tail[: min(fields["size"], len(tail))],)] if fields["size"] else [])
    if fields["layout"] != TREE:
        return None
    if fields["depth"]:
        return pairs(tail, count)
    return entries(tail, count) if stat.S_ISDIR(fields["mode"] & 0xFFFF) else extents(tail, count, blocks_total)


def _bitmap(fields: dict[str, Any]) -> Content:
    blocks = min(fields["blocks"], BITMAP_BYTES * 8)
    rows = [(fields["address"] + at, length) for at, length in free_runs(fields["bitmap"], blocks)]
    found = Content("free runs", ("block", "blocks"), rows)
    free = sum(length for _, length in rows)
    if free != fields["free"]:
        found.problems.append(f"{free} bits are clear, the count says {fields['free']}")
    return found


def _quotas(fields: dict[str, Any]) -> Content:
    """The ids of a block that have a counter or limits."""
    meaning, spare = meaning_of(fields["key"]), spare_of(fields["key"])
    if spare is not None:
        return Content(f"spare block of journal {spare}", ("id",), [])
    if meaning is None:
        return Content("quotas", ("id",), [], [f"key {fields['key']:#x} means nothing"])
    kind = TYPE_NAMES[meaning.type]
    if meaning.journal < 0:
        limits = [(number, *each) for number, each in enumerate(iterate_limits(fields["body"]), meaning.first)]
        return Content(f"limits of {kind}s", ("id", *Limits._fields), [row for row in limits if any(row[1:])])
    counters = [(number, *each) for number, each in enumerate(iterate_counters(fields["body"]), meaning.first)]
    rows = [row for row in counters if any(row[1:])]
    return Content(f"{kind}s counted by journal {meaning.journal}", ("id", *Counter._fields), rows)


def _frame(data: bytes) -> Content:
    try:
        frame = FrameRecord.decode_untrusted(data, "")
        images, revokes = unpack_frame_body_untrusted(frame, "")
    except CorruptRecord as error:
        return Content("images", ("block", "generation"), [], [reason(error)])
    rows: list[tuple[Any, ...]] = [
        (block, "file data" if is_data(generation) else generation) for block, generation in images
    ]
    return Content("images", ("block", "generation"), rows + [(block, "revoked") for block in revokes])


def images_of(data: bytes) -> dict[int, tuple[int, int]]:
    """What a frame lists, (block, generation) by the number of the image; {} if it is damaged."""
    try:
        images, _ = unpack_frame_body_untrusted(FrameRecord.decode_untrusted(data, ""), "")
    except CorruptRecord:
        return {}
    return dict(enumerate(images))
