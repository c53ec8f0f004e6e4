"""What every implementation of the seam ``Reservations`` does, simulated or on a real target.

Run by ``test_reservations.py`` (simulated) and ``tests/san/test_reservations.py`` (tgt and istgt).  Each check
gets a LUN without registrations.  Where targets differ, the traits say what is expected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import pytest

from membership.errors import DeviceError, Fenced
from membership.fence.reservations import (
    REGISTRANTS_ONLY,
    Conflict,
    LunTraits,
    Refused,
    Reservation,
    Reservations,
    Unsupported,
)
from membership.seams import SectorDevice

A, B, C, D = 0x4D58_00AA, 0x4D58_01BB, 0x4D58_02CC, 0x4D58_03DD
AT = 650 * 4096


class Nexus(Reservations, SectorDevice, Protocol):
    async def relogin(self) -> None: ...


@dataclass
class Subject:
    open: Callable[[str], Awaitable[Nexus]]
    traits: LunTraits


async def three(s: Subject) -> tuple[Nexus, Nexus, Nexus]:
    """a and b registered, a holds the reservation; c is a stranger."""
    a, b, c = [await s.open(name) for name in "abc"]
    await a.register(A)
    await b.register(B)
    await a.reserve(A, REGISTRANTS_ONLY)
    return a, b, c


async def is_refused(nexus: Nexus) -> bool:
    try:
        await nexus.write(AT, bytes(4096))
    except Fenced:
        return True
    return False


async def check_registration_shows_and_goes(s: Subject) -> None:
    a = await s.open("a")
    assert await a.read_keys() == []
    assert await a.read_reservation() is None
    await a.register(A)
    await a.register(A)
    assert await a.read_keys() == [A]
    await a.unregister(A)
    assert await a.read_keys() == []
    await a.unregister(A)


async def check_register_replaces_our_own_key(s: Subject) -> None:
    a = await s.open("a")
    await a.register(A)
    await a.register(C)
    assert await a.read_keys() == [C]
    await a.reserve(C, REGISTRANTS_ONLY)
    assert await a.read_reservation() == Reservation(C, REGISTRANTS_ONLY)


async def check_only_registrants_write(s: Subject) -> None:
    a, b, c = await three(s)
    assert await b.read_reservation() == Reservation(A, REGISTRANTS_ONLY)
    assert not await is_refused(a)
    assert not await is_refused(b)
    assert await is_refused(c)
    assert await c.read(AT, 4096) == bytes(4096)


async def check_a_preempted_key_is_gone_at_once(s: Subject) -> None:
    a, b, c = await three(s)
    await a.preempt(A, B, REGISTRANTS_ONLY, abort=s.traits.preempt_and_abort)
    assert await c.read_keys() == [A]
    assert await is_refused(b)
    assert not await is_refused(a)
    with pytest.raises(Conflict):
        await b.preempt(B, A, REGISTRANTS_ONLY, abort=False)
    with pytest.raises(Conflict):
        await b.reserve(B, REGISTRANTS_ONLY)


async def check_the_reservation_moves_to_who_preempts_its_holder(s: Subject) -> None:
    a, b, c = await three(s)
    await b.preempt(B, A, REGISTRANTS_ONLY, abort=False)
    assert await b.read_reservation() == Reservation(B, REGISTRANTS_ONLY)
    assert await is_refused(a)
    assert await is_refused(c)
    assert not await is_refused(b)


async def check_conflicts_are_told_apart(s: Subject) -> None:
    a, b, c = await three(s)
    with pytest.raises(Refused):
        await b.reserve(B, REGISTRANTS_ONLY)
    for attempt in (c.reserve(C, REGISTRANTS_ONLY), c.preempt(C, A, REGISTRANTS_ONLY, abort=False), c.clear(C)):
        with pytest.raises(Conflict):
            await attempt
    with contextlib.suppress(Refused):  # istgt says GOOD
        await a.preempt(A, D, REGISTRANTS_ONLY, abort=False)  # nobody has it
    assert not await is_refused(a)


async def check_release_and_clear(s: Subject) -> None:
    a, b, c = await three(s)
    await a.release(A, REGISTRANTS_ONLY)
    assert await a.read_reservation() is None
    assert not await is_refused(c)
    await b.reserve(B, REGISTRANTS_ONLY)
    assert await is_refused(c)
    await b.clear(B)
    assert await a.read_keys() == []
    assert await a.read_reservation() is None
    with pytest.raises(Conflict):
        await a.clear(A)


async def check_reset_keeps_registrations(s: Subject) -> None:
    a, b, c = await three(s)
    await a.reset_lun()
    assert sorted(await b.read_keys()) == [A, B]
    assert not await is_refused(b)
    assert not await is_refused(a)
    assert await is_refused(c)


async def check_unknown_commands_say_so(s: Subject) -> None:
    a, b, _ = await three(s)
    if not s.traits.preempt_and_abort:
        with pytest.raises(Unsupported):
            await a.preempt(A, B, REGISTRANTS_ONLY, abort=True)
        assert sorted(await a.read_keys()) == [A, B]
        assert not await is_refused(b)


async def check_the_reservation_outlives_its_holder(s: Subject) -> None:
    a, b, c = await three(s)
    await a.aclose()
    assert (await b.read_reservation()) is not None
    assert await is_refused(c)
    assert not await is_refused(b)
    await b.preempt(B, A, REGISTRANTS_ONLY, abort=False)
    assert await b.read_reservation() == Reservation(B, REGISTRANTS_ONLY)


async def check_relogin(s: Subject) -> None:
    _, b, _ = await three(s)
    await b.relogin()
    assert await is_refused(b) is not s.traits.keeps_over_login
    if not s.traits.keeps_over_login:
        await b.register(B)
        assert not await is_refused(b)


async def check_a_key_of_two_sessions_goes_as_one(s: Subject) -> None:
    """A session that came back registers its key again; what the LUN still has of the old one goes with it."""
    a, b, _ = await three(s)
    if s.traits.keeps_over_login:
        return
    await b.relogin()
    await b.register(B)
    await a.preempt(A, B, REGISTRANTS_ONLY, abort=False)
    assert await a.read_keys() == [A]
    assert await is_refused(b)


async def check_closed_is_an_error_of_the_device(s: Subject) -> None:
    a = await s.open("a")
    await a.register(A)
    await a.aclose()
    with pytest.raises(DeviceError):
        await a.read_keys()


CHECKS: list[Callable[[Subject], Awaitable[None]]] = [
    check for name, check in sorted(globals().items()) if name.startswith("check_")
]
