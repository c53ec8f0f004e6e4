"""Events call nodes by their names, where those are known, and else by their numbers."""

from __future__ import annotations

from membership.effects import Outbox
from membership.label import DEFAULT_TIMING
from membership.node_core import NodeCore
from membership.node_events import EventBook
from membership.san.election import Election
from membership.san.events import Log
from membership.san.header import make_header
from membership.san.recovery import Finished
from membership.seams import PeerAddress
from tests.sim.network import SimClock

NAMES = {0: "n1", 1: "n2"}
ME = PeerAddress(0, 100, "10.0.0.1", 7)


def called(node: int) -> str:
    return NAMES.get(node, str(node))


async def test_generations_and_recoveries() -> None:
    book = EventBook(SimClock())
    book.called = called
    book.header(make_header(b"C" * 16, 7, administrator=0, members={0: 100, 1: 101}, fencing={2: 102}), is_member=True)
    book.finished(Finished("web", 1, (0,), (1,), (("fence", 0.5),), ""))
    assert [event["text"] for event in book.events] == [
        "generation 7: members n1, n2; administrator node n1; to be fenced 2",
        "web: node n2 recovered in 0.500 s (ms: fence 500.0)",
    ]


def test_elections() -> None:
    out = Outbox()
    out.called = called
    Election(DEFAULT_TIMING, out).elect({1: PeerAddress(1, 101, "10.0.0.2", 7)}, 3, 10.0)
    assert out.events == [Log("election", "node n2 is nominated as administrator")]


def test_who_is_called_how() -> None:
    core = NodeCore(ME, make_header(b"C" * 16, 0, members={}, fencing={}), DEFAULT_TIMING)
    assert [core.called(0), core.called(1)] == ["0", "1"]
    core.admin.own_name = "n1"
    assert [core.called(0), core.called(1)] == ["n1", "1"]
