"""Journal replay: P1-P5 of matrixfs/fs/replay.py, one by one and with the power lost at every write."""

from __future__ import annotations

import contextlib
import random
import stat

import pytest

from matrixfs.fs.replay import JOURNALLED, ReplayReport, check_image_untrusted, read_journal_header, replay
from matrixfs.ondisk.index import IndexRecord
from matrixfs.ondisk.inode import InodeRecord
from matrixfs.ondisk.journal import CLEAN, DATA, DATA_ESCAPED, DIRTY, IMAGES_MAX, FrameRecord
from matrixfs.ondisk.superblock import JOURNALLED_DATA, Superblock
from membership.errors import CorruptionError, CorruptRecord, DeviceError
from membership.label import BLOCK_BYTES
from tests.damage.volume import DataImage, LogWriter, Volume, small_volume
from tests.sim.disk import SimDisk

OWNER = (5, 77)


def image(volume: Volume, offset: int, generation: int, size: int = 0, **wrong: object) -> InodeRecord:
    """An inode in the first groups; ``size`` tells images apart."""
    block = volume.superblock.group_start + 1 + offset
    fields = {
        "owner": volume.superblock.owner,
        "address": block,
        "generation": generation,
        "mode": stat.S_IFREG,
        "size": size,
    }
    return InodeRecord(**{**fields, **wrong})


async def dirty(index: int = 1, **options: object) -> tuple[Volume, LogWriter]:
    volume = await small_volume(**options)
    writer = LogWriter(volume, index)
    await writer.open()
    volume.disk.mark()
    return volume, writer


async def size_at(volume: Volume, offset: int) -> int | None:
    """Size of the inode in place, None when there is none."""
    block = volume.superblock.group_start + 1 + offset
    try:
        return InodeRecord.decode_untrusted(await volume.read(block), "t", address=block).size
    except CorruptRecord:
        return None


async def assert_refused(volume: Volume, match: str, expect: tuple[int, int] | None = OWNER) -> None:
    volume.disk.mark()
    with pytest.raises(CorruptionError, match=match) as caught:
        await replay(volume.disk, volume.superblock, 1, expect=expect)
    assert "\n" not in str(caught.value)
    assert volume.disk.log == [], "P1: nothing is written"


async def test_a_clean_journal_needs_nothing() -> None:
    volume = await small_volume()
    assert await replay(volume.disk, volume.superblock, 0, expect=OWNER) == ReplayReport()
    assert volume.disk.log == []


async def test_an_empty_dirty_log_becomes_clean() -> None:
    volume, writer = await dirty()
    assert await replay(volume.disk, volume.superblock, 1, expect=OWNER) == ReplayReport()
    header = await read_journal_header(volume.disk, volume.superblock, 1)
    assert (header.state, header.generation) == (CLEAN, writer.header.generation + 1)
    assert (header.node, header.incarnation) == OWNER


@pytest.mark.seed("002-30", "002-32")
async def test_the_newest_image_of_each_block_goes_home() -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10), image(volume, 1, 1, 11)])
    await writer.frame([image(volume, 0, 2, 20), image(volume, 2, 1, 22)])
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert report == ReplayReport(frames=2, transactions=2, images=4, written=3)
    assert [await size_at(volume, i) for i in range(4)] == [20, 11, 22, None]
    header = await read_journal_header(volume.disk, volume.superblock, 1)
    assert (header.state, header.sequence_first) == (CLEAN, 3)
    volume.disk.mark()
    assert await replay(volume.disk, volume.superblock, 1, expect=OWNER) == ReplayReport()
    assert volume.disk.log == []


@pytest.mark.parametrize(("generation", "expected"), [(1, 100), (4, 100), (5, 7), (6, 7)])
async def test_only_older_metadata_is_overwritten(generation: int, expected: int) -> None:
    volume, writer = await dirty()
    in_place = image(volume, 0, generation, 7)
    await volume.write(in_place.address, in_place.encode())
    await writer.frame([image(volume, 0, 5, 100)])
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert await size_at(volume, 0) == expected
    assert (report.written, report.skipped) == ((1, 0) if expected == 100 else (0, 1))


