"""Messages of recovery that come late, twice, out of order, from the wrong one, or never should (R5, R11, 002-28).

Each table is complete: every phase with every answer, as far as an answer can be wrong in it.
"""

from __future__ import annotations

import itertools
import struct

import pytest

from membership.errors import BadMessage
from membership.label import DEFAULT_TIMING
from membership.messages import Heartbeat, Install, MountAdmit, OrderTo, Recovered, ReplyFrom, encode, packet_untrusted
from membership.node_core import NodeCore
from membership.orders import (
    Evict,
    GhostsReleased,
    LinkLost,
    Rebuild,
    Rebuilt,
    ReleaseGhosts,
    Replay,
    Replayed,
    Resume,
    Resumed,
    Stuck,
    Suspend,
    Suspended,
    Withdraw,
    order_to_dict,
    reply_to_dict,
)
from membership.san.agent import ToMount
from membership.san.header import make_header
from membership.seams import Delivery, PeerAddress
from membership.views import Instance, LockspaceView
from tests.membership.test_san_recovery import CLUSTER, FS, Bench, mounted

pytestmark = pytest.mark.seed("002-28", "002-30", "002-41")

HELD = {"suspend": Suspend, "rebuild": Rebuild, "resume": Resume, "replay": Replay, "release": ReleaseGhosts}
ANSWER_OF = {
    "suspend": Suspended,
    "rebuild": Rebuilt,
    "resume": Resumed,
    "replay": Replayed,
    "release": GhostsReleased,
}


def answers(attempt: int, dead: Instance) -> dict[str, object]:
    return {
        "suspended": Suspended(attempt),
        "rebuilt": Rebuilt(attempt),
        "resumed": Resumed(attempt),
        "replayed": Replayed(attempt, *dead, ok=True, detail=""),
        "released": GhostsReleased(attempt, *dead),
    }


def held_in(phase: str) -> Bench:
    """Node 2's mount is dead; its recovery stands in ``phase``."""
    bench = mounted()
    bench.held.add(HELD[phase])
    bench.left(2, clean=False)
    assert bench.web.phase.value == phase
    return bench


def state(bench: Bench) -> tuple:
    web = bench.web
    return web.phase, web.attempt, frozenset(web.waiting), tuple(web.dead), tuple(sorted(web.members)), web.error


def tell(bench: Bench, node: int, incarnation: int, reply: object) -> None:
    bench.fs.receive(node, ReplyFrom(FS, incarnation, reply_to_dict(reply)), bench.now)
    bench.settle()


DEAD = Instance(2, 12)
WRONG = [  # (what, change of the attempt, node that says it, its incarnation)
    ("of an older attempt", -1, 0, 10),
    ("of no attempt", None, 0, 10),
    ("of a later attempt", +1, 0, 10),
    ("of a far one", +(1 << 40), 0, 10),
    ("of another life of the mount", 0, 0, 99),
    ("of the dead itself", 0, 2, 12),
    ("of a node without a mount", 0, 5, 15),
]


