"""The filesystem: namespace, inodes, extents, allocation, journal.

Every operation has two halves.  First it waits: it takes its locks in the lock order
(``matrixfs.locks``), loads the blocks it will touch, and makes sure of free blocks.  Then it changes the
blocks in memory and hands them to the running transaction **with no checkpoint in between**, so that
every transaction holds whole operations only, with neither undo nor nested handles.
"""