@pytest.mark.parametrize("what", ["data", "torn", "foreign", "misdirected", "unknown magic"])
async def test_what_is_no_sound_metadata_of_ours_is_overwritten(what: str) -> None:
    volume, writer = await dirty()
    newer = image(volume, 0, 9, 7)
    content = {
        "data": b"x" * BLOCK_BYTES,
        "torn": newer.encode()[:512] + bytes(BLOCK_BYTES - 512),
        "foreign": image(volume, 0, 9, 7, owner=b"other filesystem").encode(),
        "misdirected": image(volume, 1, 9, 7).encode(),
        "unknown magic": b"MXFSWHAT" + newer.encode()[8:],
    }[what]
    if what == "torn":
        content = newer.encode()[:-512] + b"\1" * 512
    await volume.write(newer.address, content)
    await writer.frame([image(volume, 0, 5, 100)])
    await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert await size_at(volume, 0) == 100


async def test_metadata_of_another_kind_counts_as_metadata() -> None:
    volume, writer = await dirty()
    block = image(volume, 0, 1).address
    index = IndexRecord(owner=volume.superblock.owner, address=block, generation=6, inode=1, level=1)
    await volume.write(block, index.encode())
    await writer.frame([image(volume, 0, 5, 100)])
    assert (await replay(volume.disk, volume.superblock, 1, expect=OWNER)).skipped == 1


async def test_a_revoke_withdraws_earlier_images_only() -> None:
    volume, writer = await dirty()
    blocks = [image(volume, i, 1).address for i in range(3)]
    for offset in (0, 1, 2):
        await volume.write(blocks[offset], b"file data".ljust(BLOCK_BYTES))
    await writer.frame([image(volume, 0, 1, 10), image(volume, 1, 1, 10)])
    await writer.frame([image(volume, 1, 7, 70)], [blocks[0], blocks[1], blocks[2]])
    await writer.frame([image(volume, 2, 3, 30)])
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert (report.revoked, report.written) == (2, 2)
    assert [await size_at(volume, i) for i in range(3)] == [None, 70, 30]


async def test_parts_count_only_together() -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    await writer.frame([image(volume, 1, 1, 11)], part=0, parts=3)
    await writer.frame([image(volume, 2, 1, 12)], part=1, parts=3)
    await writer.frame([], [image(volume, 0, 1).address], part=2, parts=3)
    await writer.frame([image(volume, 3, 1, 13)], [image(volume, 2, 1).address], part=0, parts=2)
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert report == ReplayReport(frames=4, transactions=2, images=3, written=2, revoked=1)
    assert [await size_at(volume, i) for i in range(4)] == [None, 11, 12, None]


@pytest.mark.parametrize("tear", ["head", "payload", "missing"])
async def test_a_torn_tail_ends_the_log(tear: str) -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    block = await writer.frame([image(volume, 0, 2, 20), image(volume, 1, 1, 11)])
    if tear == "missing":
        await volume.write(block, bytes(3 * BLOCK_BYTES))
    else:
        volume.disk.corrupt(block * BLOCK_BYTES + (70 if tear == "head" else 2 * BLOCK_BYTES + 5))
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert report.frames == 1
    assert [await size_at(volume, i) for i in range(2)] == [10, None]


async def test_a_torn_part_is_a_torn_tail_even_when_later_parts_are_there() -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    block = await writer.frame([image(volume, 1, 1, 11)], part=0, parts=2)
    await writer.frame([image(volume, 2, 1, 12)], part=1, parts=2)
    volume.disk.corrupt(block * BLOCK_BYTES + 70)
    assert (await replay(volume.disk, volume.superblock, 1, expect=OWNER)).transactions == 1


