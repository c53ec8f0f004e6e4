"""Fence drivers: how a node that lost its right is made certain not to write any more (002-31, 002-38)."""
