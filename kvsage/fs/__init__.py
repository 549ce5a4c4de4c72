"""The one door to the disk: everything that is written, flushed, renamed or removed passes here.

A test stands a double in this door: one that records, one that fails, one that forgets what was
not flushed.
"""

from kvsage.fs.posix import POSIX, Disk

__all__ = ["POSIX", "Disk"]
