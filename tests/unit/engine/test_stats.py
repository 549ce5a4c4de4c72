"""What a store holds and what it costs, in figures that add up."""

import os

import pytest

from kvsage.engine.stats import disk_bytes

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
    assert three.live_bytes == three.log_bytes - three.dead_bytes
    store.save("e", 1, ttl=5)
    clock.now += 10
    assert store.stats().keys == 1  # expired, and not swept yet
    assert store.count() == 0


def test_contents(store):
    store.save("a", TEXT)
    store.save("b", TEXT)
    store.content.put(TEXT[1:])
    stats = store.stats()
    assert (stats.contents, stats.content_references) == (2, 3)
    assert stats.content_bytes == 2 * len(TEXT) - 1
    assert stats.logical_bytes == 3 * len(TEXT) - 1
    assert 0 < stats.content_stored_bytes < 1000


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


def test_readers_that_are_open(store):
    with store.snapshot():
        reading = [reader for reader in store.stats().readers if reader.transaction is not None]
        assert [reader.pid for reader in reading] == [os.getpid()]
    assert all(reader.transaction is None for reader in store.stats().readers)


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
