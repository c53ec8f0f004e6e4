"""matrixctl events: the books of all nodes as one, who is silent, hostile answers (002-26)."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixfs.cli.matrixctl_events import SAME_NS, Event, events_untrusted, fold, merge
from membership.errors import BadMessage
from tests.matrixfs.test_cli_locks import mount, result
from tests.matrixfs.test_cli_matrixctl import matrixd_that_answers, run

pytestmark = pytest.mark.seed("002-26")

SECOND = 1_000_000_000
START = 1_795_000_000 * SECOND


def event(node: int, seq: int, at: float, text: str, kind: str = "join", incarnation: int = 7) -> dict[str, Any]:
    return {"node": node, "name": f"n{node}", "incarnation": incarnation, "seq": seq, "kind": kind, "text": text} | {
        "wall_ns": START + round(at * SECOND)
    }


OWN = [event(1, 1, 0, "n1 joined\x1b[2J"), event(1, 2, 5, "generation 3", "generation")]
OTHER = [event(2, 1, 2, "n2 joined"), event(2, 2, 5.1, "generation 3", "generation"), event(2, 3, 6, "bad", "alert")]
ANSWER = result(mount(1, 10, OWN), mount(2, 20, OTHER[:2]) | {"mounts": [
    *mount(2, 20, OTHER[:2])["mounts"], *mount(2, 20, OTHER[2:])["mounts"],
]})  # fmt: skip
SILENT = {"node": 3, "name": "n3", "mounts": None}


def own(value: object = OWN) -> dict[str, Any]:
    return {"kind": "result", "value": value}


def shown(text: str) -> list[list[str]]:
    return [line[21:].split(maxsplit=2) for line in text.splitlines()]


def test_of_all_nodes_by_time_for_people(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, own(), ANSWER) as asked:
        done = run("--state", tmp_path, "events")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line[21:] for line in done.stdout.splitlines()] == [
        "n1          join        n1 joined?[2J",
        "n2          join        n2 joined",
        "n1, n2      generation  generation 3",
        "n2          alert       bad",
    ]
    assert asked == [{"kind": "events"}, {"kind": "ask", "what": "node.events", "arguments": {}, "node": None}]


def test_for_programs_nothing_is_folded(tmp_path: Path) -> None:
    with matrixd_that_answers(tmp_path, own(), ANSWER):
        found = json.loads(run("--state", tmp_path, "events", "--json").stdout)
    assert found == {"events": [OWN[0], OTHER[0], OWN[1], *OTHER[1:]], "silent": []}


def test_who_is_silent_is_named(tmp_path: Path) -> None:
    answers = {"kind": "result", "value": {"node": 1, "answers": [SILENT, mount(4, 40, [{"node": 4}])]}}
    with matrixd_that_answers(tmp_path, *2 * [own(), answers]):
        people, programs = run("--state", tmp_path, "events"), run("--state", tmp_path, "events", "--json")
    assert (people.exit_code, programs.exit_code) == (3, 3)
    assert len(people.stdout.splitlines()) == 2
    assert people.stderr == (
        "matrixctl: n3 does not answer: its events are missing here\n"
        "matrixctl: n4: control message: name is NoneType, not str\n"
    )
    assert len(json.loads(programs.stdout)["silent"]) == 2


def test_following_shows_each_event_and_each_silence_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([None, KeyboardInterrupt])

    def sleep(_seconds: float) -> None:
        if (then := next(rounds)) is not None:
            raise then

    monkeypatch.setattr(time, "sleep", sleep)
    more = result(SILENT, mount(2, 20, [*OTHER, event(2, 4, 9, "n3 is gone")]))
    with matrixd_that_answers(tmp_path, own(), result(SILENT, mount(2, 20, OTHER)), own(), more):
        done = run("--state", tmp_path, "events", "--follow", "--json")
    assert done.exit_code == 0
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [
        "n1 joined\x1b[2J", "n2 joined", "generation 3", "generation 3", "bad", "n3 is gone",
    ]  # fmt: skip
    assert done.stderr == "matrixctl: n3 does not answer: its events are missing here\n"


@pytest.mark.parametrize("arguments", [("--here",), ()])
def test_only_here(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Asked for, or because this matrixd has no slot yet and can ask nobody."""
    events = OWN if arguments else [{**event(1, 1, 0, "looking for disks"), "node": -1}]
    with matrixd_that_answers(tmp_path, own(events)) as asked:
        found = run("--state", tmp_path, "events", "--json", *arguments)
    assert json.loads(found.stdout) == {"events": events, "silent": []}
    assert asked == [{"kind": "events"}]


def test_a_nodes_order_is_kept_though_its_clock_was_set_back() -> None:
    book = events_untrusted([event(1, 1, 10, "a"), event(1, 2, 3, "b"), event(1, 3, 11, "c")])
    other = events_untrusted([event(2, 1, 10.5, "x")])
    assert [each.text for each in merge([other, book])] == ["a", "b", "x", "c"]


def test_a_matrixd_that_was_restarted_counts_anew() -> None:
    books = events_untrusted([event(1, 1, 0, "a"), event(1, 1, 9, "b", incarnation=8), event(1, 1, 0, "a")])
    assert [each.text for each in merge([books, books])] == ["a", "b"]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 9)), max_size=30), st.randoms())
def test_merging_does_not_depend_on_who_answers_first(rows: list[tuple[int, int, int]], rng: random.Random) -> None:
    found = {(node, seq): event(node, seq, at, "t") for node, seq, at in rows}
    books = [events_untrusted([each]) for each in found.values()]
    merged = merge(books)
    rng.shuffle(books)
    assert merge(books + books) == merged
    assert len(merged) == len(found)
    for node in (1, 2, 3):
        mine = [each.seq for each in merged if each.node == node]
        assert mine == sorted(mine)


def test_alike_is_folded_only_between_nodes_and_at_about_the_same_time() -> None:
    def at(node: int, ns: int) -> Event:
        return Event(node, f"n{node}", 7, ns, ns, "generation", "generation 3")

    assert [names for names, _ in fold([at(1, 0), at(2, SAME_NS), at(3, SAME_NS + 1)])] == [["n1", "n2"], ["n3"]]
    assert [names for names, _ in fold([at(1, 0), at(1, 1), at(2, 2)])] == [["n1"], ["n1", "n2"]]


def test_hostile_answers() -> None:
    rng = random.Random(26)
    junk = [None, True, -2, 64, 2**70, 1.5, "x", b"x", [], {}]
    refused = 0
    for _ in range(2000):
        one = event(1, 1, 0, "x")
        one[rng.choice(list(one))] = rng.choice(junk)
        value: Any = rng.choice([[one], [one, one], one, [[one]], rng.choice(junk)])
        try:
            assert all(isinstance(each, Event) for each in merge([events_untrusted(value)]))
        except BadMessage:
            refused += 1
    assert 0 < refused < 2000
