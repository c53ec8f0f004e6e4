"""The control socket over a real unix socket: mount sessions, questions, hostile clients, deaths.

A fake Node stands behind it; mount processes that have to die are real child processes.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from matrixfs.answers import Answers
from membership import control_mounts, control_stream
from membership.clock import SystemClock
from membership.control import serve_control
from membership.control_ask import ask
from membership.control_client import MountSession, Query
from membership.control_wire import PROTOCOL_VERSION, encode_frame, encode_map, value_of_untrusted
from membership.disks import FoundFilesystem, OpenDisk
from membership.errors import BadMessage, Fenced, OperatorError, PeerError
from membership.label import Label
from membership.messages import Answer, Ask
from membership.mount_watch import LOOK_SECONDS
from membership.mounts import Left, MountChannel
from membership.orders import JournalState, Lease, MountRequest, Rebuild, Resume, Suspend, Suspended, Withdraw
from membership.presence import Landing
from membership.processes import process_start
from membership.relay import ASK_SECONDS_MAX, Relay
from membership.views import DeadInstance, Instance, LockspaceView

LABEL = Label(
    owner=b"u" * 16, cluster_name="web", cluster_key=b"k" * 32, data_block=1024, data_blocks=1000,
    heartbeat_ms=250, link_dead_ms=3000, renew_ms=500, lease_ms=4000, io_bound_ms=2000, margin_ms=1000,
)  # fmt: skip
REQUEST = MountRequest(
    fs_uuid=b"f" * 16, fs_name="web", pid=1, start_time=1, incarnation=2**64 - 1, host="127.0.0.1", port=4711,
    mountpoint="/mnt/a", journals=(JournalState(0, 0, 0, dirty=False),),
)  # fmt: skip


class CountingClock(SystemClock):
    """Real time for trio's sake, but waits for mount processes end at once when told to."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.impatient = False

    async def sleep(self, seconds: float) -> None:
        if seconds == LOOK_SECONDS:  # looking after a process is no waiting for it
            await trio.sleep(seconds)
            return
        self.slept.append(seconds)
        if self.impatient:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep_forever()


@dataclass
class FakeNode:
    """Admits everybody, remembers what it was told."""

    store: str
    state: str = "member"
    refuse: Exception | None = None
    channels: list[MountChannel] = field(default_factory=list)
    said: list[object] = field(default_factory=list)
    something_said: trio.Event = field(default_factory=trio.Event)
    stopped: bool = False
    posted: list[tuple[int, object]] = field(default_factory=list)  # to other matrixds
    clock: CountingClock = field(default_factory=CountingClock)

    def __post_init__(self) -> None:
        self.relay = Relay(self, self.clock)
        self.storage = self
        self.listed: list[int] = []

    def landing(self, disk: OpenDisk, mount: int) -> Landing:
        return Landing(disk.path, self.clock)

    async def is_listed(self, mount: int) -> bool:
        await trio.lowlevel.checkpoint()
        self.listed.append(mount)
        return mount == REQUEST.incarnation

    def reachable(self) -> dict[int, str]:
        return {3: "n3", 4: "n4"}

    def post(self, node: int, body: object) -> None:
        """Node 4 answers every question at once, of a mount with pid 44."""
        self.posted.append((node, body))
        if isinstance(body, Ask) and body.what != "silence":
            self.relay.receive(node, Answer(body.serial, 0, 44, "web", "/mnt/d", value_bytes({"asked": body.what})))

    def start(self, task) -> None:
        raise AssertionError("no peer asks")

    def status(self) -> dict:
        return {
            "state": self.state, "node": 3, "name": "n3", "host": "127.0.0.3", "others": ["127.0.1.3"],
            "store": self.store,
            "nodes": [{"id": 3, "link": "self"}, {"id": 4, "link": "up"}, {"id": 5, "link": "gone"}],
            "events": [{"wall_ns": 1, "kind": "join", "text": "n3 joined"}],
        }  # fmt: skip

    def own_answer(self, what: str) -> list | None:
        return [self.status()["events"]] * 2 if what == "node.events" else None

    def disk_of(self, filesystem: str) -> OpenDisk:
        if filesystem != "web":
            raise OperatorError(f"no filesystem {filesystem!r} in this cluster (it has: web)")
        return OpenDisk(LABEL, None, self.store, FoundFilesystem(b"f" * 16, "web"))

    async def command(self, what: str, arguments: dict) -> object:
        await trio.lowlevel.checkpoint()
        return {"did": what, "with": {key: value for key, value in arguments.items() if key != "kind"}}

    async def admit_mount(self, request: MountRequest) -> MountChannel:
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        channel = MountChannel(request, 3, 7, 12.5, 0, self._tell)
        self.channels.append(channel)
        return channel

    def _tell(self, _: MountChannel, said: object) -> None:
        self.said.append(said)
        self.something_said.set()
        self.something_said = trio.Event()

    async def wait_said(self, wanted: object) -> None:
        while wanted not in self.said:
            await self.something_said.wait()

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        if any(not c.is_left for c in self.channels):
            raise OperatorError("mounted here: /mnt/a")
        self.stopped = True


