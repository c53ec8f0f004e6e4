"""When a mount process that lives is given up: the table of mount_watch.py, row by row, and what must never be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from membership.errors import BadMessage
from membership.label import DEFAULT_TIMING
from membership.mount_watch import LOOK_SECONDS, OVERDUE, WHAT_MAX, Activity, MountWatch, Pulse
from membership.orders import Lease, Rebuild, Rebuilt, Replay, Replayed, Resume, Resumed, Stuck, Suspend, Suspended
from membership.views import DeadInstance, LockspaceView

TIMING = DEFAULT_TIMING
FOR_EVER = 10_000.0
OWED = Pulse(owed=1.0, what="inode 7")
VIEW = LockspaceView(1, ())


@dataclass
class Process:
    """A mount process, as its matrixd sees it."""

    answers: bool = True
    state: str = "S"
    ticks: int = 0
    busy: int = 0  # ticks it uses between two looks
    pulse: Pulse = Pulse()
    moves: int = 0  # how much ``pulse.moved`` grows between two looks
    flushes: int = 0  # how much ``pulse.left`` shrinks between two looks
    now: float = 100.0
    watch: MountWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = MountWatch(TIMING, self.now, deadline=FOR_EVER)

    def live(self, seconds: float, *, step: float = LOOK_SECONDS) -> tuple[float, Stuck | None]:
        """Seconds until the complaint, and it; None if there was none."""
        end, began = self.now + seconds, self.now
        while self.now < end:
            if self.watch.may_ping():
                serial = self.watch.ping()
                if self.answers:
                    self.watch.answered(serial, self.pulse)
            self.now += step
            self.ticks += self.busy
            self.pulse = replace(
                self.pulse, moved=self.pulse.moved + self.moves, left=max(0, self.pulse.left - self.flushes)
            )
            complaint = self.watch.look(Activity(self.state, self.ticks), self.now)
            if complaint is not None:
                return self.now - began, complaint
        return seconds, None


NEVER = None
TABLE = [
    # what                                     process                                          complaint after, words
    ("it answers and owes nothing", Process(), NEVER, ""),
    ("stopped", Process(answers=False, state="T"), TIMING.link_dead, "stopped"),
    ("traced", Process(answers=False, state="t"), TIMING.link_dead, "stopped"),
    ("frozen asleep", Process(answers=False, state="S"), TIMING.link_dead, "asleep"),
    ("silent, but it uses the CPU", Process(answers=False, state="R", busy=3), TIMING.stuck, "runs but"),
    ("silent, some other thread runs", Process(answers=False, state="S", busy=1), TIMING.stuck, "runs but"),
    ("starved: it waits for a CPU", Process(answers=False, state="R"), TIMING.stuck, "runs but"),
    ("it waits in the kernel", Process(answers=False, state="D"), TIMING.stuck, "runs but"),
    ("owes a lock, nothing moves", Process(pulse=OWED), TIMING.stuck, "inode 7"),
    ("owes a lock, I/O ends now and then", Process(pulse=OWED, moves=1), OVERDUE * TIMING.stuck, "inode 7"),
    ("owes a lock, waits for a peer itself", Process(pulse=replace(OWED, waits=True)), OVERDUE * TIMING.stuck, "7"),
    ("a slow flush", Process(pulse=replace(OWED, left=1 << 40), moves=1, flushes=1), NEVER, ""),
]  # fmt: skip


@pytest.mark.parametrize(("process", "after", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_table(process: Process, after: float | None, words: str) -> None:
    seconds, complaint = replace(process).live(2000)
    if after is None:
        assert complaint is None
        return
    assert complaint is not None
    assert after <= seconds <= after + 2 * LOOK_SECONDS
    assert words in complaint.reason
    assert complaint.seconds >= after


def test_a_slow_disk_is_not_held_against_it() -> None:
    """W1: one I/O in 29 s, for an hour; the lock's flush shrinks with each."""
    process = Process(pulse=replace(OWED, left=1 << 30))
    for _ in range(120):
        assert process.live(TIMING.stuck - 1)[1] is None
        process.pulse = replace(process.pulse, moved=process.pulse.moved + 1, left=process.pulse.left - 4096)


