"""What the contents of files look like, and how a file's size behaves.

A slot is ``SLOT`` bytes at a multiple of ``SLOT``, written whole, filled with one stamp that is never used again.  Its
value is that stamp, ``ZEROS`` in a hole, or ``END`` behind the end of the file.  Linux promises atomic reads and writes
for no filesystem between a local writer and a local reader, so a read that found several stamps counts as several.
"""

from __future__ import annotations

from tests.stress.linear import Apply

SLOT = 2048
STAMP = 16
ZEROS = bytes(STAMP)
END = b""


def stamp(who: int, number: int) -> bytes:
    """A value that nobody writes twice in a round."""
    return b"%04d.%010d\n" % (who, number)


def stamps_in(data: bytes) -> set[bytes]:
    """The values found in one slot; END for no bytes at all."""
    if set(data[:STAMP]) and data == data[:STAMP] * (len(data) // STAMP):
        return {data[:STAMP]}
    return {data[at : at + STAMP] for at in range(0, len(data), STAMP)} or {END}


# --- the size -------------------------------------------------------------------------------------------------


def size_at_least(size: int) -> Apply:
    """A write ended there."""
    return lambda state: max(state, size)


def size_set(size: int) -> Apply:
    """A truncation."""
    return lambda state: state if state == size else size


def size_seen(size: int) -> Apply:
    """stat(2) showed it."""
    return lambda state: state if state == size else None
