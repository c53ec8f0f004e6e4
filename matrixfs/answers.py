"""What a mount process can be asked by matrixctl, here or on any node: a table of names and handlers.

Invariants:
- Q1. Questions come from anybody who may talk to a matrixd of the cluster: names and arguments are hostile, and a
  handler that fails answers one line and costs the mount nothing.
- Q2. At most ``ANSWERING_MAX`` are answered at a time; a handler that waits for locks has a time limit of its own.

Source: R14; issue 3 ("Seeing contention").
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from membership.control_wire import Message, decode_untrusted, encode_map, error_message
from membership.errors import MatrixError, OperatorError

ANSWERING_MAX: Final = 256  # application locks that are waited for count too

Handler: TypeAlias = Callable[[Message], Any]  # a plain value (control_wire, W1), or an awaitable of one

log = logging.getLogger(__name__)


class Answers:
    """See the module.

    Args:
        handlers: what each question calls, with its arguments.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._answering = 0

    def add(self, handlers: Mapping[str, Handler]) -> None:
        """Answer more questions."""
        self._handlers |= handlers

    async def answer(self, what: str, arguments: bytes) -> bytes:
        """The answer as a CBOR map: ``value``, or ``error`` with one line.  Never raises but when cancelled."""
        if self._answering >= ANSWERING_MAX:
            return encode_map(error_message(OperatorError("this mount process is asked too much at once: try again")))
        self._answering += 1
        try:
            return encode_map({"kind": "value", "value": await self._value(what, arguments)})
        except MatrixError as error:
            return encode_map(error_message(error))
        except Exception as error:  # no reason to lose a mount
            log.exception("answering %.32r failed", what)
            return encode_map(error_message(MatrixError(f"the mount process could not answer: {error!r:.200}")))
        finally:
            self._answering -= 1

    async def _value(self, what: str, arguments: bytes) -> Any:
        handler = self._handlers.get(what)
        if handler is None:
            raise OperatorError(f"mount processes of this version can't answer {what[:32]!r}: upgrade the node")
        value = handler(decode_untrusted(arguments))
        return await value if isinstance(value, Awaitable) else value
