"""The symmetric distributed lock manager: every node is a peer that arbitrates its share of resources (002-04).

Imports ``membership`` only; only ``matrixfs.locks`` imports it (002-05).
"""
