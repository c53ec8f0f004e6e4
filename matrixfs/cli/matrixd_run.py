"""The running matrixd: its pieces put together, its signals, its end.

Invariants:
- D1. The control socket answers before the node is a member, so ``matrixctl status`` can show why it is not yet.
- D2. A stop is the node's decision: with trees mounted here SIGTERM is refused with a line in the log and matrixd
  runs on, for ending it would fence them.  (A service manager that then kills it fences them: safe, not clean.)
- D3. Whatever else ends the node (its right lost, a fault of our own) ends this process, and its end closes the
  control connections, which fences the mounts.  Nothing here catches and goes on.

Source: architecture 2 and 5; R3; issue 2.
"""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from matrixfs.blockstore.fencing.luns import reach_of
from matrixfs.cli.common import worst_of
from matrixfs.cli.host import notify
from matrixfs.cli.metrics_http import serve_metrics
from matrixfs.cli.opener import HostOpener
from matrixfs.cli.state_disks import StateDisks
from matrixfs.cli.storage import HostLanding
from matrixfs.fuse.connection import cut_off, cut_off_dying
from membership.clock import SystemClock, SystemRng
from membership.control import serve_control
from membership.disks import ClusterDisks
from membership.enrol.guests import TokenGuests
from membership.errors import MatrixError, OperatorError
from membership.fence.process import ProcessFence, this_host
from membership.label import PLAIN_LINKS, Label, read_label
from membership.pauses import VARIABLE as PAUSES
from membership.pauses import Pause, pauses_of
from membership.service import Node, NodeConfig
from membership.transport.links import LinkMesh

if TYPE_CHECKING:
    from matrixfs.cli.host import Readiness
    from membership.enrol.credentials import NodeCredentials
    from membership.seams import PeerAddress

log = logging.getLogger(__name__)

_NOT_YET: Final = ("starting", "joining")


@dataclass(frozen=True, slots=True)
class MatrixdOptions:
    """What the command line said, checked."""

    stores: tuple[str, ...]  # absolute paths or URLs of disks of the cluster; the first that opens leads to the others
    name: str
    host: str  # IP address
    port: int  # 0: any
    state_dir: str  # absolute path
    metrics: tuple[str, int] | None = None  # IP address and port (0: any) that serves them
    scan: tuple[str, ...] = ()  # shell patterns of paths where disks may be
    others: tuple[str, ...] = ()  # further IP addresses, same port
    credentials: NodeCredentials | None = None  # of this server


def run_matrixd(options: MatrixdOptions, readiness: Readiness) -> None:
    """Be a node until stopped.

    Args:
        options: what to run.
        readiness: told when the node is a member, or the error that it never became one.

    Raises:
        MatrixError: with its exit code, also what came out of a nursery.
    """
    try:
        trio.run(_main, options, readiness)
    except MatrixError as error:
        _tell_failure(error, readiness)
    except BaseExceptionGroup as group:
        log.debug("the whole failure", exc_info=True)
        _tell_failure(worst_of(group), readiness)
    log.info("stopped")


def _tell_failure(error: MatrixError, readiness: Readiness) -> None:
    if readiness.is_background:  # in the foreground stderr is the log, and the command prints its one line there
        log.error("%s", error)
    readiness.failed(error)
    raise error


async def _main(options: MatrixdOptions, readiness: Readiness) -> None:
    cut_off_dying()  # a matrixd that died with its mounts could not do that
    clock = SystemClock()
    life = SystemRng().randbytes(8).hex()
    shown = StateDisks(options.state_dir)
    opener = HostOpener(options.stores, options.scan, options.name, life, shown)
    label = await _first_label(options, opener)
    disks = ClusterDisks(label.owner, opener, clock, _log_event)
    try:
        await _open(disks, options.stores)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shown.run)
            await _serve(options, readiness, disks, label, clock)
            nursery.cancel_scope.cancel()
    finally:
        await disks.aclose()


