"""A file with too little garbage to be worth a copy keeps no other file from being compacted."""

import math

from kvsage import LMDBStore
from kvsage.engine import compaction
from kvsage.engine.pace import UNPACED

LARGE = b"\xee" * 3000


def garbage_share(segment):
    return segment.dead_bytes / (segment.dead_bytes + segment.live_bytes)


def test_the_large_ones_are_compacted(tmp_path):
    with LMDBStore(
        tmp_path / "s", durability="relaxed", upkeep_interval=math.inf, segment_bytes_max=65536
    ) as store:
        engine = store._engine
        store.save("config", "x" * 100)
        for number in range(20):
            store.save("counter", [number, "x" * 100])
        compaction.seal(engine)
        for turn in range(2):
            for key in range(40):
                if turn == 0 or key % 10 < 7:
                    store.save(f"k{key}", [turn, key, LARGE])
        tiny, *large = sorted(store.stats().segments, key=lambda segment: segment.segment)
        assert garbage_share(tiny) > max(garbage_share(one) for one in large)
        engine.upkeep.look(UNPACED)
        assert engine.metrics.compactions
        assert sum(one.dead_bytes for one in store.stats().segments) < 65536
        assert store.verify(deep=True).ok
