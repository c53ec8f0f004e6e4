"""Registered or not: what one process may do with its reservation key.  Pure (002-31, 002-38; R3, R9).

===============  ==============  =================  ==============  ==============  ==============
state            ADMIT           RECONNECT          WITHDRAW        CONFLICT        EVICTED
===============  ==============  =================  ==============  ==============  ==============
UNREGISTERED     -> REGISTERED   nothing            -> LOST         -> LOST         -> LOST
                 register
REGISTERED       register        register           -> LOST         -> LOST         -> LOST
                                                    leave                           unregister
LOST             refuse          refuse             nothing         nothing         nothing
===============  ==============  =================  ==============  ==============  ==============

ADMIT in REGISTERED: another key (a claimant that got its node id), or further LUNs.  CONFLICT: the LUN says that our
registration is gone.  EVICTED: the SAN header says it.  LOST is final: only a new incarnation registers again, and its
slot claim (H1) made sure that this one is dead.
"""

from __future__ import annotations

import enum

from membership.errors import Fenced


class State(enum.Enum):
    """Of the process, for all LUNs together."""

    UNREGISTERED = "unregistered"
    REGISTERED = "registered"
    LOST = "lost"


class Event(enum.Enum):
    """What happens to it."""

    ADMIT = "admit"
    RECONNECT = "reconnect"
    WITHDRAW = "withdraw"
    CONFLICT = "conflict"
    EVICTED = "evicted"


class Action(enum.Enum):
    """What is to be done on the LUNs."""

    NOTHING = "nothing"
    REGISTER = "register"
    UNREGISTER = "unregister"
    LEAVE = "leave"  # unregister where that opens the LUN to nobody
    REFUSE = "refuse"  # raise Fenced


_U, _R, _L = State.UNREGISTERED, State.REGISTERED, State.LOST
TABLE: dict[tuple[State, Event], tuple[State, Action]] = {
    (_U, Event.ADMIT): (_R, Action.REGISTER),
    (_U, Event.RECONNECT): (_U, Action.NOTHING),
    (_U, Event.WITHDRAW): (_L, Action.NOTHING),
    (_U, Event.CONFLICT): (_L, Action.NOTHING),
    (_U, Event.EVICTED): (_L, Action.NOTHING),
    (_R, Event.ADMIT): (_R, Action.REGISTER),
    (_R, Event.RECONNECT): (_R, Action.REGISTER),
    (_R, Event.WITHDRAW): (_L, Action.LEAVE),
    (_R, Event.CONFLICT): (_L, Action.NOTHING),
    (_R, Event.EVICTED): (_L, Action.UNREGISTER),
    (_L, Event.ADMIT): (_L, Action.REFUSE),
    (_L, Event.RECONNECT): (_L, Action.REFUSE),
    (_L, Event.WITHDRAW): (_L, Action.NOTHING),
    (_L, Event.CONFLICT): (_L, Action.NOTHING),
    (_L, Event.EVICTED): (_L, Action.NOTHING),
}


class Registration:
    """The state, and why it was lost."""

    def __init__(self) -> None:
        self.state = State.UNREGISTERED
        self.reason = ""

    def step(self, event: Event, reason: str = "") -> Action:
        """Apply ``event``; ``reason`` is kept when this loses the registration.  Raises Fenced for REFUSE."""
        state, action = TABLE[self.state, event]
        if state is State.LOST and self.state is not State.LOST:
            self.reason = reason
        self.state = state
        if action is Action.REFUSE:
            self.check()
        return action

    def check(self) -> None:
        """Raises Fenced when the registration is lost."""
        if self.state is State.LOST:
            raise Fenced(f"its registration with the store is gone ({self.reason}): only a new start gets another")
