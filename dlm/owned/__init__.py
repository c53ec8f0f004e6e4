"""Cluster-wide owned locks: byte ranges whose holder is (node, owner id) (architecture 6, anchors 7.17, 000-15).

Beside the resources of the lock cache, whose holder is a whole node and is asked to give way, these belong to a
process or an open file: they are refused or waited for, never revoked.  flock(2), fcntl(2) and named application
locks are built on them.  They share the lockspace's messages, views and barriers; see ``core``.
"""
