"""Deletions that a consumer holds are not compacted anew by every process that opens the store."""

import math

import pytest

from kvsage import LMDBStore
from kvsage.engine import compaction, upkeep
from kvsage.engine.pace import UNPACED, Stopped
from kvsage.index.segments import get_deletions_left


@pytest.fixture
def life(tmp_path, monkeypatch):
    """What upkeep does in a process of its own: compactions and checkpoints."""
    monkeypatch.setattr(upkeep, "DELETIONS_LEAST", 10)

    def live(work=lambda _: None):
        with LMDBStore(
            tmp_path / "s",
            durability="relaxed",
            upkeep_interval=math.inf,
            segment_bytes_max=65536,
        ) as store:
            work(store)
            store._engine.upkeep.look(UNPACED)
            metrics = store._engine.metrics
            return metrics.compactions, metrics.checkpoints

    yield live
    with LMDBStore(tmp_path / "s") as store:
        assert store.verify(deep=True).ok


def deleting(first, end):
    def work(store):
        store.save_many({f"k{number}": "x" * 1000 for number in range(first, end)})
        store.checkpoint()
        store.delete_many([f"k{number}" for number in range(first, end)])
        store._engine.metrics.checkpoints = 0

    return work


def test_each_further_process_leaves_them(life):
    def begin(store):
        store.changes(consumer="slow").close()
        deleting(0, 100)(store)

    compactions, checkpoints = life(begin)
    assert compactions
    assert checkpoints
    for _ in range(3):
        assert life() == (0, 0)


def test_when_they_have_doubled_it_is_time_again(life):
    def begin(store):
        store.changes(consumer="slow").close()
        deleting(0, 100)(store)

    assert life(begin)[1] == 1
    assert life(deleting(100, 180))[1] == 0
    assert life(deleting(180, 260))[1] == 1


def test_a_pass_that_was_cut_short_is_due_again(tmp_path, monkeypatch):
    """It counted what it had left as what nothing could be done about."""
    monkeypatch.setattr(upkeep, "DELETIONS_LEAST", 10)

    def stop(*_):
        raise Stopped

    with LMDBStore(
        tmp_path / "s", durability="relaxed", upkeep_interval=math.inf, segment_bytes_max=65536
    ) as store:
        deleting(0, 100)(store)
        with monkeypatch.context() as patched:
            patched.setattr(compaction, "compact_files", stop)
            with pytest.raises(Stopped):
                store._engine.upkeep.look(UNPACED)
        with store._engine.index.reading() as txn:
            assert get_deletions_left(txn) == 0
        store._engine.upkeep.look(UNPACED)
        with store._engine.index.reading() as txn:
            assert get_deletions_left(txn) > 0
        assert store.verify(deep=True).ok
