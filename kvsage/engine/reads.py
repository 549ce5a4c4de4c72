"""Which keys were read lately, known to all processes of a bounded store.

The file ``READS`` is mapped by each of them: one byte for each hash of a key, set by a load,
cleared when eviction comes by. Two keys may share a byte, a mark may be lost in a race, and the
whole file may be lost: a key then stays a little longer than it deserves, or goes a little sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from kvsage.errors import KvsageError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable
    from pathlib import Path

    from kvsage.fs import Disk

SLOTS = 1 << 20
_MASK = SLOTS - 1


class Reads:
    """The marks of one store.

    Attributes:
        stuck_in: the segment that was active when eviction could not make the log small enough;
            before the next one begins there is no use in trying again.
        kept_bytes: bytes of deletions that could not be dropped when that was tried last, since
            somebody who follows the changes waits for them.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._marks = _mapped(disk, path)
        self.stuck_in = 0
        self.kept_bytes = 0

    def mark(self, key: bytes) -> None:
        """The key was read."""
        self._marks[xxh3_64_intdigest(key) & _MASK] = 1

    @staticmethod
    def slot(key: bytes) -> int:
        """Where the mark of a key is."""
        return xxh3_64_intdigest(key) & _MASK

    def is_marked(self, slot: int) -> bool:
        """Whether a key of this slot was read since it was last cleared."""
        return bool(self._marks[slot])

    def clear(self, slots: Iterable[int]) -> None:
        """Forget the marks."""
        for slot in slots:
            self._marks[slot] = 0

    def close(self) -> None:
        """Let go of the file; a thread that still loads marks nothing that counts."""
        marks, self._marks = self._marks, bytearray(SLOTS)
        if not isinstance(marks, bytearray):
            marks.close()


def _mapped(disk: Disk, path: Path) -> mmap.mmap | bytearray:
    """The file's bytes, shared; this process's own where the file cannot be made.

    Its zeros are written, not left out: a mapped hole on a full disk would be a SIGBUS.
    """
    try:
        fd = disk.open(path, write=True, create=True)
        try:
            size = disk.size(fd)
            if size < SLOTS:
                disk.zero(fd, size, SLOTS - size)
            return disk.map(fd, SLOTS)
        finally:
            disk.close(fd)
    except KvsageError:
        return bytearray(SLOTS)
