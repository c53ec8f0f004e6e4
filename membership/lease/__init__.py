"""Disk heartbeat and lease: who is alive, and until when a node may write (002-12, 002-22; R3, R4)."""
