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


def _cache(name: str, kind: str, help_: str, counter: str) -> Metric:
    """What the lock cache counts by kind of lock."""
    return Metric(name, kind, help_, f"locks.types.*.{counter}", _TYPED)


def _manager(name: str, kind: str, help_: str, counter: str) -> Metric:
    """What the lock manager counts by kind of lock."""
    return Metric(name, kind, help_, f"domains.*.{counter}", _TYPED)


METRICS: Final = (
    # the lock cache, by kind of lock (matrixfs/locks/counters.py)
    _cache("matrixfs_locks_cached", GAUGE, "Locks in the cache.", "cached"),
    _cache("matrixfs_locks_cached_exclusive", GAUGE, "Locks in the cache that allow to change.", "cached_exclusive"),
    _cache("matrixfs_lock_hits_total", COUNTER, "Uses that waited for nobody.", "hits"),
    _cache("matrixfs_lock_waits_total", COUNTER, "Uses that had to sleep.", "waits"),
    _cache("matrixfs_lock_wait_seconds", HISTOGRAM, "How long uses had to sleep.", "waiting"),
    _cache("matrixfs_lock_requests_total", COUNTER, "Requests to the lock manager.", "requests"),
    _cache("matrixfs_lock_grant_seconds", HISTOGRAM, "Time from request to grant.", "granting"),
    _cache("matrixfs_lock_granted_at_once_total", COUNTER, "Requests granted by this node itself.", "granted_at_once"),
    _cache("matrixfs_lock_prefetched_total", COUNTER, "Granted before anybody asked.", "prefetched"),
    _cache("matrixfs_lock_prefetch_denied_total", COUNTER, "Prefetches left out: in use.", "prefetch_denied"),
    _cache("matrixfs_lock_revokes_total", COUNTER, "Locks that a peer asked back.", "revokes"),
    _cache("matrixfs_lock_revokes_deferred_total", COUNTER, "Revokes put off for a turn.", "deferred"),
    _cache("matrixfs_lock_handovers_total", COUNTER, "Locks given to a peer.", "hand_overs_given"),
    _cache("matrixfs_lock_handovers_taken_total", COUNTER, "Contended locks got from a peer.", "hand_overs_taken"),
    _cache("matrixfs_lock_release_seconds", HISTOGRAM, "From a peer's request to the release.", "releasing"),
    _cache("matrixfs_lock_flushes_total", COUNTER, "Locks to change given up.", "flushes"),
    _cache("matrixfs_lock_purges_total", COUNTER, "Locks to read given up.", "purges"),
    _cache("matrixfs_locks_reclaimed_total", COUNTER, "Idle locks given up unasked.", "reclaimed"),
    _cache("matrixfs_locks_shared_ahead_total", COUNTER, "Given up for a peer that lists files.", "shared_ahead"),
    Metric("matrixfs_lock_waits", GAUGE, "Local operations that wait for a lock, at most 100.", "waits.length"),
    Metric("matrixfs_lock_wait_oldest_seconds", GAUGE, "The longest wait of a local operation.", "waits.0.seconds"),
    # the lock manager, by kind of lock or message (dlm/counts.py, dlm/service.py)
    Metric("matrixfs_dlm_messages_sent_total", COUNTER, "Lock messages sent.", "dlm.sent_*", _TYPED),
    Metric("matrixfs_dlm_messages_received_total", COUNTER, "Lock messages received.", "dlm.received_*", _TYPED),
    Metric("matrixfs_dlm_round_trips_total", COUNTER, "Requests that needed another node.", "dlm.round_trips"),
    _manager("matrixfs_dlm_local_grants_total", COUNTER, "Granted without a message.", "local_grants"),
    _manager("matrixfs_dlm_remote_grants_total", COUNTER, "Granted by a peer.", "remote_grants"),
    _manager("matrixfs_dlm_revokes_sent_total", COUNTER, "Asked back from peers.", "revokes_sent"),
    _manager("matrixfs_dlm_revokes_received_total", COUNTER, "Asked back by peers.", "revokes_received"),
    _manager("matrixfs_dlm_revokes_saved_total", COUNTER, "Revokes that a grant had in it.", "finish_flags"),
    _manager("matrixfs_dlm_handovers_total", COUNTER, "Grants after a holder let go.", "hand_overs"),
    _manager("matrixfs_dlm_prefetch_granted_total", COUNTER, "Locks granted along with others.", "prefetch_granted"),
    _manager("matrixfs_dlm_prefetch_left_out_total", COUNTER, "Not granted along: in use.", "prefetch_left_out"),
    Metric("matrixfs_dlm_locks", GAUGE, "Locks of this node.", "dlm.locks"),
    Metric("matrixfs_dlm_resources", GAUGE, "Resources that this node arbitrates.", "dlm.resources"),
    Metric("matrixfs_dlm_rebuild_seconds", GAUGE, "The newest rebuild.", "dlm.rebuild_done_ms", MOUNT, 1e-3),
    Metric("matrixfs_dlm_bad_messages_total", COUNTER, "Messages of peers that made no sense.", "dlm.bad_messages"),
    # flock, fcntl, application locks (dlm/owned)
    Metric("matrixfs_file_locks_total", COUNTER, "File and application locks asked for.", "dlm.owned_locks"),
    Metric("matrixfs_file_unlocks_total", COUNTER, "File and application locks given back.", "dlm.owned_unlocks"),
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
    Metric("matrixfs_link_queued_bytes", GAUGE, "Bytes not acknowledged.", "peers.queued_bytes", PEER),
    Metric("matrixfs_link_silence_seconds", GAUGE, "Without a sign of life though pinged.", "peers.silence", PEER),
    Metric(
        "matrixfs_link_round_trip_seconds", GAUGE, "Mean time of a ping.", "peers.round_trip_us", PEER, 1e-6
    ),
    Metric(
        "matrixfs_link_round_trip_max_seconds", GAUGE, "Longest ping.", "peers.round_trip_max_us", PEER, 1e-6
    ),
    Metric("matrixfs_link_resumes_total", COUNTER, "Connections replaced without a loss.", "peers.resumes", PEER),
    Metric("matrixfs_link_moves_total", COUNTER, "Times the link took another path.", "peers.moves", PEER),
    Metric("matrixfs_link_losses_total", COUNTER, "Times the link was lost.", "peers.losses", PEER),
    Metric("matrixfs_link_messages_sent_total", COUNTER, "Messages to the peer.", "peers.traffic.messages_sent", PEER),
    Metric(
        "matrixfs_link_messages_received_total", COUNTER, "Messages from the peer.",
        "peers.traffic.messages_received", PEER,
    ),
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
    Metric("matrixfs_store_discards_total", COUNTER, "Times the store was told of free blocks.", "store.discards"),
    Metric("matrixfs_store_discarded_bytes_total", COUNTER, "Bytes it was told of.", "store.bytes_discarded"),
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
        "matrixfs_recovery_end_timestamp_seconds", GAUGE, "End of the newest recovery.", "recovery_end.*", MOUNT, 1e-9
    ),
)  # fmt: skip
