"""The faults of a random history: a table of names, weights and what each does, all from the seed.

Those with a length (pause, disk troubles) end by themselves; all others last until their opposite, or the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from membership.errors import MatrixError
from membership.label import BALLOT_BLOCK, HEADER_BLOCK, HEARTBEAT_BLOCK, NODE_SLOTS
from membership.orders import LinkLost

if TYPE_CHECKING:
    from tests.sim.membership.machines import Machine
    from tests.sim.membership.paths import Path
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
        for path in self._all_paths():
            path.trip = None
            self._mend(path)
        for machine in self.world.machines.values():
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
        self.pause_now(machine, machine.paths[0])

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

    # -- disks -------------------------------------------------------------------------------------------------

    async def slow_disk(self, machine: Machine) -> None:
        for each in self._chosen_paths(machine):
            each.slow = (0.0, self.rng.uniform(*SLOW_SECONDS))
            self._trouble(each, DISK_SECONDS)

    async def disk_errors(self, machine: Machine) -> None:
        for each in self._chosen_paths(machine):
            each.errors = self.rng.choice((0.05, 0.3, 1.0))
            self._trouble(each, DISK_SECONDS)

    async def disk_hangs(self, machine: Machine) -> None:
        seconds = self.rng.choice(((0.1, 5.0), (HANG_SECONDS, HANG_SECONDS)))
        for each in self._chosen_paths(machine):
            each.hang()
            self._trouble(each, seconds)

    async def disk_gone(self, machine: Machine) -> None:
        for each in self._chosen_paths(machine):
            each.cut("gone")
            self._trouble(each, DISK_SECONDS)

    async def mend_disks(self, machine: Machine) -> None:
        for each in self._all_paths():
            self._mend(each)

    async def trip(self, machine: Machine) -> None:
        """Stopped, killed or cut off while its nth write of a header, a ballot or its slot is on its way."""
        first, count = self.rng.choice(((HEADER_BLOCK, 1), (BALLOT_BLOCK, NODE_SLOTS), (HEARTBEAT_BLOCK, NODE_SLOTS)))
        left = self.rng.choice((1, 1, 2, 3))
        action = self.rng.choice((self.pause_now, self.pause_now, self.kill_now, self.cut_now))
        path = self.rng.choice(machine.paths)

        def trip(block: int) -> None:
            nonlocal left
            if first <= block < first + count:
                left -= 1
                if left == 0:
                    path.trip = None
                    action(self.world.machines[machine.name], path)

        path.trip = trip

    def pause_now(self, machine: Machine, path: Path) -> None:
        if machine.running and not machine.freezer.is_frozen:
            machine.freeze()
            self._later(PAUSE_SECONDS, self._thaw, machine)

    def kill_now(self, machine: Machine, path: Path) -> None:
        self.world.start_soon(self.kill, machine)

    def cut_now(self, machine: Machine, path: Path) -> None:
        path.cut("gone")
        self._trouble(path, DISK_SECONDS)

    # -- internals ---------------------------------------------------------------------------------------------

    def _all_paths(self) -> list[Path]:
        return [path for machine in self.world.machines.values() for path in machine.paths]

    def _chosen_paths(self, machine: Machine) -> list[Path]:
        """Of one disk or all, of one machine or all."""
        areas = self.rng.sample(range(len(machine.paths)), self.rng.randint(1, len(machine.paths)))
        paths = self._all_paths() if self.rng.random() < 0.3 else machine.paths
        return [path for path in paths if path.area in areas]

    def _trouble(self, path: Path, seconds: tuple[float, float]) -> None:
        self._disturbed(path)
        self._later(seconds, self._mend, path)

    def _mend(self, path: Path) -> None:
        if not path.is_healthy:
            path.mend()
            self._disturbed(path)

    def _disturbed(self, path: Path) -> None:
        for machine in self.world.machines.values():
            if path in machine.paths:
                machine.disturbed_at = trio.current_time()

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
    "trip": (3, Faults.trip),
}