@pytest.mark.parametrize("at", [70, BLOCK_BYTES + 100])
async def test_a_hole_in_the_middle_is_corruption(at: int) -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    block = await writer.frame([image(volume, 1, 1, 11)])
    await writer.frame([image(volume, 2, 1, 12)])
    volume.disk.corrupt(block * BLOCK_BYTES + at)
    await assert_refused(volume, "expected frame 2, found only frame 3")


async def wrap(volume: Volume, writer: LogWriter) -> None:
    """Fill the log up to its last block but three, trimmed, so that the next frame with three images wraps."""
    while writer.position < volume.superblock.journal_blocks - 3:
        await writer.frame()
    await writer.trim()


async def test_frames_go_on_at_the_beginning_of_the_log() -> None:
    volume, writer = await dirty()
    await wrap(volume, writer)
    await writer.frame([image(volume, 0, 1, 10)])
    await writer.frame([image(volume, i, 2, 20 + i) for i in (0, 1, 2)])
    assert writer.position == 5, "it wrapped"
    await writer.frame([image(volume, 3, 1, 33)])
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert (report.frames, report.written) == (3, 4)
    assert [await size_at(volume, i) for i in range(4)] == [20, 21, 22, 33]


async def test_a_hole_at_the_wrap_is_found() -> None:
    volume, writer = await dirty()
    await wrap(volume, writer)
    block = await writer.frame([image(volume, i, 2, 20 + i) for i in (0, 1, 2)])
    await writer.frame([image(volume, 3, 1, 33)])
    assert block == writer.start + 1
    volume.disk.corrupt(block * BLOCK_BYTES + 70)
    await assert_refused(volume, "bad frame")


async def test_a_lap_may_end_exactly_at_the_end() -> None:
    volume, writer = await dirty()
    while writer.position < volume.superblock.journal_blocks:
        await writer.frame()
    await writer.trim()
    assert writer.header.block_first == volume.superblock.journal_blocks
    await writer.frame([image(volume, 0, 1, 10)])
    assert (await replay(volume.disk, volume.superblock, 1, expect=OWNER)).written == 1


@pytest.mark.parametrize("wrong", [{"salt": 1}, {"owner": b"other filesystem"}, {"sequence": 1, "generation": 1}])
async def test_frames_of_another_mount_lap_or_filesystem_are_not_ours(wrong: dict[str, object]) -> None:
    volume, writer = await dirty()
    writer.sequence = 9
    await writer.trim()
    stale = wrong.pop("owner", None)
    block = await writer.frame([image(volume, 0, 1, 10)], wrong=wrong)
    if stale is not None:
        frame = FrameRecord.decode_untrusted(await volume.read(block), "t")
        frame.owner = stale
        await volume.write(block, frame.encode())
    assert await replay(volume.disk, volume.superblock, 1, expect=OWNER) == ReplayReport()
    assert await size_at(volume, 0) is None


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"owner": b"other filesystem"}, "owner"),
        ({"address": 1}, "image address|address"),
    ],
)
async def test_a_bad_image_refuses_the_whole_log(wrong: dict[str, object], match: str) -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    bad = image(volume, 1, 1, 11, **wrong)
    await writer.frame(
        [bad], wrong={"body": b"".join(n.to_bytes(8, "little") for n in (image(volume, 1, 1).address, 1))}
    )
    await assert_refused(volume, match)


class Raw(InodeRecord):
    """An image with arbitrary bytes."""

    __slots__ = ("data",)

    def encode(self) -> bytes:
        return self.data


@pytest.mark.parametrize("flip", [0, 13, 40, 300])
async def test_an_image_that_was_bad_before_it_was_logged_refuses_the_log(flip: int) -> None:
    volume, writer = await dirty()
    bad = Raw(address=image(volume, 1, 1).address, generation=1)
    data = bytearray(image(volume, 1, 1, 11).encode())
    data[flip] ^= 1
    bad.data = bytes(data)
    await writer.frame([image(volume, 0, 1, 10)])
    await writer.frame([bad])
    await assert_refused(volume, "magic|checksum")


