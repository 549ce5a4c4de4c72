"""A process lets go of log files that another one removed, however seldom it flushes."""

import math
import threading

from kvsage import LMDBStore
from kvsage.engine import flusher
from kvsage.engine.engine import Engine
from kvsage.log.segment import LogFiles

PATIENCE_S = 60
LARGE = b"\xee" * 3000


def test_with_a_long_sync_interval_and_without_upkeep(tmp_path, monkeypatch):
    looks = threading.Semaphore(0)
    drop_removed = Engine.drop_removed

    def dropped(self):
        drop_removed(self)
        looks.release()

    monkeypatch.setattr(Engine, "drop_removed", dropped)
    monkeypatch.setattr(flusher, "LOOK_S", 0.001, raising=False)
    with LMDBStore(
        tmp_path / "s",
        durability="relaxed",
        sync_interval=3600,
        upkeep_interval=math.inf,
        segment_bytes_max=65536,
    ) as store:
        for turn in range(3):
            for key in range(20):
                store.save(f"k{key}", [turn, LARGE])
        files = store._engine.files
        with monkeypatch.context() as patch:
            flushes = []
            patch.setattr(store._engine.flusher, "flush", lambda: flushes.append(True))
            patch.setattr(LogFiles, "drop", lambda *_: None)  # as where another process compacts
            assert store.compact().files_compacted
            asked = len(flushes)
            held = set(files.fds)
            assert looks.acquire(timeout=PATIENCE_S)
            assert len(flushes) == asked  # looking is no flushing
        gone = held - {segment.segment for segment in store.stats().segments}
        assert gone
        while looks.acquire(blocking=False):
            pass
        for _ in range(2):  # one may have been under way
            assert looks.acquire(timeout=PATIENCE_S)
        assert not gone & set(files.fds)
        assert store.verify(deep=True).ok
