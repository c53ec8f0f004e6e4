"""One login at a target: one I_T nexus, from its beginning to its end.  trio-native, many commands in flight.

A session that ended stays ended; ``link`` makes the next.  Everything it does is asked of libiscsi (``Context``), whose
socket it watches from two tasks of trio's system nursery: they outlive whoever made the session, but not the run.

Invariants:
    S1  A command is handed to libiscsi in the moment after its guard was asked, and at most ``DEPTH`` are with it, or
        one where the target can't do more: the others wait here, in order, so that a right that ended meanwhile is
        noticed.
    S2  Who waits for an answer can't be cancelled out of it: the memory is libiscsi's until then.  It is bounded:
        a command without an answer for ``timeout`` seconds ends the whole session, for there is no other way to know
        that it won't land later, and its memory comes back only with the end.
        The connection is closed with a reset, also when this process is killed: what our kernel has not sent by then it
        forgets, where it would otherwise go on sending for minutes (socket(7), SO_LINGER).
    S3  At the end of the session everything in flight raises SessionLost: outcome unknown.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Final

import trio

from matrixfs.blockstore.device.api import Guard
from matrixfs.blockstore.scsi.address import Address, Identity
from matrixfs.blockstore.scsi.commands import Command
from matrixfs.blockstore.scsi.libiscsi import LOST, Answer, Context, Direction, Done
from matrixfs.blockstore.scsi.status import GOOD, Busy, SessionLost, UnitAttention, error_of
from membership.errors import DeviceError

DEPTH: Final = 64
LOGIN_SECONDS_MAX: Final = 10.0  # istgt takes one login a second, whoever asks
COMMAND_SECONDS_MAX: Final = 5.0
LOGOUT_SECONDS_MAX: Final = 1.0
_TICK_SECONDS: Final = 0.5  # between two looks for commands without an answer
_ATTENTIONS_MAX: Final = 8  # unit attentions queue up: power on, reset, capacity, reservations, ...
_CALM_SECONDS_MAX: Final = 0.5
_CALM_LOOK_SECONDS: Final = 0.001
_BUSY_SECONDS_FIRST: Final = 0.01
_BUSY_SECONDS_MAX: Final = 0.5
_REDIRECT: Final = 0x101
_COVERS_THE_CAUSE: Final = "Can not reconnect right now"  # what libiscsi says instead of it


class LoginRefused(DeviceError):
    """The target answered and said no: a matter of configuration, which no waiting mends."""


class _Operation:
    """One operation in flight, and the task that waits for it."""

    __slots__ = ("answer", "deadline", "task")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.answer: Answer | None = None
        self.task: trio.lowlevel.Task | None = None

    def done(self, answer: Answer) -> None:
        self.answer = answer
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None


class Session:
    """See the module.  Made by ``login``.

    Attributes:
        attention: called with each unit attention, before the command is sent again; may raise.
        ended: set when the session is over; ``reason`` says why.
    """

    def __init__(self, address: Address, identity: Identity, timeout: float = COMMAND_SECONDS_MAX) -> None:
        credentials = (address.user, address.password) if address.user else None
        self._context = Context(identity, address.target, credentials, header_digest=address.header_digest)
        self._address = address
        self._timeout = timeout
        self._operations: dict[int, _Operation] = {}
        self._numbers = itertools.count()
        self._slots = trio.Semaphore(DEPTH)
        self._wants_out = trio.Event()
        self.attention: Callable[[UnitAttention], None] | None = None
        self.ended = trio.Event()
        self.reason = ""
        self._leaving = False

    @classmethod
    async def login(
        cls,
        address: Address,
        identity: Identity,
        *,
        timeout: float = COMMAND_SECONDS_MAX,
        login_timeout: float = LOGIN_SECONDS_MAX,
    ) -> Session:
        """Connect and log in.

        Args:
            address: the LUN; only its target is looked at here.
            identity: who we are.  Another session of the same identity is ended by the target (RFC 7143 6.3.5).
            timeout: seconds for which a command may go without an answer.
            login_timeout: seconds for all of this.

        Raises:
            LoginRefused: no such target, or no access to it.
            DeviceError: the target can't be reached, or doesn't answer.
            OperatorError: no libiscsi.
        """
        session = cls(address, identity, timeout)
        try:
            with trio.fail_after(login_timeout):
                await session._login()
        except trio.TooSlowError:
            session.drop("no answer to the login")
            raise DeviceError(f"{address}: the target doesn't answer ({login_timeout:g} s)") from None
        except BaseException:
            session.drop("the login failed")
            raise
        return session

    async def _login(self) -> None:
        portal = await _resolve(self._address)
        try:
            operation = self._begin(lambda done: self._context.connect(portal, done), math.inf)
        except DeviceError as error:
            raise DeviceError(f"{self._address}: can't connect to {portal}: {error}") from None
        self._wants_out.set()  # writable: connected, or failed
        trio.lowlevel.spawn_system_task(self._write, name=f"iSCSI out {self._address}")
        answer = await self._wait(operation, cancellable=True)
        if answer.status != GOOD:
            raise DeviceError(f"{self._address}: nobody answers at {portal} ({self._said()})")
        _forget_at_close(self._context.fd)
        trio.lowlevel.spawn_system_task(self._read, name=f"iSCSI in {self._address}")
        answer = await self._wait(self._begin(self._context.login, math.inf), cancellable=True)
        if answer.status == _REDIRECT:
            raise LoginRefused(f"{self._address}: the target sends us to another portal; name that one instead")
        if answer.status != GOOD:
            raise LoginRefused(f"{self._address}: login refused: {self._said()}")

    def _said(self) -> str:
        said = self._context.error.rstrip(".")
        if not said or _COVERS_THE_CAUSE in said:
            return "the other end refused or closed the connection"
        return said

    @property
    def where(self) -> str:
        """The LUN, for messages."""
        return str(self._address)

    # -- commands

    async def command(self, command: Command) -> bytes:
        """Send ``command``; return what it receives (zeros where the target sent less).

        Unit attentions and a busy target are waited out.

        Raises:
            ReservationConflict, Miscompare, NoSuchUnit, CheckCondition, SessionLost, DeviceError: see ``status``.
        """
        if command.receives:
            memory = ctypes.create_string_buffer(command.receives)
            await self.transfer(command.name, command.cdb, Direction.READ, ctypes.addressof(memory), command.receives)
            return memory.raw
        if not command.data:
            await self.transfer(command.name, command.cdb, Direction.NONE, 0, 0)
            return b""
        data = ctypes.create_string_buffer(command.data, len(command.data))
        await self.transfer(command.name, command.cdb, Direction.WRITE, ctypes.addressof(data), len(command.data))
        return b""

    async def transfer(
        self,
        name: str,
        cdb: bytes,
        direction: Direction,
        address: int,
        length: int,
        *,
        guard: Guard | None = None,
        whole: bool = False,
    ) -> None:
        """As ``command``, with the caller's own memory: ``length`` bytes at ``address``, which he keeps until then.

        Args:
            name: for messages.
            cdb: descriptor block.
            direction: of the data.
            address: of the memory.
            length: of the memory.
            guard: asked each time the command is handed over; what it raises is raised, and then it was not.
            whole: a GOOD answer with less data than ``length`` is an error.
        """
        attentions, pause, deadline = 0, _BUSY_SECONDS_FIRST, trio.current_time() + self._timeout
        while True:
            try:
                answer = await self._execute(cdb, direction, address, length, guard)
                if answer.status != GOOD:
                    raise error_of(f"{self._address}: {name}", answer.status, answer.sense)
                if whole and answer.missing:
                    raise DeviceError(f"{self._address}: {name}: {answer.missing} of {length} bytes are missing")
                return
            except UnitAttention as error:
                attentions += 1
                if self.attention is not None:
                    self.attention(error)
                if attentions > _ATTENTIONS_MAX:
                    raise
            except Busy:
                if trio.current_time() + pause > deadline:
                    raise
                await trio.sleep(pause)
                pause = min(2 * pause, _BUSY_SECONDS_MAX)

    def one_at_a_time(self) -> None:
        """The target can't do more (S1)."""
        assert not self._operations, "commands are in flight already"
        self._slots = trio.Semaphore(1)

    async def _execute(
        self, cdb: bytes, direction: Direction, address: int, length: int, guard: Guard | None
    ) -> Answer:
        async with self._slots:
            self._check_alive()
            if guard is not None:
                guard()

            def start(done: Done) -> None:
                self._context.scsi(self._address.lun, cdb, direction, address, length, done)

            try:
                answer = await self._wait(self._begin(start, trio.current_time() + self._timeout))
            except DeviceError:  # it was not taken: not logged in any more
                answer = Answer(LOST)
        if answer.status >= LOST:
            self.drop(f"the connection is broken ({self._said()})")
            self._check_alive()
        return answer

    async def abort_task_set(self) -> None:
        """End all commands of this nexus on the unit.  Raises DeviceError."""
        await self._manage("ABORT TASK SET", self._context.abort_task_set)

    async def lun_reset(self) -> None:
        """End all commands of all nexuses on the unit.  Raises DeviceError.

        libiscsi gives up what is under way here, and the session with it, so a moment without is waited for.
        """
        with trio.move_on_after(_CALM_SECONDS_MAX):
            while self._operations:  # noqa: ASYNC110 - it is a matter of milliseconds
                await trio.sleep(_CALM_LOOK_SECONDS)
        await self._manage("LUN RESET", self._context.lun_reset)

    async def _manage(self, name: str, function: Callable[[int, Done], None]) -> None:
        self._check_alive()
        operation = self._begin(lambda done: function(self._address.lun, done), trio.current_time() + self._timeout)
        answer = await self._wait(operation)
        self._check_alive()
        if answer.status != GOOD or answer.response:
            raise DeviceError(f"{self._address}: {name} failed (response {answer.response})")

    # -- the end

    def drop(self, reason: str) -> None:
        """End the session at once: the connection is closed, what is in flight raises SessionLost.  Idempotent."""
        if self.ended.is_set():
            return
        self.reason = reason
        self.ended.set()
        self._wants_out.set()
        if (fd := self._context.fd) >= 0:
            trio.lowlevel.notify_closing(fd)
        self._context.destroy()

    async def aclose(self) -> None:
        """Log out, if the target answers in time, and end."""
        if not self.ended.is_set():
            self._leaving = True
            with trio.move_on_after(LOGOUT_SECONDS_MAX, shield=True):
                await self._wait(self._begin(self._context.logout, math.inf), cancellable=True)
        self.drop("closed")

    def _check_alive(self) -> None:
        if self.ended.is_set():
            raise SessionLost(f"{self._address}: the session has ended: {self.reason}")

    # -- operations

    def _begin(self, start: Callable[[Done], None], deadline: float) -> _Operation:
        """Start an operation of libiscsi, and send it out if that is possible at once."""
        operation = _Operation(deadline)
        number = next(self._numbers)
        self._operations[number] = operation

        def done(answer: Answer) -> None:
            self._operations.pop(number, None)
            operation.done(answer)

        try:
            start(done)
        except BaseException:
            self._operations.pop(number, None)
            raise
        if self._context.events & select.POLLOUT:
            self._serve(select.POLLOUT)
            self._look_out()
        return operation

    @staticmethod
    @trio.lowlevel.enable_ki_protection  # Ctrl-C may not part us from an operation in flight
    async def _wait(operation: _Operation, *, cancellable: bool = False) -> Answer:
        """The answer of ``operation`` (S2)."""
        if operation.answer is None:
            operation.task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                if not cancellable:
                    return trio.lowlevel.Abort.FAILED
                operation.task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        assert operation.answer is not None
        return operation.answer

    # -- the socket

    def _serve(self, events: int) -> None:
        """Let libiscsi do what it can; the callbacks come in here."""
        if not self.ended.is_set() and not self._context.service(events):
            self.drop("closed" if self._leaving else f"the connection is broken ({self._said()})")

    def _look_out(self) -> None:
        """Wake the writer when something can't be sent at once."""
        if not self.ended.is_set() and self._context.events & select.POLLOUT:
            self._wants_out.set()

    async def _read(self) -> None:
        try:
            while not self.ended.is_set():
                ready = 0
                with trio.move_on_after(_TICK_SECONDS):
                    await trio.lowlevel.wait_readable(self._context.fd)
                    ready = select.POLLIN
                self._serve(ready)
                self._expire()
                self._look_out()
        except trio.ClosedResourceError:
            return  # dropped
        finally:
            self.drop("this program ends")

    async def _write(self) -> None:
        try:
            while not self.ended.is_set():
                await self._wants_out.wait()
                self._wants_out = trio.Event()
                while not self.ended.is_set() and self._context.events & select.POLLOUT:
                    await trio.lowlevel.wait_writable(self._context.fd)
                    self._serve(select.POLLOUT)
        except trio.ClosedResourceError:
            return  # dropped
        finally:
            self.drop("this program ends")

    def _expire(self) -> None:
        """End the session when a command goes without an answer (S2)."""
        if self._is_overdue():
            self._serve(select.POLLIN)  # the answer may have come while it was us who stood still
        if self._is_overdue():
            self.drop(f"no answer to a command for {self._timeout:g} s")

    def _is_overdue(self) -> bool:
        first = next(iter(self._operations.values()), None)  # all have the same time, so it is the oldest
        return first is not None and first.deadline <= trio.current_time()


def _forget_at_close(fd: int) -> None:
    """Let no byte leave this host after the socket was closed, by whomever (S2)."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _resolve(address: Address) -> str:
    """``IP:PORT`` as libiscsi takes it.  Raises DeviceError."""
    try:
        found = await trio.socket.getaddrinfo(address.host, address.port, type=trio.socket.SOCK_STREAM)
    except OSError as error:
        raise DeviceError(f"{address}: there is no host {address.host!r} ({error.strerror})") from None
    ip = found[0][4][0]
    return f"[{ip}]:{address.port}" if ":" in str(ip) else f"{ip}:{address.port}"
