"""What a message costs, in counts: system calls, scheduler passes, task switches, frames (003-33, 003-41).

Times depend on the machine, these do not; ``scripts/bench`` has the times.
"""

from __future__ import annotations

import socket
from collections import Counter

import pytest
import trio
import trio.testing

from membership.seams import Delivery, LinkUp
from membership.transport import links as links_module
from tests.membership.test_transport_links import cluster, introduce

pytestmark = pytest.mark.seed("003-33")


class CountedSocket:
    """A socket that counts its calls."""

    def __init__(self, inner: socket.socket, calls: Counter[str]) -> None:
        self._inner, self._calls = inner, calls

    def fileno(self) -> int:
        return self._inner.fileno()

    def close(self) -> None:
        self._inner.close()

    def send(self, data) -> int:
        self._calls["send"] += 1
        return self._inner.send(data)

    def recv(self, size: int) -> bytes:
        self._calls["recv"] += 1
        return self._inner.recv(size)


class Watch(trio.abc.Instrument):
    """Counts what trio does."""

    def __init__(self, calls: Counter[str]) -> None:
        self._calls = calls

    def before_io_wait(self, timeout: float) -> None:
        self._calls["passes"] += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._calls["steps"] += 1


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    real = links_module.Connection
    monkeypatch.setattr(links_module, "Connection", lambda sock, *rest: real(CountedSocket(sock, counted), *rest))
    monkeypatch.setattr(links_module, "BEAT_SECONDS", 1000.0)
    return counted


async def test_a_lone_round_trip_costs_two_sends_two_receives_and_three_passes(calls):
    """A pass where it is answered, one where the answer is read, and one for the task that waits for it."""
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b = await start(0), await start(1)
        waiting: list[trio.lowlevel.Task] = []

        def answer(event) -> None:
            if isinstance(event, Delivery):
                b.mesh.send(0, event.payload)

        def take(event) -> None:
            if isinstance(event, Delivery):
                trio.lowlevel.reschedule(waiting.pop())

        async def ask() -> None:
            a.mesh.send(1, b"request")
            waiting.append(trio.lowlevel.current_task())
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)

        nursery.start_soon(a.mesh.serve, take)
        nursery.start_soon(b.mesh.serve, answer)
        introduce(a, b)
        await ask()
        await trio.testing.wait_all_tasks_blocked()
        watch = Watch(calls)
        await ask()
        before = a.mesh.statistics()
        calls.clear()
        trio.lowlevel.add_instrument(watch)
        for _ in range(100):
            await ask()
        trio.lowlevel.remove_instrument(watch)
        after = a.mesh.statistics()
        assert dict(calls) == {"send": 200, "recv": 200, "passes": 300, "steps": 300}
        assert after["frames_sent"] - before["frames_sent"] == 100
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("tasks", "least"), [(3, 1), (10, 3), (100, 10)])
async def test_under_load_messages_share_frames(calls, tasks, least):
    """Many tasks that each wait for their answer: all that became possible together travels together."""
    async with cluster() as start, trio.open_nursery() as nursery:
        a, b = await start(0), await start(1)
        waiting: dict[bytes, trio.lowlevel.Task] = {}

        def answer(event) -> None:
            if isinstance(event, Delivery):
                b.mesh.send(0, event.payload)

        def take(event) -> None:
            if isinstance(event, Delivery):
                trio.lowlevel.reschedule(waiting.pop(event.payload))

        async def work(name: bytes) -> None:
            for _ in range(20):
                a.mesh.send(1, name)
                waiting[name] = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.SUCCEEDED)

        nursery.start_soon(a.mesh.serve, take)
        nursery.start_soon(b.mesh.serve, answer)
        introduce(a, b)
        async with trio.open_nursery() as workers:
            for i in range(tasks):
                workers.start_soon(work, b"%d" % i)
        for node in a, b:
            sent = node.mesh.statistics()
            assert sent["messages_sent"] == 20 * tasks
            assert sent["frames_sent"] * least < sent["messages_sent"]
        assert calls["send"] == sum(node.mesh.statistics()["frames_sent"] for node in (a, b))
        nursery.cancel_scope.cancel()


async def test_messages_for_many_peers_caused_by_one_packet_leave_once_to_each(calls):
    async with cluster() as start, trio.open_nursery() as nursery:
        nodes = [await start(i) for i in range(3)]

        def fan_out(event) -> None:
            if isinstance(event, Delivery) and event.node == 0:
                for other in 0, 2:
                    nodes[1].mesh.send(other, event.payload)

        nursery.start_soon(nodes[1].mesh.serve, fan_out)
        introduce(*nodes)
        for node in nodes[0], nodes[2]:
            await node.next(LinkUp)
            await node.next(LinkUp)
        for _ in range(2):  # the first one alone, the others together; and then all together
            for i in range(50):
                nodes[0].mesh.send(1, b"%d" % i)
            for node in nodes[0], nodes[2]:
                assert [(await node.next(Delivery)).payload for _ in range(50)] == [b"%d" % i for i in range(50)]
        found = nodes[1].mesh.statistics()
        assert found["messages_sent"] == 200
        assert found["frames_sent"] <= 2 * 3
        nursery.cancel_scope.cancel()