@pytest.fixture(autouse=True)
def no_suicide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most mount sessions here live in this very process, which a failing test must not kill."""
    kill = control_stream.PeerProcess.kill

    def kill_others(process: control_stream.PeerProcess) -> None:
        assert process.pid != os.getpid()
        kill(process)

    monkeypatch.setattr(control_stream.PeerProcess, "kill", kill_others)


@dataclass
class World:
    node: FakeNode
    clock: CountingClock
    state: str
    stopped: trio.Event
    cut: list[int] = field(default_factory=list)  # processes whose serving was aborted

    def cut_off(self, pid: int, _start: int) -> None:
        self.cut.append(pid)

    async def ask(self, kind: str, **fields: object) -> object:
        return await trio.to_thread.run_sync(ask, self.state, {"kind": kind, **fields})

    async def join(self, request: MountRequest = REQUEST) -> MountSession:
        session = await MountSession.connect(self.state, "web")
        await session.join(request)
        return session


def value_bytes(value: object) -> bytes:
    return encode_map({"kind": "value", "value": value})


async def answer_all(session: MountSession, answers: Answers, seen: list[Query]) -> None:
    """What a mount process does with questions."""
    async for query in session:
        seen.append(query)
        await session.answer(query, await answers.answer(query.what, query.arguments))


@asynccontextmanager
async def serving(path: Path):
    (path / "store").write_bytes(b"")
    node = FakeNode(str(path / "store"))
    world = World(node, node.clock, str(path), trio.Event())
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, world.node, LABEL, world.state, world.clock, world.stopped, world.cut_off)
        yield world
        nursery.cancel_scope.cancel()


async def test_the_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    (tmp_path / "matrixd.sock").write_text("left by a dead matrixd")
    async with serving(tmp_path):
        mode = os.stat(tmp_path / "matrixd.sock").st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        assert sorted(os.listdir(tmp_path)) == ["matrixd.sock", "store"]
    assert os.listdir(tmp_path) == ["store"]


async def test_questions(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        status = await world.ask("status")
        assert status["name"] == "n3"
        assert status["local_mounts"] == []
        assert await world.ask("events") == 2 * [{"wall_ns": 1, "kind": "join", "text": "n3 joined"}]
        with pytest.raises(OperatorError, match="does not know the request 'dance'"):
            await world.ask("dance")
        assert await world.ask("stop") is None
        await world.stopped.wait()
        assert world.node.stopped


@pytest.mark.seed("002-10")
async def test_a_mount_from_join_to_leave(tmp_path: Path) -> None:
    view = LockspaceView(
        7 << 32 | 1,
        (),
        (DeadInstance(5, 2**63, 2, ((Instance(5, 2**63), Instance(6, 1)),)),),
    )
    orders = [Suspend(view.attempt), Rebuild(view, ()), Resume(view.attempt, 0), Lease(12.5, 7)]
    async with serving(tmp_path) as world:
        session = await MountSession.connect(world.state, "web")
        assert session.cluster.store_path == str(tmp_path / "store")
        assert (session.cluster.data_offset, session.cluster.data_length) == (1024 * 4096, 1000 * 4096)
        admission = await session.join(REQUEST)
        assert (admission.journal, admission.generation, admission.lease_deadline) == (0, 7, 12.5)
        assert (admission.node_id, admission.cluster_key, admission.timing.lease) == (3, b"k" * 32, 4.0)
        (channel,) = world.node.channels
        own = process_start(os.getpid())
        assert channel.request == replace(REQUEST, pid=os.getpid(), start_time=own)  # C3

        for order in orders:
            channel.push(order)
        assert [await anext(session) for _ in orders] == orders
        await session.reply(Suspended(view.attempt))
        await world.node.wait_said(Suspended(view.attempt))

        with pytest.raises(OperatorError, match="mounted here"):
            await world.ask("stop")
        assert not world.stopped.is_set()
        ended = trio.Event()

        async def loop() -> None:
            async for _ in session:
                pytest.fail("no order was given")
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop)
            await session.left()
            await ended.wait()
        assert world.node.said == [Suspended(view.attempt), Left(clean=True)]
        assert world.clock.slept == []  # nobody had to be waited for
        session.close()


async def test_left_reads_its_goodbye_itself_when_no_loop_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        world.node.channels[0].push(Lease(1.0, 1))
        await session.left()
        assert world.node.said == [Left(clean=True)]
        await session.left()  # idempotent: the connection is gone, nothing is left to do
        assert [order async for order in session] == []


@pytest.mark.seed("002-26")
async def test_status_shows_the_counters_of_the_mounts(tmp_path: Path) -> None:
    def broken(_: object) -> dict:
        raise ZeroDivisionError

    async with serving(tmp_path) as world:
        sessions = [await world.join(), await world.join(replace(REQUEST, mountpoint="/mnt/b"))]
        tables = [Answers({"counters": lambda _: {"dlm": {"messages": 5}}}), Answers({"counters": broken})]
        async with trio.open_nursery() as nursery:
            for session, table in zip(sessions, tables, strict=True):
                nursery.start_soon(answer_all, session, table, [])
            status = await world.ask("status")
            nursery.cancel_scope.cancel()
        first, second = status["local_mounts"]
        assert first["counters"] == {"dlm": {"messages": 5}}
        assert (first["filesystem"], first["mountpoint"], first["pid"]) == ("web", "/mnt/a", os.getpid())
        assert "ZeroDivisionError" in second["counters"]["error"]
        (other,) = status["remote_mounts"]  # node 5 has no link: it is not asked
        assert (other["node"], other["pid"], other["counters"]) == (4, 44, {"asked": "counters"})
        for session in sessions:
            await session.left()


async def test_a_mount_that_does_not_answer_does_not_hold_up_status(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        world.clock.impatient = True
        status = await world.ask("status")
        assert status["local_mounts"][0]["counters"] is None
        assert world.clock.slept[0] == 1.0
        await session.left()  # a late answer to that query is no protocol error
        assert world.node.said == [Left(clean=True)]


async def test_a_question_goes_to_all_nodes_or_to_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        seen: list[Query] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, session, Answers({"add": lambda a: a["one"] + 1}), seen)
            found = await world.ask("ask", what="add", arguments={"one": 1, "kind": "forged"}, node=None)
            alone = await world.ask("ask", what="add", arguments={"one": 2}, node="")
            other = await world.ask("ask", what="silly", arguments={}, node="n4")
            unknown = await world.ask("ask", what="silly", arguments={}, node="")
            nursery.cancel_scope.cancel()
        assert found["node"] == 3
        mine, theirs = found["answers"]
        assert (mine["node"], mine["name"], theirs["node"], theirs["name"]) == (3, "n3", 4, "n4")
        assert value_of_untrusted(mine["mounts"][0]["value"]) == 2
        assert value_of_untrusted(theirs["mounts"][0]["value"]) == {"asked": "add"}
        assert theirs["mounts"][0]["pid"] == 44
        assert [answer["node"] for answer in alone["answers"]] == [3]
        assert [answer["node"] for answer in other["answers"]] == [4]
        with pytest.raises(OperatorError, match="can't answer 'silly'"):
            value_of_untrusted(unknown["answers"][0]["mounts"][0]["value"])
        with pytest.raises(OperatorError, match="no member of the cluster is called 'n9'"):
            await world.ask("ask", what="add", arguments={}, node="n9")
        for bad in ({"what": "x" * 33}, {"what": 5}, {"arguments": {"a": b"x" * 9000}}, {"arguments": None}):
            with pytest.raises(PeerError):
                await world.ask("ask", **{"what": "add", "arguments": {}, "node": "", **bad})
        await session.left()


@pytest.mark.seed("002-26")
async def test_some_questions_matrixd_answers_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()  # is not asked, and would not answer
        found = await world.ask("ask", what="node.events", arguments={}, node=None)
        mine, theirs = found["answers"]
        assert [value_of_untrusted(piece["value"])[0]["text"] for piece in mine["mounts"]] == 2 * ["n3 joined"]
        assert {piece["pid"] for piece in mine["mounts"]} == {os.getpid()}
        assert value_of_untrusted(theirs["mounts"][0]["value"]) == {"asked": "node.events"}
        await session.left()


async def test_who_does_not_answer_is_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        world.clock.impatient = True
        found = await world.ask("ask", what="silence", arguments={}, node=None)
        assert [(each["node"], each["mounts"] and each["mounts"][0]["value"]) for each in found["answers"]] == [
            (3, None), (4, None),
        ]  # fmt: skip
        assert found["answers"][1]["mounts"] is None
        assert max(world.clock.slept) == ASK_SECONDS_MAX
        await session.left()


async def test_a_mount_that_says_too_much_answers_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, session, Answers({"long": lambda _: "x" * 200_000}), [])
            found = await world.ask("ask", what="long", arguments={}, node="")
            nursery.cancel_scope.cancel()
        with pytest.raises(OperatorError, match="ask for less"):
            value_of_untrusted(found["answers"][0]["mounts"][0]["value"])
        await session.left()


LOCK = {"kind": "lock", "filesystem": "", "name": b"job", "exclusive": True, "wait": True, "pid": 7}


async def test_a_lock_lives_as_long_as_its_connection(tmp_path: Path) -> None:
    unlocked = trio.Event()
    seen: list[Query] = []

    async with serving(tmp_path) as world:
        with pytest.raises(OperatorError, match="no filesystem is mounted on this node"):
            await world.ask(**LOCK)
        session = await world.join()
        table = Answers({"lock": lambda _: None, "unlock": lambda _: unlocked.set()})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, session, table, seen)
            stream = await control_stream.connect(os.path.join(world.state, "matrixd.sock"))
            await stream.send(LOCK)
            assert (await stream.receive())["value"]["mountpoint"] == "/mnt/a"
            assert not unlocked.is_set()
            stream.close()
            await unlocked.wait()
            assert [query.what for query in seen] == ["lock", "unlock"]
            with pytest.raises(OperatorError, match="www is not mounted on this node"):
                await world.ask(**{**LOCK, "filesystem": "www"})
            nursery.cancel_scope.cancel()
        await session.left()


async def test_a_refused_lock_and_one_whose_mount_ends(tmp_path: Path) -> None:
    def refuse(_: object) -> None:
        raise OperatorError("job is locked")

    async with serving(tmp_path) as world:
        session = await world.join()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_all, session, Answers({"lock": refuse, "unlock": lambda _: None}), [])
            with pytest.raises(OperatorError, match="job is locked"):
                await world.ask(**LOCK)
            nursery.cancel_scope.cancel()
        stream = await control_stream.connect(os.path.join(world.state, "matrixd.sock"))
        await stream.send(LOCK)  # that nobody answers
        await session.left()
        assert await stream.receive() is None  # the mount is gone, so the lock is lost, or never was
        stream.close()


async def test_refusals_come_as_they_were_made(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.node.refuse = OperatorError("web is mounted here already")
        with pytest.raises(OperatorError, match="mounted here already"):
            await world.join()
        world.node.state = "joining"
        with pytest.raises(OperatorError, match="not a member of the cluster .joining."):
            await world.join()
        world.node.refuse = RuntimeError("a bug")  # C2: one connection, not the node
        world.node.state = "member"
        with pytest.raises(Exception, match="fault of its own"):
            await world.join()
        assert (await world.ask("status"))["state"] == "member"


async def test_losing_matrixd_is_fenced(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
    with pytest.raises(Fenced, match="lost matrixd"):
        await anext(session)
    with pytest.raises(Fenced):
        await session.reply(Suspended(1))
    with pytest.raises(Fenced):  # and it stays so
        await anext(session)
    await session.left()  # returns: nobody is there to be told


CHILD = """
import os, sys, trio
from membership import presence
from membership.control_client import MountSession, Query
from membership.orders import JournalState, MountRequest