@pytest.mark.parametrize("block", [0, 7, 128, 200, 2303, 1 << 40])
async def test_images_of_blocks_that_are_no_metadata_are_refused(block: int) -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, address=block)])
    await assert_refused(volume, "image address")


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"part": 1, "parts": 2}, "part"),
        ({"part": 0, "parts": 0}, "part"),
        ({"images": IMAGES_MAX + 1}, "frame"),
        ({"images": 60000}, "frame"),
        ({"revokes": 60000}, "frame entries"),
        ({"generation": 3}, "frame"),
    ],
)
async def test_a_frame_that_contradicts_itself_refuses_the_log(wrong: dict[str, int], match: str) -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)], wrong=wrong)
    await assert_refused(volume, match)


async def test_another_owners_journal_is_refused_while_dirty_and_left_alone_when_clean() -> None:
    volume, writer = await dirty()
    await writer.frame([image(volume, 0, 1, 10)])
    await assert_refused(volume, "journal owner", expect=(5, 78))
    assert (await replay(volume.disk, volume.superblock, 1, expect=None)).written == 1
    assert await replay(volume.disk, volume.superblock, 1, expect=(5, 78)) == ReplayReport()


@pytest.mark.parametrize(("name", "value"), [("index", 0), ("state", 2), ("block_first", 0), ("block_first", 1 << 20)])
async def test_a_header_that_lies_is_refused(name: str, value: int) -> None:
    volume, writer = await dirty()
    setattr(writer.header, name, value)
    await volume.write(writer.start, writer.header.encode())
    await assert_refused(volume, "journal number|state|first frame")


async def test_a_failing_store_leaves_the_journal_dirty() -> None:
    volume, writer = await dirty()
    first = image(volume, 0, 1, 10)
    await writer.frame([first, image(volume, 1, 1, 11)])
    fault = volume.disk.fail("write", first.address * BLOCK_BYTES, BLOCK_BYTES)
    with pytest.raises(DeviceError):
        await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert (await read_journal_header(volume.disk, volume.superblock, 1)).state == DIRTY
    volume.disk.faults.remove(fault)
    await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert [await size_at(volume, i) for i in range(2)] == [10, 11]


async def fill_at_random(volume: Volume, writer: LogWriter, rng: random.Random) -> dict[int, int | None]:
    """Random transactions, also multi-part and wrapping; returns size by offset as replay must leave it."""
    model: dict[int, int | None] = {}
    generations: dict[int, int] = {}
    for step in range(40):
        if rng.random() < 0.1:  # what was logged goes home, and the log is trimmed
            await replay(volume.disk, volume.superblock, 1, expect=OWNER)
            writer.header = await read_journal_header(volume.disk, volume.superblock, 1)
            writer.header.state = DIRTY
            await writer.trim()
        parts = rng.choice((1, 1, 1, 2, 3))
        for part in range(parts):
            images = []
            for offset in rng.sample(range(20), rng.randrange(6)):
                generations[offset] = generations.get(offset, 0) + 1
                images.append(image(volume, offset, generations[offset], 1000 * step + offset))
                model[offset] = 1000 * step + offset
            await writer.frame(images, part=part, parts=parts)
    return model


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
@pytest.mark.seed("002-32")
async def test_power_loss_at_any_write_and_again_while_replaying_again(mode: str, seed: int) -> None:
    """P5: crash replay at every write, crash the second replay too, and the third one finds the same blocks."""
    rng = random.Random(seed)
    volume, writer = await dirty(seed=seed)
    model = await fill_at_random(volume, writer, rng)
    volume.disk.mark()
    await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert {i: await size_at(volume, i) for i in model} == model
    for k in range(len(volume.disk.log) + 1):
        crashed = Volume(volume.disk.crash_image(k, mode, seed=k), volume.superblock)
        await replay(crashed.disk, crashed.superblock, 1, expect=OWNER)
        again = Volume(
            crashed.disk.crash_image(rng.randrange(len(crashed.disk.log) + 1), mode, seed=k), volume.superblock
        )
        await replay(again.disk, again.superblock, 1, expect=OWNER)
        assert {i: await size_at(again, i) for i in model} == model, (seed, k)


