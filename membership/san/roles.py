"""A node's part in Figure 11, as a table (pure; 002-38 to 002-41).

======================  ========================================================================================
event                   when
======================  ========================================================================================
NOMINATED (1706)        the coordinator of our view nominates us, and it is not the nomination we work on already
WON (1720, 1730)        the disk ballot gave us the generation
DROPPED (1724, 1752)    the ballot or the header write failed, it was undone, no answer, or the coordinator changed
IN_FORCE (1756)         a header is in force that names us
SUPERSEDED              a newer header is in force that names somebody else, or nobody
======================  ========================================================================================

Invariant: only a header in force makes an administrator, and only a header in force ends one.
"""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """A node's part in Figure 11."""

    PEER = "peer"
    CANDIDATE = "candidate"  # 1720: trying for the SAN lock
    ELECTED = "elected"  # 1730: has it, waits for the coordinator, then for its header
    ADMIN = "administrator"


class RoleEvent(Enum):
    """What can happen to it."""

    NOMINATED = "nominated"
    WON = "won"
    DROPPED = "dropped"
    IN_FORCE = "in force"
    SUPERSEDED = "superseded"


TRANSITIONS: dict[tuple[Role, RoleEvent], Role] = {
    (Role.PEER, RoleEvent.NOMINATED): Role.CANDIDATE,
    (Role.PEER, RoleEvent.WON): Role.PEER,  # dropped while it balloted: the generation stays unused (A4)
    (Role.PEER, RoleEvent.DROPPED): Role.PEER,
    (Role.PEER, RoleEvent.IN_FORCE): Role.ADMIN,
    (Role.PEER, RoleEvent.SUPERSEDED): Role.PEER,
    (Role.CANDIDATE, RoleEvent.NOMINATED): Role.CANDIDATE,
    (Role.CANDIDATE, RoleEvent.WON): Role.ELECTED,
    (Role.CANDIDATE, RoleEvent.DROPPED): Role.PEER,
    (Role.CANDIDATE, RoleEvent.IN_FORCE): Role.ADMIN,
    (Role.CANDIDATE, RoleEvent.SUPERSEDED): Role.PEER,
    (Role.ELECTED, RoleEvent.NOMINATED): Role.CANDIDATE,
    (Role.ELECTED, RoleEvent.WON): Role.ELECTED,
    (Role.ELECTED, RoleEvent.DROPPED): Role.PEER,
    (Role.ELECTED, RoleEvent.IN_FORCE): Role.ADMIN,
    (Role.ELECTED, RoleEvent.SUPERSEDED): Role.PEER,
    (Role.ADMIN, RoleEvent.NOMINATED): Role.ADMIN,
    (Role.ADMIN, RoleEvent.WON): Role.ADMIN,  # the next generation of its own
    (Role.ADMIN, RoleEvent.DROPPED): Role.ADMIN,
    (Role.ADMIN, RoleEvent.IN_FORCE): Role.ADMIN,
    (Role.ADMIN, RoleEvent.SUPERSEDED): Role.PEER,
}
