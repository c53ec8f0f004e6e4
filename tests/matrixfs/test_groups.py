"""An allocation group's bitmap and free runs against a list of states."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixfs.fs.groups import Group, decode_group_untrusted, free_runs
from matrixfs.fs.mkfs import empty_group, plan_volume
from matrixfs.ondisk.superblock import Superblock
from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES

FREE, TAKEN, USED, RESTING = "free", "taken", "used", "resting"


def superblock_of(blocks: int = 4096) -> Superblock:
    plan = plan_volume(blocks, 1, 64)
    return Superblock(
        owner=b"o" * 16, address=0, generation=1, blocks_total=plan.blocks_total, journal_start=128,
        journal_blocks=plan.journal_blocks, journals=1, group_start=plan.group_start, groups=plan.groups,
        group_shift=plan.group_shift,
    )  # fmt: skip


def runs_of(states: list[str]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for at, state in enumerate(states):
        if state == FREE:
            if runs and sum(runs[-1]) == at:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((at, 1))
    return runs


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_against_a_list_of_states(seed: int, count: int) -> None:
    """Each block is free, taken, used or resting (see the module), and only the steps it names lead on."""
    rng = random.Random(seed)
    superblock = superblock_of()
    group = Group(empty_group(superblock, 2))
    states = [USED] + [FREE] * (group.blocks - 1)
    pieces: dict[str, list[tuple[int, int]]] = {TAKEN: [], USED: [], RESTING: []}

    def move(start: int, length: int, old: str, new: str) -> None:
        at = start - group.address
        assert states[at : at + length] == [old] * length
        states[at : at + length] = [new] * length

    for _ in range(count):
        step = rng.choice(("take", "take", "use", "untake", "release", "reuse"))
        if step == "take" and group.available:
            wanted, near = rng.randint(1, 60), rng.choice((0, group.address + rng.randrange(group.blocks)))
            start, length = group.take(wanted, near, rng.choice((0, 7, 8)))
            assert 1 <= length <= wanted
            move(start, length, FREE, TAKEN)
            pieces[TAKEN].append((start, length))
        source = {"use": TAKEN, "untake": TAKEN, "release": USED, "reuse": RESTING}.get(step)
        if source is None or not pieces[source]:
            continue
        start, length = pieces[source].pop(rng.randrange(len(pieces[source])))
        getattr(group, step)(start, length)
        target = {"use": USED, "untake": FREE, "release": RESTING, "reuse": FREE}[step]
        move(start, length, source, target)
        if target != FREE:
            pieces[target].append((start, length))
    group._close_windows()
    assert list(group._runs.items()) == runs_of(states)
    assert group.available == states.count(FREE)
    assert group.taken == states.count(TAKEN)
    assert group.free == group.blocks - states.count(USED)
    bits = int.from_bytes(group.bitmap, "little")
    assert [bits >> at & 1 for at in range(group.blocks)] == [state == USED for state in states]
    assert bits >> group.blocks == (1 << (2048 * 8 - group.blocks)) - 1, "what is no block stays in use"
    if not group.taken and RESTING not in states:
        again = decode_group_untrusted(group.encode(superblock.owner), superblock, 2)
        assert list(again._runs.items()) == list(group._runs.items())


@given(st.binary(min_size=8, max_size=8), st.integers(1, 64))
def test_free_runs(bitmap: bytes, blocks: int) -> None:
    bits = int.from_bytes(bitmap, "little")
    assert free_runs(bitmap, blocks) == runs_of([USED if bits >> at & 1 else FREE for at in range(blocks)])


def test_near_is_where_the_file_goes_on() -> None:
    group = Group(empty_group(superblock_of(), 1))
    start, length = group.take(10, group.address + 50)
    assert (start, length) == (group.address + 50, 10)
    assert group.take(4, start + length) == (start + length, 4)
    assert group.take(200, start)[1] == 192, "the longest run that is left"


def test_a_double_use_is_our_own_bug() -> None:
    group = Group(empty_group(superblock_of(), 1))
    start, length = group.take(3)
    group.use(start, length)
    with pytest.raises(AssertionError):
        group.use(start + 1, 1)
    group.release(start, length)
    with pytest.raises(AssertionError):
        group.release(start, 1)
    with pytest.raises(AssertionError):
        group.use(group.address, 1)


@pytest.mark.parametrize(
    "wrong",
    [{"index": 3}, {"blocks": 100}, {"free": 7}, {"bitmap": bytes(2048)}, {"owner": b"x" * 16}, {"address": 7}],
)
def test_a_block_that_is_not_that_group_is_corrupt(wrong: dict[str, object]) -> None:
    superblock = superblock_of()
    record = empty_group(superblock, 2)
    fields = {name: getattr(record, name) for name in ("owner", "address", "generation", *record.FIELDS)}
    with pytest.raises(CorruptRecord):
        decode_group_untrusted(type(record)(**{**fields, **wrong}).encode(), superblock, 2)


def test_fuzzed_bytes_raise_only_corrupt_record() -> None:
    rng = random.Random(7)
    superblock = superblock_of()
    good = empty_group(superblock, 2).encode()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(BLOCK_BYTES)] ^= rng.randrange(1, 256)
        with pytest.raises(CorruptRecord):
            decode_group_untrusted(data, superblock, 2)
