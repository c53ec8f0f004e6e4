"""Time a rebuild of many locks over real links on loopback, and how long it keeps the event loop from its other work.

    python tests/dlm/rebuild_bench.py [--locks 100000] [--nodes 3] [--together] [--json]

Each node is a process, unless ``--together`` puts them all into this one.  The locks are spread evenly, a tenth with
a value block.  A node that died is in the view, so that the dead and their doubts are part of the work.
Not a test: times depend on the machine.  Counts are tested in ``test_rebuild.py``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from dataclasses import astuple
from functools import partial

import trio

if __name__ == "__main__":
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from dlm.modes import EX, PR
from dlm.names import Resource
from dlm.service import LockService
from membership.clock import SystemClock, SystemRng
from membership.seams import PeerAddress
from membership.transport.links import LinkMesh
from membership.views import DeadInstance, Instance, LockspaceView

DEAD = 9
JSON = "--json"
GC_THRESHOLDS = (50_000, 20, 100)  # as a mount process has them (matrixfs/node.py)


class User:
    """Takes what it gets; counts the answers."""

    def __init__(self):
        self.answers = 0

    def granted(self, resource, grant):
        self.answers += 1

    def denied(self, resource):
        self.answers += 1

    def revoke(self, resource, mode):
        raise AssertionError(f"nobody asks for {resource}")


class Node:
    """One lock service on a mesh of its own."""

    def __init__(self, number):
        self.number = number
        self.user = User()
        identity = PeerAddress(number, 1, f"127.0.0.{number + 1}", 0)
        self.mesh = LinkMesh(identity, "bench", b"u" * 16, b"k" * 32, SystemClock(), SystemRng())
        self.service = LockService(number, 1, self.mesh, 4, self.user)
        self.gap = 0.0
        self.watched = False

    async def listen(self):
        host = f"127.0.0.{self.number + 1}"
        return PeerAddress(self.number, 1, host, await self.mesh.listen(host, 0))

    async def take(self, mine):
        """Hold all of ``mine``."""
        returned = 0
        for i in range(0, len(mine), 64):
            first, *extras = mine[i : i + 64]
            returned += self.service.request(first, EX, extras=extras) is not None
            await trio.lowlevel.checkpoint()
        while returned + self.user.answers < len(mine):  # noqa: ASYNC110  (the service has no event for it)
            await trio.sleep(0.01)
        for resource in mine[::10]:
            self.service.release(resource, PR, b"v" * 64)

    async def rebuild(self, view):
        """Seconds of CPU from SUSPEND to the acknowledgement."""
        self.gap, self.watched = 0.0, True
        start = time.process_time()
        self.service.suspend(view.attempt)
        assert await self.service.rebuild(view)
        return time.process_time() - start

    async def resume(self, attempt):
        start = time.process_time()
        self.service.resume(attempt)
        await trio.lowlevel.checkpoint()
        seconds = time.process_time() - start
        self.watched = False
        return seconds

    async def watch(self):
        """The longest time for which other tasks had to wait, in seconds of this process's CPU."""
        while True:
            before = time.process_time()
            await trio.sleep(0.001)
            if self.watched:
                self.gap = max(self.gap, time.process_time() - before)

    async def live(self, task_status):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.mesh.run)
            await nursery.start(self.service.run)
            nursery.start_soon(self.watch)
            task_status.started()


def view_of(attempt, addresses, *, dead):
    instances = tuple(sorted(Instance(a.node, a.incarnation) for a in addresses))
    certificate = DeadInstance(DEAD, 1, DEAD, ((*instances, Instance(DEAD, 1)),))
    return LockspaceView(attempt, tuple(addresses), (certificate,) if dead else ())


def share(number, nodes, locks):
    return [Resource(1, i) for i in range(number, locks, nodes)]


