"""The probe of a LUN: what its reservations are worth is tried, never believed (002-31, 002-38; ecosystem.md 1).

Several nexuses of one process register, reserve, preempt each other and write; what gets through though it must not,
and what lands though it must not, is what a fence would let through.  Only scratch blocks are written, and zeroed at
the end; all registrations are cleared.

Invariants:
    Q1  Refused when anybody is registered or holds a reservation: the probe ends with CLEAR.
    Q2  A trait is True only because it was seen; an error on the way to it makes it False, with a line for people.
    Q3  However it ends, the LUN has no registration of ours, and zeros in the scratch blocks, if it still answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from membership.errors import DeviceError, Fenced, MatrixError, OperatorError
from membership.fence.keys import CLAIMANT, describe_key, key_of
from membership.fence.reservations import ALL_REGISTRANTS, REGISTRANTS_ONLY, Leak, LunTraits, Reservations, Unsupported
from membership.label import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from membership.seams import Buffer

SCRATCH_BLOCK: Final = 642  # of a cluster disk: behind the membership database, before the data (label.py)
SCRATCH_BLOCKS: Final = 382
_RACE_BLOCKS: Final = 256  # 1 MiB: long enough under way for a preempt to come in between
_RACE_WRITES: Final = 16
_RACE_ROUNDS: Final = 5
_COUNT_EACH: Final = 100  # increments by each of three nexuses
_SETTLE_SECONDS: Final = 0.1
_KEYS: Final = tuple(key_of(CLAIMANT, 0xFFFFFFFF00 + i) for i in range(5))
_A, _B, _C, _STRANGER, _B2 = _KEYS


class ProbeNexus(Reservations, Protocol):
    """One nexus, with what only a probe does."""

    @property
    def sector_bytes(self) -> int:
        """Logical block size."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Raises DeviceError, Fenced."""
        ...

    async def write(self, offset: int, data: Buffer) -> None:
        """Raises DeviceError, Fenced (a reservation conflict)."""
        ...

    async def register_persistent(self, key: int) -> None:
        """Register with APTPL.  Raises Unsupported."""
        ...

    async def slips(self, leak: Leak, offset: int) -> bool:
        """Send that command for one block; whether it was executed."""
        ...

    async def compare_and_write(self, offset: int, old: bytes, new: bytes) -> bool:
        """Whether one block was ``old`` and was replaced.  Raises Unsupported."""
        ...

    async def relogin(self) -> None:
        """Lose the session and log in again as the same nexus."""
        ...

    async def aclose(self) -> None:
        """Log out."""
        ...


Open = Callable[[str], Awaitable[ProbeNexus]]


async def probe(
    open_nexus: Open, scratch_block: int = SCRATCH_BLOCK, *, progress: Callable[[str], None] = lambda _: None
) -> LunTraits:
    """Find out what a LUN can do.

    Args:
        open_nexus: logs in as another initiator port for each name.
        scratch_block: first of SCRATCH_BLOCKS blocks of 4 KiB that may be overwritten.
        progress: called with one line for each step.

    Raises:
        OperatorError: somebody is registered with the LUN.
        DeviceError: it can't be reached, or fails plain I/O.
    """
    run = _Probe(open_nexus, scratch_block * BLOCK_BYTES, progress)
    try:
        await run.begin()
        if run.began:
            await run.reservations()
        await run.counters()
    finally:
        with trio.CancelScope(shield=True):
            await run.end()
    return run.traits


