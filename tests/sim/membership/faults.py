"""The faults of a random history: a table of names, weights and what each does, all from the seed.

Those with a length (pause, disk troubles) end by themselves; all others last until their opposite, or the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from membership.errors import MatrixError
from membership.orders import LinkLost

if TYPE_CHECKING:
    from tests.sim.membership.machines import Machine
    from tests.sim.membership.world import World

PAUSE_SECONDS = (0.1, 20.0)
DISK_SECONDS = (0.2, 30.0)
HANG_SECONDS = 60.0
SLOW_SECONDS = (0.1, 3.0)


class Faults:
    """Those of one history."""

    def __init__(self, world: World, rng: random.Random, numbers: tuple[int, ...]) -> None:
        self.world, self.rng, self.numbers = world, rng, numbers
        self.trace: list[tuple[float, str, str]] = []  # (time, fault, machine)
        self._weighted = [name for name, (weight, _) in TABLE.items() for _ in range(weight)]

    async def one(self) -> None:
        """The next fault."""
        name = self.rng.choice(self._weighted)
        machine = self.world.machines[f"n{self.rng.choice(self.numbers)}"]
        self.trace.append((trio.current_time(), name, machine.name))
        await TABLE[name][1](self, machine)

    async def end(self) -> None:
        """No fault any more; who is stopped goes on."""
        self.world.net.heal_all()
        self.world.lock_cuts.clear()
        for machine in self.world.machines.values():
            self._mend(machine)
            if machine.freezer.is_frozen:
                machine.thaw()
            for mount in machine.mounts:
                mount.thaw()

    # -- processes ---------------------------------------------------------------------------------------------

    async def kill(self, machine: Machine) -> None:
        if machine.running:
            self.world.kill(int(machine.name[1:]))

    async def kill_daemon(self, machine: Machine) -> None:
        """matrixd alone: its mounts lose their control socket."""
        if machine.running and not machine.freezer.is_frozen:
            self.world.kill_pid(machine.pid)
            for mount in machine.mounts:
                mount.gate.fence("matrixd ended")

    async def start(self, machine: Machine) -> None:
        if not machine.running:
            for mount in machine.mounts:
                mount.die()
            await self.world.start(int(machine.name[1:]), wait=False)

    async def mount(self, machine: Machine) -> None:
        if machine.is_member and not machine.freezer.is_frozen and not any(m.alive for m in machine.mounts):
            self.world.start_soon(self._try_mount, int(machine.name[1:]))

    async def die(self, machine: Machine) -> None:
        """Mounts end dirty."""
        for mount in machine.mounts:
            mount.die()

    async def leave(self, machine: Machine) -> None:
        """Unmount, stop matrixd cleanly."""
        if not machine.is_member or machine.freezer.is_frozen or self.world.mounting:
            return
        for mount in machine.mounts:
            if mount.alive and mount.has_right() and not mount.frozen and not mount.port.in_flight.count:
                mount.leave()
        self.world.start_soon(self._try_stop, machine)

    async def freeze_mount(self, machine: Machine) -> None:
        for mount in machine.mounts:
            mount.freeze()

    async def thaw_mount(self, machine: Machine) -> None:
        for mount in machine.mounts:
            mount.thaw()

    async def pause(self, machine: Machine) -> None:
        if machine.running and not machine.freezer.is_frozen:
            machine.freeze()
            self._later(PAUSE_SECONDS, self._thaw, machine)

    # -- network -----------------------------------------------------------------------------------------------

    async def cut(self, machine: Machine) -> None:
        if (pair := self._pair()) is not None:
            self.world.net.cut(*pair)

    async def cut_one_way(self, machine: Machine) -> None:
        if (pair := self._pair()) is not None:
            self.world.net.cut(*pair, both=False)

    async def flap(self, machine: Machine) -> None:
        """A connection that breaks for a moment; what was under way is lost and sent again."""
        if (pair := self._pair()) is not None:
            self.world.net.cut(*pair)
            self._later((0.01, 1.0), self.world.net.heal, *pair)

    async def partition(self, machine: Machine) -> None:
        ids = self._ids()
        self.rng.shuffle(ids)
        at = self.rng.randint(0, len(ids))
        self.world.net.partition(set(ids[:at]), set(ids[at:]))

    async def heal(self, machine: Machine) -> None:
        self.world.net.heal_all()

    async def cut_locks(self, machine: Machine) -> None:
        pair = self._pair()
        if pair is None:
            return
        self.world.lock_cuts ^= {frozenset(pair)}
        for mount in machine.mounts:
            if mount.alive and mount.channel is not None and machine.is_member and not machine.freezer.is_frozen:
                for node in sorted(set(pair) - {machine.node.node_id}):
                    mount.channel.reply(LinkLost(mount.attempt, node))

    # -- disk --------------------------------------------------------------------------------------------------

    async def slow_disk(self, machine: Machine) -> None:
        for each in self._one_or_all(machine):
            each.path.slow = (0.0, self.rng.uniform(*SLOW_SECONDS))
            self._trouble(each, DISK_SECONDS)

    async def disk_errors(self, machine: Machine) -> None:
        machine.path.errors = self.rng.choice((0.05, 0.3, 1.0))
        self._trouble(machine, DISK_SECONDS)

    async def disk_hangs(self, machine: Machine) -> None:
        for each in self._one_or_all(machine):
            each.path.hang()
            self._trouble(each, self.rng.choice(((0.1, 5.0), (HANG_SECONDS, HANG_SECONDS))))

    async def disk_gone(self, machine: Machine) -> None:
        for each in self._one_or_all(machine):
            each.path.cut("gone")
            self._trouble(each, DISK_SECONDS)

    async def mend_disks(self, machine: Machine) -> None:
        for each in self.world.machines.values():
            self._mend(each)

    # -- internals ---------------------------------------------------------------------------------------------

    def _one_or_all(self, machine: Machine) -> list[Machine]:
        return list(self.world.machines.values()) if self.rng.random() < 0.3 else [machine]

    def _trouble(self, machine: Machine, seconds: tuple[float, float]) -> None:
        machine.disturbed_at = trio.current_time()
        self._later(seconds, self._mend, machine)

    def _mend(self, machine: Machine) -> None:
        if not machine.path.is_healthy:
            machine.path.mend()
            self.world.machines[machine.name].disturbed_at = trio.current_time()

    def _thaw(self, machine: Machine) -> None:
        if machine.freezer.is_frozen:
            machine.thaw()

    def _later(self, seconds: tuple[float, float], action: Callable[..., None], *args) -> None:
        self.world.start_soon(self._run_later, self.rng.uniform(*seconds), action, args)

    async def _run_later(self, seconds: float, action: Callable[..., None], args) -> None:
        await trio.sleep(seconds)
        action(*args)

    def _ids(self) -> list[int]:
        return sorted({m.node.node_id for m in self.world.machines.values() if m.node.core is not None})

    def _pair(self) -> tuple[int, int] | None:
        ids = self._ids()
        return tuple(self.rng.sample(ids, 2)) if len(ids) >= 2 else None  # type: ignore[return-value]

    async def _try_mount(self, number: int) -> None:
        try:
            await self.world.mount(number, wait=False)
        except MatrixError:
            return

    async def _try_stop(self, machine: Machine) -> None:
        try:
            await machine.node.stop()
        except MatrixError:
            return


TABLE: dict[str, tuple[int, Callable]] = {
    "kill": (2, Faults.kill),
    "kill matrixd": (1, Faults.kill_daemon),
    "start": (4, Faults.start),
    "mount": (6, Faults.mount),
    "die": (2, Faults.die),
    "leave": (1, Faults.leave),
    "freeze mount": (1, Faults.freeze_mount),
    "thaw mount": (1, Faults.thaw_mount),
    "pause": (3, Faults.pause),
    "cut": (2, Faults.cut),
    "cut one way": (2, Faults.cut_one_way),
    "flap": (2, Faults.flap),
    "partition": (2, Faults.partition),
    "heal": (3, Faults.heal),
    "cut locks": (1, Faults.cut_locks),
    "slow disk": (2, Faults.slow_disk),
    "disk errors": (1, Faults.disk_errors),
    "disk hangs": (1, Faults.disk_hangs),
    "disk gone": (1, Faults.disk_gone),
    "mend disks": (2, Faults.mend_disks),
}