def test_a_lapsed_lease_stops_the_clock_of_debts_but_not_of_silence() -> None:
    """W2."""
    process = Process(pulse=OWED)
    process.watch.leased(0.0)
    assert process.live(5000)[1] is None
    process.watch.leased(FOR_EVER)
    assert process.live(TIMING.stuck - 1)[1] is None
    assert process.live(2)[1] is not None
    frozen = Process(answers=False, state="T")
    frozen.watch.leased(0.0)
    assert frozen.live(100)[0] <= TIMING.link_dead + 1


@pytest.mark.parametrize("state", ["T", "S"])
def test_a_matrixd_that_slept_itself_blames_nobody(state: str) -> None:
    """W3: both were stopped for an hour; one look of an hour is worth two looks."""
    process = Process(answers=False, state=state)
    assert process.live(1)[1] is None
    assert process.live(3600, step=3600)[1] is None
    process.answers = True
    process.watch.answered(1, Pulse())
    assert process.live(100)[1] is None


def test_it_answers_again_in_time() -> None:
    process = Process(answers=False, state="T")
    for _ in range(20):
        process.answers, process.state = False, "T"
        assert process.live(TIMING.link_dead - 1)[1] is None
        process.watch.answered(process.watch._asked, Pulse())
        process.answers, process.state = True, "S"
        assert process.live(1)[1] is None


def test_invented_and_repeated_answers_do_not_count() -> None:
    process = Process(answers=False, state="S")
    process.live(1)
    process.watch.answered(999, Pulse())
    process.watch.answered(0, Pulse())
    assert process.live(TIMING.link_dead)[1] is not None


@pytest.mark.parametrize(
    ("orders", "replies", "stuck"),
    [
        ([Suspend(1)], [], True),
        ([Suspend(1)], [Suspended(1)], False),
        ([Suspend(1), Rebuild(VIEW, ())], [Suspended(1)], False),  # may wait for any peer
        ([Suspend(1), Rebuild(VIEW, ()), Resume(1, 0)], [Suspended(1), Rebuilt(1)], True),
        ([Suspend(1), Rebuild(VIEW, ()), Resume(1, 0)], [Suspended(1), Rebuilt(1), Resumed(1)], False),
        ([Resume(1, 0), Suspend(2)], [Suspended(2)], False),  # overtaken
        ([Replay(1, DeadInstance(1, 2, 3))], [], True),
        ([Replay(1, DeadInstance(1, 2, 3))], [Replayed(1, 1, 2, True, "")], False),
        ([Lease(5.0, 1)], [], False),
    ],
)
def test_an_order_that_is_not_answered_is_a_debt(orders: list, replies: list, stuck: bool) -> None:
    process = Process()
    for order in orders:
        process.watch.ordered(order)
    for reply in replies:
        process.watch.replied(reply)
    complaint = process.live(TIMING.stuck + 1)[1]
    assert (complaint is not None) == stuck
    if complaint is not None:
        assert type(orders[-1]).__name__ in complaint.reason


def test_a_long_replay_that_reads_on_is_no_debt() -> None:
    process = Process(moves=1)
    process.watch.ordered(Replay(1, DeadInstance(1, 2, 3)))
    assert process.live(3000)[1] is None


@pytest.mark.parametrize(
    "change",
    [
        {"moved": -1}, {"moved": 1 << 64}, {"moved": "1"}, {"moved": True}, {"waits": 1}, {"owed": -1.0},
        {"owed": float("nan")}, {"owed": float("inf")}, {"owed": "x"}, {"what": "x" * (WHAT_MAX + 1)}, {"what": b"x"},
        {"left": -1}, {"left": None},
    ],
)  # fmt: skip
def test_a_hostile_pulse(change: dict[str, object]) -> None:
    good = Pulse(3, True, 1.5, "inode 7", 9).to_map()
    assert Pulse.from_map_untrusted({**good, "more": 1}) == Pulse(3, True, 1.5, "inode 7", 9)
    with pytest.raises(BadMessage):
        Pulse.from_map_untrusted({**good, **change})
    with pytest.raises(BadMessage):
        Pulse.from_map_untrusted([good])
