"""Looking at the store behind the nodes' backs: every SAN header that is written, and the bytes of the data area."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import Self

from membership.errors import CorruptRecord
from membership.label import BLOCK_BYTES, DATA_BLOCK, HEADER_BLOCK, Label
from membership.san.header import NOBODY, SanHeader, header_untrusted

LOOK_SECONDS = 0.002
PIECE = 1 << 20


def header_of(store: Path) -> SanHeader:
    """The SAN header as it is now.  Raises CorruptRecord."""
    fd = os.open(store, os.O_RDONLY)
    try:
        label = Label.decode_untrusted(os.pread(fd, BLOCK_BYTES, 0), "label", address=0)
        return header_untrusted(os.pread(fd, BLOCK_BYTES, HEADER_BLOCK * BLOCK_BYTES), label.owner)
    finally:
        os.close(fd)


def data_digest(store: Path) -> str:
    """Of all that lies behind the membership area: what only a mount writes."""
    found = hashlib.sha256()
    fd = os.open(store, os.O_RDONLY)
    try:
        at = DATA_BLOCK * BLOCK_BYTES
        with contextlib.suppress(OSError):  # ENXIO: no data behind this
            while True:
                at = os.lseek(fd, at, os.SEEK_DATA)
                end = os.lseek(fd, at, os.SEEK_HOLE)
                while at < end:
                    piece = os.pread(fd, min(PIECE, end - at), at)
                    found.update(b"%d " % at + piece)
                    at += len(piece)
    finally:
        os.close(fd)
    return found.hexdigest()


class HeaderWatch:
    """Reads the header all the time, and keeps who was administrator in each generation.

    A header that is there for less than a look may be missed; one that contradicts an earlier one is not forgotten.
    """

    def __init__(self, store: Path) -> None:
        self.seen: list[SanHeader] = []  # every change, in the order it was seen
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with contextlib.suppress(CorruptRecord):  # both copies are never torn at once, but we read as it is written
                header = header_of(self._store)
                if not self.seen or header != self.seen[-1]:
                    self.seen.append(header)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def administrators(self) -> list[int]:
        """Node ids, each as often as it took office."""
        found = [header.administrator for header in self.seen if header.administrator != NOBODY]
        return [node for at, node in enumerate(found) if at == 0 or found[at - 1] != node]

    def check(self) -> None:
        """002-41, 002-45: generations only grow, and each has one header, so one administrator."""
        generations = [header.generation for header in self.seen]
        assert generations == sorted(set(generations)), generations