@pytest.mark.parametrize("mode", ["drop", "tear"])
async def test_power_loss_while_logging_leaves_whole_transactions(mode: str) -> None:
    volume, writer = await dirty()
    for number in range(1, 9):
        await writer.frame([image(volume, 0, number, number)], part=0, parts=2)
        await writer.frame([image(volume, 1, number, number)], part=1, parts=2)
    assert len(volume.disk.log) == 16
    for k in range(17):
        crashed = Volume(volume.disk.crash_image(k, mode, seed=k), volume.superblock)
        await replay(crashed.disk, crashed.superblock, 1, expect=OWNER)
        expected = k // 2 or None
        assert [await size_at(crashed, i) for i in (0, 1)] == [expected, expected]


async def test_hostile_logs_raise_the_one_error_or_end() -> None:
    """R11: random bytes anywhere in the log never do anything but end it or refuse it."""
    volume, writer = await dirty()
    for number in range(1, 6):
        await writer.frame([image(volume, i, number, number) for i in range(3)], [image(volume, 9, 1).address])
    end = (writer.start + writer.position) * BLOCK_BYTES
    before = volume.disk.snapshot()
    rng = random.Random(11)
    for _ in range(300):
        for _ in range(rng.choice((1, 1, 2, 8))):
            volume.disk.corrupt(rng.randrange(writer.start * BLOCK_BYTES, end), rng.randrange(1, 256))
        volume.disk.mark()
        try:
            await replay(volume.disk, volume.superblock, 1, expect=OWNER)
        except CorruptionError:
            assert volume.disk.log == []
        volume.disk.restore(before)


async def test_hostile_frame_heads_with_good_checksums() -> None:
    rng = random.Random(12)
    for seed in range(60):
        volume, writer = await dirty(seed=seed)
        fields = {"part": 4, "parts": 4, "images": 300, "revokes": 600, "generation": 4, "sequence": 4}
        for _ in range(3):
            name = rng.choice([*fields])
            await writer.frame([image(volume, 0, 1)], wrong={name: rng.randrange(fields[name])})
        with contextlib.suppress(CorruptionError):
            await replay(volume.disk, volume.superblock, 1, expect=OWNER)


def test_every_journalled_kind_is_checked_by_its_magic() -> None:
    superblock = Superblock(owner=b"0123456789abcdef", group_start=256, group_shift=8, groups=4, blocks_total=2000)
    assert len(JOURNALLED) == 7
    for kind in JOURNALLED.values():
        data = kind(owner=superblock.owner, address=300, generation=9).encode()
        assert check_image_untrusted(superblock, data, 300, "t") == 9
        with pytest.raises(CorruptRecord):
            check_image_untrusted(superblock, data, 301, "t")
    with pytest.raises(CorruptRecord, match="magic"):
        check_image_untrusted(superblock, b"", 1, "t")


# --- file data --------------------------------------------------------------------------------------------------


def data_image(volume: Volume, offset: int, letter: bytes, generation: int = DATA) -> DataImage:
    return DataImage(volume.superblock.group_start + 1 + offset, letter * BLOCK_BYTES, generation)


async def data_at(volume: Volume, offset: int) -> bytes:
    return (await volume.read(volume.superblock.group_start + 1 + offset))[:4]


