"""The background thread does what is due, one at a time, and stays out of everybody's way."""

import math
import threading
from itertools import count

import pytest

from kvsage import (
    CorruptionError,
    StoreClosedError,
    StoreFullError,
    StoreLockedError,
)
from kvsage.engine import choosing, compaction, upkeep
from kvsage.engine.checkpoint import read_trailer
from kvsage.engine.engine import SMALL_SEGMENT_BYTES
from kvsage.engine.pace import UNPACED, Pace, Stopped
from kvsage.index.segments import JOINING, all_retired, all_segments
from kvsage.log.segment import segment_path

PATIENCE_S = 60
NOISE = b"\xee" * 3000


@pytest.fixture
def store_options(store_options):
    return store_options | {"upkeep_interval": math.inf, "segment_bytes_max": 65536}


@pytest.fixture(autouse=True)
def always_sound(new_store):
    yield
    report = new_store().verify(deep=True)
    assert report.ok, report.problems


def churn(store, rounds=4):
    """Several files, most of what they hold garbage."""
    for number in range(rounds):
        for key in range(20):
            store.save(f"k{key:02}", [number, NOISE])


def look(store):
    store._engine.upkeep.look(UNPACED)


def garbage_share(store):
    stats = store.stats()
    return stats.dead_bytes / stats.log_bytes


# -- what is due --------------------------------------------------------------------------------


def test_nothing_due_does_nothing(store, monkeypatch):
    store.save("k", 1)
    monkeypatch.setattr(store._engine.upkeep.lock, "now", None)  # not even the lock is taken
    before = store.stats().commits
    look(store)
    assert store.stats().commits == before


def test_garbage_is_compacted(store):
    churn(store)
    assert garbage_share(store) > 0.5
    look(store)
    assert garbage_share(store) < 0.5
    assert store.count() == 20
    assert choosing.choose(store._engine) == []
    metrics = store._engine.metrics
    assert metrics.compactions > 0


def test_what_expired_is_swept(store, clock):
    store.save_many({f"k{number}": number for number in range(5)}, ttl=5)
    clock.now += 10
    look(store)
    assert store.stats().keys == 0


def test_a_checkpoint_is_written_when_the_log_has_grown(store, monkeypatch):
    path = store._engine.checkpoint_path
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 100_000)
    for number in range(10):
        store.save(f"k{number}", NOISE)
    look(store)
    assert not path.exists()
    for number in range(30):
        store.save(f"l{number}", NOISE)
    look(store)
    first = read_trailer(store._engine.disk, path)
    assert first.seq == 40
    store.save("k", 1)
    look(store)
    assert read_trailer(store._engine.disk, path) == first  # not again for so little
    for number in range(60):
        store.save(f"m{number}", NOISE)
    look(store)
    assert read_trailer(store._engine.disk, path).seq == 101
    assert store._engine.metrics.checkpoints == 2


def test_a_checkpoint_that_cannot_be_read_is_replaced_in_time(store, monkeypatch):
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 10_000)
    path = store._engine.checkpoint_path
    path.write_bytes(b"no checkpoint at all")
    look(store)
    assert path.stat().st_size == 20
    store.save_many({f"k{number}": NOISE for number in range(5)})
    look(store)
    assert read_trailer(store._engine.disk, path).seq == 1


@pytest.mark.parametrize("step", ["_join", "_move_rows", "_retire", "_forget"])
def test_what_was_left_half_done_is_due(store, monkeypatch, step):
    churn(store)

    def stop(*_):
        raise Stopped

    monkeypatch.setattr(compaction, step, stop)
    with pytest.raises(StoreClosedError):
        store.compact()
    monkeypatch.undo()
    monkeypatch.setattr(choosing, "choose", lambda *_: [])
    look(store)
    engine = store._engine
    with engine.index.reading() as txn:
        assert all(row.state != JOINING for _, row in all_segments(txn))
        assert not all_retired(txn) or step == "_join"
        named = {segment for segment, _ in all_segments(txn)} | set(all_retired(txn))
    if step != "_join":  # of a copy that nothing leads to nobody knows before the next compaction
        assert {int(path.stem) for path in engine.log_path.iterdir()} == named
    assert store.count() == 20


