"""Ballot: a node's block of the SAN lock (002-32, 002-40), the disk of Disk Paxos (``ballot.py``)."""

from __future__ import annotations

from membership.errors import CorruptRecord
from membership.label import BALLOT_BLOCK, BLOCK_BYTES, NODE_SLOTS
from membership.records import Record, record, u64

BALLOT_BYTES = 512


@record(magic=b"MXFSBALT", size=BALLOT_BYTES)
class Ballot(Record):
    """``owner`` is the cluster, ``address`` the block, ``generation`` the SAN generation that is balloted.

    The record is one 512-byte sector, the unit that no disk tears: a half-written ballot could hide a vote
    that others counted.
    """

    promised: int = u64(48, "mbal: greatest ballot number this node began")
    voted: int = u64(56, "bal: ballot number of its vote, 0: none")
    value_node: int = u64(64, "inp: node it voted for")
    value_incarnation: int = u64(72, "inp: incarnation it voted for")


def ballot_block(node: int) -> int:
    """Block number of a node's ballot."""
    assert 0 <= node < NODE_SLOTS
    return BALLOT_BLOCK + node


def empty_ballot(node: int, cluster: bytes, generation: int) -> Ballot:
    """No promise and no vote for this generation."""
    return Ballot(
        owner=cluster,
        address=ballot_block(node),
        generation=generation,
        promised=0,
        voted=0,
        value_node=0,
        value_incarnation=0,
    )


def ballot_untrusted(data: bytes, node: int, cluster: bytes) -> Ballot:
    """The ballot in one block; an empty one when never written.  Raises CorruptRecord."""
    block = ballot_block(node)
    if not any(data[:8]):
        return empty_ballot(node, cluster, 0)
    ballot = Ballot.decode_untrusted(data, f"ballot {node} (block {block})", owner=cluster, address=block)
    if ballot.value_node >= NODE_SLOTS and ballot.voted:
        raise CorruptRecord(f"ballot {node}", "value", f"a node below {NODE_SLOTS}", ballot.value_node)
    return ballot


def ballot_image(ballot: Ballot) -> bytes:
    """The whole block: the record and zeros."""
    return ballot.encode().ljust(BLOCK_BYTES, b"\0")