def _log_event(kind: str, text: str) -> None:
    log.warning("%s: %s", kind, text)  # before there is a node that keeps events


async def _first_label(options: MatrixdOptions, opener: HostOpener) -> Label:
    """That of the first store that opens.  Raises what was wrong with the last one."""
    failure: MatrixError | None = None
    for store in options.stores:
        try:
            device = await opener.open(store)
            try:
                label = await read_label(device)
            finally:
                await device.aclose()
            _take_key(label, options)
        except MatrixError as error:
            failure = error
            continue
        hosts = ", ".join((options.host, *options.others))
        log.info("cluster %s on %s: node %s at %s", label.cluster_name, store, options.name, hosts)
        return label
    assert failure is not None
    raise failure


def _take_key(label: Label, options: MatrixdOptions) -> None:
    """The cluster's key from this server's credentials, unless it is on the disk.  Raises OperatorError."""
    credentials = options.credentials
    if credentials is not None and credentials.cluster == label.owner:
        label.cluster_key = credentials.cluster_key
    elif not any(label.cluster_key):
        raise OperatorError(
            f"this server has not joined cluster {label.cluster_name}: matrixctl node add {options.name} on a node of "
            "it makes a token, matrixctl node join TOKEN here uses it"
        )
    elif credentials is not None:
        raise OperatorError(
            f"this server joined cluster {credentials.cluster_name}, the store is of another, {label.cluster_name}: "
            "give that one another --state"
        )


async def _open(disks: ClusterDisks, stores: tuple[str, ...]) -> None:
    """The stores that were given; of several, some may be away just now.  Raises what is wrong when all are."""
    failure: MatrixError | None = None
    for store in stores:
        try:
            await disks.add(store)
        except MatrixError as error:
            failure = error
            log.warning("%s", error)
    if not disks.opened and failure is not None:
        raise failure


async def _serve(
    options: MatrixdOptions, readiness: Readiness, disks: ClusterDisks, label: Label, clock: SystemClock
) -> None:
    node = _make_node(options, disks, label, clock)
    stopped = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, node, stopped, nursery.cancel_scope)
        await nursery.start(serve_control, node, label, options.state_dir, clock, stopped, cut_off)
        if options.metrics is not None:
            port = await nursery.start(serve_metrics, *options.metrics, options.state_dir)
            log.info("metrics on http://%s:%d/metrics", options.metrics[0], port)
        await nursery.start(node.run)
        log.info("member of cluster %s as node %d", label.cluster_name, node.node_id)
        readiness.ready()
        await stopped.wait()
        notify("STOPPING=1")
        nursery.cancel_scope.cancel()


def _make_node(options: MatrixdOptions, disks: ClusterDisks, label: Label, clock: SystemClock) -> Node:
    rng = SystemRng()
    host = this_host()

    guests = TokenGuests(label.owner)

    def make_mesh(identity: PeerAddress) -> LinkMesh:
        return LinkMesh(
            identity, "matrixd", label.owner, label.cluster_key, clock, rng,
            encrypt=label.links != PLAIN_LINKS, guests=guests,
        )  # fmt: skip

    def pauses(node: int) -> Pause:
        return pauses_of(os.environ.get(PAUSES), node, clock)

    guests.node = node = Node(
        disks,
        label,
        NodeConfig(options.name, options.host, options.port, options.others),
        host,
        make_mesh,
        clock,
        rng,
        (ProcessFence(host, clock, HostLanding(disks, clock), cut_off),),
        pauses,
        reach_of,
    )
    return node


async def _stop_on_signal(
    node: Node,
    stopped: trio.Event,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM and SIGINT: stop cleanly, or say why not (D2).  Before the node is a member: give up joining."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: stopping", signal.Signals(number).name)
            if node.status()["state"] in _NOT_YET:
                scope.cancel()
                return
            try:
                await node.stop()
            except OperatorError as error:
                log.warning("not stopped, running on: %s", error)
                continue
            stopped.set()
            return