def test_files_that_a_snapshot_kept_go_at_the_next_look(store):
    churn(store)
    with store.snapshot():
        assert store.compact().files_waiting > 0
        look(store)
        with store._engine.index.reading() as txn:
            assert all_retired(txn)
    look(store)
    with store._engine.index.reading() as txn:
        assert not all_retired(txn)


def test_a_damaged_file_does_not_keep_the_others_from_being_compacted(store):
    store.save("stays", 1)  # where nothing is live nothing is read either
    churn(store, rounds=5)
    files = sorted(segment.segment for segment in store.stats().segments)
    path = segment_path(store._engine.log_path, files[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + b"\0" * 10 + whole[5010:])
    with pytest.raises(CorruptionError) as caught:
        look(store)
    assert caught.value.segment == files[0]
    look(store)
    left = {segment.segment for segment in store.stats().segments}
    assert not left & set(files[1:-1])
    path.write_bytes(whole)
    assert files[0] in left
    assert store.compact().files_compacted > 0


# -- sizes --------------------------------------------------------------------------------------


def test_segments_are_small_where_little_is_live(new_store):
    most = 64 << 20
    store = new_store(segment_bytes_max=most)
    assert store._engine.segment_limit == SMALL_SEGMENT_BYTES
    small = new_store("small", segment_bytes_max=65536)
    assert small._engine.segment_limit == 65536


def test_segments_grow_with_what_is_live(new_store, monkeypatch):
    monkeypatch.setattr("kvsage.engine.engine.SMALL_SEGMENT_BYTES", 1000)
    store = new_store(segment_bytes_max=65536)
    assert store._engine.segment_limit == 1000
    store.save_many({f"k{number}": NOISE for number in range(10)})
    look(store)
    live = 10 * len(NOISE)
    assert live // 4 <= store._engine.segment_limit <= (live + 1000) // 4
    store.save_many({f"k{number}": 1 for number in range(10)})
    look(store)
    assert store._engine.segment_limit == 1000
    store.save_many({f"l{number}": NOISE for number in range(200)})
    look(store)
    assert store._engine.segment_limit == 65536


# -- one at a time ------------------------------------------------------------------------------


def test_the_lock_excludes_another_thread(store):
    lock = store._engine.upkeep.lock
    with lock.now() as held:
        assert held
        seen = []

        def other():
            with lock.now() as also:
                seen.append(also)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join(PATIENCE_S)
        assert seen == [False]
    with lock.now() as held:
        assert held


def test_the_lock_is_let_go_of_after_an_error(store):
    lock = store._engine.upkeep.lock
    for how in (lock.now, lock.waiting):
        with pytest.raises(KeyError), how():
            raise KeyError
        with lock.now() as held:
            assert held


def test_a_look_leaves_the_work_to_who_is_at_it(store):
    churn(store)
    before = store.stats().segments
    with store._engine.upkeep.lock.waiting():
        look(store)
        assert store.stats().segments == before
    look(store)
    assert store.stats().segments != before


def test_a_compaction_waits_for_the_one_before(new_store):
    store = new_store(lock_timeout=0.01)
    store.save("k", 1)
    with store._engine.upkeep.lock.waiting(), pytest.raises(StoreLockedError):
        store.compact()
    patient = new_store("patient", lock_timeout=PATIENCE_S)
    patient.save("k", 1)
    began, done = threading.Event(), threading.Event()

    def compact():
        began.set()
        patient.compact()
        done.set()

    with patient._engine.upkeep.lock.waiting():
        thread = threading.Thread(target=compact)
        thread.start()
        assert began.wait(PATIENCE_S)
        assert not done.is_set()
    assert done.wait(PATIENCE_S)
    thread.join(PATIENCE_S)


# -- the thread ---------------------------------------------------------------------------------


def looks(monkeypatch, work):
    """Replace what the thread does; ``work`` is given the number of the look, from 1 on."""
    numbers = count(1)
    monkeypatch.setattr(upkeep.Upkeep, "look", lambda _, pace: work(next(numbers), pace))


def test_no_thread_where_the_interval_is_infinite(store):
    assert not store._engine.upkeep.is_running()
    assert not [thread for thread in threading.enumerate() if thread.name == "kvsage-upkeep"]


def test_no_thread_for_a_store_that_is_only_read(new_store):
    new_store().save("k", 1)
    new_store().close()
    for _ in range(2):
        new_store("other").close()
    store = new_store("read", upkeep_interval=3600)
    assert store._engine.upkeep.is_running()
    store.close()
    assert not store._engine.upkeep.is_running()
    reader = new_store("read", upkeep_interval=3600, readonly=True)
    assert not reader._engine.upkeep.is_running()


def test_it_looks_again_and_again_and_ends_with_the_store(new_store, monkeypatch):
    third = threading.Event()
    looks(monkeypatch, lambda n, _: n == 3 and third.set())
    store = new_store("thread", upkeep_interval=0.001)
    assert third.wait(PATIENCE_S)
    assert store._engine.upkeep.is_running()
    store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "kvsage-upkeep"]


