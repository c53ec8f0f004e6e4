"""Lock modes as tables: what may stand beside what, and what may become what (003-19, architecture 6).

The six classical modes, as plain ints because they are compared on the hot path::

    NL  nothing held                CR  reads, others may write       CW  writes, others may write
    PR  reads, nobody writes        PW  writes, others read (CR)      EX  alone

``a`` *covers* ``b`` when everything that conflicts with ``b`` conflicts with ``a``: going from a mode to
one that it covers is a down-conversion and never waits.  PR and CW cover neither the other.
"""

from __future__ import annotations

NL, CR, CW, PR, PW, EX = range(6)
MODES = (NL, CR, CW, PR, PW, EX)
NAMES = ("NL", "CR", "CW", "PR", "PW", "EX")


def _mask(*modes: int) -> int:
    return sum(1 << mode for mode in modes)


# COMPATIBLE[a] has bit b set when a and b may be held by two nodes at once.
COMPATIBLE = (
    _mask(NL, CR, CW, PR, PW, EX),  # NL
    _mask(NL, CR, CW, PR, PW),  # CR
    _mask(NL, CR, CW),  # CW
    _mask(NL, CR, PR),  # PR
    _mask(NL, CR),  # PW
    _mask(NL),  # EX
)
WRITE_MASK = _mask(CW, PW, EX)  # may dirty: a dead holder leaves a ghost (R6)
VALUE_WRITE_MASK = _mask(PW, EX)  # may write the value block, and alone knows its newest content
# Whoever holds one of these has the current value block: no other node can hold a mode that writes it.
VALUE_CURRENT_MASK = _mask(CW, PR, PW, EX)


def compatible(a: int, b: int) -> bool:
    """Whether two nodes may hold ``a`` and ``b`` at the same time."""
    return bool(COMPATIBLE[a] >> b & 1)


def covers(a: int, b: int) -> bool:
    """Whether ``a`` is at least as strong as ``b``: what conflicts with ``b`` conflicts with ``a``."""
    return not COMPATIBLE[a] & ~COMPATIBLE[b]


def is_write(mode: int) -> bool:
    """Whether a holder may dirty data under ``mode``."""
    return bool(WRITE_MASK >> mode & 1)


# TOLERATED[held][wanted]: greatest mode that a holder of ``held`` may keep beside ``wanted`` (a REVOKE's mode).
TOLERATED = tuple(
    tuple(max(mode for mode in MODES if covers(held, mode) and compatible(mode, wanted)) for wanted in MODES)
    for held in MODES
)


def strongest_write_beside(held: int) -> int:
    """Greatest write mode that an unseen holder could have.

    Args:
        held: bit mask of the modes that others are known to hold.

    Returns:
        EX, PW or CW; NL when what is held excludes every writer.
    """
    for mode in (EX, PW, CW):
        if not held & ~COMPATIBLE[mode]:
            return mode
    return NL
