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
    # the lock cache, by kind of lock (matrixfs/locks/counters.py)
    Metric("matrixfs_locks_cached", GAUGE, "Locks in the cache.", "locks.types.*.cached", _TYPED),
    Metric("matrixfs_locks_cached_exclusive", GAUGE, "Of these, to change.", "locks.types.*.cached_exclusive", _TYPED),
    Metric("matrixfs_lock_hits_total", COUNTER, "Uses that waited for nobody.", "locks.types.*.hits", _TYPED),
    Metric("matrixfs_lock_waits_total", COUNTER, "Uses that had to sleep.", "locks.types.*.waits", _TYPED),
    Metric("matrixfs_lock_wait_seconds", HISTOGRAM, "For how long.", "locks.types.*.waiting", _TYPED),
    Metric("matrixfs_lock_requests_total", COUNTER, "Requests to the lock manager.", "locks.types.*.requests", _TYPED),
    Metric("matrixfs_lock_grant_seconds", HISTOGRAM, "Time from request to grant.", "locks.types.*.granting", _TYPED),
    Metric(
        "matrixfs_lock_granted_at_once_total", COUNTER, "Requests granted by this node itself.",
        "locks.types.*.granted_at_once", _TYPED,
    ),
    Metric(
        "matrixfs_lock_prefetched_total", COUNTER, "Granted before anybody asked.", "locks.types.*.prefetched", _TYPED
    ),
    Metric(
        "matrixfs_lock_prefetch_denied_total", COUNTER, "Not so, for somebody had it.",
        "locks.types.*.prefetch_denied", _TYPED,
    ),
    Metric("matrixfs_lock_revokes_total", COUNTER, "Locks that a peer asked back.", "locks.types.*.revokes", _TYPED),
    Metric(
        "matrixfs_lock_revokes_deferred_total", COUNTER, "Of these, put off for a turn.",
        "locks.types.*.deferred", _TYPED,
    ),
    Metric(
        "matrixfs_lock_handovers_total", COUNTER, "Locks given to a peer.", "locks.types.*.hand_overs_given", _TYPED
    ),
    Metric(
        "matrixfs_lock_handovers_taken_total", COUNTER, "Contended locks got from a peer.",
        "locks.types.*.hand_overs_taken", _TYPED,
    ),
    Metric(
        "matrixfs_lock_release_seconds", HISTOGRAM, "From a peer's request to the release.",
        "locks.types.*.releasing", _TYPED,
    ),
    Metric("matrixfs_lock_flushes_total", COUNTER, "Locks to change given up.", "locks.types.*.flushes", _TYPED),
    Metric("matrixfs_lock_purges_total", COUNTER, "Locks to read given up.", "locks.types.*.purges", _TYPED),
    Metric("matrixfs_locks_reclaimed_total", COUNTER, "Given up unasked: idle.", "locks.types.*.reclaimed", _TYPED),
    Metric(
        "matrixfs_locks_shared_ahead_total", COUNTER, "Of these, for a peer that lists what this node wrote.",
        "locks.types.*.shared_ahead", _TYPED,
    ),
    Metric("matrixfs_lock_waits", GAUGE, "Local operations that wait for a lock, at most 100.", "waits.length"),
    Metric("matrixfs_lock_wait_oldest_seconds", GAUGE, "The longest of these waits.", "waits.0.seconds"),
    # the lock manager, by kind of lock or message (dlm/counts.py, dlm/service.py)
    Metric("matrixfs_dlm_messages_sent_total", COUNTER, "Lock messages sent.", "dlm.sent_*", _TYPED),
    Metric("matrixfs_dlm_messages_received_total", COUNTER, "Lock messages received.", "dlm.received_*", _TYPED),
    Metric("matrixfs_dlm_round_trips_total", COUNTER, "Requests that needed another node.", "dlm.round_trips"),
    Metric("matrixfs_dlm_local_grants_total", COUNTER, "Granted without a message.", "domains.*.local_grants", _TYPED),
    Metric("matrixfs_dlm_remote_grants_total", COUNTER, "Granted by a peer.", "domains.*.remote_grants", _TYPED),
    Metric("matrixfs_dlm_revokes_sent_total", COUNTER, "Asked back from peers.", "domains.*.revokes_sent", _TYPED),
    Metric("matrixfs_dlm_revokes_received_total", COUNTER, "By peers.", "domains.*.revokes_received", _TYPED),
    Metric(
        "matrixfs_dlm_revokes_saved_total", COUNTER, "Grants that said at once that others wait.",
        "domains.*.finish_flags", _TYPED,
    ),
    Metric(
        "matrixfs_dlm_handovers_total", COUNTER, "Grants made here because a holder let go.",
        "domains.*.hand_overs", _TYPED,
    ),
    Metric(
        "matrixfs_dlm_prefetch_granted_total", COUNTER, "Locks granted along with others.",
        "domains.*.prefetch_granted", _TYPED,
    ),
    Metric(
        "matrixfs_dlm_prefetch_left_out_total", COUNTER, "Not granted along: somebody had them.",
        "domains.*.prefetch_left_out", _TYPED,
    ),
    Metric("matrixfs_dlm_locks", GAUGE, "Locks of this node.", "dlm.locks"),
    Metric("matrixfs_dlm_resources", GAUGE, "Resources that this node arbitrates.", "dlm.resources"),
    Metric("matrixfs_dlm_rebuild_seconds", GAUGE, "The newest rebuild.", "dlm.rebuild_done_ms", MOUNT, 1e-3),
    Metric("matrixfs_dlm_bad_messages_total", COUNTER, "Messages of peers that made no sense.", "dlm.bad_messages"),
    # flock, fcntl, application locks (dlm/owned)
    Metric("matrixfs_file_locks_total", COUNTER, "File and application locks asked for.", "dlm.owned_locks"),
    Metric("matrixfs_file_unlocks_total", COUNTER, "Given back.", "dlm.owned_unlocks"),
    Metric("matrixfs_file_lock_tests_total", COUNTER, "Asked who holds (F_GETLK).", "dlm.owned_tests"),
    Metric("matrixfs_file_locks_blocked_total", COUNTER, "Arbitrated here, that had to wait.", "dlm.owned_blocked"),
    Metric("matrixfs_file_lock_deadlocks_total", COUNTER, "Waits ended with EDEADLK.", "dlm.owned_deadlocks"),
    Metric(
        "matrixfs_file_locks_refused_total", COUNTER, "Arbitrated here and refused, by reason.",
        "dlm.owned_refused_*", (*MOUNT, "reason"),
    ),
    Metric("matrixfs_file_lock_ranges", GAUGE, "Ranges held, arbitrated here.", "dlm.owned_ranges"),
    Metric("matrixfs_file_lock_waits", GAUGE, "Waits, arbitrated here.", "dlm.owned_waits"),
    # links to the other mounts (membership/transport)
    Metric("matrixfs_link_up", GAUGE, "1 while the link to the peer's mount stands.", "peers.up", PEER),
    Metric("matrixfs_link_queued_messages", GAUGE, "Sent and not acknowledged.", "peers.queued", PEER),
    Metric("matrixfs_link_queued_bytes", GAUGE, "Of these messages.", "peers.queued_bytes", PEER),
    Metric("matrixfs_link_silence_seconds", GAUGE, "Without a sign of life though pinged.", "peers.silence", PEER),
    Metric(
        "matrixfs_link_round_trip_seconds", GAUGE, "Mean time of a ping.", "peers.round_trip_us", PEER, 1e-6
    ),
    Metric(
        "matrixfs_link_round_trip_max_seconds", GAUGE, "Longest ping.", "peers.round_trip_max_us", PEER, 1e-6
    ),
    Metric("matrixfs_link_resumes_total", COUNTER, "Connections replaced without a loss.", "peers.resumes", PEER),
    Metric("matrixfs_link_losses_total", COUNTER, "Times the link was lost.", "peers.losses", PEER),
    Metric("matrixfs_link_messages_sent_total", COUNTER, "To the peer.", "peers.traffic.messages_sent", PEER),
    Metric("matrixfs_link_messages_received_total", COUNTER, "From it.", "peers.traffic.messages_received", PEER),
    Metric("matrixfs_link_bytes_sent_total", COUNTER, "Bytes to other mounts.", "links.bytes_sent"),
    Metric("matrixfs_link_bytes_received_total", COUNTER, "Bytes from other mounts.", "links.bytes_received"),
    Metric("matrixfs_link_reconnects_total", COUNTER, "Connections replaced.", "links.reconnects"),
    # journal, store, kernel
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
    # the node
    Metric("matrixfs_lease_seconds", GAUGE, "How long this node may still write.", "lease_left", NODE),
    Metric("matrixfs_generation", GAUGE, "Generation of the SAN membership.", "generation", NODE),
    Metric("matrixfs_nodes", GAUGE, "Nodes known, by state.", "node_states.*", (*NODE, "state")),
    # recovery (membership/status.py)
    Metric(
        "matrixfs_recovery_phase_seconds", GAUGE, "Phases of the newest recovery.", "recovery.*.*",
        (*MOUNT, "phase"),
    ),
    Metric(
        "matrixfs_recovery_end_timestamp_seconds", GAUGE, "When it ended.", "recovery_end.*", MOUNT, 1e-9
    ),
)  # fmt: skip
