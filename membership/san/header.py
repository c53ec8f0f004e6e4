"""SanHeader: the one block that says who may use the store, and who decides that (002-30 to 002-45; Figures 10 to 12).

Invariants:

S1. Each generation is written by one node at most: the winner of that generation's disk ballot (``ballot.py``).
S2. The generation only grows; a reader that has seen a greater one does not act on a smaller one (002-45).
S3. A node extends its lease only on a header that lists its incarnation.  So once a header without it is durable,
    its right ends ``lease`` seconds later at the latest (R4).
S4. Who is dropped without a clean leave stands in ``fencing`` until its fence is confirmed, across administrators:
    nothing of it may be recovered before.
S5. A header write is handed over within ``lease`` of the moment from which on nobody newer was seen, or never.  So what
    an administrator that was stopped in between still writes has landed before anybody it lists and a newer header does
    not, is called dead (R4); the newer administrator looks again after that, before it calls him so (A7 of admin.py).

The 4 KiB block holds two copies of 2 KiB.  A change writes the block twice, first with the first copy changed,
then with both: a torn write leaves one whole copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.errors import CorruptRecord, DeviceError
from membership.label import BLOCK_BYTES, HEADER_BLOCK, NODE_SLOTS
from membership.pauses import never
from membership.records import Record, raw, record, u64, u64_array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from membership.pauses import Pause
    from membership.seams import SectorDevice

COPY_BYTES = BLOCK_BYTES // 2
NOBODY = NODE_SLOTS  # ``administrator`` when there is none
AREAS_MAX = 3
_UUID_BYTES = 16


@record(magic=b"MXFSSANH", size=COPY_BYTES, version=2)
class SanHeader(Record):
    """One copy.  ``owner`` is the cluster, ``address`` HEADER_BLOCK, ``generation`` the SAN generation.

    Version 2 added what follows ``fencing_incarnations``; version 1 reads as zeros there: one area, the disk itself.
    """

    administrator: int = u64(48, "node id of the administrator; 64: none", default=NOBODY)
    administrator_incarnation: int = u64(56, "its incarnation")
    view: int = u64(64, "group view under which this was decided: for people")
    member_incarnations: tuple[int, ...] = u64_array(128, NODE_SLOTS, "by node id: incarnation of the member, or 0")
    fencing_incarnations: tuple[int, ...] = u64_array(640, NODE_SLOTS, "by node id: evicted, fence unconfirmed, or 0")
    naming: int = u64(1152, "version of the naming in the membership database that is in force (1604)")
    area_disks: bytes = raw(1160, AREAS_MAX * _UUID_BYTES, "uuids of the disks whose areas count; 0: this disk alone")
    area_disks_before: bytes = raw(1208, AREAS_MAX * _UUID_BYTES, "while the set is changed: those that count as well")

    @property
    def members(self) -> dict[int, int]:
        """Incarnation by node id."""
        return {node: inc for node, inc in enumerate(self.member_incarnations) if inc}

    @property
    def fencing(self) -> dict[int, int]:
        """Evicted but not confirmed fenced: incarnation by node id."""
        return {node: inc for node, inc in enumerate(self.fencing_incarnations) if inc}

    @property
    def areas(self) -> tuple[bytes, ...]:
        """Uuids of the disks whose areas count; empty: the one it was read from."""
        return _uuids(self.area_disks)

    @property
    def areas_before(self) -> tuple[bytes, ...]:
        """Those that count as well while the set is being changed."""
        return _uuids(self.area_disks_before)


def _uuids(data: bytes) -> tuple[bytes, ...]:
    parts = (data[at : at + _UUID_BYTES] for at in range(0, len(data), _UUID_BYTES))
    return tuple(part for part in parts if any(part))


def make_header(
    cluster: bytes,
    generation: int,
    *,
    administrator: int = NOBODY,
    view: int = 0,
    members: Mapping[int, int],
    fencing: Mapping[int, int],
    naming: int = 0,
    areas: Sequence[bytes] = (),
    areas_before: Sequence[bytes] = (),
) -> SanHeader:
    """A header of plain maps.  ``administrator`` is NOBODY or one of the members."""
    assert max(len(areas), len(areas_before)) <= AREAS_MAX
    return SanHeader(
        owner=cluster,
        address=HEADER_BLOCK,
        generation=generation,
        administrator=administrator,
        administrator_incarnation=members.get(administrator, 0),
        view=view,
        member_incarnations=tuple(members.get(node, 0) for node in range(NODE_SLOTS)),
        fencing_incarnations=tuple(fencing.get(node, 0) for node in range(NODE_SLOTS)),
        naming=naming,
        area_disks=b"".join(areas).ljust(AREAS_MAX * _UUID_BYTES, b"\0"),
        area_disks_before=b"".join(areas_before).ljust(AREAS_MAX * _UUID_BYTES, b"\0"),
    )


def header_untrusted(block: bytes, cluster: bytes) -> SanHeader:
    """The header in a block: the valid copy of the greater generation; generation 0 when never written.

    Raises:
        CorruptRecord: both copies are damaged.
    """
    if not any(block[:8]) and not any(block[COPY_BYTES : COPY_BYTES + 8]):
        return make_header(cluster, 0, members={}, fencing={})
    copies: list[SanHeader] = []
    first_error: CorruptRecord | None = None
    for at in (0, COPY_BYTES):
        try:
            where = f"SAN header (block {HEADER_BLOCK}, copy at {at})"
            copy = SanHeader.decode_untrusted(block[at : at + COPY_BYTES], where, owner=cluster, address=HEADER_BLOCK)
            if copy.administrator > NOBODY:
                raise CorruptRecord("SAN header", "administrator", f"at most {NOBODY}", copy.administrator)
            copies.append(copy)
        except CorruptRecord as error:
            first_error = first_error or error
    if not copies:
        assert first_error is not None
        raise first_error
    return max(copies, key=lambda c: c.generation)


async def read_header(device: SectorDevice, cluster: bytes) -> SanHeader:
    """Read the header.  Raises CorruptRecord, DeviceError."""
    return header_untrusted(await device.read(HEADER_BLOCK * BLOCK_BYTES, BLOCK_BYTES), cluster)


async def write_header(
    device: SectorDevice, header: SanHeader, is_timely: Callable[[], bool] = lambda: True, pause: Pause = never
) -> None:
    """Write both copies, one after the other, durably.

    The first write leaves one whole copy as the block holds it now, so that its sectors don't change.

    Args:
        device: where.
        header: what.
        is_timely: asked right before each write; False: too late (S5).
        pause: for tests.

    Raises:
        DeviceError: it failed, or is too late; one of the two copies may be written.
    """
    at = HEADER_BLOCK * BLOCK_BYTES
    image = header.encode()
    old = await device.read(at, BLOCK_BYTES)
    keeps_second = _is_whole(old[COPY_BYTES:], header.owner) or not _is_whole(old[:COPY_BYTES], header.owner)
    for block in (image + old[COPY_BYTES:] if keeps_second else old[:COPY_BYTES] + image, image + image):
        if not is_timely():
            raise DeviceError(f"{device.name}: the SAN header was not written in time, and must not be written late")
        await device.write(at, block, durable=True)
        if block != image + image:
            await pause("HeaderHalf")


def _is_whole(copy: bytes, cluster: bytes) -> bool:
    try:
        SanHeader.decode_untrusted(copy, "SAN header", owner=cluster, address=HEADER_BLOCK)
    except CorruptRecord:
        return False
    return True
