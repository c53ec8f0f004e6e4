"""The kernel's side of a mount: FUSE requests to filesystem calls, lock demotions to kernel invalidations.

Only this package imports pyfuse3.  ``libfuse`` must be imported before it, because the C extension has to be bound
in front of libfuse (coherence.md 5): every module here gets pyfuse3 by ``from matrixfs.fuse.libfuse import pyfuse3``.

Left imports right: session -> operations -> lock_requests, range_requests -> parked, edge, kernel_caches ->
handles, workers, notifier -> errnos, api, libfuse.
"""
