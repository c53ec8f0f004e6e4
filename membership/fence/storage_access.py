"""The right of one process to write, as the LUNs see it: register, keep, give back (002-22, 002-31; R3, R9).

Used by matrixd (``claim``, ``admit`` as heir, ``keep`` as administrator, ``disown``, ``withdraw``) and by each mount
process that has a nexus of its own (``admit``, ``withdraw``).  The states are in ``registration``; LOST is final.

Invariants (the races are argued in decision 0016):
    A1. Registered before the first write: as CLAIMANT before the slot claim, under the node's key once the claim is
        durable, a mount process after its matrixd admitted it (its slot shows the mount, H2).
    A2. Registered, then looked: after every registration under a node's key ``allowed`` reads header and slot, and
        only when they list this process is anything else written.  Otherwise the registration is taken back, and lost.
    A3. After a lost session the same holds: no write passes the session until ``reconnected`` has returned.  On a LUN
        that forgets no registration, a key that is gone was preempted, so nothing is registered again; on others it
        may have been the session's end or a restart of the target, and the look decides, before and after.
    A4. Who holds the reservation does not unregister: the LUN would be open to everybody, also to a fenced process
        that wakes up, until another one reserves.  Its key stays, and whoever comes next preempts it, which moves the
        reservation without a gap.  The last one to leave leaves the LUN locked in the same way.
    A5. ``keep`` takes away no key of a member (a mount registers at any time), none of who is joining, and no key of
        ours before it was seen for ``grace`` seconds.  Strangers' keys go at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from membership.errors import DeviceError, Fenced, MatrixError
from membership.fence.expel import ensure_reserved, expel, within
from membership.fence.keys import CLAIMANT, describe_key, key_of, node_of
from membership.fence.registration import Action, Event, Registration, State
from membership.fence.reservations import REGISTRANTS_ONLY, Conflict, Lun, Reservations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from membership.seams import Clock

LUN_SECONDS = 10.0
GRACE_SECONDS = 30.0  # a key of ours that nobody accounts for: longer than any join takes from claim to slot


class StorageAccess:
    """Registrations of one process on all cluster disks.

    Args:
        luns: all cluster disks, as they are now; those that can't fence (``Lun.usable``) are left alone.
        clock: for bounds and ages.
        allowed: reads SAN header and slot *from the disk, now*: do they list this process?
        lost: called once, with the reason, when the registration is lost other than by ``withdraw``.
        grace: see A5.
    """

    def __init__(
        self,
        luns: Callable[[], Sequence[Lun]],
        clock: Clock,
        *,
        allowed: Callable[[], Awaitable[bool]],
        lost: Callable[[str], None],
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._luns = luns
        self._clock = clock
        self._allowed = allowed
        self._lost = lost
        self._grace = grace
        self._registration = Registration()
        self._key = 0
        self._on: dict[str, int] = {}  # key by name of LUN
        self._strays: dict[tuple[str, int], float] = {}  # since when such a key of ours is there
        self._turn = trio.Lock()  # one admission or withdrawal at a time

    @property
    def key(self) -> int:
        """Our key; 0 before admission and when it is lost."""
        return self._key if self._registration.state is State.REGISTERED else 0

    @property
    def is_needed(self) -> bool:
        """Whether any of the disks lets in only who is registered."""
        return bool(self._usable())

    @property
    def state(self) -> State:
        """For ``matrixctl status``."""
        return self._registration.state

    def conflict(self, reason: str) -> None:
        """A LUN answered somebody else in this process that our registration is gone."""
        self._lose(Event.CONFLICT, reason)

    async def claim(self, incarnation: int) -> None:
        """Register before a slot is claimed.  Raises Fenced, DeviceError."""
        async with self._turn:
            await self._register_as(key_of(CLAIMANT, incarnation))

    async def admit(self, node: int, incarnation: int, *, heir: bool) -> None:
        """Register under a node's key, on LUNs where it is not yet; reserve where nobody has.

        Args:
            node: its id.
            incarnation: of matrixd, or of the mount process.
            heir: this is the matrixd whose claim of the slot is durable: every other key of the node belongs to a
                predecessor, which H1 made sure is dead, and is taken away.

        Raises:
            Fenced: the registration was lost, or header and slot no longer list this process.
            DeviceError: a LUN failed, and it may not write.
        """
        async with self._turn:
            await self._register_as(key_of(node, incarnation))
            await self._look(self._usable())
            if heir:
                for lun in self._usable():
                    await self._expel(lun, lambda keys: [k for k in keys if node_of(k) == node and k != self._key])

    async def extend(self, lun: Lun) -> None:
        """Register under the same key with a LUN that was opened later, or is reached by another nexus now.

        Raises:
            Fenced: the registration was lost, or header and slot no longer list this process.
            DeviceError: it failed, and that LUN may not be written to.
        """
        async with self._turn:
            self._registration.check()
            with self._conflicts():
                await self._register_on(lun)
                await ensure_reserved(lun, self._key, strangers=False)
            await self._look([lun])

    async def reconnected(self, name: str) -> None:
        """Return when writes may pass a session that was lost and is back (A3).

        Raises:
            Fenced: they may not, ever.
            DeviceError: not known; ask again.
        """
        # Not in turn: an admission may be waiting for this very session.  Both register the same key, and look.
        if self._registration.step(Event.RECONNECT) is Action.NOTHING:
            return
        lun = next((lun for lun in self._usable() if lun.name == name), None)
        if lun is None:
            return
        reservations = _of(lun)
        traits = lun.traits
        with self._conflicts():
            is_there = traits.keeps_over_login and self._key in await reservations.read_keys()
            if not is_there and traits.keeps_over_login and traits.keeps_over_power_loss:
                raise Conflict(f"{name}: our registration is gone, so this node was fenced")
            if not is_there and await self._allowed():  # the target has forgotten it, or we were fenced
                await self._register_on(lun)
        await self._look([lun])  # also finds out that ``allowed`` said no above
        with self._conflicts():
            await ensure_reserved(lun, self._key, strangers=False)

    async def withdraw(self) -> list[str]:
        """Leave all LUNs, with nothing in flight any more.  Returns what was left behind, for the log (A4)."""
        async with self._turn:
            lines: list[str] = []
            key = self._key
            if self._registration.step(Event.WITHDRAW, "withdrawn") is Action.LEAVE:
                for lun in self._usable():
                    try:
                        lines += await _leave(lun, key)
                    except MatrixError as error:
                        lines.append(f"{lun.name}: key not taken back: {error}")
            self._on.clear()
            return lines

    async def disown(self, key: int, on: Sequence[Lun] | None = None) -> bool:
        """Take the key of a dead mount process of this node away: nothing that it had in flight lands after that.

        Args:
            key: its key.
            on: the LUNs that it had open; without it all.

        Returns False when that proves nothing, because on some LUN it had no nexus of its own.

        Raises:
            Fenced: our own registration is gone.
            DeviceError: it could not be made certain; ask again.
        """
        self._registration.check()
        luns = list(self._luns() if on is None else on)
        if not luns or any(lun.usable is None or not lun.nexus_per_process for lun in luns):
            return False
        for lun in luns:
            await self._expel(lun, lambda keys: [k for k in keys if k == key])
        return True

    async def keep(self, members: Collection[int], claiming: Collection[int]) -> list[str]:
        """The administrator's round, every few seconds: reservations in place, strangers out (002-31).

        Args:
            members: node ids in the SAN header.
            claiming: node ids whose slots move though they are no members yet.

        Returns alert lines.

        Raises:
            Fenced: our own registration is gone.
        """
        self._registration.check()
        alerts: list[str] = []
        accounted = {*members, *claiming}
        for lun in self._usable():
            try:
                await self._keep_on(lun, accounted, alerts)
            except DeviceError as error:
                alerts.append(f"reservations not kept: {error}")
        return alerts

    # -- pieces ------------------------------------------------------------------------------------------------

    async def _keep_on(self, lun: Lun, accounted: set[int], alerts: list[str]) -> None:
        with self._conflicts():
            if await ensure_reserved(lun, self._key, strangers=True):
                alerts.append(f"{lun.name}: the reservation was gone and was made again")
        now = self._clock.monotonic()

        def strays(keys: list[int]) -> list[int]:
            found = [key for key in dict.fromkeys(keys) if key != self._key and node_of(key) not in accounted]
            seen = {(lun.name, key): self._strays.get((lun.name, key), now) for key in found}
            self._strays = {k: t for k, t in self._strays.items() if k[0] != lun.name} | seen
            return [k for k in found if node_of(k) is None or now - seen[lun.name, k] >= self._grace]

        if strays(await _of(lun).read_keys()):
            taken = await self._expel(lun, strays)
            alerts += [
                f"{lun.name}: {describe_key(k)} was registered by no node of this cluster: fenced"
                for k in dict.fromkeys(taken)
                if node_of(k) is None
            ]

    async def _register_as(self, key: int) -> None:
        self._registration.step(Event.ADMIT)
        self._key = key
        for lun in self._usable():
            with self._conflicts():
                if self._on.get(lun.name) != key:
                    await self._register_on(lun)
                await ensure_reserved(lun, key, strangers=False)

    async def _register_on(self, lun: Lun) -> None:
        await within(self._clock, LUN_SECONDS, lun.name, lambda: _of(lun).register(self._key))
        self._on[lun.name] = self._key
        if self._registration.state is State.LOST:  # meanwhile
            await self._take_back(self._usable())
            self._registration.check()

    async def _look(self, luns: Sequence[Lun]) -> None:
        """A2.  Raises Fenced; or DeviceError: then nothing may be written to ``luns``."""
        try:
            allowed = await self._allowed()
        except MatrixError:
            await self._take_back(luns)
            for lun in luns:
                self._on.pop(lun.name, None)
            raise
        if not allowed:
            self._lose(Event.EVICTED, "the SAN header no longer lists it")
            await self._take_back(self._usable())
        self._registration.check()

    async def _take_back(self, luns: Sequence[Lun]) -> None:
        for lun in luns:
            try:
                await _leave(lun, self._key)
            except MatrixError:
                continue  # who fences us takes it away

    async def _expel(self, lun: Lun, pick: Callable[[list[int]], list[int]]) -> list[int]:
        taken: list[int] = []

        async def victims(keys: list[int]) -> list[int]:
            return pick(keys)

        async def work() -> None:
            taken.extend(await expel(lun, self._key, victims))

        with self._conflicts():
            await within(self._clock, LUN_SECONDS, lun.name, work)
        return taken

    def _usable(self) -> list[Lun]:
        return [lun for lun in self._luns() if lun.usable is not None]

    def _conflicts(self) -> _Conflicts:
        return _Conflicts(self)

    def _lose(self, event: Event, reason: str) -> None:
        was = self._registration.state
        self._registration.step(event, reason)
        if was is not State.LOST:
            self._lost(reason)


class _Conflicts:
    """Whatever raises Fenced in here has lost us the registration."""

    def __init__(self, access: StorageAccess) -> None:
        self._access = access

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Fenced):
            self._access.conflict(str(error))


async def _leave(lun: Lun, key: int) -> list[str]:
    """Unregister, unless that would open the LUN (A4)."""
    reservations = _of(lun)
    keys = await reservations.read_keys()
    if key not in keys:
        return []
    found = await reservations.read_reservation()
    others = any(other != key for other in keys)
    holds = found is not None and found.kind == REGISTRANTS_ONLY and found.key == key
    if others and not holds:
        await reservations.unregister(key)
        return []
    return [f"{lun.name}: {describe_key(key)} stays registered and keeps the LUN locked until a node takes over"]


async def clear_lun(reservations: Reservations, incarnation: int) -> None:
    """Take every registration and the reservation away: for who destroys a cluster or makes a new one by force.

    Raises:
        DeviceError: it failed.
        Fenced: somebody preempts us all the time.
    """
    key = key_of(CLAIMANT, incarnation)
    await reservations.register(key)
    await reservations.clear(key)


def _of(lun: Lun) -> Reservations:
    assert lun.reservations is not None
    return lun.reservations
