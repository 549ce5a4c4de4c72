"""A snapshot that stays open for long kept every file that was retired while it was open."""

import math

from kvsage import LMDBStore

NOISE = bytes(range(256)) * 10


def test_files_that_came_and_went_meanwhile_are_removed(tmp_path):
    options = {"durability": "relaxed", "upkeep_interval": math.inf, "segment_bytes_max": 65536}
    with LMDBStore(tmp_path / "s", content_bytes_min=1 << 20, **options) as store:
        for key in range(40):
            store.save(f"k{key}", [0, NOISE])
        with store.snapshot() as view:
            waiting = []
            for number in range(1, 13):
                for key in range(40):
                    store.save(f"k{key}", [number, NOISE])
                waiting.append(store.compact().files_waiting)
            assert waiting[-1] <= waiting[1]
            assert [view.load(f"k{key}")[0] for key in range(40)] == [0] * 40
        store.save("k0", [13, NOISE])
        store.compact()
        assert len(list((tmp_path / "s" / "log").iterdir())) <= 3
        assert store.verify(deep=True).ok
