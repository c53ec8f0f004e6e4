"""All metrics of ``matrixctl metrics``: name, type, help, and where the value is in the answer to ``status``.

The table in docs/operator/contention.md is made from this one (scripts/docs-from-tables).  Names are only ever added.

A path leads through the counters of a mount (``local_mounts[].counters``), or for scope NODE through the status
itself.  ``*`` in it stands for every key there is and becomes the value of the last label; ``sent_*`` for what
follows that prefix.  What is not there, because the other end is of another version, is left out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
MOUNT: Final = ("node", "filesystem")
NODE: Final = ("node",)
PEER: Final = ("node", "filesystem", "peer")


class Metric(NamedTuple):
    """One metric."""

    name: str
    kind: str
    help: str
    path: str
    labels: tuple[str, ...] = MOUNT
    scale: float = 1.0  # of the value, to come to the unit in the name


_TYPED: Final = (*MOUNT, "type")

METRICS: Final = (
    Metric("matrixfs_lock_requests_total", COUNTER, "Requests to the lock manager.", "types.*.request", _TYPED),
    Metric("matrixfs_lock_grants_total", COUNTER, "Requests that were granted.", "types.*.granted", _TYPED),
    Metric("matrixfs_lock_grant_seconds", HISTOGRAM, "Time from request to grant.", "types.*.times", _TYPED),
    Metric("matrixfs_lock_revokes_total", COUNTER, "Locks that a peer asked back.", "types.*.revoke", _TYPED),
    Metric("matrixfs_lock_handovers_total", COUNTER, "Locks given up or lowered.", "types.*.demoted", _TYPED),
    Metric("matrixfs_lock_revokes_deferred_total", COUNTER, "Revokes put off for a turn.", "locks.revokes_deferred"),
    Metric("matrixfs_locks_reclaimed_total", COUNTER, "Idle locks given up for memory.", "locks.reclaimed"),
    Metric("matrixfs_locks_cached", GAUGE, "Locks in the cache.", "locks.cached"),
    Metric("matrixfs_locks_cached_shared", GAUGE, "Of these, to read.", "locks.cached_shared"),
    Metric("matrixfs_locks_cached_exclusive", GAUGE, "Of these, to change.", "locks.cached_exclusive"),
    Metric("matrixfs_lock_waits", GAUGE, "Local operations that wait for a lock, at most 100.", "waits.length"),
    Metric("matrixfs_lock_wait_oldest_seconds", GAUGE, "The longest of these waits.", "waits.0.seconds"),
    Metric("matrixfs_dlm_messages_sent_total", COUNTER, "Lock messages sent.", "dlm.sent_*", _TYPED),
    Metric("matrixfs_dlm_messages_received_total", COUNTER, "Lock messages received.", "dlm.received_*", _TYPED),
    Metric("matrixfs_dlm_round_trips_total", COUNTER, "Requests that needed another node.", "dlm.round_trips"),
    Metric("matrixfs_dlm_local_grants_total", COUNTER, "Requests granted without a message.", "dlm.local_grants"),
    Metric("matrixfs_dlm_resources", GAUGE, "Resources that this node arbitrates.", "dlm.resources"),
    Metric("matrixfs_link_up", GAUGE, "1 while the link to the peer's mount stands.", "peers.up", PEER),
    Metric("matrixfs_link_queued_messages", GAUGE, "Sent and not acknowledged.", "peers.queued", PEER),
    Metric(
        "matrixfs_link_round_trip_seconds", GAUGE, "Mean time of a ping.", "peers.round_trip_us", PEER, 1e-6
    ),
    Metric("matrixfs_link_bytes_sent_total", COUNTER, "Bytes to other mounts.", "links.bytes_sent"),
    Metric("matrixfs_link_bytes_received_total", COUNTER, "Bytes from other mounts.", "links.bytes_received"),
    Metric("matrixfs_link_reconnects_total", COUNTER, "Connections replaced.", "links.reconnects"),
    Metric("matrixfs_journal_events_total", COUNTER, "What the journal did.", "journal.*", _TYPED),
    Metric("matrixfs_buffered_bytes", GAUGE, "Written by programs, not yet to the store.", "buffered_bytes"),
    Metric("matrixfs_store_reads_total", COUNTER, "Reads of the store.", "store.reads"),
    Metric("matrixfs_store_writes_total", COUNTER, "Writes to the store.", "store.writes"),
    Metric("matrixfs_store_flushes_total", COUNTER, "Flushes of the store.", "store.flushes"),
    Metric("matrixfs_store_read_bytes_total", COUNTER, "Bytes read.", "store.bytes_read"),
    Metric("matrixfs_store_written_bytes_total", COUNTER, "Bytes written.", "store.bytes_written"),
    Metric("matrixfs_store_errors_total", COUNTER, "Failed operations of the store.", "store.errors"),
    Metric("matrixfs_writes_refused_total", COUNTER, "Writes that the fencing gate refused.", "gate.refused"),
    Metric("matrixfs_fuse_calls_total", COUNTER, "Calls of the kernel.", "fuse.calls.*", (*MOUNT, "operation")),
    Metric("matrixfs_fuse_failures_total", COUNTER, "Calls that failed by a fault, not by an errno.", "fuse.failures"),
    Metric("matrixfs_fuse_open_handles", GAUGE, "Files and directories open.", "fuse.open_handles"),
    Metric("matrixfs_kernel_caches_total", COUNTER, "What the kernel was made to forget.", "fuse.caches.*", _TYPED),
    Metric("matrixfs_lease_seconds", GAUGE, "How long this node may still write.", "lease_left", NODE),
    Metric("matrixfs_generation", GAUGE, "Generation of the SAN membership.", "generation", NODE),
    Metric("matrixfs_nodes", GAUGE, "Nodes known, by state.", "node_states.*", (*NODE, "state")),
    Metric(
        "matrixfs_recovery_phase_seconds", GAUGE, "Phases of the newest recovery.", "recovery.*.*",
        (*MOUNT, "phase"),
    ),
    Metric(
        "matrixfs_recovery_end_timestamp_seconds", GAUGE, "When it ended.", "recovery_end.*", MOUNT, 1e-9
    ),
)  # fmt: skip
