"""A simulated LUN: a SimDisk behind persistent reservations, with the faults of real targets as options.

``SimLun.nexus(name)`` is one process's way to it: the seam ``Reservations``, a device, and what the probe needs.

What it models (SPC-4 5.13):
    L1  The reservation is asked when a command arrives; a write then takes the disk's time, and lands after it:
        ten times what a reservation command takes, so that what lands too late is seen.
        PREEMPT stops what arrives later; what is in flight lands all the same, unless ABORT or LUN RESET ends it.
    L2  A session that was dropped leaves its writes in flight with the LUN: they land though nobody waits for them.
    L3  A nexus whose write was ended by somebody else's LUN RESET sends it again, as the iSCSI session does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from matrixfs.blockstore.device.api import Guard
from membership.errors import DeviceError
from membership.fence.reservations import (
    ALL_REGISTRANTS,
    REGISTRANTS_ONLY,
    Conflict,
    Leak,
    LunTraits,
    Reservation,
    Unsupported,
    refusal,
)
from membership.seams import Buffer
from tests.sim.disk import SimDisk, SimPort, Write

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quirks:
    """How a target deviates; the default does not."""

    preempt_and_abort: bool = True
    lun_reset: bool = True
    abort_stops: bool = True  # False: it says GOOD, and the writes land later
    reset_stops: bool = True
    compare_and_write: str = "atomic"  # or "racy", or "" for none
    follows_nexus: bool = True  # False: a registration belongs to a session, and stays behind when that ends
    power_loss: bool = True  # takes APTPL
    holder_releases: bool = True  # its unregistering ends the reservation, as the standard says
    dies_with_session: bool = False  # a lost session ends its registrations, and the reservation if it held it
    keys_shift: bool = False  # removing a registration removes the last *key* of the list
    missing_is_good: bool = False  # PREEMPT of a key that is not there says GOOD
    kinds: tuple[int, ...] = (REGISTRANTS_ONLY, ALL_REGISTRANTS)  # those that keep anybody out
    leaks: Leak = Leak(0)


CONFORMING = Quirks()
TGT = Quirks(
    preempt_and_abort=False,
    compare_and_write="",
    follows_nexus=False,
    power_loss=False,
    leaks=Leak.WRITE_SAME | Leak.ORWRITE | Leak.WRITE_AND_VERIFY,
)
ISTGT = Quirks(power_loss=False, holder_releases=False, keys_shift=True, missing_is_good=True)


def traits_of(quirks: Quirks) -> LunTraits:
    """What a probe finds."""
    return LunTraits(
        kind=next((kind for kind in (REGISTRANTS_ONLY, ALL_REGISTRANTS) if kind in quirks.kinds), 0),
        preempt_and_abort=quirks.preempt_and_abort,
        lun_reset=quirks.lun_reset,
        compare_and_write=quirks.compare_and_write == "atomic",
        keeps_over_login=quirks.follows_nexus and not quirks.dies_with_session,
        keeps_over_power_loss=quirks.power_loss,
        outlives_holder=not quirks.dies_with_session,
        keys_are_true=not quirks.keys_shift,
        abort_stops=quirks.preempt_and_abort and quirks.abort_stops,
        reset_stops=quirks.lun_reset and quirks.reset_stops,
        leaks=quirks.leaks,
    )


@dataclass(slots=True)
class Login:
    """One session of a nexus, as the LUN knows it."""

    owner: str
    port: SimPort


@dataclass(slots=True)
class Plan:
    """A fault: what happens ``before`` or ``after`` the effect of the next command of that name."""

    when: str
    command: str
    effect: Exception | trio.Event | Callable[[], None]
    by: str = ""  # only for this nexus


@dataclass(eq=False)
class SimLun:
    """The LUN.  ``disk`` holds the bytes; ``plans`` are faults to come."""

    disk: SimDisk
    quirks: Quirks = CONFORMING
    entries: list[tuple[int, Login]] = field(default_factory=list)
    holder: Login | None = None
    kind: int = 0
    held_key: int = 0  # as given by the holder: what a target with ``keys_shift`` reports
    logins: list[Login] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    resets: int = 0
    commands: list[tuple[str, str]] = field(default_factory=list)  # (nexus, command), in order of their effects

    def nexus(self, name: str) -> SimNexus:
        """The way of process ``name``; logged in."""
        return SimNexus(self, name)

    def login(self, owner: str) -> Login:
        login = Login(owner, self.disk.port(f"{owner}#{len(self.logins)}"))
        self.logins.append(login)
        return login

    @property
    def keys(self) -> list[int]:
        return [key for key, _ in self.entries]

    def is_registered(self, login: Login) -> bool:
        return any(self._same(entry, login) for _, entry in self.entries)

    def is_refused(self, login: Login) -> bool:
        """Whether a write of that login is."""
        return self.kind in self.quirks.kinds and not self.is_registered(login)

    def power_cycle(self) -> None:
        """The target restarts: all sessions end, and without APTPL all registrations."""
        for login in self.logins:
            self.disk.abandon(login.port._path, self.disk.rng)
        if not self.quirks.power_loss:
            self.entries.clear()
            self.kind, self.holder = 0, None

    def set_registration(self, login: Login, key: int) -> None:
        at = [i for i, (_, entry) in enumerate(self.entries) if self._same(entry, login)]
        if key and at and not self.quirks.keys_shift:
            self.entries[at[0]] = (key, login)
            if self.holder is not None and self._same(self.holder, login):
                self.holder = login
            return
        for i in reversed(at):
            self._remove(i)
        if not key and at and self.holder is not None and self._same(self.holder, login):
            self._holder_left()
        if key:
            self.entries.append((key, login))

    def _holder_left(self) -> None:
        last = self.kind == ALL_REGISTRANTS and not self.entries
        if last or (self.kind == REGISTRANTS_ONLY and self.quirks.holder_releases):
            self.kind, self.holder = 0, None

    def _remove(self, at: int) -> None:
        if self.quirks.keys_shift:
            keys = self.keys[:-1]
            logins = [login for i, (_, login) in enumerate(self.entries) if i != at]
            self.entries = list(zip(keys, logins, strict=True))
        else:
            del self.entries[at]

    def preempt(self, by: Login, own: int, victim: int, kind: int, *, abort: bool) -> bool:
        """Returns whether the victim's key was there."""
        at = [i for i, (key, login) in enumerate(self.entries) if key == victim and not self._same(login, by)]
        gone = [self.entries[i][1] for i in at]
        for i in reversed(at):
            self._remove(i)
        held = self.kind != ALL_REGISTRANTS and self.holder is not None
        if held and any(self._same(self.holder, login) for login in gone):
            self.kind, self.holder, self.held_key = kind, by, own
        if abort and self.quirks.abort_stops:
            for login in self.logins:
                if any(self._same(login, victim_login) for victim_login in gone):
                    self.disk.abandon(login.port._path, self.disk.rng)
        return bool(at)

    def reset(self) -> None:
        self.resets += 1
        if self.quirks.reset_stops:
            for login in self.logins:
                self.disk.abandon(login.port._path, self.disk.rng)

    def session_ended(self, login: Login) -> None:
        if self.quirks.dies_with_session:
            self.entries = [(key, entry) for key, entry in self.entries if entry is not login]
            if self.holder is login:
                self.kind, self.holder = 0, None

    def clear(self) -> None:
        self.entries.clear()
        self.kind, self.holder = 0, None

    def _same(self, a: Login, b: Login) -> bool:
        """Whether they are one nexus to this target."""
        return a is b or (self.quirks.follows_nexus and a.owner == b.owner)

    async def step(self, when: str, command: str, by: str) -> None:
        for plan in self.plans:
            if (plan.when, plan.command) == (when, command) and plan.by in {"", by}:
                self.plans.remove(plan)
                if isinstance(plan.effect, Exception):
                    raise plan.effect
                if isinstance(plan.effect, trio.Event):
                    await plan.effect.wait()
                else:
                    plan.effect()
                return