async def main():
    session = await MountSession.connect(sys.argv[1], "web")
    request = MountRequest(b"f" * 16, "web", 1, 1, 9, "127.0.0.1", 1, "/mnt/a", (JournalState(0, 0, 0, False),))
    await session.join(request)
    if "write" in sys.argv[2]:
        presence.mark(os.open(session.cluster.store_path, os.O_RDWR))
    print("joined", flush=True)
    if "hang up" in sys.argv[2]:
        session.close()
        await trio.sleep_forever()
    if "leak" in sys.argv[2] and os.fork() == 0:
        sys.stdin.read()  # until the test lets go of us: a helper that holds the socket open
        os._exit(0)
    async for order in session:
        print(type(order).__name__, flush=True)

trio.run(main)
"""


@asynccontextmanager
async def child(world: World, behaviour: str):
    process = subprocess.Popen(  # noqa: ASYNC220 - it must die by a signal, and its fork is short
        [sys.executable, "-c", CHILD, world.state, behaviour],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert await trio.to_thread.run_sync(process.stdout.readline) == b"joined\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


async def test_a_killed_process_that_hangs_in_the_kernel_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptors are open, its pidfd is silent: only /proc tells (seen on real mounts, twice)."""
    hanging: set[int] = set()
    monkeypatch.setattr(control_mounts, "is_dying", lambda pid, _start: pid in hanging)
    async with serving(tmp_path) as world, child(world, "plain") as process:
        hanging.add(process.pid)
        while not world.cut:
            await trio.lowlevel.checkpoint()
        assert world.cut == [process.pid]
        assert world.node.said == []
        process.send_signal(signal.SIGKILL)  # what the abort lets happen
        await world.node.wait_said(Left(clean=False))