def test_it_looks_at_once_when_a_segment_was_sealed(new_store, monkeypatch):
    looked = threading.Event()
    looks(monkeypatch, lambda _, __: looked.set())
    store = new_store("thread", upkeep_interval=3600)
    store.save("k", 1)
    assert not looked.is_set()
    churn(store)
    assert looked.wait(PATIENCE_S)


@pytest.mark.parametrize(
    "error", [StoreFullError("full"), CorruptionError("damaged"), StoreLockedError("locked")]
)
def test_an_error_is_kept_and_the_next_look_tries_again(new_store, monkeypatch, error):
    again = threading.Event()

    def look(number, _):
        if number == 1:
            raise error
        again.set()

    looks(monkeypatch, look)
    store = new_store("thread", upkeep_interval=0.001)
    assert again.wait(PATIENCE_S)
    assert store._engine.upkeep.last_error is error
    store.save("k", 1)
    assert store.load("k") == 1


def test_closing_stops_the_work_that_is_under_way(new_store, monkeypatch):
    at_work, stopped = threading.Event(), threading.Event()

    def look(_, pace):
        at_work.set()
        try:
            while True:
                sum(range(2000))
                pace.breathe()
        except Stopped:
            stopped.set()
            raise

    looks(monkeypatch, look)
    store = new_store("thread", upkeep_interval=0.001)
    assert at_work.wait(PATIENCE_S)
    store.close()
    assert stopped.is_set()


def test_it_does_its_work_by_itself(new_store):
    store = new_store("thread", upkeep_interval=0.001)
    engine = store._engine
    for number in range(2000):
        churn(store, rounds=1)
        if engine.metrics.compactions and number > 3:
            break
    assert engine.metrics.compactions > 0
    assert store.count() == 20
    assert store.verify(deep=True).ok
    store.close()
    assert engine.upkeep.last_error is None


def test_closing_in_the_midst_of_it_loses_nothing(new_store, monkeypatch):
    monkeypatch.setattr(compaction, "CHUNK", 2)
    breaths = threading.Semaphore(0)
    real = Pace.breathe

    def breathe(self):
        breaths.release()
        real(self)

    monkeypatch.setattr(Pace, "breathe", breathe)
    for number in range(5):
        store = new_store("thread", upkeep_interval=0.001)
        churn(store, rounds=3)
        for _ in range(number):
            assert breaths.acquire(timeout=PATIENCE_S)
        store.close()
        with new_store("thread") as again:
            assert [again.load(f"k{key:02}")[0] for key in range(20)] == [2] * 20
            assert again.verify(deep=True).ok


# -- files that another handle removed ------------------------------------------------------------


def test_descriptors_of_files_that_went_are_closed(store, monkeypatch):
    churn(store)
    engine = store._engine
    assert len(dict(store.items())) == 20
    monkeypatch.setattr(type(engine.files), "drop", lambda *_: None)  # as in another process
    store.compact()
    monkeypatch.undo()
    there = {segment.segment for segment in store.stats().segments}
    assert set(engine.files.fds) - there
    engine.drop_removed()
    assert not set(engine.files.fds) - there
    assert store.count() == 20


def test_descriptors_of_files_that_somebody_may_still_read_stay(store):
    churn(store)
    with store.snapshot() as view:
        before = dict(view.items())
        held = set(store._engine.files.fds)
        assert store.compact().files_waiting > 0
        store._engine.drop_removed()
        assert held <= set(store._engine.files.fds)
        assert dict(view.items()) == before