async def test_data_goes_home_whatever_lies_there() -> None:
    """Data of before, metadata of any generation, or nothing."""
    volume, writer = await dirty()
    await volume.write(volume.superblock.group_start + 1, b"z" * BLOCK_BYTES)
    await volume.write(volume.superblock.group_start + 2, image(volume, 1, 1 << 40).encode())
    await writer.frame([data_image(volume, 0, b"a"), data_image(volume, 1, b"b"), data_image(volume, 2, b"c")])
    await writer.frame([data_image(volume, 0, b"A")])
    report = await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert (report.written, report.skipped, report.revoked) == (3, 0, 0)
    assert [await data_at(volume, offset) for offset in range(3)] == [b"AAAA", b"bbbb", b"cccc"]


async def test_revoked_data_stays_away_and_a_block_may_change_its_kind() -> None:
    volume, writer = await dirty()
    await volume.write(volume.superblock.group_start + 1, b"z" * BLOCK_BYTES)
    await writer.frame([data_image(volume, 0, b"a"), data_image(volume, 1, b"b"), image(volume, 2, 1, 10)])
    first = volume.superblock.group_start + 1
    await writer.frame([], revokes=[first, first + 1, first + 2])
    await writer.frame([image(volume, 1, 5, 50), data_image(volume, 2, b"c")])
    assert (await replay(volume.disk, volume.superblock, 1, expect=OWNER)).revoked == 3
    assert await data_at(volume, 0) == b"zzzz"
    assert await size_at(volume, 1) == 50
    assert await data_at(volume, 2) == b"cccc"


async def test_data_that_begins_like_a_frame_gets_its_beginning_back() -> None:
    volume, writer = await dirty()
    await writer.frame([data_image(volume, 0, b"\0", DATA_ESCAPED)])
    await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    assert await volume.read(volume.superblock.group_start + 1) == FrameRecord.MAGIC + bytes(BLOCK_BYTES - 8)


async def test_data_is_refused_where_no_file_can_have_it() -> None:
    volume, _ = await dirty()
    superblock = volume.superblock
    for block in (0, 1, superblock.journal_start, superblock.group_start, superblock.blocks_total - 1, 1 << 60):
        volume, writer = await dirty()
        await writer.frame([data_image(volume, 0, b"a"), DataImage(block, bytes(BLOCK_BYTES))])
        await assert_refused(volume, "image address")


async def test_data_is_refused_where_journals_hold_none() -> None:
    volume, writer = await dirty()
    await writer.frame([data_image(volume, 0, b"a")])
    volume.superblock.features_incompatible &= ~JOURNALLED_DATA
    await assert_refused(volume, "magic")


@pytest.mark.parametrize("mode", ["drop", "keep-some", "tear"])
async def test_p5_data_too_may_lose_the_power_at_any_write(mode: str) -> None:
    volume, writer = await dirty()
    for number in range(4):
        images = [data_image(volume, 7 * offset, bytes([65 + number])) for offset in range(number, 6)]
        await writer.frame(images, revokes=[volume.superblock.group_start + 1 + 35] if number == 2 else [])
    await volume.disk.flush()
    volume.disk.mark()
    await replay(volume.disk, volume.superblock, 1, expect=OWNER)
    expected = [await data_at(volume, 7 * offset) for offset in range(6)]
    for k in range(len(volume.disk.log) + 1):
        crashed = Volume(volume.disk.crash_image(k, mode, seed=k), volume.superblock)  # type: ignore[arg-type]
        await replay(crashed.disk, crashed.superblock, 1, expect=OWNER)
        assert [await data_at(crashed, 7 * offset) for offset in range(6)] == expected


async def test_sector_sizes_make_no_difference() -> None:
    volume, writer = await dirty(sector_bytes=4096)
    assert isinstance(volume.disk, SimDisk)
    await writer.frame([image(volume, 0, 1, 10)])
    assert (await replay(volume.disk, volume.superblock, 1, expect=OWNER)).written == 1
