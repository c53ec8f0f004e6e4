"""What the mount helper tells the mount process: one validated value (ecosystem.md 6)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MountOptions:
    """One mount, as asked for on the command line or in fstab.

    Attributes:
        source: name of the filesystem, as ``mount`` shows it.
        mountpoint: absolute path of an existing directory, without symbolic links.
        state_dir: directory of the local matrixd, where its socket is.
        read_only: mount read-only.
        local_locks: ``-o localflocks``: file locks hold on this node only, and the kernel opens and closes by itself.
        journal_data: ``-o data=journal``: file data goes through the journal; else (``data=ordered``) to its place.
        discard: ``-o discard``: the store is told what is freed.
        kernel_options: for libfuse: ``dev suid`` unless ``nodev`` or ``nosuid`` was asked for, ``noexec`` and the like.
        log_path: where the mount process logs; "" for stderr (in the foreground).
        log_level: ``info``, or ``debug`` for ``-v -v``.
    """

    source: str
    mountpoint: str
    state_dir: str
    read_only: bool = False
    local_locks: bool = False
    journal_data: bool = False
    discard: bool = False
    kernel_options: tuple[str, ...] = ("dev", "suid")
    log_path: str = ""
    log_level: str = "info"
