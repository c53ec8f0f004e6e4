"""Taking keys away from a LUN, so that nothing of their owners lands later (002-38; SPC-4 5.13.11).

Invariants:
    X1. The reservation is in place before a key is preempted: without one, an unregistered nexus could go on writing,
        and what it has in flight would be ended by nobody.
    X2. With PREEMPT AND ABORT the LUN ends the victim's commands itself.  In the other form LUN RESET follows the last
        preempt, always, also when no key was left: who preempted it may have died before its reset.
    X3. It is done when the keys, read after all that, show none of the victims, and the reservation is still there.
    X4. Our own key is there from the first to the last command, else somebody has fenced us.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from membership.errors import DeviceError, MatrixError
from membership.fence.keys import describe_key, node_of
from membership.fence.reservations import ALL_REGISTRANTS, Conflict, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from membership.fence.reservations import Lun, Reservations
    from membership.seams import Clock

ROUNDS = 4  # a process that comes back from a lost session registers before it looks at the header, once


async def ensure_reserved(lun: Lun, own: int, *, strangers: bool) -> bool:
    """Make sure that the right kind of reservation is in place; returns whether it had to be made.

    Args:
        lun: one that fences (``Lun.usable``).
        own: our key.
        strangers: take one of another kind away from who is not of this software: only an administrator may.

    Raises:
        Conflict: our registration is gone.
        DeviceError: I/O failed, or somebody holds the LUN from whom it may not be taken.
    """
    reservations = _of(lun)
    kind = lun.traits.kind
    for _ in range(ROUNDS):
        found = await reservations.read_reservation()
        if found is not None and found.kind == kind:
            return False
        try:
            if found is None:
                await reservations.reserve(own, kind)
                return True
            if found.kind == ALL_REGISTRANTS or found.key == 0 or (node_of(found.key) is None and not strangers):
                break  # the first two: preempting key 0 would take every member's key away
            await reservations.preempt(own, found.key, kind, abort=lun.traits.preempt_and_abort)
            return True
        except Refused:
            continue  # somebody else was quicker: look again
    assert found is not None
    raise DeviceError(f"{lun.name}: reserved in another way (type {found.kind}) by {describe_key(found.key)}: clear it")


async def expel(lun: Lun, own: int, victims: Callable[[list[int]], Awaitable[Collection[int]]]) -> list[int]:
    """Take keys away until none is left that ``victims`` picks; returns those taken.

    Args:
        lun: one that fences (``Lun.usable``).
        own: our key.
        victims: picks from the keys that were just read.  It may raise to give up.

    Raises:
        Conflict: our own registration is gone.
        DeviceError: it could not be made certain.
    """
    reservations = _of(lun)
    taken: list[int] = []
    stopped = lun.traits.fence != "preempt+reset"  # whether a reset is owed
    for _ in range(ROUNDS):
        made = await ensure_reserved(lun, own, strangers=True)
        chosen = await victims(await _keys(reservations, own))
        if not chosen and stopped and not made:
            return taken
        for key in chosen:
            await _preempt(lun, own, key)
            taken.append(key)
        if lun.traits.fence == "preempt+reset":
            await reservations.reset_lun()
            stopped = True
        elif made:
            # While there was none, anybody's writes got in, and no preempt ends those of the unregistered.
            if not lun.traits.lun_reset:
                raise DeviceError(f"{lun.name}: the reservation was gone, writes may be in flight; it is back now")
            await reservations.reset_lun()
        if await reservations.read_reservation() is None:
            continue
        if not await victims(await _keys(reservations, own)):
            return taken
    names = ", ".join(describe_key(key) for key in dict.fromkeys(taken)) or "the reservation"
    raise DeviceError(f"{lun.name}: after {ROUNDS} rounds not certain: {names}")


async def _preempt(lun: Lun, own: int, victim: int) -> None:
    abort = lun.traits.fence == "preempt-and-abort"
    with contextlib.suppress(Refused):  # it had just gone; the keys are read again anyway
        await _of(lun).preempt(own, victim, lun.traits.kind, abort=abort)


async def _keys(reservations: Reservations, own: int) -> list[int]:
    keys = await reservations.read_keys()
    if own not in keys:
        raise Conflict(f"{reservations.name}: our registration is gone, so this node was fenced")
    return keys


def _of(lun: Lun) -> Reservations:
    assert lun.reservations is not None
    return lun.reservations


async def within(clock: Clock, seconds: float, what: str, work: Callable[[], Awaitable[None]]) -> None:
    """``work``, for at most ``seconds``.  Raises what it raises, and DeviceError when that is not enough."""
    error: MatrixError | None = DeviceError(f"{what}: no answer in {seconds:g} s")

    async def give_up() -> None:
        await clock.sleep(seconds)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)
        try:
            await work()
            error = None
        except MatrixError as raised:
            error = raised  # not from within the nursery, which would wrap it
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
