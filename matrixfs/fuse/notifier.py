"""The kernel's invalidation calls as functions that return an errno.

Which of them block was measured (coherence.md): ``attributes`` and ``epoch`` never do; ``pages`` waits for READs of
the inode that wait in us; ``name`` and ``name_expired`` wait for operations in the directory that wait in us.
"""

from __future__ import annotations

from typing import Protocol

from matrixfs.fuse.libfuse import asked_since, expire_entry, inc_epoch, prune, pyfuse3, requests, set_bare


class Notifier(Protocol):
    """What ``KernelCaches`` calls.  All arguments are the kernel's node ids; all return 0 or an errno."""

    def attributes(self, node: int) -> int:
        """Forget the attributes.  Never blocks."""
        ...

    def pages(self, node: int) -> int:
        """Forget attributes and pages.  May block."""
        ...

    def name(self, parent: int, name: bytes) -> int:
        """Drop a name.  May block."""
        ...

    def name_expired(self, parent: int, name: bytes) -> int:
        """Look a name up again on next use, and keep its place in the tree meanwhile.  May block."""
        ...

    def epoch(self) -> int:
        """Look all names up again on next use.  Never blocks."""
        ...

    def prune(self, node: int) -> int:
        """Drop all names of an inode that nobody uses: then the kernel forgets it.  May block."""
        ...

    def bare(self, node: int, is_bare: bool, /) -> None:
        """Whether questions for its extended attributes may be answered with "none".  Never blocks."""
        ...

    def requests(self) -> int:
        """How many requests of the kernel there have been."""
        ...

    def asked_since(self, pid: int, requests: int, /) -> bool:
        """Whether a thread is known to have sent a request after so many."""
        ...


class KernelNotifier:
    """The real one, over the process's one FUSE session."""

    def attributes(self, node: int) -> int:
        """See ``Notifier``."""
        return self._inode(node, attributes_only=True)

    def pages(self, node: int) -> int:
        """See ``Notifier``."""
        return self._inode(node, attributes_only=False)

    def name(self, parent: int, name: bytes) -> int:
        """See ``Notifier``."""
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as error:
            return error.errno or 0
        return 0

    def name_expired(self, parent: int, name: bytes) -> int:
        """See ``Notifier``."""
        return expire_entry(parent, name)

    def epoch(self) -> int:
        """See ``Notifier``."""
        return inc_epoch()

    def prune(self, node: int) -> int:
        """See ``Notifier``."""
        return prune(node)

    def bare(self, node: int, is_bare: bool, /) -> None:
        """See ``Notifier``."""
        set_bare(node, is_bare)

    def requests(self) -> int:
        """See ``Notifier``."""
        return requests()

    def asked_since(self, pid: int, requests: int, /) -> bool:
        """See ``Notifier``."""
        return asked_since(pid, requests)

    def _inode(self, node: int, *, attributes_only: bool) -> int:
        try:
            pyfuse3.invalidate_inode(node, attributes_only)
        except OSError as error:
            return error.errno or 0
        return 0
