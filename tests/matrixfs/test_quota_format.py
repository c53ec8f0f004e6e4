"""ondisk/quota.py and fs/quota_store.py: what is written is read; bytes that can't be are refused."""

from __future__ import annotations

import random

import pytest

from matrixfs.debug.contents import content_of
from matrixfs.debug.structures import fields_of
from matrixfs.fs.quota_store import CounterBlock, LimitsBlock, decode_counters_untrusted, decode_limits_untrusted
from matrixfs.ondisk.quota import (
    AMOUNT_MAX,
    COUNTERS_PER_BLOCK,
    GROUP,
    ID_MAX,
    LIMITS_PER_BLOCK,
    NO_LIMITS,
    PROJECT,
    TYPES,
    USER,
    Counter,
    Limits,
    Meaning,
    QuotaRecord,
    counters_key,
    limits_key,
    meaning_of,
)
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES

OWNER = b"o" * 16
SUPERBLOCK = Superblock(owner=OWNER)
LIMITS_KEY, COUNTERS_KEY = limits_key(USER, 1000), counters_key(5, GROUP, 70_000)


def counters() -> bytes:
    rows = [Counter(-number, number) for number in range(COUNTERS_PER_BLOCK)]
    return CounterBlock(300, 4, COUNTERS_KEY, rows).encode(OWNER)


def limits() -> bytes:
    rows = [Limits(10 + number, number, 5, 5, 7, 0) for number in range(LIMITS_PER_BLOCK)]
    return LimitsBlock(300, 4, LIMITS_KEY, rows).encode(OWNER)


def test_what_is_written_is_read() -> None:
    found = decode_counters_untrusted(counters(), SUPERBLOCK, 300, COUNTERS_KEY)
    assert found.counters[100] == [-100, 100]
    assert found.encode(OWNER) == counters()
    assert decode_limits_untrusted(limits(), SUPERBLOCK, 300, LIMITS_KEY).limits[3] == Limits(13, 3, 5, 5, 7, 0)
    assert LimitsBlock(1, 1, 1).limits == [NO_LIMITS] * LIMITS_PER_BLOCK


def test_every_id_has_its_own_place() -> None:
    seen = set()
    for kind in TYPES:
        for number in (0, 83, 84, 251, 252, 1000, ID_MAX):
            for journal in (-1, 0, 1, 63):
                key = limits_key(kind, number) if journal < 0 else counters_key(journal, kind, number)
                per = LIMITS_PER_BLOCK if journal < 0 else COUNTERS_PER_BLOCK
                assert meaning_of(key) == Meaning(kind, journal, number - number % per)
                seen.add((key, number % per))
    assert len(seen) == 3 * 7 * 4
    assert meaning_of(counters_key(64, USER, 0)) is None
    assert meaning_of(limits_key(USER, ID_MAX) + 1) is None


@pytest.mark.parametrize(
    "wrong",
    [
        Limits(blocks_hard=1, blocks_soft=2),
        Limits(inodes_hard=1, inodes_soft=2),
        Limits(blocks_soft=AMOUNT_MAX + 1),
        Limits(inodes_hard=AMOUNT_MAX + 1),
        Limits(blocks_until_ns=1 << 63),
    ],
)
def test_limits_that_cant_be_are_corrupt(wrong: Limits) -> None:
    data = LimitsBlock(300, 4, LIMITS_KEY, [NO_LIMITS] * (LIMITS_PER_BLOCK - 1) + [wrong]).encode(OWNER)
    with pytest.raises(CorruptRecord):
        decode_limits_untrusted(data, SUPERBLOCK, 300, LIMITS_KEY)


def test_blocks_of_something_else_are_corrupt() -> None:
    huge = [Counter(AMOUNT_MAX + 1, 0)] * COUNTERS_PER_BLOCK
    for data, key in (
        (counters(), COUNTERS_KEY + 1),
        (CounterBlock(300, 4, COUNTERS_KEY, huge).encode(OWNER), COUNTERS_KEY),
        (CounterBlock(301, 4, COUNTERS_KEY).encode(OWNER), COUNTERS_KEY),
        (CounterBlock(300, 4, COUNTERS_KEY).encode(b"p" * 16), COUNTERS_KEY),
    ):
        with pytest.raises(CorruptRecord):
            decode_counters_untrusted(data, SUPERBLOCK, 300, key)


def test_fuzzed_blocks_raise_only_corrupt_record() -> None:
    rng = random.Random(5)
    for good, decode, key in (
        (counters(), decode_counters_untrusted, COUNTERS_KEY),
        (limits(), decode_limits_untrusted, LIMITS_KEY),
    ):
        for _ in range(200):
            data = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(BLOCK_BYTES)] ^= rng.randrange(1, 256)
            with pytest.raises(CorruptRecord):
                decode(bytes(data), SUPERBLOCK, 300, key)
    for _ in range(300):  # any content under a good checksum
        record = QuotaRecord(owner=OWNER, address=300, generation=4, key=LIMITS_KEY, body=rng.randbytes(4032))
        with pytest.raises(CorruptRecord):
            decode_limits_untrusted(record.encode(), SUPERBLOCK, 300, LIMITS_KEY)


def test_debug_shows_who_stands_in_a_block() -> None:
    def shown(data: bytes) -> tuple[str, list[tuple[int, ...]], list[str]]:
        found = content_of(QuotaRecord, data, fields_of(QuotaRecord, data), 1 << 20)
        assert found is not None
        return found.name, found.rows, found.problems

    name, rows, _ = shown(counters())
    assert (name, rows[0], len(rows)) == ("groups counted by journal 5", (69_805, -1, 1), COUNTERS_PER_BLOCK - 1)
    block = LimitsBlock(1, 1, limits_key(PROJECT, 0))
    block.limits[9] = Limits(blocks_hard=4)
    assert shown(block.encode(OWNER)) == ("limits of projects", [(9, 4, 0, 0, 0, 0, 0)], [])
    block.key = 1 << 60
    assert shown(block.encode(OWNER))[2] == ["key 0x1000000000000000 means nothing"]