@pytest.mark.parametrize("name", answers(0, DEAD))
@pytest.mark.parametrize(("change", "node", "incarnation"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
@pytest.mark.parametrize("phase", HELD)
def test_answers_that_are_not_meant_change_nothing(
    phase: str, change: int | None, node: int, incarnation: int, name: str
) -> None:
    bench = held_in(phase)
    before = state(bench)
    attempt = 0 if change is None else bench.web.attempt + change
    tell(bench, node, incarnation, answers(attempt, DEAD)[name])
    assert state(bench) == before


@pytest.mark.parametrize(("phase", "name"), list(itertools.product(HELD, answers(0, DEAD))))
def test_the_answer_of_another_phase_changes_nothing(phase: str, name: str) -> None:
    bench = held_in(phase)
    reply = answers(bench.web.attempt, DEAD)[name]
    if isinstance(reply, ANSWER_OF[phase]):
        return
    before = state(bench)
    tell(bench, 0, 10, reply)
    assert state(bench) == before


@pytest.mark.parametrize("reply", [Replayed(0, 3, 77, ok=False, detail="x"), GhostsReleased(0, 3, 77)])
@pytest.mark.parametrize("phase", HELD)
def test_news_of_an_instance_that_is_not_dead_changes_nothing(phase: str, reply: object) -> None:
    """A replay that "failed" of somebody else isolates nothing."""
    bench = held_in(phase)
    before = state(bench)
    tell(bench, 0, 10, type(reply)(bench.web.attempt, *[getattr(reply, f) for f in reply.__slots__[1:]]))  # type: ignore[attr-defined]
    assert state(bench) == before


def test_every_answer_comes_three_times_and_all_earlier_ones_again() -> None:
    """Duplicates and old news in every phase: the same course as without."""
    plain = mounted()
    plain.left(2, clean=False)
    bench = mounted()
    told: list[ReplyFrom] = []
    receive = bench.fs.receive

    def again(node: int, body: object, now: float) -> None:
        if isinstance(body, ReplyFrom):
            told.append((node, body))  # type: ignore[arg-type]
            for old_node, old in [*told, (node, body)]:  # type: ignore[misc]
                receive(old_node, old, now)
        receive(node, body, now)  # type: ignore[arg-type]

    bench.fs.receive = again  # type: ignore[method-assign]
    bench.left(2, clean=False)
    assert [kind for _, kind in bench.trace] == [kind for _, kind in plain.trace]
    assert state(bench)[0] == state(plain)[0]
    assert not bench.web.dead


LINKS = [  # (what, phase, reply, a new attempt begins at once)
    ("while it works", None, LinkLost(0, 1), True),
    ("refused: its death will be told", None, LinkLost(0, 1, refused=True), False),
    ("to itself", None, LinkLost(0, 0), False),
    ("to who is no member", None, LinkLost(0, 9), False),
    ("while it suspends: nothing of the rebuild is lost", "suspend", LinkLost(0, 1), False),
    ("while it rebuilds: all are heard first", "rebuild", LinkLost(0, 1), False),
    ("while it resumes", "resume", LinkLost(0, 1), True),
    ("while it replays", "replay", LinkLost(0, 1), True),
]


@pytest.mark.parametrize(("phase", "reply", "begins"), [row[1:] for row in LINKS], ids=[row[0] for row in LINKS])
def test_lost_links(phase: str | None, reply: LinkLost, begins: bool) -> None:
    bench = mounted() if phase is None else held_in(phase)
    attempt = bench.web.attempt
    bench.held.clear()
    for stale in (attempt - 1, attempt + 1):
        tell(bench, 0, 10, LinkLost(stale, reply.node, reply.refused))
        assert bench.web.attempt == attempt
    tell(bench, 0, 10, LinkLost(attempt, reply.node, reply.refused))
    assert bench.web.attempt == attempt + begins


def test_a_refused_link_whose_death_is_never_told_begins_an_attempt_after_all() -> None:
    bench = mounted()
    attempt = bench.web.attempt
    tell(bench, 0, 10, LinkLost(attempt, 1, refused=True))
    bench.fs.tick(bench.now + 1.0)
    bench.settle()
    assert bench.web.attempt == attempt
    bench.fs.tick(bench.now + 3.0)
    bench.settle()
    assert bench.web.attempt == attempt + 1
    assert sorted(bench.web.members) == [0, 1, 2]


# --- what reaches a node that is not from its administrator ------------------------------------------------------

ME, ADMIN, OTHER = (PeerAddress(n, 100 + n, f"10.0.0.{n}", 9) for n in (1, 0, 2))


def node_core(generation: int = 5) -> NodeCore:
    """Node 1, with a mount; the header names node 0 as administrator, and both others are heard."""
    members = {a.node: a.incarnation for a in (ME, ADMIN, OTHER)}
    header = make_header(CLUSTER, generation, administrator=0, members=members, fencing={})
    core = NodeCore(ME, header, DEFAULT_TIMING)
    core.group.set_peers([ADMIN, OTHER], 0.0)
    for peer in (ADMIN, OTHER):
        core.group.heard(peer.node, 0.0)
    members_heard = Heartbeat(0b111, 64)
    for peer in (ADMIN, OTHER):
        core.group.receive(peer.node, members_heard, 64, 0.0)
    core.group._accepted = 64
    core.group.receive(0, Install(64, tuple(sorted(members.items()))), 64, 0.0)
    core.join_mount(Bench().request(1), 0.0)
    core.take()
    deliver(core, 0, MountAdmit(generation, FS, 11, 0))
    return core


def deliver(core: NodeCore, node: int, body: object) -> list[object]:
    core.transport(Delivery(node, encode(core.group.view.number, body)), 0.1)  # type: ignore[arg-type]
    return [event for event in core.take().events if isinstance(event, ToMount)]


def order(generation: int, order_: object, incarnation: int = 11, uuid: bytes = FS) -> OrderTo:
    return OrderTo(generation, uuid, incarnation, order_to_dict(order_))  # type: ignore[arg-type]


ORDERS = [Suspend(9), Evict("x"), Withdraw("x")]
STRANGE = [  # (what, sender, message made of an order)
    ("from a node that is not the administrator", 2, lambda o: order(5, o)),
    ("of a generation nobody has read yet", 0, lambda o: order(6, o)),
    ("to another life of the mount", 0, lambda o: order(5, o, 99)),
    ("to another filesystem", 0, lambda o: order(5, o, 11, b"Z" * 16)),
    ("of a kind nobody knows", 0, lambda o: OrderTo(5, FS, 11, {"order": "explode"})),
    ("with fields missing", 0, lambda o: OrderTo(5, FS, 11, {"order": order_to_dict(o)["order"]})),
    ("from an administrator before this one", 2, lambda o: order(4, o)),
]


@pytest.mark.parametrize("told", ORDERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(("sender", "make"), [row[1:] for row in STRANGE], ids=[row[0] for row in STRANGE])
def test_orders_that_reach_no_mount(sender: int, make, told: object) -> None:
    core = node_core()
    assert deliver(core, sender, make(told)) == []
    assert [event.order for event in deliver(core, 0, order(5, told))] == [told]


def test_orders_of_an_old_attempt_reach_no_mount_but_evict_does() -> None:
    core = node_core()
    assert deliver(core, 0, order(5, Suspend(9)))
    rebuild = Rebuild(LockspaceView(8, ()), ())
    for old in (Suspend(8), Suspend(9), rebuild, Resume(8, 0), Resume(10, 0), ReleaseGhosts(8, 2, 12)):
        assert deliver(core, 0, order(5, old)) == []
    assert deliver(core, 0, order(5, Evict("x")))


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e12])
@pytest.mark.parametrize("field", ["phases", "ago"])
def test_impossible_times_are_refused(field: str, seconds: float) -> None:
    good = {"phases": (("detect", 1.5),), "ago": 2.5}
    made = Recovered(5, "web", 7, (0, 1), (2,), good["phases"], "", good["ago"])  # type: ignore[arg-type]
    assert packet_untrusted(encode(1, made)).body == made
    mark = struct.pack(">d", 1.5 if field == "phases" else 2.5)
    with pytest.raises(BadMessage):
        packet_untrusted(encode(1, made).replace(mark, struct.pack(">d", seconds)))


def test_a_complaint_has_no_attempt_and_is_passed_on() -> None:
    core = node_core()
    core.mount_said(Bench().request(1), Stuck("frozen", 3.0), 0.2)
    sent = [e.body for e in core.take().send if isinstance(e.body, ReplyFrom)]
    assert [body.reply for body in sent] == [reply_to_dict(Stuck("frozen", 3.0))]
