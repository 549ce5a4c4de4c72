"""A bounded store evicts what was not read lately, and only as much as it must."""

import os
import shutil
import threading

import pytest

from kvsage import ConfigError, CorruptionError, StoreFullError, ValueTooLargeError
from kvsage.engine import eviction
from kvsage.engine.pace import Pace, Stopped
from kvsage.engine.reads import SLOTS, Reads
from kvsage.fs import Disk
from kvsage.index.keydir import decode_row
from kvsage.log.format import EVICTED

BYTES_MAX = 1 << 20
SIZE = 2000


@pytest.fixture
def bounded(new_store):
    """Opens the same bounded store, which is looked after by the test alone."""

    def open_(**options):
        return new_store(
            **{
                "bytes_max": BYTES_MAX,
                "content_bytes_min": 1 << 20,
                "upkeep_interval": float("inf"),
                **options,
            }
        )

    return open_


@pytest.fixture(autouse=True)
def always_sound(bounded):
    yield
    report = bounded().verify(deep=True)
    assert report.ok, report.problems


def name(number):
    return f"key{number:06}"


def fill(store, first, count, size=SIZE):
    """So many new keys, each saved by itself."""
    for number in range(first, first + count):
        store.save(name(number), os.urandom(size))


def fill_up(store, first=0, size=SIZE):
    """New keys until the log nears the bound; the number of the next."""
    while not eviction.is_due(store._engine):
        fill(store, first, 1, size)
        first += 1
    return first


def log_bytes(store):
    return sum(segment.bytes for segment in store.stats().segments)


def flags_of_deletions(store):
    engine = store._engine
    with engine.index.reading() as txn:
        return {decode_row(row).flags for _, row in txn.cursor(engine.index.tombstones)}


def test_the_oldest_go_until_a_quarter_is_free(bounded):
    store = bounded()
    last = fill_up(store)
    assert BYTES_MAX * 0.89 < log_bytes(store) < BYTES_MAX
    evicted = store.sweep()
    assert evicted == store._engine.metrics.evicted
    left = list(store.keys())
    assert left == [name(number) for number in range(evicted, last)]
    assert 0.6 * BYTES_MAX < log_bytes(store) <= 0.8 * BYTES_MAX
    assert flags_of_deletions(store) <= {EVICTED}
    assert not eviction.is_due(store._engine)
    assert store.sweep() == 0


def test_it_goes_on_for_ever(bounded):
    store = bounded()
    first = 0
    for _ in range(12):
        first = fill_up(store, first)
        store.sweep()
        assert log_bytes(store) <= BYTES_MAX
    assert store.count() > 0.6 * BYTES_MAX / SIZE
    assert store.load(name(first - 1)) is not None


@pytest.mark.parametrize("how", ["load", "load_many", "snapshot", "transaction"])
def test_what_was_read_stays(bounded, how):
    store = bounded()
    fill(store, 0, 20)
    first = 20
    for _ in range(6):
        hot = [name(number) for number in range(0, 20, 2)]
        if how == "load":
            assert all(store.load(key) for key in hot)
        elif how == "load_many":
            assert len(store.load_many(hot)) == 10
        else:
            with getattr(store, how)() as view:
                assert all(view.load(key) for key in hot)
        first = fill_up(store, first)
        assert store.sweep() > 0
    assert list(store.keys(stop=name(20))) == hot


def test_it_is_read_since_the_last_pass_that_counts(bounded):
    store = bounded()
    fill(store, 0, 1)
    assert store.load(name(0)) is not None
    first = fill_up(store, 1)
    store.sweep()
    assert store.exists(name(0))  # carried forward, and nobody reads it again
    for _ in range(8):
        first = fill_up(store, first)
        store.sweep()
    assert not store.exists(name(0))


def test_neither_a_scan_nor_a_look_counts_as_a_read(bounded):
    store = bounded()
    first = fill_up(store)
    assert len(list(store.items())) == first
    assert store.exists(name(0))
    assert store.load("absent") is None
    store.sweep()
    assert not store.exists(name(0))


def test_where_everything_was_read_the_oldest_go_all_the_same(bounded):
    store = bounded()
    last = fill_up(store)
    assert all(store.load(name(number)) for number in range(last))
    evicted = store.sweep()
    assert 0 < evicted < last
    assert store.exists(name(last - 1))
    assert log_bytes(store) <= BYTES_MAX


def test_reads_of_another_handle_and_life_count(bounded):
    store = bounded()
    last = fill_up(store)
    reader = bounded(readonly=True)
    assert reader.load(name(0)) is not None
    store.close()
    reader.close()
    store = bounded()
    assert store.sweep() > 0
    assert store.exists(name(0))
    assert not store.exists(name(1))
    assert store.exists(name(last - 1))


def test_what_expired_goes_first(bounded, clock):
    store = bounded()
    fill(store, 0, 200)
    for number in range(200, 400):
        store.save(name(number), os.urandom(SIZE), ttl=5)
    first = fill_up(store, 400)
    clock.now += 10
    swept = store.sweep()
    assert swept == 200 == store._engine.metrics.swept
    assert store._engine.metrics.evicted == 0
    assert store.count() == first - 200
    assert log_bytes(store) <= BYTES_MAX


