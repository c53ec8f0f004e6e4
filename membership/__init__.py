"""Who is alive and who may touch the disks: transport, group, leases, SAN administrator, fencing.

The floor of the three packages: it declares the seams (``seams``), the error roots (``errors``) and
the fixed-layout records (``records``) that all others use, and imports neither ``dlm`` nor ``matrixfs``.
"""