@pytest.mark.seed("002-10")
async def test_a_killed_mount_process_is_a_dead_instance(tmp_path: Path) -> None:
    async with serving(tmp_path) as world, child(world, "plain") as process:
        process.send_signal(signal.SIGKILL)
        await world.node.wait_said(Left(clean=False))
        assert world.cut == [process.pid]
        assert process.wait() == -signal.SIGKILL
        assert world.clock.slept.count(2.0) <= 1  # for a process slow to die, never for time to pass


async def test_a_dead_mount_is_dead_when_its_last_write_has_landed(tmp_path: Path) -> None:
    """The forked helper keeps the open file, as a queued write does."""
    async with serving(tmp_path) as world:
        world.clock.impatient = True
        async with child(world, "write, leak") as process:
            world.node.channels[0].push(Suspend(1))
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"Suspend\n"  # so it has forked
            process.send_signal(signal.SIGKILL)
            while len(world.clock.slept) < 20:
                await trio.lowlevel.checkpoint()
            assert process.wait() == -signal.SIGKILL
            assert world.node.said == []
            process.stdin.close()
            await world.node.wait_said(Left(clean=False))


async def test_a_helper_that_keeps_the_socket_open_hides_no_death(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.clock.impatient = True
        async with child(world, "leak") as process:
            world.node.channels[0].push(Suspend(1))
            assert await trio.to_thread.run_sync(process.stdout.readline) == b"Suspend\n"  # so it has forked
            process.send_signal(signal.SIGKILL)
            await world.node.wait_said(Left(clean=False))


async def test_kernels_that_do_not_hand_out_the_pidfd_of_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_stream, "_SO_PEERPIDFD", 9999)
    async with serving(tmp_path) as world, child(world, "plain") as process:
        process.send_signal(signal.SIGKILL)
        await world.node.wait_said(Left(clean=False))


