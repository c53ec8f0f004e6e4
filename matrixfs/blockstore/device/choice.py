"""Which engine a process uses: io_uring where the kernel grants it, threads elsewhere (ecosystem.md 4)."""

from __future__ import annotations

import os
from typing import Final

import trio

from matrixfs.blockstore.device.engine import Engine
from matrixfs.blockstore.device.threads import ThreadEngine
from matrixfs.blockstore.device.uring import UringEngine
from membership.errors import OperatorError

ENGINE_VARIABLE: Final = "MATRIXFS_IO"
_current: trio.lowlevel.RunVar[Engine | None] = trio.lowlevel.RunVar("matrixfs block I/O engine", None)


def make_engine() -> Engine:
    """The fastest engine this kernel grants, or the one named by ``MATRIXFS_IO`` (``uring``, ``threads``).

    Raises:
        OperatorError: the variable names none, or asks for io_uring where it is refused.
    """
    wanted = os.environ.get(ENGINE_VARIABLE, "")
    if wanted not in {"", "uring", "threads"}:
        raise OperatorError(f"{ENGINE_VARIABLE}={wanted}: must be uring or threads")
    if wanted == "threads":
        return ThreadEngine()
    try:
        return UringEngine()
    except OSError as error:
        if wanted:
            raise OperatorError(f"{ENGINE_VARIABLE}=uring: the kernel refuses io_uring ({error.strerror})") from None
        return ThreadEngine()


def attach_engine() -> Engine:
    """The engine of this trio run, made by its first user.  Give it back with ``Engine.detach``."""
    engine = _current.get()
    if engine is None or engine.closed:
        engine = make_engine()
        _current.set(engine)
    engine.attach()
    return engine