async def together(nodes, locks):
    """All nodes in this process."""
    async with trio.open_nursery() as nursery:
        all_nodes = [Node(number) for number in range(nodes)]
        addresses = [await node.listen() for node in all_nodes]
        for node in all_nodes:
            await nursery.start(node.live)

        async def everywhere(call):
            results = {}

            async def one(node):
                results[node.number] = await call(node)

            async with trio.open_nursery() as inner:
                for node in all_nodes:
                    inner.start_soon(one, node)
            return results

        first, second = view_of(1, addresses, dead=False), view_of(2, addresses, dead=True)
        await everywhere(lambda node: node.rebuild(first))
        await everywhere(lambda node: node.resume(1))
        await everywhere(lambda node: node.take(share(node.number, nodes, locks)))
        start = time.perf_counter()
        rebuilt = await everywhere(lambda node: node.rebuild(second))
        resumed = await everywhere(lambda node: node.resume(2))
        total = time.perf_counter() - start
        report(nodes, locks, total, rebuilt, resumed, {n.number: n.gap for n in all_nodes})
        nursery.cancel_scope.cancel()


async def child(number, nodes, locks):
    """One node, told by lines on stdin."""
    node = Node(number)
    lines = trio.lowlevel.FdStream(os.dup(0))
    buffered = b""

    async def order():
        nonlocal buffered
        while b"\n" not in buffered:
            buffered += await lines.receive_some()
        line, buffered = buffered.split(b"\n", 1)
        return json.loads(line)

    def answer(value):
        print(json.dumps(value), flush=True)

    answer(astuple(await node.listen()))
    addresses = [PeerAddress(*one) for one in await order()]
    async with trio.open_nursery() as nursery:
        await nursery.start(node.live)
        for attempt in (1, 2):
            await order()
            answer(await node.rebuild(view_of(attempt, addresses, dead=attempt == 2)))
            await order()
            answer([await node.resume(attempt), node.gap])
            if attempt == 1:
                await node.take(share(number, nodes, locks))
                answer(node.service.statistics())
        await order()
        nursery.cancel_scope.cancel()


async def apart(nodes, locks):
    """Each node a process."""
    command = [sys.executable, __file__, "--nodes", str(nodes), "--locks", str(locks), "--child"]
    children = []
    async with trio.open_nursery() as nursery:
        for number in range(nodes):
            children.append(
                await nursery.start(partial(trio.run_process, [*command, str(number)], stdin=-1, stdout=-1))
            )
        buffers = dict.fromkeys(range(nodes), b"")

        async def tell(value):
            for process in children:
                await process.stdin.send_all(json.dumps(value).encode() + b"\n")

        async def answers():
            found = []
            for number, process in enumerate(children):
                while b"\n" not in buffers[number]:
                    buffers[number] += await process.stdout.receive_some()
                line, buffers[number] = buffers[number].split(b"\n", 1)
                found.append(json.loads(line))
            return found

        await tell(await answers())
        for attempt in (1, 2):
            start = time.perf_counter()
            await tell("rebuild")
            rebuilt = await answers()
            await tell("resume")
            resumed = await answers()
            total = time.perf_counter() - start
            if attempt == 1:
                await answers()
        await tell("end")
    gaps = {number: gap for number, (_, gap) in enumerate(resumed)}
    report(nodes, locks, total, dict(enumerate(rebuilt)), {n: s for n, (s, _) in enumerate(resumed)}, gaps)


def report(nodes, locks, total, rebuilt, resumed, gaps):
    if JSON in sys.argv:
        print(json.dumps({"seconds": total, "longest_stretch": max(gaps.values())}))
        return
    print(
        f"{locks} locks, {nodes} nodes: {total:.3f} s from SUSPEND to the last RESUME; "
        f"CPU of a node: rebuild {max(rebuilt.values()):.3f} s, resume {max(resumed.values()):.3f} s, "
        f"longest time at a stretch {max(gaps.values()) * 1000:.1f} ms"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locks", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--together", action="store_true")
    parser.add_argument(JSON, action="store_true", help="one JSON document: what scripts/bench reads")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gc.set_threshold(*GC_THRESHOLDS)
    if options.child is not None:
        trio.run(child, options.child, options.nodes, options.locks)
    else:
        trio.run(together if options.together else apart, options.nodes, options.locks)


if __name__ == "__main__":
    main()