async def test_a_bug_in_the_node_does_not_hide_the_death_of_a_mount(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        world.clock.impatient = True
        (channel,) = world.node.channels
        told = channel.tell

        def fail_once(channel: MountChannel, said: object) -> None:
            channel.tell = told
            raise ZeroDivisionError

        channel.tell = fail_once
        killed = trio.Event()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(control_stream.PeerProcess, "kill", lambda _: killed.set())
            patch.setattr(control_stream.PeerProcess, "wait_exit", lambda _: killed.wait())
            await session.reply(Suspended(1))
            await world.node.wait_said(Left(clean=False))
        session.close()


async def test_a_mount_that_hangs_up_is_killed_before_it_counts_as_dead(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        world.clock.impatient = True
        async with child(world, "mark, hang up") as process:
            await world.node.wait_said(Left(clean=False))
            os.kill(process.pid, 0)  # L1: it is a zombie at most, so its pid is still its own
            assert process.wait() == -signal.SIGKILL
        assert world.clock.slept[0] == 2.0


async def test_a_mount_whose_orders_end_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path) as world, child(world, "plain") as process:
        (channel,) = world.node.channels
        channel.push(Withdraw("isolated"))
        channel.close()
        await world.node.wait_said(Left(clean=False))
        assert process.stdout.read() == b"Withdraw\n"
        assert process.wait() == 1  # Fenced: it ended itself


async def test_a_process_must_connect_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as world:
        ticks = process_start(os.getpid())
        for wrong in ({"pid": os.getpid() + 1}, {"start_ticks": ticks + 1}, {"version": 1}):
            hello = {"kind": "hello", "version": PROTOCOL_VERSION, "pid": os.getpid(), "start_ticks": ticks, **wrong}
            stream = await control_stream.connect(os.path.join(world.state, "matrixd.sock"))
            await stream.send(hello)
            answer = await stream.receive()
            assert (answer["kind"], answer["exit_code"]) == ("error", 2)
            assert await stream.receive() is None
            stream.close()


async def test_other_users_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("membership.control.peer_of", lambda _: control_stream.Peer(1, 1000))
    async with serving(tmp_path) as world:
        with pytest.raises(OperatorError, match="only root"):
            await world.ask("status")


async def test_nonsense_ends_only_its_own_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as world:
        session = await world.join()
        for nonsense in (b"\xff" * 100, b"\x01\x00\x00\x00\xff", encode_frame({"kind": "hello"}), b"\x05\x00"):
            stream = await trio.open_unix_socket(os.path.join(world.state, "matrixd.sock"))
            await stream.send_all(nonsense)
            await stream.send_eof()
            assert await stream.receive_some(100) == b""
            await stream.aclose()
        world.node.channels[0].push(Lease(1.0, 1))
        assert await anext(session) == Lease(1.0, 1)
        await session.left()
    assert sum("connection closed" in record.message for record in caplog.records) == 3


async def test_nonsense_from_matrixd_fences(tmp_path: Path) -> None:
    for nonsense in (b"\xff\xff\xff\xff", encode_frame({"kind": "order", "order": {"order": "explode"}})):
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        session = MountSession(control_stream.FrameStream(ours), None)
        await theirs.send(nonsense)
        with pytest.raises(Fenced):
            await anext(session)
        assert await theirs.recv(1) == b""
        theirs.close()


async def test_a_cancelled_loop_loses_nothing(tmp_path: Path) -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    session = MountSession(control_stream.FrameStream(ours), None)
    frame = encode_frame({"kind": "order", "order": {"order": "suspend", "attempt": 5}})
    await theirs.send(frame[:7])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, session)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    await theirs.send(frame[7:])
    assert await anext(session) == Suspend(5)
    session.close()
    theirs.close()


