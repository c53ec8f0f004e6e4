"""Pulse: silence is counted from an unanswered ping, by who was awake (003-26)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership.transport.pulse import BEAT_SECONDS, LOOKED_SECONDS_MAX, Pulse

pytestmark = pytest.mark.seed("003-26")


def beats(pulse: Pulse, start: float, count: int) -> float:
    """That many beats in time; when the last was."""
    for _ in range(count):
        start += BEAT_SECONDS
        pulse.beat(start)
    return start


def test_silence_grows_while_nothing_comes_and_ends_with_any_frame():
    pulse = Pulse(100.0)
    now = beats(pulse, 100.0, 20)
    assert pulse.silence(now) == pytest.approx(20 * BEAT_SECONDS)
    pulse.heard()
    assert pulse.silence(now) == 0
    now = beats(pulse, now, 1)
    assert pulse.silence(now) == 0, "asked only now"
    assert pulse.silence(now + 0.25) == pytest.approx(0.25)


def test_answered_pings_keep_it_at_nothing():
    pulse, now = Pulse(5.0), 5.0
    for _ in range(50):
        now += BEAT_SECONDS
        token = pulse.beat(now)
        pulse.heard()
        pulse.answered(token, now + 0.0002)
        assert pulse.silence(now + BEAT_SECONDS * 0.9) == 0
    assert pulse.round_trip == pytest.approx(0.0002)
    assert pulse.round_trip_max == pytest.approx(0.0002)


def test_own_sleep_is_not_the_peers_silence():
    pulse = Pulse(0.0)
    pulse.heard()
    pulse.beat(1.0)
    assert pulse.silence(3601.0) <= LOOKED_SECONDS_MAX
    pulse.beat(3601.0)
    assert pulse.silence(3601.0) <= LOOKED_SECONDS_MAX


def test_only_the_newest_ping_is_timed_and_once():
    pulse = Pulse(0.0)
    old = pulse.beat(1.0)
    new = pulse.beat(1.5)
    pulse.answered(old, 1.6)
    assert pulse.round_trip == 0
    pulse.answered(new, 1.75)
    assert pulse.round_trip == pytest.approx(0.25)
    pulse.answered(new, 9.0)
    pulse.answered(0, 9.0)
    pulse.answered(2**64 - 1, 9.0)
    assert pulse.round_trip_max == pytest.approx(0.25)


def test_mean_follows_and_the_longest_stays():
    pulse, now = Pulse(0.0), 0.0
    for took in [0.008] + [0.0001] * 60:
        now += BEAT_SECONDS
        pulse.answered(pulse.beat(now), now + took)
    assert 0.0001 <= pulse.round_trip < 0.0002
    assert pulse.round_trip_max == pytest.approx(0.008)


@given(st.lists(st.tuples(st.floats(0.001, 100), st.booleans())))
def test_silence_never_exceeds_the_time_since_the_last_sign(steps):
    pulse, now, sign = Pulse(0.0), 0.0, 0.0
    for seconds, heard in steps:
        now += seconds
        if heard:
            pulse.heard()
            sign = now
        assert 0 <= pulse.silence(now) <= now - sign + 1e-6
        pulse.beat(now)
        assert 0 <= pulse.silence(now) <= now - sign + 1e-6