class SimNexus:
    """One process at the LUN."""

    def __init__(self, lun: SimLun, owner: str) -> None:
        self.lun = lun
        self.owner = owner
        self.login = lun.login(owner)
        self.connected = True

    @property
    def name(self) -> str:
        return f"{self.lun.disk.media_name}@{self.owner}"

    @property
    def sector_bytes(self) -> int:
        return self.lun.disk.sector_bytes

    @property
    def size_bytes(self) -> int:
        return self.lun.disk.capacity

    # -- the session

    def drop(self) -> None:
        """The session is lost (L2)."""
        if self.connected:
            self.connected = False
            self.lun.session_ended(self.login)

    async def relogin(self) -> None:
        await trio.lowlevel.checkpoint()
        self.drop()
        self.login = self.lun.login(self.owner)
        self.connected = True

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.drop()

    # -- the device

    async def read(self, offset: int, length: int, *, guard: Guard | None = None) -> bytes:
        self._check_session()
        return await self.login.port.read(offset, length, guard=guard)

    async def write(self, offset: int, data: Buffer, *, durable: bool = False, guard: Guard | None = None) -> None:
        def arrives() -> None:
            if guard is not None:
                guard()
            self._check_session()
            if self.lun.is_refused(login):
                raise Conflict(f"{self.name}: RESERVATION CONFLICT")

        while True:
            login, resets = self.login, self.lun.resets
            try:
                await login.port.write(offset, data, durable=durable, guard=arrives)
                break
            except DeviceError:
                if resets == self.lun.resets or not self.connected:
                    raise  # else L3
        if not self.connected or login is not self.login:
            raise DeviceError(f"{self.name}: the session was lost meanwhile")

    async def discard(self, offset: int, length: int, *, guard: Guard | None = None) -> None:
        await self.write(offset, bytes(length), guard=guard)

    async def flush(self, *, guard: Guard | None = None) -> None:
        self._check_session()
        await self.login.port.flush(guard=guard)

    def _check_session(self) -> None:
        if not self.connected:
            raise DeviceError(f"{self.name}: no session")

    # -- reservations

    async def register(self, key: int) -> None:
        assert key
        await self._do("register", lambda: self.lun.set_registration(self.login, key))

    async def unregister(self, key: int) -> None:
        await self._do("unregister", lambda: self.lun.set_registration(self.login, 0))

    async def reserve(self, key: int, kind: int) -> None:
        def effect() -> bool:
            lun = self.lun
            if not self._has(key) or (lun.kind and (lun.kind, lun.holder) != (kind, self.login)):
                return lun.kind == kind == ALL_REGISTRANTS and self._has(key)
            lun.kind, lun.holder, lun.held_key = kind, self.login, key
            return True

        if not await self._do("reserve", effect):
            raise await refusal(self, key, "RESERVE")

    async def release(self, key: int, kind: int) -> None:
        def effect() -> bool:
            if not self._has(key):
                return False
            if self.lun.holder is self.login or self.lun.kind == ALL_REGISTRANTS:
                self.lun.kind, self.lun.holder = 0, None
            return True

        if not await self._do("release", effect):
            raise await refusal(self, key, "RELEASE")

    async def read_keys(self) -> list[int]:
        return await self._do("read_keys", lambda: self.lun.keys)

    async def read_reservation(self) -> Reservation | None:
        def effect() -> Reservation | None:
            lun = self.lun
            if not lun.kind:
                return None
            if lun.quirks.keys_shift:
                return Reservation(lun.held_key, lun.kind)
            held = [k for k, login in lun.entries if lun.holder is not None and lun._same(login, lun.holder)]
            return Reservation(held[0] if held and lun.kind != ALL_REGISTRANTS else 0, lun.kind)

        return await self._do("read_reservation", effect)

    async def preempt(self, own: int, victim: int, kind: int, *, abort: bool) -> None:
        if abort and not self.lun.quirks.preempt_and_abort:
            raise Unsupported(f"{self.name}: no PREEMPT AND ABORT")

        def effect() -> bool:
            if not self._has(own):
                return False
            return self.lun.preempt(self.login, own, victim, kind, abort=abort) or self.lun.quirks.missing_is_good

        if not await self._do("preempt", effect):
            raise await refusal(self, own, "PREEMPT")

    async def reset_lun(self) -> None:
        if not self.lun.quirks.lun_reset:
            raise Unsupported(f"{self.name}: no LUN RESET")
        await self._do("reset_lun", self.lun.reset)

    async def clear(self, key: int) -> None:
        def effect() -> bool:
            if not self._has(key):
                return False
            self.lun.clear()
            return True

        if not await self._do("clear", effect):
            raise await refusal(self, key, "CLEAR")

    def _has(self, key: int) -> bool:
        return any(k == key and self.lun._same(login, self.login) for k, login in self.lun.entries)

    async def _do(self, name: str, effect: Callable[[], T]) -> T:
        self._check_session()
        await self.lun.step("before", name, self.owner)
        await trio.sleep(self.lun.disk.rng.uniform(0, self.lun.disk.latency[1] / 10))
        self._check_session()
        result = effect()
        self.lun.commands.append((self.owner, name))
        await self.lun.step("after", name, self.owner)
        self._check_session()
        return result

    # -- for the probe

    async def register_persistent(self, key: int) -> None:
        if not self.lun.quirks.power_loss:
            raise Unsupported(f"{self.name}: no APTPL")
        await self.register(key)

    async def slips(self, leak: Leak, offset: int) -> bool:
        """Whether that command got through."""
        if not self.connected:
            raise DeviceError(f"{self.name}: no session")
        if self.lun.is_refused(self.login) and leak not in self.lun.quirks.leaks:
            return False
        await self.login.port.write(offset, b"leak" * (self.sector_bytes // 4))
        return True

    async def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        if not self.lun.quirks.compare_and_write:
            raise Unsupported(f"{self.name}: no COMPARE AND WRITE")
        await self.lun.disk.delay()
        found = self.lun.disk.media.read(offset, len(old))
        if self.lun.quirks.compare_and_write == "racy":
            await self.lun.disk.delay()
        if found != old:
            return False
        self.lun.disk.land(Write(offset, new, durable=True, port=self.login.port._path.name))
        return True
