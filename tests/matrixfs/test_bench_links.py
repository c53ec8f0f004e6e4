"""The bench's rows below and beside the mounts measure what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import bench_crowd, bench_links, bench_rows


@pytest.mark.parametrize("trips", [bench_rows.round_trips, bench_links.message_trips, bench_links.lock_trips])
def test_each_trip_is_timed_once(trips):
    seconds = trips(7)
    assert len(seconds) == 7
    assert min(seconds) > 0


def test_creators_share_a_directory_and_all_they_made_is_counted(tmp_path: Path) -> None:
    found = bench_crowd.create_together([tmp_path] * 3, 0.05)
    assert sum(found.made) == len(list(tmp_path.iterdir())) > 0
    assert 0 < found.slowest_share <= 1
    assert found.rate == pytest.approx(sum(found.made) / 0.05)


def test_durable_writes_are_each_timed_and_leave_nothing(tmp_path: Path) -> None:
    with bench_crowd.DurableFile(tmp_path / "f") as disk:
        for _ in range(3):
            disk.write()
    assert len(disk.seconds) == 3
    assert not list(tmp_path.iterdir())


def test_a_rebuild_tells_its_seconds() -> None:
    assert bench_crowd.rebuild(300, 2) > 0
