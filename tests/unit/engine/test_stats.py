"""What a store holds and what it costs, in figures that add up."""

import math
import os

import pytest

from kvsage import CorruptionError
from kvsage.engine.metrics import RECENT_FLUSHES, Metrics, percentile
from kvsage.engine.stats import disk_bytes
from kvsage.index.segments import JOINING, SegmentRow, put_segment, segment_key
from kvsage.log.format import FileKind

TEXT = b"to be or not to be, that is the question. " * 200


def test_an_empty_store(store):
    stats = store.stats()
    assert (stats.keys, stats.contents, stats.commits) == (0, 0, 0)
    assert (stats.log_bytes, stats.live_bytes, stats.dead_bytes) == (0, 0, 0)
    (segment,) = stats.segments
    assert (segment.segment, segment.bytes, segment.dead_bytes, segment.state) == (
        1,
        0,
        0,
        "active",
    )


def test_keys_commits_and_dead_bytes(store, clock):
    store.save("a", "x" * 100)
    one = store.stats()
    assert (one.keys, one.commits, one.log_bytes) == (1, 1, 56 + 32 + 1 + 100)
    store.save("a", "y" * 50)
    two = store.stats()
    assert (two.keys, two.commits, two.dead_bytes) == (1, 2, 32 + 1 + 100)
    assert two.log_bytes == one.log_bytes + 56 + 32 + 1 + 50
    store.delete("a")
    three = store.stats()
    assert (three.keys, three.commits) == (0, 3)
    assert three.dead_bytes == two.dead_bytes + 32 + 1 + 50  # the tombstone lives
    assert (three.live_bytes, three.tombstones) == (32 + 1, 1)
    assert three.log_bytes == three.live_bytes + three.dead_bytes + 3 * 56


def test_what_has_expired_and_is_not_swept(store, clock):
    store.save("e", 1, ttl=5)
    store.save("f", 1, ttl=50)
    clock.now += 10
    stats = store.stats()
    assert (stats.keys, stats.expired, store.count()) == (2, 1, 1)
    store.sweep()
    stats = store.stats()
    assert (stats.keys, stats.expired, stats.tombstones) == (1, 0, 1)
    assert stats.process.swept == 1


def test_contents(store):
    store.save("a", TEXT)
    store.save("b", TEXT)
    store.content.put(TEXT[1:])
    stats = store.stats()
    assert (stats.contents, stats.content_references) == (2, 3)
    assert stats.content_bytes == 2 * len(TEXT) - 1
    assert stats.logical_bytes == 3 * len(TEXT) - 1
    assert 0 < stats.content_stored_bytes < 1000
    assert stats.dedup_ratio == (3 * len(TEXT) - 1) / (2 * len(TEXT) - 1)
    assert stats.compression_ratio == stats.content_bytes / stats.content_stored_bytes


def test_no_ratio_of_nothing(store):
    stats = store.stats()
    assert (stats.dedup_ratio, stats.compression_ratio) == (None, None)
    assert stats.process.operations_per_batch is None
    assert stats.process.flush_ms_p50 is None


def test_files_of_the_log(new_store):
    store = new_store(segment_bytes_max=1 << 16)
    for number in range(40):
        store.save(f"k{number}", os.urandom(2000))
    store.save("k0", 1)
    stats = store.stats()
    assert [(file.segment, file.state) for file in stats.segments] == [(1, "sealed"), (2, "active")]
    assert sum(file.bytes for file in stats.segments) == stats.log_bytes
    assert [file.dead_bytes for file in stats.segments] == [2000 + 32 + 2, 0]
    assert stats.dead_bytes == 2000 + 32 + 2
    assert sum(file.live_bytes for file in stats.segments) == stats.live_bytes
    framing = [file.bytes - file.live_bytes - file.dead_bytes for file in stats.segments]
    assert sum(framing) == 41 * 56
    assert all(size % 56 == 0 for size in framing)


def test_copies_and_files_that_wait_for_a_reader(new_store):
    store = new_store(segment_bytes_max=1 << 16, upkeep_interval=math.inf)
    for _ in range(2):
        for number in range(40):
            store.save(f"k{number}", os.urandom(2000))
    with store.snapshot():
        store.compact()
        stats = store.stats()
        assert stats.files_waiting > 0
        assert {"active", "copy"} <= {file.state for file in stats.segments}
        assert stats.dead_bytes < 4000
        did = stats.process
        assert did.compactions > 0
        assert did.compaction_bytes_copied > 20_000  # of the files that were half garbage
        assert 40 * 2000 <= did.compaction_bytes_reclaimed < 50 * 2000
        assert did.compaction_s > 0
    store.compact()
    assert store.stats().files_waiting == 0


