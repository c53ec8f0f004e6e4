"""The fast way: io_uring from the standard library alone (ctypes for three system calls, mmap, eventfd).

Source: ecosystem.md 4 (46-52 k operations/s in a trio loop, where threads reach 18-27 k); man io_uring_setup(2),
io_uring_enter(2).  Constants and layouts are of <linux/io_uring.h>, which is stable ABI.

Invariants:
    U1  At most as many operations are in flight as the completion queue holds: it can't overflow.
    U2  Without SQPOLL the kernel reads the submission queue only inside ``enter``: what it did not take may be
        rewound, which ``submit`` does when the kernel is short of memory.
    U3  A 32-bit ring index is read and written by one aligned access (a memoryview of "I"), and a lock stands
        between the read of the completion tail and of the entries: on machines that reorder loads (aarch64) it is
        the barrier.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from matrixfs.blockstore.device.engine import Engine, Kind, Operation

_SETUP, _ENTER, _REGISTER = 425, 426, 427  # the same on every architecture but alpha
_SETUP_CQSIZE = 1 << 3
_FEATURES_NEEDED = 1 << 0 | 1 << 1  # one mmap for both rings; completions are never dropped
_OFFSET_SQES = 0x10000000
_REGISTER_EVENTFD, _REGISTER_PROBE = 4, 8
_PROBE_OPERATIONS, _PROBE_SUPPORTED = 64, 1
_ONE: Final = ctypes.c_uint(1)
_PROBE_ROOM: Final = ctypes.c_uint(_PROBE_OPERATIONS)
_OPCODE: Final = {Kind.READ: 22, Kind.WRITE: 23, Kind.FLUSH: 3}
_FSYNC_DATASYNC = 1

_PARAMS = struct.Struct("<10I 10I 10I")  # head; offsets of the submission ring; of the completion ring
# opcode, flags, ioprio, fd, offset, address, length, rw/fsync flags, user data, buffer, personality, splice, 2 x pad
_SQE = struct.Struct("<BBHiQQIIQHHiQQ")
_CQE = struct.Struct("<QiI")  # user data, result, flags

SUBMISSIONS = 256
COMPLETIONS = 1024

assert _PARAMS.size == 120
assert _SQE.size == 64
assert _CQE.size == 16

# min_complete, flags, signal mask, its size.  Typed: a bare int leaves the upper half of a variadic argument undefined.
_ENTER_REST: Final = (ctypes.c_uint(0), ctypes.c_uint(0), ctypes.c_void_p(None), ctypes.c_size_t(0))

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _call(number: int, *arguments: object) -> int:
    """A system call, repeated on EINTR.  Raises OSError."""
    while True:
        result: int = _syscall(ctypes.c_long(number), *arguments)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


class Ring:
    """The two rings and their system calls; knows nothing of trio.

    Args:
        wake_fd: eventfd that the kernel signals with each completion.
        submissions: operations per ``submit``, a power of two.
        completions: operations in flight at most, a power of two.

    Raises:
        OSError: this kernel or container has no (sufficient) io_uring.
    """

    def __init__(self, wake_fd: int, submissions: int = SUBMISSIONS, completions: int = COMPLETIONS) -> None:
        params = bytearray(_PARAMS.size)
        _PARAMS.pack_into(params, 0, submissions, completions, _SETUP_CQSIZE, *(0 for _ in range(27)))
        self._fd = _call(_SETUP, ctypes.c_uint(submissions), (ctypes.c_char * len(params)).from_buffer(params))
        try:
            self._require_operations()
            descriptor = ctypes.c_int(wake_fd)
            _call(_REGISTER, ctypes.c_int(self._fd), ctypes.c_uint(_REGISTER_EVENTFD), ctypes.byref(descriptor), _ONE)
            self._map(_PARAMS.unpack(params))
        except BaseException:
            os.close(self._fd)
            raise

    def _require_operations(self) -> None:
        probe = bytearray(16 + 8 * _PROBE_OPERATIONS)
        memory = (ctypes.c_char * len(probe)).from_buffer(probe)
        _call(_REGISTER, ctypes.c_int(self._fd), ctypes.c_uint(_REGISTER_PROBE), memory, _PROBE_ROOM)
        for opcode in _OPCODE.values():
            _, _, flags, _ = struct.unpack_from("<BBHI", probe, 16 + 8 * opcode)
            if not flags & _PROBE_SUPPORTED:
                raise OSError(errno.ENOSYS, f"io_uring has no operation {opcode}")

    def _map(self, params: tuple[int, ...]) -> None:
        features = params[5]
        if features & _FEATURES_NEEDED != _FEATURES_NEEDED:
            raise OSError(errno.ENOSYS, f"io_uring features {features:#x} are too few")
        self.submissions, self.completions = params[0], params[1]
        sq, cq = params[10:20], params[20:30]
        array, cqes = sq[6], cq[5]
        self._rings = mmap.mmap(self._fd, max(array + 4 * self.submissions, cqes + _CQE.size * self.completions))
        self._sqes = mmap.mmap(self._fd, _SQE.size * self.submissions, offset=_OFFSET_SQES)
        self._view = memoryview(self._rings)
        self._words = self._view[: len(self._view) & ~3].cast("I")
        self._sq_head, self._sq_tail = sq[0] // 4, sq[1] // 4
        self._cq_head, self._cq_tail, self._cq_overflow = cq[0] // 4, cq[1] // 4, cq[4] // 4
        self._cqes = cqes
        self._barrier = threading.Lock()
        for slot in range(self.submissions):
            self._words[array // 4 + slot] = slot

    def submit(self, entries: Sequence[tuple[Operation, int]]) -> int:
        """Give (operation, user data) pairs to the kernel in one call; return how many it took.

        At most ``submissions`` entries.  Fewer are taken when it is short of memory (EAGAIN, EBUSY).
        """
        tail = self._words[self._sq_tail]
        for i, (operation, key) in enumerate(entries):
            slot = (tail + i) % self.submissions
            self._fill(slot * _SQE.size, operation, key)
        self._words[self._sq_tail] = (tail + len(entries)) & 0xFFFFFFFF
        try:
            taken = _call(_ENTER, ctypes.c_int(self._fd), ctypes.c_uint(len(entries)), *_ENTER_REST)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EBUSY}:
                raise
            taken = 0
        self._words[self._sq_tail] = (tail + taken) & 0xFFFFFFFF  # U2
        return taken

    def _fill(self, at: int, operation: Operation, key: int) -> None:
        kind = operation.kind
        if kind is Kind.FLUSH:
            length, flags = 0, _FSYNC_DATASYNC
        else:
            length, flags = operation.view.nbytes, os.RWF_DSYNC if operation.durable else 0
        _SQE.pack_into(
            self._sqes, at, _OPCODE[kind], 0, 0, operation.fd, operation.offset, operation.address, length, flags,
            key, 0, 0, 0, 0, 0,
        )  # fmt: skip

    def reap(self) -> Iterator[tuple[int, int]]:
        """(user data, result) of every completion that is there."""
        head, tail = self._words[self._cq_head], self._words[self._cq_tail]
        with self._barrier:  # U3
            pass
        while head != tail:
            key, result, _ = _CQE.unpack_from(self._rings, self._cqes + head % self.completions * _CQE.size)
            head = (head + 1) & 0xFFFFFFFF
            yield key, result
        self._words[self._cq_head] = head
        assert self._words[self._cq_overflow] == 0, "io_uring completions overflowed"  # U1

    def close(self) -> None:
        """Give the rings back.  Nothing may be in flight."""
        self._words.release()
        self._view.release()
        self._rings.close()
        self._sqes.close()
        os.close(self._fd)


class UringEngine(Engine):
    """Engine over one ring.  Raises OSError where the kernel or the container refuses io_uring."""

    kind = "io_uring"

    def __init__(self) -> None:
        super().__init__(COMPLETIONS)
        try:
            self._ring = Ring(self._wake_fd)
        except BaseException:
            os.close(self._wake_fd)
            raise
        self._capacity = self._ring.completions
        self._pending: dict[int, Operation] = {}  # holds each operation, so its memory, until it is over (E3)
        self._next_key = 0

    def _start(self, operations: Sequence[Operation]) -> int:
        done = 0
        while done < len(operations):
            entries = []
            for operation in operations[done : done + self._ring.submissions]:
                entries.append((operation, self._next_key))
                self._next_key += 1
            taken = self._ring.submit(entries)
            for operation, key in entries[:taken]:
                self._pending[key] = operation
            done += taken
            if taken == 0:
                break
        return done

    def _collect(self) -> Iterator[Operation]:
        for key, result in self._ring.reap():
            operation = self._pending.pop(key)
            operation.result = result
            yield operation

    def _shut(self) -> None:
        self._ring.close()