class _Probe:
    """State of one probe."""

    def __init__(self, open_nexus: Open, at: int, progress: Callable[[str], None]) -> None:
        self._open = open_nexus
        self._at = at
        self._counter_at = at + _RACE_BLOCKS * BLOCK_BYTES
        self._progress = progress
        self._nexuses: dict[str, ProbeNexus] = {}
        self.traits = LunTraits()
        self.began = False
        self._wrote = False

    async def begin(self) -> None:
        """Q1."""
        a = await self._nexus("a")
        try:
            keys, reservation = await a.read_keys(), await a.read_reservation()
        except Unsupported as error:
            self._progress(f"no persistent reservations: {error}")
            return
        if keys or reservation is not None:
            who = ", ".join(describe_key(key) for key in dict.fromkeys(keys)) or "a reservation without keys"
            raise OperatorError(f"{a.name}: in use: {who}; stop who uses it, or clear it by force")
        try:
            await a.register(_A)
        except Unsupported as error:
            self._progress(f"no persistent reservations: {error}")
            return
        self.began = True

    async def reservations(self) -> None:
        """Everything about reservations, each step from a clean start."""
        self._wrote = True
        for kind in (REGISTRANTS_ONLY, ALL_REGISTRANTS):
            if not self.traits.kind and await self._step(f"reservation of type {kind}", partial(self._holds, kind)):
                self._found(kind=kind)
        if not self.traits.kind:
            return
        if not await self._step("commands that pass by the reservation", self._leaks):
            self._found(leaks=~Leak(0))  # not known: all of them
        for name, text, step in (
            ("keys_are_true", "the list of keys after preempts", self._keys_are_true),
            ("outlives_holder", "the holder's session ends", self._outlives_holder),
            ("keeps_over_login", "a session comes back", self._keeps_over_login),
            ("keeps_over_power_loss", "registration that survives power loss", self._keeps_over_power_loss),
            ("preempt_and_abort", "PREEMPT AND ABORT", self._preempt_and_abort),
            ("lun_reset", "LUN RESET", self._lun_reset),
        ):
            self._found(**{name: await self._step(text, step)})
        if self.traits.preempt_and_abort:
            self._found(abort_stops=await self._step("writes in flight, PREEMPT AND ABORT", partial(self._race, True)))
        if self.traits.lun_reset:
            self._found(
                reset_stops=await self._step("writes in flight, PREEMPT, LUN RESET", partial(self._race, False))
            )

    async def counters(self) -> None:
        """COMPARE AND WRITE."""
        self._wrote = True
        self._found(compare_and_write=await self._step("COMPARE AND WRITE", self._counts))

    async def end(self) -> None:
        """Q3."""
        try:
            a = await self._nexus("a")
            if self.began:
                await a.register(_A)
            for block in range(_RACE_BLOCKS + 1 if self._wrote else 0):
                await a.write(self._at + block * BLOCK_BYTES, bytes(BLOCK_BYTES))
            if self.began:
                await a.clear(_A)
        except (DeviceError, Fenced) as error:
            self._progress(f"not cleaned up: {error}")
        await self._forget()

    # -- pieces ------------------------------------------------------------------------------------------------

    def _found(self, **traits: Any) -> None:
        self.traits = dataclasses.replace(self.traits, **traits)

    async def _step(self, text: str, step: Callable[[], Awaitable[bool]]) -> bool:
        """Q2."""
        try:
            good = await step()
            self._progress(f"{text}: {'yes' if good else 'no'}")
        except Unsupported:
            self._progress(f"{text}: not known to it")
            return False
        except (DeviceError, Fenced) as error:
            self._progress(f"{text}: no: {error}")
            await self._forget()
            return False
        return good

    async def _forget(self) -> None:
        """Sessions may be lost: later steps begin with new ones."""
        for name in list(self._nexuses):
            with contextlib.suppress(MatrixError):
                await self._close(name)

    async def _nexus(self, name: str) -> ProbeNexus:
        if name not in self._nexuses:
            self._nexuses[name] = await self._open(name)
        return self._nexuses[name]

    async def _close(self, name: str) -> None:
        await self._nexuses.pop(name).aclose()

    async def _start(self) -> tuple[ProbeNexus, ProbeNexus, ProbeNexus, ProbeNexus]:
        """Three registered in this order, the first holds the reservation; a stranger."""
        a, b, c, d = [await self._nexus(name) for name in "abcd"]
        await a.register(_A)
        await a.clear(_A)
        for nexus, key in ((a, _A), (b, _B), (c, _C)):
            await nexus.register(key)
        await a.reserve(_A, self.traits.kind or REGISTRANTS_ONLY)
        return a, b, c, d

    async def _refused(self, nexus: ProbeNexus) -> bool:
        """Whether its WRITE is."""
        try:
            await nexus.write(self._at, bytes(BLOCK_BYTES))
        except Fenced:
            return True
        return False

    async def _can_write(self, *nexuses: ProbeNexus) -> list[bool]:
        return [not await self._refused(nexus) for nexus in nexuses]

    async def _holds(self, kind: int) -> bool:
        a, b, c, d = [await self._nexus(name) for name in "abcd"]
        await a.register(_A)
        await a.clear(_A)
        for nexus, key in ((a, _A), (b, _B), (c, _C)):
            await nexus.register(key)
        if await self._can_write(d) != [True]:  # who is refused without a reservation proves nothing with one
            return False
        await a.reserve(_A, kind)
        found = await d.read_reservation()
        if found is None or found.kind != kind or await self._can_write(a, b, c, d) != [True, True, True, False]:
            return False
        await d.read(self._at, BLOCK_BYTES)
        # Who takes the reserver's key has the reservation, of the same kind.
        await b.preempt(_B, _A, kind, abort=False)
        found = await d.read_reservation()
        return (
            found is not None and found.kind == kind and await self._can_write(a, b, c, d) == [False, True, True, False]
        )

    async def _leaks(self) -> bool:
        _, _, _, d = await self._start()
        leaks = Leak(0)
        for leak in Leak:
            try:
                if await d.slips(leak, self._at):
                    leaks |= leak
                    self._progress(f"an unregistered {str(leak.name).replace('_', ' ')} got through")
            except DeviceError as error:  # no answer is no refusal
                leaks |= leak
                self._progress(f"an unregistered {str(leak.name).replace('_', ' ')}: {error}")
        self._found(leaks=leaks)
        return True

    async def _keys_are_true(self) -> bool:
        a, b, c, d = await self._start()
        await a.preempt(_A, _B, self.traits.kind, abort=False)
        if sorted(await a.read_keys()) != sorted([_A, _C]) or await self._can_write(a, b, c) != [True, False, True]:
            return False
        await b.register(_B2)  # behind the others now
        await a.preempt(_A, _C, self.traits.kind, abort=False)
        if sorted(await a.read_keys()) != sorted([_A, _B2]) or await self._can_write(a, b, c) != [True, True, False]:
            return False
        await c.register(_C)
        await b.unregister(_B2)
        if sorted(await a.read_keys()) != sorted([_A, _C]) or await self._can_write(a, b, c) != [True, False, True]:
            return False
        await c.preempt(_C, _A, self.traits.kind, abort=False)  # again the reservation moves
        found = await d.read_reservation()
        if found is None or found.kind != self.traits.kind or await self._can_write(a, c, d) != [False, True, False]:
            return False
        await a.register(_A)
        await a.register(_STRANGER)  # another key of the same nexus, as at the end of a claim
        return sorted(await c.read_keys()) == sorted([_STRANGER, _C]) and await self._can_write(a, c, d) == [
            True,
            True,
            False,
        ]

    async def _outlives_holder(self) -> bool:
        _, b, c, d = await self._start()
        await self._close("a")
        if await self._can_write(b, c, d) != [True, True, False]:
            return False
        await b.preempt(_B, _A, self.traits.kind, abort=False)
        return await self._can_write(b, c, d) == [True, True, False]

    async def _keeps_over_login(self) -> bool:
        a, b, _, _ = await self._start()
        await b.relogin()
        return (await a.read_keys()).count(_B) == 1 and await self._can_write(b) == [True]

    async def _keeps_over_power_loss(self) -> bool:
        a, *_ = await self._start()
        await a.register_persistent(_A)
        return _A in await a.read_keys()

    async def _preempt_and_abort(self) -> bool:
        a, b, c, _ = await self._start()
        await a.preempt(_A, _C, self.traits.kind, abort=True)
        return await self._can_write(a, b, c) == [True, True, False]

    async def _lun_reset(self) -> bool:
        a, b, c, d = await self._start()
        await a.reset_lun()
        return await self._can_write(a, b, c, d) == [True, True, True, False]

    async def _race(self, abort: bool) -> bool:
        """Whether nothing of a victim with many long writes in flight lands after the fence."""
        for _ in range(_RACE_ROUNDS):
            # The victim registers last, so that a list of keys that goes wrong (see above) does not matter here.
            a, _, v = await self._nexus("a"), await self._nexus("b"), await self._nexus("c")
            await a.register(_A)
            await a.clear(_A)
            await a.register(_A)
            await v.register(_C)
            await a.reserve(_A, self.traits.kind)
            if not await self._race_once(a, v, abort):
                return False
        return True

    async def _race_once(self, a: ProbeNexus, victim: ProbeNexus, abort: bool) -> bool:
        marks = [self._at + block * BLOCK_BYTES for block in (0, _RACE_BLOCKS // 2, _RACE_BLOCKS - 1)]
        data, mark = b"victim__" * (_RACE_BLOCKS * BLOCK_BYTES // 8), b"winner__" * (BLOCK_BYTES // 8)
        under_way = trio.Event()
        done = 0

        async def write_on() -> None:
            nonlocal done
            with contextlib.suppress(Fenced, DeviceError):
                while True:
                    await victim.write(self._at, data)
                    done += 1
                    if done > _RACE_WRITES:
                        under_way.set()
            under_way.set()

        failure: MatrixError | None = None
        async with trio.open_nursery() as nursery:
            for _ in range(_RACE_WRITES):
                nursery.start_soon(write_on)
            await under_way.wait()
            try:
                await a.preempt(_A, _C, self.traits.kind, abort=abort)
                if not abort:
                    await a.reset_lun()
                for at in marks:
                    await a.write(at, mark)
            except MatrixError as error:
                failure = error  # not from within the nursery, which would wrap it
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        await trio.sleep(_SETTLE_SECONDS)
        return all([await a.read(at, BLOCK_BYTES) == mark for at in marks])

    async def _counts(self) -> bool:
        """COMPARE AND WRITE is atomic if no increment of several racers is lost."""
        racers: Sequence[ProbeNexus] = [await self._nexus(name) for name in "abc"]
        a = racers[0]
        if self.began:
            await self._start()
        size = a.sector_bytes
        await a.write(self._counter_at, bytes(BLOCK_BYTES))
        if await a.compare_and_write(self._counter_at, b"\1" * size, b"\2" * size):
            return False  # it does not even compare
        failures: list[MatrixError] = []

        async def count(nexus: ProbeNexus) -> None:
            won = 0
            while won < _COUNT_EACH:
                old = await nexus.read(self._counter_at, size)
                new = struct.pack(">Q", struct.unpack_from(">Q", old)[0] + 1) + old[8:]
                won += await nexus.compare_and_write(self._counter_at, old, new)

        async def guarded(nexus: ProbeNexus) -> None:
            try:
                await count(nexus)
            except MatrixError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for nexus in racers:
                nursery.start_soon(guarded, nexus)
        if failures:
            raise failures[0]
        total: int = struct.unpack_from(">Q", await a.read(self._counter_at, size))[0]
        return total == _COUNT_EACH * len(racers)