def test_a_file_that_joins(store):
    store.save("a", 1)
    engine = store._engine
    with engine.index.writing() as txn:
        put_segment(txn, 9, SegmentRow(200, 300, 0, 1, 80, 80, FileKind.COPY, JOINING))
    assert [file.state for file in store.stats().segments] == ["active", "joining"]
    with engine.index.writing() as txn:
        txn.delete(segment_key(9))


def test_the_checkpoint(tmp_path, store):
    stats = store.stats()
    assert (stats.checkpoint_seq, stats.checkpoint_bytes) == (None, 0)
    store.save("a", 1)
    store.checkpoint()
    store.save("b", 1)
    stats = store.stats()
    path = tmp_path / "store" / "index.checkpoint"
    assert (stats.checkpoint_seq, stats.checkpoint_bytes) == (1, path.stat().st_size)
    assert stats.process.checkpoints == 1
    path.write_bytes(b"damaged")
    assert store.stats().checkpoint_seq is None
    assert store.stats().checkpoint_bytes == 7


def test_what_this_process_did(new_store):
    store = new_store(durability="full", upkeep_interval=math.inf)
    store.save("a", 1)
    store.save_many({"b": 1, "c": 1, "d": 1})
    store.delete("absent")
    did = store.stats().process
    assert (did.batches, did.operations, did.operations_per_batch) == (2, 4, 2.0)
    assert did.flushes == 2
    assert 0 < did.flush_ms_p50 <= did.flush_ms_p99 <= did.flush_ms_max
    assert did.upkeep_error is None
    store.close()
    assert new_store(upkeep_interval=math.inf).stats().process.batches == 0


def test_what_upkeep_failed_with(store):
    store._engine.upkeep.last_error = CorruptionError("a batch does not check", segment=3, offset=5)
    error = store.stats().process.upkeep_error
    assert error == "a batch does not check (segment 3, offset 5)"


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(0, 0.5, None), (1, 0.99, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.99, 99), (100, 1, 100)],
)
def test_percentiles(count, share, expected):
    assert percentile([float(number) for number in range(1, count + 1)], share) == expected


def test_the_latest_flushes_count():
    metrics = Metrics()
    for number in range(RECENT_FLUSHES + 10):
        metrics.flushed(float(number))
    assert metrics.flushes == RECENT_FLUSHES + 10
    assert metrics.flush_times_s() == [float(number) for number in range(10, RECENT_FLUSHES + 10)]


def test_readers_that_are_open(store):
    with store.snapshot():
        reading = [reader for reader in store.stats().readers if reader.transaction is not None]
        assert [(reader.pid, reader.behind) for reader in reading] == [(os.getpid(), 0)]
        store.save("a", 1)
        store.save("b", 1)
        reading = [reader for reader in store.stats().readers if reader.transaction is not None]
        assert [reader.behind for reader in reading] == [2]
    idle = store.stats().readers
    assert all((reader.transaction, reader.behind) == (None, None) for reader in idle)


def test_bytes_on_disk(tmp_path, store):
    store.save("a", 1)
    stats = store.stats()
    assert stats.index_bytes == disk_bytes(tmp_path / "store" / "index") > 0
    assert stats.disk_bytes > stats.index_bytes
    assert stats.disk_bytes == disk_bytes(tmp_path / "store")


def test_bytes_on_disk_leave_holes_out_and_open_nothing(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "full").write_bytes(b"x" * 100_000)
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(os, "open", None)  # LMDB's lock file must never be opened
    assert 100_000 <= disk_bytes(tmp_path) < 180_000


def test_a_file_that_goes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "walk", lambda path: [(str(path), [], ["file", "gone"])])
    assert disk_bytes(tmp_path) >= 0


@pytest.mark.parametrize("verb", ["stats", "verify"])
def test_looking_changes_nothing(store, verb):
    store.save("a", 1)
    before = store.stats()
    getattr(store, verb)()
    assert store.stats().commits == before.commits
    assert store.stats().log_bytes == before.log_bytes
