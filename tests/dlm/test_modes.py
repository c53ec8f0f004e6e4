"""The mode tables, walked completely, illegal pairs included."""

from __future__ import annotations

import pytest

from dlm import modes
from dlm.modes import CR, CW, EX, MODES, NL, PR, PW, TOLERATED, compatible, covers, is_write, strongest_write_beside

CLASSICAL = {  # may be held beside
    NL: {NL, CR, CW, PR, PW, EX},
    CR: {NL, CR, CW, PR, PW},
    CW: {NL, CR, CW},
    PR: {NL, CR, PR},
    PW: {NL, CR},
    EX: {NL},
}


@pytest.mark.seed("003-19")
@pytest.mark.parametrize("a", MODES)
@pytest.mark.parametrize("b", MODES)
def test_compatible_is_the_classical_table_and_symmetric(a, b):
    assert compatible(a, b) == (b in CLASSICAL[a])
    assert compatible(a, b) == compatible(b, a)


@pytest.mark.parametrize("a", MODES)
@pytest.mark.parametrize("b", MODES)
def test_covers_is_inclusion_of_what_is_tolerated(a, b):
    assert covers(a, b) == (CLASSICAL[a] <= CLASSICAL[b])


def test_pr_and_cw_are_the_only_incomparable_pair():
    pairs = {frozenset((a, b)) for a in MODES for b in MODES if not covers(a, b) and not covers(b, a)}
    assert pairs == {frozenset((PR, CW))}


@pytest.mark.parametrize("held", MODES)
@pytest.mark.parametrize("wanted", MODES)
def test_tolerated_is_the_greatest_down_conversion_that_fits(held, wanted):
    mode = TOLERATED[held][wanted]
    assert covers(held, mode)
    assert compatible(mode, wanted)
    better = [m for m in MODES if covers(held, m) and compatible(m, wanted) and m > mode]
    assert better == []
    if compatible(held, wanted):
        assert mode == held


def test_write_modes():
    assert [mode for mode in MODES if is_write(mode)] == [CW, PW, EX]
    for mode in MODES:  # who holds a "current" mode shuts out every writer of values
        current = bool(modes.VALUE_CURRENT_MASK >> mode & 1)
        assert current == (not compatible(mode, PW) and not compatible(mode, EX))


def test_write_modes_are_a_chain_so_the_greatest_is_the_strongest():
    assert covers(EX, PW) and covers(PW, CW)


@pytest.mark.parametrize("mask", range(64))
def test_strongest_write_beside(mask):
    held = [mode for mode in MODES if mask >> mode & 1]
    fitting = [mode for mode in (CW, PW, EX) if all(compatible(mode, other) for other in held)]
    assert strongest_write_beside(mask) == max(fitting, default=NL)
