"""What each operation costs in messages, with 2, 3 and 8 members: the table of docs/format/wire-dlm.md (003-41)."""

from __future__ import annotations

import os

import pytest

from dlm.modes import CR, EX, NL, PR

DOCUMENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs", "format", "wire-dlm.md")
HOME = 0  # the map names this node; 1 and 2 use the lock
SIZES = (2, 3, 8)


class Bench:
    """One resource of HOME, and the count of messages."""

    def __init__(self, cluster_of, nodes):
        self.cluster = cluster_of(*range(nodes))
        self.resource = self.cluster.mastered_by(HOME)

    def get(self, node, mode):
        assert self.cluster.get(node, self.resource, mode).mode == mode
        self.cluster.deliver()

    def drop(self, node, mode=NL):
        self.cluster.release(node, self.resource, mode)
        self.cluster.deliver()

    def count(self, operation):
        self.cluster.sent.clear()
        operation()
        return sum(self.cluster.sent.values())


def local(bench):
    return bench.count(lambda: bench.get(HOME, EX))


def remote(mode):
    return lambda bench: bench.count(lambda: bench.get(1, mode))


def release(mode):
    def cost(bench):
        bench.get(1, mode)
        return bench.count(lambda: bench.drop(1))

    return cost


def demote(bench):
    bench.get(1, EX)
    return bench.count(lambda: bench.drop(1, PR))


def promote(bench):
    bench.get(1, EX)
    bench.drop(1, PR)
    return bench.count(lambda: bench.get(1, EX))


def share(bench):
    bench.get(HOME, PR)
    return bench.count(lambda: bench.get(1, PR))


def read_after_write(bench):
    bench.get(1, EX)
    return bench.count(lambda: bench.get(HOME, PR))


def write_after_write(bench):
    """The arbiter's own node is one of the two."""
    bench.get(1, EX)
    bench.get(HOME, EX)
    there = bench.count(lambda: bench.get(1, EX))
    back = bench.count(lambda: bench.get(HOME, EX))
    assert there == back
    return there


def third(before, wanted):
    """Who asks, who arbitrates and who holds are three nodes."""

    def cost(bench):
        if len(bench.cluster.cores) < 3:
            return None
        bench.get(2, before)
        return bench.count(lambda: bench.get(1, wanted))

    return cost


def third_that_was_told(bench):
    """The holder learned with its grant that somebody waits (003-39)."""
    if len(bench.cluster.cores) < 3:
        return None
    cluster, resource = bench.cluster, bench.resource
    bench.get(HOME, EX)
    for node in (2, 1):
        cluster.request(node, resource, EX)
        cluster.deliver()
    cluster.release(HOME, resource)
    cluster.deliver()
    return 1 + bench.count(lambda: bench.drop(2))  # the Request was sent above


def prefetch(bench):
    cluster = bench.cluster
    names = []
    for _ in range(64):
        names.append(cluster.mastered_by(HOME, avoid=[name.object for name in names]))
    return bench.count(lambda: (cluster.request(1, names[0], PR, extras=names[1:]), cluster.deliver()))


OPERATIONS = {
    "the map names this node, nobody in the way": local,
    "the map names another node: read": remote(PR),
    "the map names another node: write": remote(EX),
    "given up: read": release(PR),
    "given up: write": release(EX),
    "from write to read, the map names another node": demote,
    "from read to write, no other reader": promote,
    "a second reader": share,
    "read what the other one wrote; two nodes, one of them in the map": read_after_write,
    "write what the other one wrote; two nodes, one of them in the map": write_after_write,
    "write what a third node wrote": third(EX, EX),
    "read what a third node wrote": third(EX, PR),
    "write what a third node reads": third(PR, EX),
    "the same, the holder was told with its grant": third_that_was_told,
    "64 locks of one other master, 63 as extras": prefetch,
}


@pytest.mark.seed("003-41", "003-42", "003-38")
def test_the_table_in_the_documents(cluster_of):
    rows = []
    for name, cost in OPERATIONS.items():
        counts = [cost(Bench(cluster_of, nodes)) for nodes in SIZES]
        assert counts[1] == counts[2], name  # a cluster's size is in nothing
        rows.append(f"| {name} | " + " | ".join("" if count is None else str(count) for count in counts) + " |")
    with open(DOCUMENT, encoding="utf-8") as file:
        document = file.read()
    assert "\n".join(rows) in document, "\n" + "\n".join(rows)


@pytest.mark.seed("003-41")
@pytest.mark.parametrize("mode", [CR, PR])
def test_readers_cost_two_messages_each_however_many(cluster_of, mode):
    bench = Bench(cluster_of, 8)
    for node in range(1, 8):
        assert bench.count(lambda node=node: bench.get(node, mode)) == 2
