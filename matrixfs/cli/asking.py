"""Questions to the mount processes of the cluster, from a command: who answered what, who is silent (no trio).

Source: R14; membership/control_questions.py describes the exchange.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from membership.control_ask import ask
from membership.control_wire import Message, take, take_natural, value_of_untrusted
from membership.errors import BadMessage, MatrixError, OperatorError, PeerError


@dataclass(frozen=True, slots=True, eq=False)
class MountValue:
    """What one mount process answered."""

    node: int
    name: str  # of the node
    filesystem: str
    mountpoint: str  # on that node
    pid: int
    value: Any


@dataclass(slots=True)
class Answers:
    """All answers to one question."""

    node: int  # ours
    names: dict[int, str] = field(default_factory=dict)
    mounts: list[MountValue] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)  # sentences: who did not answer, and what is missing

    def name(self, node: int) -> str:
        """A node's name, or its number."""
        return self.names.get(node, f"node {node}")

    def mountpoint(self, filesystem: str) -> str:
        """Where we have it mounted; "" when we have not."""
        own = (m.mountpoint for m in self.mounts if m.node == self.node and m.filesystem == filesystem)
        return next(own, "")


def ask_mounts(
    state: str, what: str, arguments: Message, node: str | None = None, missing: str = "what it holds or waits for is"
) -> Answers:
    """Ask mount processes, or the matrixds.

    Args:
        state: directory of the local matrixd.
        what: the question (matrixfs/node.py has the table; membership/own_answers.py that of the matrixds).
        arguments: what it needs.
        node: name or number of the node to ask, "" for this one, None for all.
        missing: what people miss of a node that does not answer.

    Raises:
        MatrixError: matrixd can't be asked, or does not know the node.
    """
    reply = ask(state, {"kind": "ask", "what": what, "arguments": arguments, "node": node})
    if not isinstance(reply, dict):
        raise BadMessage("matrixd's answer is no map")
    if reply.get("node") == -1:
        raise PeerError("matrixd is still claiming its slot: try again in a second")
    answers = Answers(take_natural(reply, "node", 6))
    for each in take(reply, "answers", list):
        if not isinstance(each, dict):
            raise BadMessage("matrixd's answer is no list of maps")
        _add(answers, each, missing)
    return answers


def _add(answers: Answers, each: Message, missing: str) -> None:
    node, name = take_natural(each, "node", 6), take(each, "name", str)
    answers.names[node] = name or f"node {node}"
    if each.get("mounts") is None:
        answers.silent.append(f"{answers.name(node)} does not answer: {missing} missing here")
        return
    for mount in take(each, "mounts", list):
        where, pid = take(mount, "mountpoint", str), take_natural(mount, "pid", 31)
        try:
            value = value_of_untrusted(mount.get("value"))
        except MatrixError as error:
            place = f", {where}" if where else ""
            answers.silent.append(f"{answers.name(node)}{place} (process {pid}): {error}")
            continue
        answers.mounts.append(MountValue(node, name, take(mount, "filesystem", str), where, pid, value))


@dataclass(frozen=True, slots=True)
class Target:
    """A file of a mounted tree."""

    filesystem: str
    mountpoint: str
    object: int
    rest: str  # what could not be looked up, because ``object``, a directory above it, is waited for itself


def find_file(state: str, path: str) -> Target:
    """The inode that ``path`` means, without touching the tree: a stat would wait for the lock we are asked about.

    Raises:
        OperatorError: it is in no tree mounted here, or does not exist.
        MatrixError: matrixd or the mount process can't be asked.
    """
    mounts = ask(state, {"kind": "ask", "what": "resolve", "arguments": {"path": b""}, "node": ""})
    places = {mount["mountpoint"] for each in mounts["answers"] for mount in each["mounts"] or ()}
    mountpoint, below = split_path(os.path.abspath(path), places)
    if not mountpoint:
        raise OperatorError(f"{path} is in no tree that is mounted on this node (a lock's NAME has no slash in it)")
    answers = ask_mounts(state, "resolve", {"path": os.fsencode(below)}, "")
    for mount in answers.mounts:
        if mount.mountpoint == mountpoint:
            rest = take(mount.value, "rest", bytes)
            return Target(mount.filesystem, mountpoint, take_natural(mount.value, "object"), os.fsdecode(rest))
    reasons = [line.partition("): ")[2] for line in answers.silent if f", {mountpoint} (" in line]
    if reasons:  # a path in it begins at the root of the tree
        raise OperatorError(mountpoint + reasons[0] if reasons[0].startswith("/") else reasons[0])
    raise PeerError(f"the mount process of {mountpoint} does not answer")


def split_path(path: str, mountpoints: set[str]) -> tuple[str, str]:
    """``path`` (absolute) as (mount point, rest); symbolic links are followed up to the tree, not in it."""
    found, rest = "/", [part for part in path.split("/") if part]
    links = 0
    while True:
        if found in mountpoints:
            return found, "/".join(rest)
        if not rest:
            return "", ""
        part = rest.pop(0)
        if part in (".", ".."):
            found = os.path.dirname(found) if part == ".." else found
            continue
        step = os.path.join(found, part)
        try:
            target = os.readlink(step) if step not in mountpoints else ""
        except OSError:
            target = ""
        links += bool(target)
        if not target or links > 40:
            found = step
            continue
        found = "/" if target.startswith("/") else found
        rest = [each for each in target.split("/") if each] + rest