async def test_a_sender_cancelled_within_a_frame_closes_the_connection() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    stream = control_stream.FrameStream(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send, {"kind": "x", "data": bytes(1 << 19)})
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send({"kind": "y"})
    theirs.close()


def test_no_matrixd_no_permission_no_name(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="matrixd is not running here.*start it: "):
        ask(str(tmp_path), {"kind": "status"})
    with pytest.raises(OperatorError, match="too long for a unix socket"):
        ask(str(tmp_path / ("x" * 200)), {"kind": "status"})
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "matrixd.sock"))
        with pytest.raises(OperatorError, match="not running here"):  # a socket left by a killed one
            ask(str(tmp_path), {"kind": "status"})
        listening.listen()
        with pytest.raises(PeerError, match="does not answer within 0.01 s"):
            ask(str(tmp_path), {"kind": "status"}, timeout=0.01)


async def test_the_mount_client_explains_a_missing_matrixd(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="matrixd is not running here"):
        await MountSession.connect(str(tmp_path), "web")


async def test_nonsense_from_matrixd_before_the_mount_is_a_peer_error(tmp_path: Path) -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    session = MountSession(control_stream.FrameStream(ours), None)
    await theirs.send(encode_frame({"kind": "dance"}))
    with pytest.raises(BadMessage, match="answered 'dance'"):
        await session.join(REQUEST)
    theirs.close()
    with pytest.raises(PeerError, match="hung up"):
        await session.join(REQUEST)
    session.close()
