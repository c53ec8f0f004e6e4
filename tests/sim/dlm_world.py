"""A whole lockspace in one loop, from one seed, without trio: delays, kills, restarts, leaves, aborted recoveries (R2).

    python tests/sim/dlm_world.py --seed 7 [--nodes 5] [--steps 1500] [--trace]

Messages are FIFO per pair of instances and arbitrarily late across pairs; control calls are FIFO per node.
``Admin`` stands for the SAN administrator: numbered attempts, barriers, replay, RELEASE_GHOSTS, as in R5.

Checked after every step:
  C1. no two incompatible holders of a resource, the dead and not yet replayed included (writing modes);
  C4. at most one node per view has a record of a resource, and who has it believes that it arbitrates;
  C2. a valid value block granted with CW, PR, PW or EX is the last one written, and never the last one before
      a writer died;
and after the faults have stopped and everything was delivered:
  C3. every request was answered, no master has a queue or a ghost left, everybody runs in the last view.
Not checked here: fairness (tests/dlm/test_resource.py), and that values survive where they could.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter, deque
from dataclasses import dataclass, field

if __name__ == "__main__":
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from dlm.client import DeniedEvent, Grant, GrantedEvent, RevokeEvent
from dlm.lockspace import LockspaceCore, RebuiltEvent
from dlm.messages import decode_untrusted, encode
from dlm.modes import MODES, VALUE_CURRENT_MASK, VALUE_WRITE_MASK, compatible, covers, is_write
from dlm.names import Resource
from dlm.resource import by_priority, first_come
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView

SHIFT = 1


@dataclass
class Peer:
    """One instance and its user."""

    core: LockspaceCore
    asked: dict[Resource, int] = field(default_factory=dict)  # outstanding requests
    told: dict[Resource, int] = field(default_factory=dict)  # revoked down to
    control: deque = field(default_factory=deque)


class Admin:
    """Recovery as the administrator drives it; aborted and begun anew at any point."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.attempt = 0
        self.phase = "idle"
        self.members: tuple[Instance, ...] = ()
        self.waiting: set[Instance] = set()
        self.since: list[tuple[Instance, ...]] = []  # last view rebuilt everywhere, and those tried since
        self.dead: dict[Instance, DeadInstance] = {}
        self.stale = False  # members changed: begin anew

    def died(self, instance: Instance, *, clean: bool) -> None:
        if not clean:
            views = tuple(view for view in self.since if instance in view)
            self.dead[instance] = DeadInstance(instance.node, instance.incarnation, instance.node, views)
        self.stale = True

    def step(self) -> None:
        if self.stale:
            self.stale = False
            self.attempt += 1
            self.members = tuple(sorted(self.world.peers))
            self._all("suspend", self.attempt)
        elif not self.waiting and self.phase == "suspend":
            addresses = tuple(PeerAddress(*instance, "127.0.0.1", 1) for instance in self.members)
            self.since.append(self.members)
            self._all("rebuild", LockspaceView(self.attempt, addresses, tuple(self.dead.values())))
        elif not self.waiting and self.phase == "rebuild":
            self.since = self.since[-1:]
            self._all("resume", self.attempt)
        elif not self.waiting and self.phase == "resume":
            self.phase = "idle"
        elif self.dead and self.phase != "suspend" and self.world.rng.random() < 0.1:
            instance = self.world.rng.choice(sorted(self.dead))
            del self.dead[instance]
            self.world.replayed(instance)
            for member in self.members:
                if member in self.world.peers:
                    self.world.peers[member].control.append(("release_ghosts", instance))

    def ack(self, instance: Instance, phase: str, attempt: int) -> None:
        if phase == self.phase and attempt == self.attempt:
            self.waiting.discard(instance)

    def _all(self, phase: str, argument: object) -> None:
        self.phase = phase
        self.waiting = set(self.members)
        for instance in self.members:
            if instance in self.world.peers:
                self.world.peers[instance].control.append((phase, argument))


