"""A cluster of lock cores whose every message is delivered by hand, and ``--rewrite-dlm`` for the transcripts."""

from __future__ import annotations

from collections import Counter, deque

import pytest

from dlm.client import DeniedEvent, GrantedEvent, RevokeEvent
from dlm.directory import Directory
from dlm.lockspace import LockspaceCore, RebuiltEvent
from dlm.messages import decode_untrusted, encode
from dlm.modes import NAMES
from dlm.names import Resource
from membership.seams import PeerAddress
from membership.views import DeadInstance, Instance, LockspaceView


def pytest_addoption(parser):
    parser.addoption("--rewrite-dlm", action="store_true", help="take tests/transcripts/dlm from what happens now")


class Cluster:
    """Nodes by id; the incarnation of the first start of node n is 100 + n, later ones 10 more each."""

    def __init__(self, *nodes):
        self.cores: dict[int, LockspaceCore] = {}
        self.links: dict[tuple[int, int], deque] = {}
        self.events: list = []  # (node, event)
        self.log: list[str] = []
        self.sent: Counter[str] = Counter()
        self.names: dict[Resource, str] = {}
        self.starts: Counter[int] = Counter()
        self.attempt = 0
        for node in nodes:
            self.start(node)
        self.change()
        self.log.clear()
        self.sent.clear()

    def start(self, node):
        self.cores[node] = LockspaceCore(node, 100 + node + 10 * self.starts[node], 0)
        self.starts[node] += 1

    def instance(self, node):
        return Instance(node, self.cores[node].incarnation)

    def kill(self, node, *views):
        """Its death certificate, with the views (tuples of instances) given."""
        core = self.cores.pop(node)
        for link in [link for link in self.links if node in link]:
            del self.links[link]
        return DeadInstance(node, core.incarnation, node, views)

    def instances(self):
        return tuple(self.instance(node) for node in sorted(self.cores))

    def suspend(self, *nodes):
        """A new attempt, at these nodes (default: all)."""
        self.attempt += 1
        for node in nodes or sorted(self.cores):
            self.cores[node].suspend(self.attempt)

    def rebuild(self, *dead, nodes=()):
        view = LockspaceView(self.attempt, tuple(PeerAddress(*one, "127.0.0.1", 1) for one in self.instances()), dead)
        for node in nodes or sorted(self.cores):
            self.cores[node].rebuild(view)
            self.flush(node)

    def resume(self, *nodes):
        for node in nodes or sorted(self.cores):
            self.cores[node].resume(self.attempt)
            self.flush(node)

    def change(self, *dead):
        """A whole recovery up to RESUME."""
        self.suspend()
        self.rebuild(*dead)
        self.deliver()
        self.resume()
        self.deliver()

    def release_ghosts(self, dead):
        for node in sorted(self.cores):
            self.cores[node].release_ghosts(dead.instance)
            self.flush(node)
        self.deliver()

    def mastered_by(self, master, nodes=None, *, avoid=()):
        """A resource that ``master`` masters among ``nodes``."""
        directory = Directory(nodes or sorted(self.cores), 0)
        return next(
            resource for i in range(9999) if directory.master(resource := Resource(1, i)) == master and i not in avoid
        )

    # --- what the users do ---

    def request(self, node, resource, mode, **options):
        grant = self.cores[node].request(resource, mode, **options)
        self.flush(node)
        return grant

    def release(self, node, resource, mode=0, value=None):
        self.cores[node].release(resource, mode, value)
        self.flush(node)

    def cancel(self, node, resource):
        self.cores[node].cancel(resource)
        self.flush(node)

    def get(self, node, resource, mode):
        """Request, deliver everything, and return the grant; revokes are obeyed at once."""
        grant = self.request(node, resource, mode)
        for _ in range(50):
            if grant is not None:
                return grant
            self.deliver()
            events, self.events = self.events, []
            for who, event in events:
                if isinstance(event, RevokeEvent):
                    self.release(who, event.resource, event.mode)
                elif isinstance(event, GrantedEvent) and (who, event.resource) == (node, resource):
                    grant = event.grant
                else:
                    self.events.append((who, event))
        return grant

    def held(self, resource):
        return {node: core.held(resource) for node, core in sorted(self.cores.items()) if core.held(resource)}

    # --- the network ---

    def flush(self, node):
        while self.cores[node].work():
            pass
        effects = self.cores[node].take_effects()
        for target, attempt, message in effects.send:
            self.post(node, target, attempt, message)
        for event in effects.events:
            if not isinstance(event, RebuiltEvent):
                self.events.append((node, event))
                self.log.append(f"  #{node} {self.event_text(event)}")

    def post(self, node, target, attempt, message):
        if target in self.cores:
            self.links.setdefault((node, target), deque()).append(encode(attempt, message))

    def deliver(self, *link):
        """All messages (of one link, one message); return how many."""
        count = 0
        while links := [pair for pair in sorted(self.links) if self.links[pair] and (not link or pair == link)]:
            source, target = links[0]
            attempt, message = decode_untrusted(self.links[links[0]].popleft())
            self.sent[type(message).__name__] += 1
            self.log.append(f"#{source} -> #{target} {self.message_text(message)}")
            self.cores[target].receive(source, attempt, message)
            self.flush(target)
            count += 1
            if link:
                break
        return count

    # --- as text ---

    def message_text(self, message):
        words = [type(message).__name__]
        if hasattr(message, "resource"):
            words.append(self.names.get(message.resource, str(message.resource)))
        if hasattr(message, "mode"):
            words.append(NAMES[message.mode])
        if getattr(message, "finish", -1) >= 0:
            words.append(f"finish={NAMES[message.finish]}")
        if getattr(message, "hand_over", None) is not None:
            words.append("(hand-over)")
        return " ".join(words)

    def event_text(self, event):
        name = self.names.get(event.resource, str(event.resource))
        if isinstance(event, GrantedEvent):
            finish = f" finish={NAMES[event.grant.finish]}" if event.grant.finish >= 0 else ""
            return f"is granted {name} {NAMES[event.grant.mode]}{finish}"
        if isinstance(event, DeniedEvent):
            return f"is denied {name}"
        return f"is asked to go down to {NAMES[event.mode]} on {name}"


@pytest.fixture
def cluster_of():
    return Cluster
