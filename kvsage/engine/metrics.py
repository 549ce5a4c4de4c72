"""What this process has done to a store since it opened it, counted.

Nothing here is stored, and other processes count for themselves. Where a count stands beside a
commit it costs an integer addition, behind the writer gate; a flush takes a lock, which beside the
flush itself is nothing.
"""

from __future__ import annotations

import math
import threading
from collections import deque

RECENT_FLUSHES = 1024


class Metrics:
    """Counts of one engine.

    Attributes:
        batches: batches appended to the log.
        operations: operations in them that took place.
        flushes: flushes of the log.
        swept: expired keys removed.
        evicted: keys removed to keep the log under ``bytes_max``.
        compactions: runs that retired files.
        copied_bytes: bytes of entries that they copied.
        reclaimed_bytes: bytes of log that retired files gave back, less those of the copies.
        compaction_s: seconds that they took, rests included.
        checkpoints: checkpoints written.
    """

    def __init__(self) -> None:
        self.batches = 0
        self.operations = 0
        self.flushes = 0
        self.swept = 0
        self.evicted = 0
        self.compactions = 0
        self.copied_bytes = 0
        self.reclaimed_bytes = 0
        self.compaction_s = 0.0
        self.checkpoints = 0
        self._lock = threading.Lock()  # guards flushes: the flusher's thread makes some
        self._recent_s: deque[float] = deque(maxlen=RECENT_FLUSHES)

    def flushed(self, seconds: float) -> None:
        """A flush of the log took so long."""
        with self._lock:
            self.flushes += 1
            self._recent_s.append(seconds)

    def compacted(self, copied_bytes: int, reclaimed_bytes: int, seconds: float) -> None:
        """A compaction has retired files."""
        self.compactions += 1
        self.copied_bytes += copied_bytes
        self.reclaimed_bytes += reclaimed_bytes
        self.compaction_s += seconds

    def flush_times_s(self) -> list[float]:
        """How long the last ``RECENT_FLUSHES`` flushes took, shortest first."""
        with self._lock:
            return sorted(self._recent_s)


def percentile(ordered: list[float], share: float) -> float | None:
    """The least of ``ordered`` that ``share`` of them do not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
