"""Metrics: the text against a strict parser, the table, the HTTP server; top and trace put together."""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from dlm.counts import Counts
from matrixfs.blockstore.device.api import Counters as DeviceCounters
from matrixfs.cli import metrics_http
from matrixfs.cli.asking import Answers, MountValue
from matrixfs.cli.matrixctl_trace import events
from matrixfs.cli.metrics_table import COUNTER, GAUGE, HISTOGRAM, METRICS
from matrixfs.cli.metrics_text import metrics_text
from matrixfs.cli.top_format import format_top, hottest, links
from matrixfs.locks.counters import Counters
from matrixfs.locks.resources import INODE, Resource
from membership.transport.connection import Traffic
from membership.transport.links import LinkStatus
from tests.matrixfs.test_cli_locks import mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
NAMES = {metric.name for metric in METRICS}
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL})(?:,{LABEL})*)?\}})? (\S+)")


def parse(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The text format, strictly: HELP, TYPE, samples together; no duplicates; histograms complete and cumulative."""
    assert text.endswith("\n")
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    kinds: dict[str, str] = {}
    current, helped = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert helped not in kinds, f"{helped} twice"
            continue
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert current == helped
            assert kind in (COUNTER, GAUGE, HISTOGRAM)
            assert (kind == COUNTER) == current.endswith("_total")
            kinds[current] = kind
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample is not None, line
        base = sample[1] if kinds[current] != HISTOGRAM else re.sub("_(bucket|sum|count)$", "", sample[1])
        assert base == current, line
        labels = dict(pair[:2] for pair in re.findall(LABEL, sample[2] or ""))
        rows = found.setdefault(sample[1], [])
        assert labels not in [row[0] for row in rows], f"{line} twice"
        rows.append((labels, float(sample[sample.re.groups])))
    for name, kind in kinds.items():
        if kind == HISTOGRAM:
            _check_histogram(found, name)
        else:
            assert found[name]
    return found


def _check_histogram(found: dict[str, list[tuple[dict[str, str], float]]], name: str) -> None:
    for labels, count in found[f"{name}_count"]:
        own = [(b, v) for b, v in found[f"{name}_bucket"] if {**b, "le": ""} == {**labels, "le": ""}]
        bounds, values = [float(b["le"]) for b, _ in own], [v for _, v in own]
        assert bounds == sorted(bounds)
        assert bounds[-1] == float("inf")
        assert values == sorted(values)
        assert values[-1] == count
        assert [b for b, _ in found[f"{name}_sum"]].count(labels) == 1


def numbers(plain: object, one: float = 1.0) -> Any:
    """Plain data with every number in it replaced: what is shown then was counted, not zero by default."""
    if isinstance(plain, dict):
        return {key: numbers(value, one) for key, value in plain.items()}
    return one if isinstance(plain, (int, float)) and not isinstance(plain, bool) else plain


def counters() -> dict[str, Any]:
    """What a mount counts, made by the classes that count it, so that no name here is invented."""
    types = Counters()
    of = types.of(Resource(INODE, 1))
    for histogram in (of.granting, of.waiting, of.releasing):
        histogram.note(0.004)
        histogram.note(99.0)
    of.requests, of.hand_overs_given = 3, 2
    link = LinkStatus(2, 9, "up", 5.0, 1, 64, 0.25, 120.0, 900.0, 3, 4, Traffic(messages_sent=7, messages_received=6))
    counted = ("locks", "unlocks", "tests", "blocked", "deadlocks", "refused_again", "ranges", "waits")
    return {
        "locks": {"types": types.dump(())}, "waits": [{"seconds": 1.5}],
        "domains": {"inode": numbers(Counts().as_dict())},
        "dlm": {f"owned_{name}": 1 for name in counted}
        | {"sent_Request": 4, "received_Grant": 4, "round_trips": 4, "locks": 5, "resources": 6, "bad_messages": 1}
        | {"rebuild_done_ms": 1500},
        "peers": [asdict(link)], "links": {"bytes_sent": 1, "bytes_received": 1, "reconnects": 1},
        "fuse": {"calls": {"read": 9}, "failures": 1, "open_handles": 1, "caches": {"epochs": 1}},
        "store": numbers(DeviceCounters().as_dict()) | {"engine": "io_uring"}, "gate": {"refused": 1},
        "journal": {"commits": 2}, "buffered_bytes": 7,
    }  # fmt: skip


STATUS: dict[str, Any] = {
    "name": 'n"1\\\n', "lease_left": 3.5, "generation": 7,
    "nodes": [{"id": 1, "name": "n1", "state": "member"}, {"id": 2, "name": "n2", "state": "member"}],
    "recoveries": [
        {"fs": "web", "wall_ns": 5, "phases": [["suspend", 1.0]]},
        {"fs": "web", "wall_ns": 2_000_000_000, "phases": [["suspend", 0.25], ["rebuild", 0.25], ["suspend", 0.5]]},
    ],
    "local_mounts": [
        {"filesystem": "web", "counters": counters()},
        {"filesystem": "silent", "counters": None},
        {"filesystem": "broken", "counters": {"error": "x", "buffered_bytes": float("nan")}},
    ],
}  # fmt: skip


def test_the_text_is_what_prometheus_reads() -> None:
    found = parse(metrics_text(STATUS))
    here = {"node": 'n\\"1\\\\\\n', "filesystem": "web"}

    def inode(name: str) -> list[float]:
        return [value for labels, value in found[name] if labels == {**here, "type": "inode"}]

    assert inode("matrixfs_lock_requests_total") == [3.0]
    assert inode("matrixfs_lock_handovers_total") == [2.0]
    assert inode("matrixfs_lock_grant_seconds_count") == [2.0]
    assert inode("matrixfs_lock_release_seconds_sum") == [pytest.approx(99.004)]
    assert found["matrixfs_lock_wait_oldest_seconds"] == [(here, 1.5)]
    assert found["matrixfs_dlm_messages_sent_total"] == [({**here, "type": "Request"}, 4.0)]
    assert found["matrixfs_dlm_rebuild_seconds"] == [(here, 1.5)]
    assert found["matrixfs_file_locks_refused_total"] == [({**here, "reason": "again"}, 1.0)]
    assert found["matrixfs_fuse_calls_total"] == [({**here, "operation": "read"}, 9.0)]
    assert found["matrixfs_link_up"] == [({**here, "peer": "n2"}, 1.0)]
    assert found["matrixfs_link_round_trip_max_seconds"] == [({**here, "peer": "n2"}, pytest.approx(0.0009))]
    assert found["matrixfs_link_messages_sent_total"] == [({**here, "peer": "n2"}, 7.0)]
    assert found["matrixfs_nodes"] == [({"node": here["node"], "state": "member"}, 2.0)]
    assert [v for _, v in found["matrixfs_recovery_phase_seconds"]] == [0.25, 0.75], "a phase gone through twice"
    assert found["matrixfs_recovery_end_timestamp_seconds"] == [(here, 2.0)]
    assert found["matrixfs_buffered_bytes"] == [(here, 7.0)], "and none that is no number"


def test_every_metric_of_the_table_is_told() -> None:
    """A path in the table that nothing answers to is a metric that is silently missing."""
    found = parse(metrics_text(STATUS))
    told = {re.sub("_(bucket|sum|count)$", "", name) if name not in NAMES else name for name in found}
    assert told == NAMES


def test_the_table_is_in_order() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch("matrixfs_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert (metric.kind == COUNTER) == metric.name.endswith("_total")


def test_the_command(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, {"kind": "result", "value": STATUS}, {"kind": "result", "value": 5}) as asked:
        assert parse(run("metrics", "--state", tmp_path).stdout)
        nonsense = run("metrics", "--state", tmp_path)
    assert asked[0] == {"kind": "status", "local": True}
    assert (nonsense.exit_code, nonsense.stderr.count("\n")) == (3, 1)


# --- over HTTP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200), (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404), (b"POST /metrics HTTP/1.1\r\n\r\n", 405), (b"GET /metrics\r\n\r\n", 400),
        (b"\x00\xff\r\n\r\n", 400), ((b"GET /metrics HTTP/1.1\r\nX: ".ljust(8192, b"x")), 400), (b"GET /metrics", 400),
    ],
)  # fmt: skip
async def test_http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: bytes, code: int) -> None:
    monkeypatch.setattr(metrics_http, "ask", lambda _state, _question: STATUS)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(metrics_http.serve_metrics, "127.0.0.1", 0, str(tmp_path))
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(request_)
            with suppress(trio.BrokenResourceError):  # it was answered before
                await stream.send_eof()
            answer = b"".join([part async for part in stream])
        nursery.cancel_scope.cancel()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % code)
    assert f"Content-Length: {len(body)}".encode() in head
    if code == 200:
        assert parse(body.decode())


async def test_http_without_a_matrixd_and_with_too_many_readers(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(metrics_http.serve_metrics, "127.0.0.1", 0, str(tmp_path))
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(metrics_http.CONNECTIONS_MAX)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        late = await trio.open_tcp_stream("127.0.0.1", port)
        with pytest.raises(trio.BrokenResourceError):
            while await late.receive_some():
                pass
            raise trio.BrokenResourceError  # closed without a word: a clean end will do
        await idle[0].send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await idle[0].receive_some()).startswith(b"HTTP/1.1 503 ")
        for stream in (*idle, late):
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_http_on_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(metrics_http.OperatorError, match="--metrics 127.0.0.1:"):
            await metrics_http.serve_metrics("127.0.0.1", taken.getsockname()[1], str(tmp_path))


# --- top, trace ---------------------------------------------------------------------------------------------------


def look(node: int, hand_overs: float, *, waits: float = 0.0, waiters: int = 0) -> dict[str, Any]:
    hot = {"domain": 2, "object": 7, "hand_overs": hand_overs, "waits": waits, "waiting": waits * 0.004}
    hot |= {"waiters": waiters, "path": b"/f", "sure": True, "text": "inode 7"}
    link = {"node": 3 - node, "phase": "up", "queued": 3, "round_trip_us": 99.5}
    return {"node": node, "hot": [hot], "links": [link]}


def both(*looks: dict[str, Any]) -> Answers:
    mounts = [MountValue(each["node"], f"n{each['node']}", "web", "/mnt", 5, each) for each in looks]
    return Answers(1, {1: "n1", 2: "n2"}, mounts)


def test_what_the_mounts_tell_is_added_up() -> None:
    answers = both(look(1, 20.0), look(2, 5.0, waits=5.0, waiters=3))
    (row,) = hottest(answers)
    assert (row.name, row.hand_overs, row.waits, row.waiters, row.nodes) == ("/mnt/f", 25.0, 5.0, 3, ["n1", "n2"])
    assert row.mean_ms == pytest.approx(4.0)
    lines = format_top([row], links(answers), 40)
    assert "25.0" in lines[1]
    assert "/mnt/f" in lines[1]
    assert any("n1 -> n2" in line and "100 us" in line for line in lines)
    assert len(format_top([row] * 100, links(answers), 20)) <= 20
    assert format_top(hottest(both()), [], 20)[0] == "  No lock was handed over or waited for."


def test_top_once(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, *2 * [result(mount(2, 5, look(2, 10.0)))]):
        done = run("top", "--json", "--state", tmp_path)
        shown = run("top", "--once", "--state", tmp_path)
    found = json.loads(done.stdout)
    assert (found["locks"][0]["name"], found["locks"][0]["hand_overs"]) == ("/mnt/2/f", 10.0)
    assert found["links"][0]["round_trip_us"] == 99.5
    assert "/mnt/2/f" in shown.stdout
    assert "\x1b" not in shown.stdout


def note(wall_ns: object, event: str, **more: object) -> dict[str, object]:
    about = {"domain": 2, "object": 7, "mode": 5, "peer": -1, "text": "inode 7"}
    return {"wall_ns": wall_ns, "event": event, **about, **more}


def test_traces_are_merged_by_time(tmp_path: Path) -> None:
    first = [note(10, "request"), note(30, "granted"), note(25, "demoted")]  # the clock was set back
    second = [note(20, "revoke", peer=2, path=b"/f", sure=True), "nonsense", note("x", "y"), note(40, "zz", mode=77)]
    with matrixd_that_answers(tmp_path, *2 * [result(mount(1, 5, first), mount(2, 6, second))]):
        done = run("trace", "--json", "--state", tmp_path)
        shown = run("trace", "--count", "3", "--state", tmp_path)
    found = json.loads(done.stdout)["events"]
    assert [(event["node"], event["event"]) for event in found] == [
        ("n1", "request"), ("n2", "revoke"), ("n1", "granted"), ("n1", "demoted"), ("n2", "zz"),
    ]  # fmt: skip
    assert {event["lock"] for event in found} == {"/mnt/2/f"}, "one node's name for a lock is everybody's"
    assert (found[1]["peer"], found[1]["mode"], found[4]["mode"]) == ("n2", "EX", "?")
    assert shown.stdout.count("\n") == 5


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["hot", "links", "domain", "object", "path", "sure", "wall_ns", "node"]), inner),
    max_leaves=10,
)


@given(value=JUNK)
def test_hostile_answers_break_neither_top_nor_trace(value: Any) -> None:
    answers = Answers(1, {1: "n1"}, [MountValue(1, "n1", "web", "/m", 5, value)])
    assert all(line.isprintable() for line in format_top(hottest(answers), links(answers), 30))
    events(answers)
