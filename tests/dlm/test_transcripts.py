"""Transcripts of message sequences: commands, ``----``, everything that happened (tests/transcripts/dlm/*.txt).

Commands: ``cluster 1 2 3``; ``name X 3`` (a resource mastered by #3); ``request 1 X EX`` (or ``try``);
``release 1 X NL``; ``cancel 1 X``; ``deliver`` (all) or ``deliver 1 3`` (one message of one link);
``count`` (messages so far by type).  ``--rewrite-dlm`` rewrites the files: read the diff before you believe it.
"""

from __future__ import annotations

import os

import pytest

from dlm.modes import NAMES

WHERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "transcripts", "dlm")
FILES = sorted(name for name in os.listdir(WHERE) if name.endswith(".txt"))


class Player:
    def __init__(self, cluster_of):
        self.cluster_of = cluster_of
        self.cluster = None

    def play(self, line):
        command, *words = line.split()
        getattr(self, "do_" + command)(*words)
        out, self.cluster.log = self.cluster.log, []
        return out

    def resource(self, name):
        return next(resource for resource, known in self.cluster.names.items() if known == name)

    def do_cluster(self, *nodes):
        self.cluster = self.cluster_of(*map(int, nodes))

    def do_name(self, name, master):
        taken = [resource.object for resource in self.cluster.names]
        self.cluster.names[self.cluster.mastered_by(int(master), avoid=taken)] = name

    def do_request(self, node, name, mode, *, try_=False):
        grant = self.cluster.request(int(node), self.resource(name), NAMES.index(mode), try_=try_)
        if grant is not None:
            self.cluster.log.append(f"  #{node} has {name} {mode} at once")

    def do_try(self, node, name, mode):
        self.do_request(node, name, mode, try_=True)

    def do_release(self, node, name, mode):
        self.cluster.release(int(node), self.resource(name), NAMES.index(mode))

    def do_cancel(self, node, name):
        self.cluster.cancel(int(node), self.resource(name))

    def do_deliver(self, *link):
        self.cluster.deliver(*map(int, link))

    def do_count(self):
        counts = ", ".join(f"{n} {name}" for name, n in sorted(self.cluster.sent.items()))
        self.cluster.log.append("  " + (counts or "no message"))
        self.cluster.sent.clear()


@pytest.mark.seed("003-35", "003-37", "003-38", "003-39", "003-40")
@pytest.mark.parametrize("name", FILES)
def test_transcript(name, cluster_of, request):
    path = os.path.join(WHERE, name)
    with open(path, encoding="utf-8") as file:
        wanted = file.read()
    player = Player(cluster_of)
    blocks = []
    for block in wanted.split("\n\n"):
        commands = block.split("\n----")[0].strip("\n").split("\n")
        out = []
        for line in commands:
            if line and not line.startswith("#"):
                out += player.play(line)
        blocks.append("\n".join([*commands, "----", *out]))
    seen = "\n\n".join(blocks) + "\n"
    if request.config.getoption("--rewrite-dlm", default=False):
        with open(path, "w", encoding="utf-8") as file:
            file.write(seen)
    else:
        assert seen == wanted