def test_garbage_goes_before_any_key(bounded):
    store = bounded()
    for _ in range(10):
        fill(store, 0, 60)
    assert eviction.is_due(store._engine)
    assert store.sweep() == 0
    assert store.count() == 60
    assert log_bytes(store) <= BYTES_MAX


def test_an_older_value_does_not_come_back(tmp_path, bounded):
    store = bounded()
    fill(store, 0, 30)
    fill(store, 0, 30)
    first = fill_up(store, 30)
    while not (evicted := store.sweep()):  # the garbage goes first
        first = fill_up(store, first)
    left = list(store.keys())
    store.close()
    shutil.rmtree(tmp_path / "store" / "index")
    again = bounded()
    assert list(again.keys()) == left
    assert len(left) == first - evicted


def test_a_key_saved_anew_meanwhile_stays(bounded, monkeypatch):
    store = bounded()
    last = fill_up(store)
    remove, batches = eviction._Pass._remove, []

    def meanwhile(self, operations):
        if not batches:
            store.save(name(3), "new")
            store.delete(name(4))
        batches.append([operation.key.decode() for operation in operations])
        remove(self, operations)

    monkeypatch.setattr(eviction._Pass, "_remove", meanwhile)
    with store._engine.upkeep.lock.waiting():
        eviction.evict(store._engine)
    assert {name(3), name(4)} <= set(batches[0])
    assert store.load(name(3)) == "new"
    assert not store.exists(name(4))
    assert store.exists(name(last - 1))


def test_tiny_values_do_not_drown_in_deletions(bounded, clock):
    store = bounded()
    first = passes = 0
    while passes < 16:
        fill(store, first, 100, size=8)
        store.save_many({f"mortal{first + number}": b"8 bytes!" for number in range(100)}, ttl=1000)
        first += 100
        clock.now += 20  # so no file is without garbage, which deletions might have to hide
        if eviction.is_due(store._engine):
            store.sweep()
            passes += 1
            assert log_bytes(store) <= BYTES_MAX
    assert store.count() > 8000  # of about 62 bytes each


def test_deletions_that_somebody_waits_for_are_not_dug_for_each_time(bounded, monkeypatch):
    store = bounded()
    monkeypatch.setattr(store._engine, "deletes_needed_after", lambda _: 0)
    dig_up, digs = eviction._Pass._dig_up, []
    monkeypatch.setattr(eviction._Pass, "_dig_up", lambda self: digs.append(1) or dig_up(self))
    first = passes = 0
    while passes < 60:
        first = fill_up(store, first, size=500)
        store.sweep()
        assert log_bytes(store) <= BYTES_MAX
        passes += 1
    assert 1 <= len(digs) <= 6
    assert store.stats().tombstones > 4000
    assert store.count() > 100


def test_content_goes_with_its_last_key(bounded):
    store = bounded(content_bytes_min=4096)
    first = fill_up(store, size=8_000)
    store.sweep()
    stats = store.stats()
    assert stats.contents == stats.keys < first
    assert log_bytes(store) <= BYTES_MAX


def test_all_pieces_of_a_value_go_with_its_last_key(bounded):
    store = bounded(content_bytes_min=1024)
    first = fill_up(store, size=40_000)
    store.sweep()
    stats = store.stats()
    assert 0 < stats.keys < first
    assert stats.contents == stats.content_references > stats.keys
    assert stats.content_bytes == stats.keys * 40_000  # noise has no two pieces alike
    assert log_bytes(store) <= BYTES_MAX


def test_contents_put_by_their_address_stay(bounded):
    store = bounded(content_bytes_min=64)
    addresses = [store.content.put(os.urandom(100_000)) for _ in range(4)]
    first = 0
    for _ in range(6):
        first = fill_up(store, first)
        store.sweep()
        assert log_bytes(store) <= BYTES_MAX
    assert all(store.content.exists(address) for address in addresses)
    assert store.count() > 0


def test_where_nothing_may_be_evicted_it_does_not_try_for_ever(bounded):
    store = bounded(content_bytes_min=64)
    for _ in range(12):
        store.content.put(os.urandom(100_000))
    assert eviction.is_due(store._engine)
    assert store.sweep() == 0
    assert not eviction.is_due(store._engine)
    for _ in range(3):
        store.content.put(os.urandom(100_000))
    assert eviction.is_due(store._engine)  # another segment has begun


def test_a_commit_larger_than_the_bound_is_evicted_too(bounded):
    store = bounded()
    store.save_many({name(number): os.urandom(SIZE) for number in range(1000)})
    assert store.sweep() > 400
    assert log_bytes(store) <= BYTES_MAX


