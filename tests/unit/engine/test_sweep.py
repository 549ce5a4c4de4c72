"""The sweep removes what has expired, nothing else, and leaves deletions marked as its own."""

import math
import shutil

import pytest

from kvsage import ReadOnlyStoreError, StoreFullError, TransactionStateError
from kvsage.engine import sweep as sweeping
from kvsage.engine.pace import Pace, Stopped
from kvsage.fs import Disk
from kvsage.index.keydir import decode_row
from kvsage.log.format import EXPIRED

TEXT = "to be or not to be, that is the question. " * 200


@pytest.fixture(autouse=True)
def always_sound(new_store):
    yield
    report = new_store().verify(deep=True)
    assert report.ok, report.problems


def deletions(store):
    """The flags of every deletion, by key."""
    engine = store._engine
    with engine.index.reading() as txn:
        rows = list(txn.cursor(engine.index.tombstones))
    return {key.decode(): decode_row(row).flags for key, row in rows}


def test_what_has_expired_goes_and_the_rest_stays(store, clock):
    store.save("gone", 1, ttl=5)
    store.save("at the instant", 1, ttl=10)
    store.save("later", 1, ttl=10.001)
    store.save("permanent", 1)
    clock.now += 10
    assert store.sweep() == 2
    assert store.stats().keys == 2
    assert list(store.keys()) == ["later", "permanent"]
    assert store.sweep() == 0
    assert deletions(store) == {"gone": EXPIRED, "at the instant": EXPIRED}


def test_nothing_to_sweep_writes_nothing(store, clock):
    store.save("later", 1, ttl=5)
    before = store.stats().commits
    assert store.sweep() == 0
    assert store.stats().commits == before


def test_many_go_in_bounded_batches(store, clock, monkeypatch):
    monkeypatch.setattr(sweeping, "BATCH_KEYS", 7)
    store.save_many({f"k{number:02}": number for number in range(30)}, ttl=5)
    clock.now += 10
    commits = store.stats().commits
    assert store.sweep() == 30
    assert store.stats().commits == commits + 5  # 7, 7, 7, 7 and 2
    assert store.stats().keys == 0
    assert store._engine.metrics.swept == 30


def test_space_of_content_is_given_back(store, clock):
    store.save("mortal", TEXT, ttl=5)
    store.save("mortal too", TEXT, ttl=5)
    clock.now += 10
    before = store.stats()
    assert (before.contents, before.dead_bytes) == (1, 0)
    assert store.sweep() == 2
    stats = store.stats()
    assert (stats.contents, stats.content_references) == (0, 0)
    assert stats.dead_bytes > before.content_stored_bytes


def test_a_key_that_was_given_more_time_meanwhile_stays(store, clock, monkeypatch):
    store.save_many({"touched": 1, "replaced": 1, "deleted": 1, "expired": 1}, ttl=5)
    clock.now += 10

    def meanwhile():
        store.save("touched", 2, ttl=60)
        store.save("replaced", 3)
        store.save("deleted", 1)
        store.delete("deleted")

    class Interrupting(Pace):
        def breathe(self):
            nonlocal meanwhile
            meanwhile()
            meanwhile = lambda: None  # noqa: E731

    assert sweeping.sweep(store._engine, Interrupting()) == 1
    assert dict(store.items()) == {"replaced": 3, "touched": 2}
    assert store.stats().keys == 2


def test_a_clock_that_went_back_meanwhile_spares_what_has_time_left(store, clock):
    store.save("a", 1, ttl=5)
    clock.now += 10

    class Back(Pace):
        def breathe(self):
            clock.now -= 8

    assert sweeping.sweep(store._engine, Back()) == 0
    assert store.load("a") == 1


def test_what_was_swept_stays_away_when_the_clock_goes_back_and_after_a_rebuild(
    tmp_path, new_store, clock
):
    store = new_store()
    store.save("a", "old")
    store.save("a", "new", ttl=5)
    clock.now += 10
    assert store.sweep() == 1
    clock.now -= 10
    assert not store.exists("a")
    store.close()
    shutil.rmtree(tmp_path / "store" / "index")
    assert not new_store().exists("a")


def test_a_snapshot_taken_before_still_sees_what_it_saw(store, clock):
    store.save("a", 1, ttl=5)
    with store.snapshot() as view:
        clock.now += 10
        assert store.sweep() == 1
        assert view.load("a") == 1
    assert not store.exists("a")


def test_a_key_may_be_saved_again(store, clock):
    store.save("a", 1, ttl=5)
    clock.now += 10
    assert store.sweep() == 1
    assert store.add("a", 2, ttl=5)
    assert store.sweep() == 0
    clock.now += 5
    assert store.sweep() == 1


def test_it_stops_when_the_pace_says_so_and_the_next_run_finishes(store, clock, monkeypatch):
    monkeypatch.setattr(sweeping, "BATCH_KEYS", 10)
    store.save_many({f"k{number:02}": number for number in range(30)}, ttl=5)
    clock.now += 10
    breaths = iter([None, None, Stopped])

    class Stopping(Pace):
        def breathe(self):
            if next(breaths):
                raise Stopped

    with pytest.raises(Stopped):
        sweeping.sweep(store._engine, Stopping())
    assert store.stats().keys == 20
    assert store.sweep() == 20


class FillingDisk(Disk):
    """A disk that has no room for one write, after ``left`` others."""

    left = -1

    def write(self, fd, parts, offset):
        self.left -= 1
        if self.left == -1:
            raise StoreFullError("no space left: the double is full")
        super().write(fd, parts, offset)


def test_a_full_disk_leaves_the_rest_for_the_next_run(new_store, clock, monkeypatch):
    monkeypatch.setattr(sweeping, "BATCH_KEYS", 10)
    disk = FillingDisk()
    store = new_store(disk=disk, upkeep_interval=math.inf)
    store.save_many({f"k{number:02}": number for number in range(30)}, ttl=5)
    store.save("permanent", 1)
    clock.now += 10
    disk.left = 1
    with pytest.raises(StoreFullError):
        store.sweep()
    assert (store.stats().keys, store.count()) == (21, 1)
    assert store.sweep() == 20
    report = store.verify(deep=True)
    assert report.ok, report.problems
    store.close()


def test_it_is_due_from_the_first_expiry_on(store, clock):
    engine = store._engine
    assert not sweeping.is_due(engine)
    store.save("later", 1, ttl=60)
    store.save("soon", 1, ttl=5)
    assert not sweeping.is_due(engine)
    clock.now += 5
    assert sweeping.is_due(engine)
    store.sweep()
    assert not sweeping.is_due(engine)


def test_a_handle_for_reading_does_not_sweep(new_store, clock):
    new_store().save("a", 1, ttl=5)
    clock.now += 10
    reader = new_store(readonly=True)
    with pytest.raises(ReadOnlyStoreError):
        reader.sweep()
    assert reader.stats().keys == 1


def test_not_inside_a_transaction_of_the_same_thread(store, clock):
    store.save("a", 1, ttl=5)
    clock.now += 10
    with store.transaction(), pytest.raises(TransactionStateError):
        store.sweep()
    assert store.stats().keys == 1
