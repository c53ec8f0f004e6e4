"""The recovery driver's tables, walked: every phase with every reply, of this attempt and of another (002-28, 30)."""

from __future__ import annotations

import itertools

import pytest

from membership.messages import MountReport
from membership.orders import (
    JOURNALS_MAX,
    AttemptWanted,
    GhostsReleased,
    JournalState,
    LinkLost,
    Rebuilt,
    Replayed,
    Resumed,
    Suspended,
)
from membership.san.recovery import ANSWERS, DEAF, FilesystemRecovery, Phase
from membership.views import DeadInstance

pytestmark = pytest.mark.seed("002-28", "002-30")

ATTEMPT = 9 << 32 | 4
DEAD = DeadInstance(3, 13, 3)
REPLIES = {
    Suspended: Suspended,
    Rebuilt: Rebuilt,
    Resumed: Resumed,
    Replayed: lambda attempt: Replayed(attempt, 3, 13, True, ""),
    GhostsReleased: lambda attempt: GhostsReleased(attempt, 3, 13),
}
REPLAYING = (Phase.REPLAY, Phase.REPLAY_FIRST, Phase.RELEASE, Phase.RELEASE_FIRST)


def recovery(phase: Phase) -> FilesystemRecovery:
    """Three members in that phase of an attempt, all of whom owe an answer; node 3's mount is dead."""
    fs = FilesystemRecovery(b"F" * 16, "web", 4, generation=lambda: 9, send=lambda *_: None, tell=lambda _: None)
    journals = tuple(JournalState(i, 0, 0, dirty=False) for i in range(4))
    fs.is_known = True
    for node in range(3):
        report = MountReport(
            fs_uuid=fs.uuid, fs_name="web", incarnation=10 + node, host="h", port=1, mountpoint="/m", journal=node,
            journals=journals, attempt=ATTEMPT, resumed=False, owners=(), history=(), dead=(), released=(),
        )  # fmt: skip
        fs.adopt(report, node, node)
    fs.dead[DEAD.instance] = DEAD
    fs.attempt, fs.phase, fs.waiting = ATTEMPT, phase, {0, 1, 2}
    fs._target = DEAD if phase in REPLAYING else None
    return fs


def test_every_reply_that_answers_an_order_has_its_phases():
    assert set(ANSWERS) == set(REPLIES)


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, REPLIES)), ids=str)
def test_a_reply_counts_in_its_phases_only_and_in_its_attempt_only(phase: Phase, kind: type):
    fs = recovery(phase)
    fs.reply(1, 11, REPLIES[kind](ATTEMPT), 5.0)
    assert fs.waiting == ({0, 2} if phase in ANSWERS[kind] else {0, 1, 2})
    assert (fs.phase, fs.attempt) == (phase, ATTEMPT)
    fs = recovery(phase)
    fs.reply(1, 11, REPLIES[kind](ATTEMPT - 1), 5.0)
    fs.reply(1, 99, REPLIES[kind](ATTEMPT), 5.0)  # of another life of that mount
    fs.reply(5, 15, REPLIES[kind](ATTEMPT), 5.0)  # of nobody
    assert fs.waiting == {0, 1, 2}


@pytest.mark.parametrize(("phase", "refused"), list(itertools.product(Phase, (False, True))), ids=str)
def test_a_lost_link_begins_a_new_attempt_in_every_phase_that_is_not_deaf(phase: Phase, refused: bool):
    fs = recovery(phase)
    fs.reply(1, 11, LinkLost(ATTEMPT, 2, refused), 5.0)
    if phase in DEAF:
        assert (fs.phase, fs.attempt, fs.links.missed_at) == (phase, ATTEMPT, None)
    elif phase is Phase.REBUILD or refused:
        assert (fs.phase, fs.attempt, fs.links.missed_at) == (phase, ATTEMPT, 5.0)  # later, when all have spoken
    else:
        assert (fs.phase, fs.attempt) == (Phase.SUSPEND, ATTEMPT + 1)


@pytest.mark.parametrize("phase", Phase)
def test_a_suspect_member_stops_every_phase_until_its_fence(phase: Phase):
    """R-1; only an isolated filesystem has nothing to wait for."""
    fs = recovery(phase)
    fs.suspect(2, 5.0, 1.0)
    fs.reply(1, 11, LinkLost(ATTEMPT, 0), 6.0)  # and anything that would begin an attempt
    assert fs.phase is (Phase.ERROR if phase is Phase.ERROR else Phase.WAITING)
    fs.fenced(2, 7.0)
    assert fs.phase is (Phase.ERROR if phase is Phase.ERROR else Phase.SUSPEND)


@pytest.mark.parametrize("phase", Phase)
def test_an_attempt_that_is_wanted_begins_when_nothing_else_goes_on(phase: Phase):
    fs = recovery(phase)
    fs.reply(1, 11, AttemptWanted(ATTEMPT - 1), 5.0)  # of one that is over: what was wanted has happened
    fs.reply(1, 99, AttemptWanted(ATTEMPT), 5.0)
    assert (fs.phase, fs.attempt) == (phase, ATTEMPT)
    fs.reply(1, 11, AttemptWanted(ATTEMPT), 5.0)
    assert (fs.phase, fs.attempt) == ((Phase.SUSPEND, ATTEMPT + 1) if phase is Phase.IDLE else (phase, ATTEMPT))


def test_journals_that_were_added_are_learnt_from_who_rebuilt():
    fs = recovery(Phase.REBUILD)
    fs.reply(1, 11, Rebuilt(ATTEMPT, 9), 5.0)
    fs.reply(2, 12, Rebuilt(ATTEMPT), 5.0)
    assert fs.journals == 9
    fs.reply(0, 10, Rebuilt(ATTEMPT, 1 << 40), 5.0)  # hostile
    assert fs.journals == JOURNALS_MAX