def test_a_value_larger_than_the_bound_is_refused(bounded):
    store = bounded()
    with pytest.raises(ValueTooLargeError, match=r"bytes_max"):
        store.save("a", os.urandom(BYTES_MAX + 1))
    with pytest.raises(ValueTooLargeError, match=r"bytes_max"):
        store.content.put(os.urandom(BYTES_MAX + 1))
    assert store.save("a", os.urandom(BYTES_MAX * 8 // 10))
    assert not eviction.is_due(store._engine)


def test_a_store_that_was_large_before_becomes_small(bounded):
    store = bounded(bytes_max=None)
    fill(store, 0, 1500)
    assert not eviction.is_due(store._engine)
    assert store.sweep() == 0
    store.close()
    store = bounded()
    assert store.sweep() > 1000
    assert log_bytes(store) <= BYTES_MAX
    assert store.exists(name(1499))


def test_one_process_one_pass_at_a_time(bounded):
    store = bounded()
    fill_up(store)
    done = []
    threads = [threading.Thread(target=lambda: done.append(store.sweep())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done)[:2] == [0, 0]
    assert max(done) > 0


def test_it_stops_when_the_pace_says_so_and_the_next_pass_finishes(bounded):
    store = bounded()
    fill_up(store)
    engine = store._engine
    left = iter(range(1))

    class Stopping(Pace):
        def breathe(self):
            if next(left, None) is None:
                raise Stopped

    with engine.upkeep.lock.waiting(), pytest.raises(Stopped):
        eviction.evict(engine, Stopping())
    assert eviction.is_due(engine)
    store.sweep()
    assert not eviction.is_due(engine)


def test_no_room_for_the_copy_is_an_error_and_the_next_pass_finishes(bounded):
    class NoCopies(Disk):
        full = False

        def open(self, path, *, write=False, create=False):
            if self.full and create and ".cpy" in path.name:
                raise StoreFullError("no space left: the double is full")
            return super().open(path, write=write, create=create)

    disk = NoCopies()
    store = bounded(disk=disk)
    last = fill_up(store)
    assert store.load(name(0)) is not None
    disk.full = True
    with pytest.raises(StoreFullError):
        store.sweep()
    left = list(store.keys())
    assert left[0] == name(0)
    assert left[-1] == name(last - 1)
    disk.full = False
    store.sweep()
    assert list(store.keys()) == left  # enough had been evicted
    assert log_bytes(store) <= BYTES_MAX
    report = store.verify(deep=True)
    assert report.ok, report.problems
    store.close()


def test_a_forked_child_marks_too(bounded):
    store = bounded()
    fill_up(store)
    pid = os.fork()
    if not pid:
        os._exit(0 if store.load(name(0)) is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.sweep() > 0
    assert store.exists(name(0))
    assert not store.exists(name(1))


def test_a_damaged_file_stops_nothing_for_good(tmp_path, bounded):
    store = bounded()
    last = fill_up(store)
    path = tmp_path / "store" / "log" / "0000000001.seg"
    sound = path.read_bytes()
    path.write_bytes(sound[:5000] + b"damage" + sound[5006:])
    with pytest.raises(CorruptionError):
        store.sweep()
    assert store.sweep() > 0
    assert log_bytes(store) <= BYTES_MAX
    assert store.exists(name(last - 1))
    path.write_bytes(sound)


def test_an_unbounded_store_marks_nothing(tmp_path, bounded):
    store = bounded(bytes_max=None)
    store.save("a", 1)
    store.load("a")
    assert not (tmp_path / "store" / "READS").exists()


def test_the_bound_is_at_least_a_mebibyte(new_store):
    with pytest.raises(ConfigError, match="bytes_max"):
        new_store("other", bytes_max=1000)


# -- the marks ----------------------------------------------------------------------------------


def test_marks_are_shared_and_kept(tmp_path):
    one, two = (Reads(Disk(), tmp_path / "READS") for _ in range(2))
    one.mark(b"a")
    assert two.is_marked(Reads.slot(b"a"))
    assert not two.is_marked(Reads.slot(b"b"))
    two.clear({Reads.slot(b"a")})
    assert not one.is_marked(Reads.slot(b"a"))
    two.mark(b"b")
    one.close()
    two.close()
    assert (tmp_path / "READS").stat().st_size == SLOTS
    assert Reads(Disk(), tmp_path / "READS").is_marked(Reads.slot(b"b"))


def test_a_file_that_was_cut_is_filled_up(tmp_path):
    (tmp_path / "READS").write_bytes(b"\1" * 10)
    reads = Reads(Disk(), tmp_path / "READS")
    assert reads.is_marked(9)
    assert not reads.is_marked(SLOTS - 1)
    assert (tmp_path / "READS").stat().st_size == SLOTS


def test_where_the_file_cannot_be_made_this_process_marks_for_itself(tmp_path):
    (tmp_path / "READS").mkdir()
    reads = Reads(Disk(), tmp_path / "READS")
    reads.mark(b"a")
    assert reads.is_marked(Reads.slot(b"a"))
    assert not Reads(Disk(), tmp_path / "READS").is_marked(Reads.slot(b"a"))


def test_a_load_beside_the_closing_harms_nothing(tmp_path):
    reads = Reads(Disk(), tmp_path / "READS")
    reads.close()
    reads.mark(b"a")
    reads.close()
