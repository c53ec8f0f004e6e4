"""The bench's rows below the mounts measure what they say: every one got its answer from another process."""

from __future__ import annotations

import pytest

from scripts import bench_links, bench_rows


@pytest.mark.parametrize("trips", [bench_rows.round_trips, bench_links.message_trips, bench_links.lock_trips])
def test_each_trip_is_timed_once(trips):
    seconds = trips(7)
    assert len(seconds) == 7
    assert min(seconds) > 0