class World:
    """See the module."""

    def __init__(self, seed: int, *, nodes: int = 4, resources: int = 6, fault_rate: float = 0.01) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.fault_rate = fault_rate
        self.nodes = nodes
        self.resources = [Resource(1, i) for i in range(resources)]
        self.peers: dict[Instance, Peer] = {}
        self.links: dict[tuple[Instance, Instance], deque[bytes]] = {}
        self.ghosts: dict[Instance, dict[Resource, int]] = {}  # the truth about the dead
        self.versions: Counter[Resource] = Counter()
        self.valid: dict[Resource, bool] = dict.fromkeys(self.resources, False)
        self.counts: Counter[str] = Counter()
        self.trace: list[str] | None = None
        self.incarnations = 0
        self.quiet = False
        self.admin = Admin(self)
        for node in range(nodes):
            self.start(node)

    # --- running ---

    def run(self, steps: int) -> None:
        """Faults for ``steps`` steps, then heal and demand progress."""
        for _ in range(steps):
            self.step()
        self.quiet = True
        for _ in range(200000):
            if not self.step():
                break
        else:
            raise AssertionError("C3: never at rest")
        self.check_rest()

    def step(self) -> bool:
        """One thing happens; False when there is nothing left to happen."""
        rng = self.rng
        if not self.quiet and rng.random() < self.fault_rate:
            self.fault()
        links = [link for link, queue in self.links.items() if queue]
        controls = [instance for instance, peer in self.peers.items() if peer.control]
        working = [instance for instance, peer in self.peers.items() if peer.core.working]
        kinds = (
            ["admin"]
            + ["work"] * (4 * bool(working))
            + ["link"] * (6 * bool(links))
            + ["control"] * (2 * bool(controls))
            + ["user"] * 4
        )
        kind = rng.choice(kinds)
        if self.quiet and not links and not controls and not working:
            busy = any(peer.told for peer in self.peers.values())
            if not busy and not self.admin.stale and not self.admin.dead and self.admin.phase == "idle":
                return False
        if kind == "link":
            self.deliver(*rng.choice(links))
        elif kind == "work":
            instance = rng.choice(working)
            self.peers[instance].core.work(rng.randint(1, 4))
            self.flush(instance)
        elif kind == "control":
            self.control(rng.choice(controls))
        elif kind == "admin":
            self.admin.step()
        elif self.peers:
            self.use(rng.choice(sorted(self.peers)), rng.choice(self.resources))
        self.check_holders()
        self.check_arbiters()
        return True

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(text)

    # --- faults ---

    def start(self, node: int) -> None:
        self.incarnations += 1
        instance = Instance(node, self.incarnations)
        enqueue = by_priority if self.seed % 4 == 3 else first_come
        self.peers[instance] = Peer(LockspaceCore(node, instance.incarnation, SHIFT, enqueue))
        self.admin.stale = True
        self.note(f"start {instance}")

    def fault(self) -> None:
        rng = self.rng
        up = {instance.node for instance in self.peers}
        down = [node for node in range(self.nodes) if node not in up]
        kind = rng.choice(("kill", "kill", "start", "start", "leave", "again"))
        if kind == "kill" and len(self.peers) > 1:
            self.kill(rng.choice(sorted(self.peers)))
        elif kind == "start" and down:
            self.start(rng.choice(down))
        elif kind == "leave" and len(self.peers) > 1:
            self.leave(rng.choice(sorted(self.peers)))
        elif kind == "again":
            self.admin.stale = True

    def kill(self, instance: Instance) -> None:
        peer = self.peers.pop(instance)
        held = {resource: peer.core.held(resource) for resource in self.resources}
        self.ghosts[instance] = {resource: mode for resource, mode in held.items() if is_write(mode)}
        for resource, mode in held.items():
            if VALUE_WRITE_MASK >> mode & 1:
                self.valid[resource] = False
        self.note(f"kill {instance} holding {self.ghosts[instance]}")
        self._cut(instance)
        self.admin.died(instance, clean=False)
        self.counts["kills"] += 1

    def leave(self, instance: Instance) -> None:
        peer = self.peers[instance]
        if peer.core.state != "running":
            return
        for resource in self.resources:
            if resource in peer.asked:
                peer.core.cancel(resource)
                del peer.asked[resource]
                self.flush(instance)
            if peer.core.held(resource):
                peer.core.release(resource, 0)
                self.flush(instance)
        peer.core.leave()
        del self.peers[instance]
        self._cut(instance)
        self.admin.died(instance, clean=True)
        self.note(f"leave {instance}")
        self.counts["leaves"] += 1

    def _cut(self, gone: Instance) -> None:
        """What the instance sent last may be lost with its links; what was sent to it is."""
        for (source, target), queue in self.links.items():
            if source == gone:
                for _ in range(self.rng.randint(0, len(queue))):
                    queue.pop()
            elif target == gone:
                queue.clear()

    def replayed(self, instance: Instance) -> None:
        self.note(f"replayed {instance}")
        del self.ghosts[instance]

    # --- delivery ---

    def deliver(self, source: Instance, target: Instance) -> None:
        attempt, message = decode_untrusted(self.links[source, target].popleft())
        self.note(f"{source} -> {target} @{attempt} {message}")
        self.counts[type(message).__name__] += 1
        self.peers[target].core.receive(source.node, attempt, message)
        self.flush(target)

    def control(self, instance: Instance) -> None:
        peer = self.peers[instance]
        call, argument = peer.control.popleft()
        self.note(f"admin -> {instance} {call} {argument}")
        getattr(peer.core, call)(argument)
        self.flush(instance)
        if call in ("suspend", "resume"):
            self.admin.ack(instance, call, argument)

    def flush(self, instance: Instance) -> None:
        """Carry out what a core wants done; tell its user."""
        peer = self.peers[instance]
        effects = peer.core.take_effects()
        for node, attempt, message in effects.send:
            target = next((other for other in self.peers if other.node == node), None)
            if target is not None:
                self.links.setdefault((instance, target), deque()).append(encode(attempt, message))
        for event in effects.events:
            if isinstance(event, GrantedEvent):
                self.granted(instance, event.resource, event.grant)
            elif isinstance(event, DeniedEvent):
                del peer.asked[event.resource]
            elif isinstance(event, RevokeEvent):
                peer.told[event.resource] = event.mode
            elif isinstance(event, RebuiltEvent):
                self.admin.ack(instance, "rebuild", event.attempt)

    # --- the user ---

    def use(self, instance: Instance, resource: Resource) -> None:
        rng = self.rng
        peer = self.peers[instance]
        held = peer.core.held(resource)
        told = peer.told.get(resource)
        if told is not None and (self.quiet or rng.random() < 0.6):
            del peer.told[resource]
            if not covers(told, held) and covers(held, told):  # else a lower revoke follows
                self.release(instance, resource, told)
        elif self.quiet:
            return
        elif resource in peer.asked:
            if rng.random() < 0.1:
                peer.core.cancel(resource)
                del peer.asked[resource]
        elif held and rng.random() < 0.3:
            self.release(instance, resource, rng.choice([m for m in MODES if m != held and covers(held, m)]))
        else:
            modes = [mode for mode in MODES if mode not in (0, held) and covers(mode, held)]
            if modes:
                self.ask(instance, resource, rng.choice(modes), try_=rng.random() < 0.15)
        self.flush(instance)

    def ask(self, instance: Instance, resource: Resource, mode: int, *, try_: bool) -> None:
        peer = self.peers[instance]
        self.note(f"{instance} asks {resource} {mode} try={try_}")
        peer.asked[resource] = mode
        extras = self.extras(peer, resource) if self.rng.random() < 0.2 else []
        peer.asked.update(dict.fromkeys(extras, mode))
        grant = peer.core.request(resource, mode, try_=try_, priority=self.rng.choice((0, 0, 7)), extras=extras)
        if grant is not None:
            self.granted(instance, resource, grant)

    def extras(self, peer: Peer, but: Resource) -> list[Resource]:
        """Some of what the peer neither holds nor has asked for."""
        free = [other for other in self.resources if other not in (but, *peer.asked) and not peer.core.held(other)]
        return self.rng.sample(free, self.rng.randint(0, len(free)))

    def release(self, instance: Instance, resource: Resource, mode: int) -> None:
        peer = self.peers[instance]
        value = None
        if VALUE_WRITE_MASK >> peer.core.held(resource) & 1 and self.rng.random() < 0.7:
            self.versions[resource] += 1
            self.valid[resource] = True
            value = self.versions[resource].to_bytes(4, "little")
        self.note(f"{instance} releases {resource} to {mode} value={value!r}")
        peer.core.release(resource, mode, value)

    def granted(self, instance: Instance, resource: Resource, grant: Grant) -> None:
        peer = self.peers[instance]
        self.note(f"{instance} granted {resource} {grant}")
        assert peer.asked.pop(resource) == grant.mode
        peer.told.pop(resource, None)
        if grant.finish >= 0:
            peer.told[resource] = grant.finish
        self.counts["grants"] += 1
        if grant.value is None:
            return
        self.counts["valid values"] += 1
        version = int.from_bytes(grant.value, "little")
        if VALUE_CURRENT_MASK >> grant.mode & 1:
            assert self.valid[resource], f"C2: {resource} valid at {instance} after its writer died"
            assert version == self.versions[resource], f"C2: {resource} {version} != {self.versions[resource]}"
        assert version <= self.versions[resource]

    # --- checks ---

    def check_holders(self) -> None:
        for resource in self.resources:
            holders = [(instance, peer.core.held(resource)) for instance, peer in self.peers.items()]
            holders += [(instance, held.get(resource, 0)) for instance, held in self.ghosts.items()]
            taken = [(instance, mode) for instance, mode in holders if mode]
            for i, (one, mode) in enumerate(taken):
                for other, second in taken[:i]:
                    assert compatible(mode, second), f"C1: {resource}: {one} has {mode}, {other} has {second}"

    def check_arbiters(self) -> None:
        """C4: no grant by two masters."""
        seen: dict[tuple[int, Resource], Instance] = {}
        for instance, peer in self.peers.items():
            for resource, arbiter in peer.core.arbitrated():
                assert arbiter == instance.node, f"C4: {instance} has a record of {resource}, which is {arbiter}'s"
                other = seen.setdefault((peer.core.attempt, resource), instance)
                assert other == instance, f"C4: {resource} at {other} and at {instance}"

    def check_rest(self) -> None:
        for instance, peer in self.peers.items():
            assert not peer.asked, f"C3: {instance} still waits for {peer.asked}"
            assert peer.core.state == "running", f"C3: {instance} {peer.core.state}"
            assert peer.core.attempt == self.admin.attempt
            for entry in peer.core.dump():
                assert not entry.get("waiting"), f"C3: {instance} {entry}"
                assert not entry.get("ghosts"), f"C3: {instance} {entry}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Replay one seed of the lock manager's simulation.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--fault-rate", type=float, default=0.01)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    world = World(options.seed, nodes=options.nodes, fault_rate=options.fault_rate)
    world.trace = [] if options.trace else None
    try:
        world.run(options.steps)
    finally:
        print("\n".join(world.trace or []))
        print(f"seed {options.seed}: {dict(world.counts)}, attempts {world.admin.attempt}")


if __name__ == "__main__":
    main()
