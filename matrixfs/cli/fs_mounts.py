"""What the mounts of a filesystem say of it, and what one of them is asked to do with it (no trio).

Source: issue 5 ("Scale"); matrixfs/growing.py answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matrixfs.cli.asking import ask_mounts
from membership.control_wire import Message, take, take_natural
from membership.errors import BadMessage, MatrixError, OperatorError, PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixfs.cli.asking import MountValue

LOOK_SECONDS: Final = 0.1
SEEN_SECONDS: Final = 10.0  # for all nodes to see how large a disk is: each measures every 2 s (membership/disks.py)
STEP_SECONDS: Final = 60.0  # for one step of what a mount is asked to do; a recovery may come between


@dataclass(frozen=True, slots=True)
class Mounts:
    """All mounts of one filesystem."""

    state: str  # directory of the local matrixd
    filesystem: str
    here: int  # our node
    mounts: list[MountValue]

    @property
    def worker(self) -> MountValue:
        """The mount to ask: this node's, else that of the lowest node."""
        return min(self.mounts, key=lambda mount: (mount.node != self.here, mount.node))

    def ask(self, what: str, **arguments: Any) -> Any:
        """Ask the worker.  Raises MatrixError: also what it refuses with."""
        worker = self.worker
        answers = ask_mounts(self.state, what, {"fs": self.filesystem, **arguments}, str(worker.node))
        for mount in answers.mounts:
            if mount.filesystem == self.filesystem:
                return mount.value
        reasons = [line.partition("): ")[2] or line for line in answers.silent]
        raise (OperatorError if reasons and reasons[0] not in answers.silent else PeerError)(
            next(iter(reasons), f"{worker.name} does not have {self.filesystem} mounted any more")
        )

    def ask_each(self, what: str) -> list[Any]:
        """Ask all mounts of the filesystem.  Raises PeerError: one does not answer."""
        answers = ask_mounts(self.state, what, {"fs": self.filesystem})
        if answers.silent:
            raise PeerError(answers.silent[0])
        return [each.value for each in answers.mounts if each.filesystem == self.filesystem]

    def await_done(self, serial: int, told: Callable[[str], None]) -> Message:
        """Wait for what the worker began as number ``serial``; its progress (growing.Progress).

        Args:
            serial: what the request answered.
            told: called with each step that begins.

        Raises:
            MatrixError: it failed, or one step took too long.
        """
        step, since = "", time.monotonic()
        while True:
            progress = take(self.ask("fs"), "progress", dict)
            if progress["serial"] != serial:
                raise PeerError("another command has begun meanwhile: look at matrixctl fs list")
            if not progress["step"]:
                return _checked(progress)
            if progress["step"] != step:
                step, since = progress["step"], time.monotonic()
                told(step)
            if time.monotonic() - since > STEP_SECONDS:
                raise PeerError(f"{self.worker.name} has not got on with it ({step}): see matrixctl status and its log")
            time.sleep(LOOK_SECONDS)


def _checked(progress: Message) -> Message:
    if progress["error"]:
        error = MatrixError(progress["error"])
        error.exit_code = take_natural(progress, "exit_code", 7)
        raise error
    return progress


def all_mounts(state: str) -> tuple[list[MountValue], list[str], int]:
    """Every mount of the cluster, who does not answer, and our node.  Raises MatrixError."""
    answers = ask_mounts(state, "fs", {}, missing="what it has mounted is")
    for mount in answers.mounts:
        if not isinstance(mount.value, dict):
            raise BadMessage(f"{mount.name} answers in another version's format: upgrade the node")
    return answers.mounts, answers.silent, answers.node


def mounts_of(state: str, filesystem: str) -> Mounts:
    """The mounts of ``filesystem``; all must answer.

    Raises:
        OperatorError: it is mounted nowhere.
        PeerError: a node or a mount does not answer.
    """
    mounts, silent, here = all_mounts(state)
    if silent:
        raise PeerError(f"all mounts must take part: {silent[0]}")
    found = [mount for mount in mounts if mount.filesystem == filesystem]
    if not found:
        known = ", ".join(sorted({mount.filesystem for mount in mounts})) or "none is"
        raise OperatorError(f"no filesystem {filesystem!r} is mounted in the cluster (mounted: {known})")
    return Mounts(state, filesystem, here, found)


def await_size(mounts: Mounts, disk: bytes, size_bytes: int) -> None:
    """Wait until every node sees the store of ``disk`` with at least ``size_bytes``.

    Raises:
        OperatorError: one does not.
        PeerError: one does not answer.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        answers = ask_mounts(mounts.state, "node.disks", {}, missing="how large it sees the disk is")
        if answers.silent:
            raise PeerError(f"all nodes must see the larger disk: {answers.silent[0]}")
        seen = dict.fromkeys(answers.names, -1)
        for each in answers.mounts:
            for row in each.value:
                if row["uuid"] == disk:
                    seen[each.node] = take_natural(row, "size_bytes")
        late = {node: size for node, size in seen.items() if size < size_bytes}
        if not late:
            return
        if time.monotonic() > deadline:
            node, size = min(late.items())
            what = f"sees only {size} of its {size_bytes} bytes" if size >= 0 else "does not have the disk, or is older"
            raise OperatorError(f"{answers.name(node)} {what}: rescan the disk there, then try again")
        time.sleep(LOOK_SECONDS)


def frozen_by(state: str, filesystem: str) -> str:
    """Who holds it frozen and for how long, in words; "" nobody.  Raises MatrixError."""
    for mount in ask_mounts(state, "fs.frozen", {"fs": filesystem}).mounts:
        if mount.value is not None and not mount.value["error"]:
            return f"by {mount.name}, for {mount.value['seconds']:.0f} s; it thaws in {mount.value['left']:.0f} s"
    return ""


def await_frozen(mounts: Mounts) -> None:
    """Wait until the worker holds it frozen.  Raises MatrixError: it could not, and holds it no more."""
    while True:
        found = mounts.ask("fs.frozen")
        if found is None:
            raise PeerError(f"{mounts.filesystem} was thawed at once by somebody else")
        if found["error"]:
            raise PeerError(found["error"])
        if found["frozen"]:
            return
        time.sleep(LOOK_SECONDS)


def thaw_all(state: str, filesystem: str) -> bool:
    """Have every mount thaw it; whether one held it.  Raises MatrixError: nobody did, of those that answer."""
    answers = ask_mounts(state, "fs.thaw", {"fs": filesystem}, missing="what it has frozen is")
    if any(mount.value is True for mount in answers.mounts):
        return True
    if not any(mount.filesystem == filesystem for mount in answers.mounts) and not answers.silent:
        raise OperatorError(f"no filesystem {filesystem!r} is mounted in the cluster")
    if answers.silent:
        raise PeerError(f"nobody who answers holds it frozen: {answers.silent[0]}")
    return False
