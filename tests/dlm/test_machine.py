"""Hypothesis drives a lockspace of two to four nodes: any interleaving of calls, deliveries, deaths and views.

The model beside it is the truth that ``tests/sim/dlm_world.py`` keeps of the living, the dead and the values (C1, C2,
C4 after every step); at the end the faults stop, and everybody must get what he asked for (C3).  With two nodes
arbitration moves, and extras come with requests.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dlm.modes import MODES, covers
from tests.sim.dlm_world import World

PICK = st.integers(0, 1 << 16)


class Lockspace(RuleBasedStateMachine):
    world = None

    @initialize(nodes=st.integers(2, 4), seed=st.integers(0, 3))
    def begin(self, nodes, seed):
        """``seed``: 3 has queues by priority."""
        self.world = World(seed, nodes=nodes, resources=3, fault_rate=0)
        for _ in range(40):
            self.world.admin.step()
            self.deliver_all()

    def deliver_all(self):
        world = self.world
        while True:
            for instance, peer in world.peers.items():
                while peer.control:
                    world.control(instance)
                while peer.core.working:
                    peer.core.work()
                    world.flush(instance)
            links = [link for link, queue in world.links.items() if queue]
            if not links:
                return
            world.deliver(*links[0])

    def one(self, choices, pick):
        choices = sorted(choices)
        return choices[pick % len(choices)]

    @rule(who=PICK, what=PICK, mode=st.sampled_from(MODES[1:]), try_=st.booleans())
    def ask(self, who, what, mode, try_):
        world = self.world
        instance, resource = self.one(world.peers, who), self.one(world.resources, what)
        peer = world.peers[instance]
        held = peer.core.held(resource)
        if resource not in peer.asked and mode != held and covers(mode, held):
            world.ask(instance, resource, mode, try_=try_)
            world.flush(instance)

    @rule(who=PICK, what=PICK, mode=st.sampled_from(MODES))
    def release(self, who, what, mode):
        world = self.world
        instance, resource = self.one(world.peers, who), self.one(world.resources, what)
        held = world.peers[instance].core.held(resource)
        if held and mode != held and covers(held, mode):
            world.release(instance, resource, mode)
            world.flush(instance)

    @rule(who=PICK)
    def obey(self, who):
        world = self.world
        instance = self.one(world.peers, who)
        peer = world.peers[instance]
        for resource in list(peer.told):
            mode, held = peer.told.pop(resource), peer.core.held(resource)
            if not covers(mode, held) and covers(held, mode):
                world.release(instance, resource, mode)
                world.flush(instance)

    @rule(who=PICK, what=PICK)
    def cancel(self, who, what):
        world = self.world
        instance, resource = self.one(world.peers, who), self.one(world.resources, what)
        peer = world.peers[instance]
        if resource in peer.asked:
            peer.core.cancel(resource)
            del peer.asked[resource]
            world.flush(instance)

    @precondition(lambda self: any(self.world.links.values()))
    @rule(pick=PICK, count=st.integers(1, 4))
    def deliver(self, pick, count):
        for _ in range(count):
            links = [link for link, queue in self.world.links.items() if queue]
            if links:
                self.world.deliver(*self.one(links, pick))

    @rule(pick=PICK, count=st.integers(1, 3))
    def recover(self, pick, count):
        """The administrator, control calls and pieces of rebuilds."""
        world = self.world
        for _ in range(count):
            world.admin.step()
            instance = self.one(world.peers, pick)
            if world.peers[instance].control:
                world.control(instance)
            world.peers[instance].core.work(1 + pick % 3)
            world.flush(instance)

    @precondition(lambda self: len(self.world.peers) > 1)
    @rule(who=PICK)
    def kill(self, who):
        self.world.kill(self.one(self.world.peers, who))

    @precondition(lambda self: len(self.world.peers) < self.world.nodes)
    @rule(pick=PICK)
    def start(self, pick):
        up = {instance.node for instance in self.world.peers}
        self.world.start(self.one([node for node in range(self.world.nodes) if node not in up], pick))

    @invariant()
    def nobody_holds_against_another_and_each_has_one_arbiter(self):
        if self.world is not None:
            self.world.check_holders()
            self.world.check_arbiters()

    def teardown(self):
        if self.world is not None:
            self.world.run(0)


@pytest.mark.seed("002-04", "003-19", "003-37", "003-42")
class TestLockspace(Lockspace.TestCase):
    settings = settings(max_examples=150, stateful_step_count=60, deadline=None, derandomize=True)
