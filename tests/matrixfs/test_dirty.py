"""Buffered bytes of a file against the simplest model there is (coherence.md, point 3)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from matrixfs.fs import dirty
from matrixfs.fs.dirty import DirtyRanges
from membership.label import BLOCK_BYTES

SPACE = 300
Step = tuple[str, int, int]

steps = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "cut"]), st.integers(0, SPACE - 1), st.integers(0, 60)),
    max_size=40,
)


def played(script: list[Step]) -> tuple[DirtyRanges, list[int | None]]:
    """The ranges, and what each byte must be: None where it is not dirty."""
    ranges, model = DirtyRanges(), [None] * (SPACE + 100)
    for number, (what, offset, length) in enumerate(script, 1):
        if what == "write":
            ranges.write(offset, bytes([number]) * length)
            model[offset : offset + length] = [number] * length
        else:
            ranges.cut(offset, offset + length)
            model[offset : offset + length] = [None] * length
    return ranges, model  # type: ignore[return-value]


@given(steps)
def test_it_is_what_was_written_last(script: list[Step]) -> None:
    ranges, model = played(script)
    buffer = bytearray(b"\xff" * len(model))
    ranges.overlay(0, buffer)
    assert list(buffer) == [255 if byte is None else byte for byte in model]
    assert ranges.length == sum(byte is not None for byte in model)
    assert bool(ranges) == (ranges.length > 0)


@given(steps, st.integers(0, SPACE), st.integers(1, 80))
def test_parts_of_it(script: list[Step], offset: int, length: int) -> None:
    ranges, model = played(script)
    part = model[offset : offset + length]
    buffer = bytearray(b"\xff" * length)
    ranges.overlay(offset, buffer)
    assert list(buffer) == [255 if byte is None else byte for byte in (part + [None] * length)[:length]]
    assert ranges.covers(offset, offset + length) == (None not in part and len(part) == length)
    piece = ranges.slice(offset, length)
    if piece is not None:  # allowed to be None also when two ranges cover it together
        assert list(piece) == part


@given(steps, st.integers(0, SPACE))
def test_cut_to_the_end_forgets_the_rest(script: list[Step], size: int) -> None:
    ranges, model = played(script)
    ranges.cut(size, 1 << 62)
    assert ranges.length == sum(byte is not None for byte in model[:size])


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 40 * BLOCK_BYTES), st.integers(1, 3 * BLOCK_BYTES)), max_size=12),
    st.integers(1, 8),
)
def test_runs_are_the_dirty_blocks(writes: list[tuple[int, int]], blocks_max: int) -> None:
    ranges = DirtyRanges()
    expected: set[int] = set()
    for offset, length in writes:
        ranges.write(offset, bytes(length))
        expected |= set(range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)))
    runs = list(ranges.block_runs(blocks_max))
    found = [block for first, count in runs for block in range(first, first + count)]
    assert found == sorted(expected), "each block once, in order"
    assert all(0 < count <= blocks_max for _, count in runs)
    assert ranges.blocks_bound() >= len(found), "what is promised is enough"


def test_appends_share_a_buffer_up_to_a_limit(monkeypatch: object) -> None:
    ranges = DirtyRanges()
    for i in range(100):
        ranges.write(i * 10, b"x" * 10)
    assert len(ranges._ranges) == 1
    ranges.write(1000, bytes(dirty.EXTEND_MAX))
    assert len(ranges._ranges) == 2


def test_the_caller_may_reuse_its_buffer() -> None:
    ranges, data = DirtyRanges(), bytearray(b"abc")
    ranges.write(0, data)
    data[:] = b"xyz"
    assert ranges.slice(0, 3) == b"abc"
