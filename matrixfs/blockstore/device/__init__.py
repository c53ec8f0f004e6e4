"""Devices: direct, asynchronous I/O on a shared file or block device (R13, ecosystem.md 4).

Left imports right: store -> file, block -> direct -> choice -> uring, threads -> engine -> buffers, api; and
store -> iscsi -> ``matrixfs.blockstore.scsi`` -> api.
"""
