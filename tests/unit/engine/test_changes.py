"""The feed of changes: what it gives, in which order, from where on, and what it refuses."""

import itertools
import math
import os
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage import (
    ChangesLostError,
    ConfigError,
    CorruptionError,
    InvalidKeyError,
    LMDBStore,
    StoreClosedError,
)
from kvsage.engine import assembling
from kvsage.engine import changes as reading
from kvsage.log.segment import list_files
from kvsage.types import COMMIT_END, Position
from tests.support.small import OPTIONS, make_small

TEXT = "to be or not to be, that is the question. " * 10


@pytest.fixture
def small(monkeypatch, new_store):
    """A store with small segments, read in small pieces."""
    make_small(monkeypatch)
    monkeypatch.setattr(reading, "CHANGES_MAX", 7)
    monkeypatch.setattr(reading, "ENTRIES_MAX", 11)
    store = new_store("small", **OPTIONS)
    yield store
    assert store.verify(deep=True).problems == ()


@pytest.fixture(autouse=True)
def sound(new_store):
    """Nothing that a feed does harms a store."""
    stores = []

    def watched(store):
        stores.append(store)
        return store

    yield watched
    for store in stores:
        assert store.verify(deep=True).problems == ()


def told(feed):
    return [(change.kind, change.key, change.reason) for change in feed]


def keys(feed):
    return [change.key for change in feed]


class Churn:
    """Commits of every kind, and what a feed should say of them: kind, key, value."""

    def __init__(self, store, seed, keys):
        self.store, self.keys = store, keys
        self.chance = random.Random(seed)
        self.there = set(store.keys())
        self.expected = []

    def put(self, key, value):
        self.there.add(key)
        self.expected.append(("put", key, value))

    def gone(self, key):
        if key in self.there:
            self.there.remove(key)
            self.expected.append(("delete", key, None))

    def one(self, key, value):
        self.store.save(key, value)
        self.put(key, value)

    def passing(self, key, value):
        self.store.save(key, value, ttl=1000)
        self.put(key, value)

    def delete(self, key, _):
        self.store.delete(key)
        self.gone(key)

    def many(self, _, value):
        many = {f"k{n}": (value, n) for n in self.chance.sample(range(self.keys), 5)}
        self.store.save_many(many)
        for pair in many.items():
            self.put(*pair)

    def together(self, key, value):
        with self.store.transaction() as tx:
            tx.save("a", value)
            tx.delete(key)
            tx.save("z", TEXT + str(value))
        self.put("a", value)
        self.gone(key)
        self.put("z", TEXT + str(value))


def churn(store, seed, rounds, keys=12):
    """So many commits; what a feed should say of them."""
    work = Churn(store, seed, keys)
    verbs = [work.one, work.passing, work.delete, work.many, work.together]
    for number in range(rounds):
        value = work.chance.choice([number, f"v{number}", TEXT + str(work.chance.randrange(4))])
        work.chance.choice(verbs)(f"k{work.chance.randrange(keys)}", value)
    return work.expected


# -- what it gives ------------------------------------------------------------------------------


def test_every_change_in_the_order_of_the_commits(store, clock, sound):
    sound(store)
    store.save("a", {"n": 1})
    clock.now += 1.5
    store.save_many({"b": "text", "c": b"bytes"})
    clock.now += 1
    store.save("a", 2, ttl=60)
    store.delete("b")
    changes = list(store.changes())
    assert told(changes) == [
        ("put", "a", None),
        ("put", "b", None),
        ("put", "c", None),
        ("put", "a", None),
        ("delete", "b", "user"),
    ]
    assert [change.value for change in changes] == [{"n": 1}, "text", b"bytes", 2, None]
    assert [change.position[:2] for change in changes] == [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0)]
    began = datetime.fromtimestamp(clock.now - 2.5, UTC)
    assert [(change.time - began).total_seconds() for change in changes] == [0, 1.5, 1.5, 2.5, 2.5]
    assert [change.expires_at for change in changes[:3]] == [None] * 3
    assert changes[3].expires_at == datetime.fromtimestamp(clock.now + 60, UTC)


def test_an_empty_store_has_no_changes(store):
    assert list(store.changes()) == []
    assert store.position()[:2] == (0, COMMIT_END)
    assert list(store.changes(store.position())) == []


def test_an_expiry_is_a_delete_once_it_is_swept(store, clock, sound):
    sound(store)
    store.save("a", 1, ttl=5)
    store.save("b", 1, ttl=5)
    clock.now += 10
    assert told(store.changes()) == [("put", "a", None), ("put", "b", None)]
    store.save("a", 2)
    store.sweep()
    assert told(store.changes((2, COMMIT_END))) == [("put", "a", None), ("delete", "b", "expired")]


def test_an_eviction_is_a_delete(monkeypatch, new_store, sound):
    make_small(monkeypatch)
    monkeypatch.setattr("kvsage.options.BYTES_MAX_LEAST", 1)
    store = sound(new_store("cache", **OPTIONS, bytes_max=20_000))
    store.changes(consumer="one for whom deletions are kept").close()
    for number in range(60):
        store.save(f"k{number}", os.urandom(500))
    store.sweep()
    changes = list(store.changes())
    gone = [change.key for change in changes if change.reason == "evicted"]
    assert gone
    assert set(gone) == {f"k{number}" for number in range(60)} - set(store.keys())


def test_what_is_kvsages_own_is_no_change(store, sound):
    sound(store)
    store.content.put(b"by its address" * 10)
    list(store.changes(consumer="me"))
    store.save("a", "x" * 10_000)  # its content is an entry of the commit, and no change
    (change,) = store.changes()
    assert change.position[:2] == (3, 1)
    assert change.value == "x" * 10_000


@pytest.mark.parametrize("prefix", ["k1", "a", "", "nothing", "k1\0"])
def test_a_prefix_chooses(small, prefix):
    expected = churn(small, 1, 60)
    chosen = [(kind, key) for kind, key, _ in expected if key.startswith(prefix)]
    feed = small.changes(prefix=prefix)
    assert [(change.kind, change.key) for change in feed] == chosen
    assert feed.position == small.position()


def test_many_commits_in_many_pieces_are_what_was_committed(small):
    expected = churn(small, 2, 300)
    changes = list(small.changes())
    assert [(change.kind, change.key) for change in changes] == [pair[:2] for pair in expected]
    positions = [change.position for change in changes]
    assert positions == sorted(set(positions))
    last = newest(changes)
    for change, (_, key, value) in zip(changes, expected, strict=True):
        try:
            assert change.value == value
        except ChangesLostError:  # its content is gone, for nothing refers to it any more
            assert last[key][0] > change.position


def test_a_commit_larger_than_a_piece(monkeypatch, store, sound):
    sound(store)
    store.save("first", 0)
    store.save_many({f"k{number:04}": number for number in range(2500)})
    store.save("last", 0)
    batches = []
    real = reading.SegmentReader.batch_at
    monkeypatch.setattr(
        reading.SegmentReader,
        "batch_at",
        lambda self, offset: batches.append(offset) or real(self, offset),
    )
    keys = [change.key for change in store.changes()]
    assert keys == ["first", *(f"k{number:04}" for number in range(2500)), "last"]
    # Read on where it stood, not over again from the commit's beginning.
    assert len(batches) <= 3 + 1


def test_reading_on_costs_no_reading_again(monkeypatch, small):
    churn(small, 3, 200)
    offsets = []
    real = reading.SegmentReader.batch_at
    monkeypatch.setattr(
        reading.SegmentReader,
        "batch_at",
        lambda self, offset: offsets.append((self.segment, offset)) or real(self, offset),
    )
    list(small.changes())
    assert len(offsets) <= 2 * len(set(offsets))


def test_a_feed_goes_on_when_it_is_begun_again(small):
    small.save("a", 1)
    feed = small.changes()
    assert [change.key for change in feed] == ["a"]
    assert list(feed) == []
    churned = churn(small, 4, 50)
    assert [(change.kind, change.key) for change in feed] == [pair[:2] for pair in churned]


def test_nothing_is_held_between_two_changes(small):
    churn(small, 5, 60)
    with small.changes() as feed:
        next(feed)
        assert all(reader.transaction is None for reader in small.stats().readers)


# -- from where on ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda p: p, str, lambda p: p[:2]], ids=["as is", "text", "pair"])
def test_every_position_resumes_behind_it(small, form):
    churn(small, 6, 60)
    changes = list(small.changes())
    for place, change in enumerate(changes):
        rest = [later.position for later in small.changes(form(change.position))]
        assert rest == [later.position for later in changes[place + 1 :]]


def test_a_seq_and_a_version_resume_behind_their_commit(small):
    churn(small, 7, 30)
    small.save("v", 1)
    version = small.entry("v").version
    small.save_many({"w": 1, "x": 2})
    assert [change.key for change in small.changes(version)] == ["w", "x"]
    seq = Position.parse(version).seq
    assert [change.key for change in small.changes(seq)] == ["w", "x"]
    assert [change.key for change in small.changes((seq + 1, 0))] == ["x"]
    assert [change.key for change in small.changes(seq - 1)] == ["v", "w", "x"]


def test_the_position_of_a_snapshot_leaves_no_gap(small):
    churn(small, 8, 40)
    with small.snapshot() as view:
        later = churn(small, 9, 10)
        state = {key: view.entry(key).version for key in list(view.keys())}
        for change in small.changes(view.position):
            state[change.key] = str(change.position._replace(n=COMMIT_END))
            if change.kind == "delete":
                del state[change.key]
    assert later
    assert state == {key: small.entry(key).version for key in list(small.keys())}


def test_where_a_feed_stands(store):
    store.save_many({"a": 1, "b": 2, "c": 3})
    store.save("other", 1)
    feed = store.changes(prefix="b")
    assert feed.position[:2] == (0, COMMIT_END)
    assert next(feed).position == feed.position == (1, 1, store.position().timeline)
    assert next(feed, None) is None
    assert feed.position == store.position() == (2, COMMIT_END, store.position().timeline)


@pytest.mark.parametrize(
    "since",
    [
        *("", "1", "1.2", "a@b", "1.5000000000@0123456789abcdef", "pending-1@0123456789abcdef"),
        *(1.5, -1, (1,), (1, 2, 3), (-1, 0), (1, -1), (1, 1 << 32), (1 << 64, 0), b"1", True),
        Position(-1, 0, 0),
        Position("1", 0, 0),
    ],
)
def test_what_is_no_position_is_refused(store, since):
    with pytest.raises(ConfigError, match=r"position|since"):
        store.changes(since)


def test_a_position_of_another_history_is_refused(tmp_path, new_store, sound):
    one, two = sound(new_store("one")), sound(new_store("two"))
    for store in (one, two):
        store.save("a", 1)
        store.save("a", 2)
    (foreign, _) = one.changes()
    for since in (foreign.position, str(foreign.position)):
        with pytest.raises(ChangesLostError, match="snapshot"):
            two.changes(since)


def test_a_position_beyond_the_end_is_refused(store):
    store.save("a", 1)
    position = store.position()
    assert list(store.changes(position)) == []
    for since in (position._replace(seq=2), 2, (2, 0)):
        with pytest.raises(ChangesLostError, match="beyond the end"):
            store.changes(since)


def test_what_was_lost_with_a_tail_is_refused_and_what_stayed_is_not(tmp_path, clock):
    path = tmp_path / "store"
    with LMDBStore(path, clock=clock, upkeep_interval=math.inf) as store:
        for number in range(4):
            store.save(f"k{number}", number)
        changes = list(store.changes())
        end = store.stats().log_bytes
    (segment,) = list_files(store._engine.disk, path / "log").values()
    length = 56 + 32 + 2 + 1
    data = segment.read_bytes()
    (path / "INDEX").unlink()
    at = data.rindex(b"k3") - 32 - 56
    assert end
    segment.write_bytes(data[:at] + bytes(length))  # the last commit, torn, and the end mark too
    with LMDBStore(path, clock=clock, upkeep_interval=math.inf) as store:
        assert list(store.keys()) == ["k0", "k1", "k2"]
        assert [change.key for change in store.changes(changes[1].position)] == ["k2"]
        assert list(store.changes(changes[2].position)) == []
        with pytest.raises(ChangesLostError):
            store.changes(changes[3].position)
        store.save("new", 1)  # with the number of the one that was lost
        with pytest.raises(ChangesLostError):
            store.changes(changes[3].position)
        assert [change.key for change in store.changes(changes[2].position)] == ["new"]
        assert store.verify(deep=True).problems == ()


# -- values -------------------------------------------------------------------------------------


def test_a_value_is_read_when_it_is_asked_for(monkeypatch, store):
    store.save("a", TEXT * 20)
    (change,) = store.changes()
    store._engine.raw_cache.clear()
    reads = []
    read = assembling.raw_content
    monkeypatch.setattr(assembling, "raw_content", lambda *where: reads.append(1) or read(*where))
    assert reads == []
    assert change.value == TEXT * 20
    assert reads == [1]


def test_a_value_in_pieces_is_read_when_it_is_asked_for(monkeypatch, store):
    texts = [f"{number}: {TEXT}" for number in range(300)]
    store.save("a", texts)
    pieces = store.stats().contents
    (change,) = store.changes()
    store._engine.raw_cache.clear()
    reads = []
    read = assembling.raw_content
    monkeypatch.setattr(assembling, "raw_content", lambda *where: reads.append(1) or read(*where))
    assert reads == []
    assert change.value == texts
    assert len(reads) == pieces > 5


def test_a_value_whose_content_is_gone(store, sound):
    sound(store)
    store.save("a", TEXT * 20)
    (change,) = store.changes()
    store.delete("a")
    with pytest.raises(ChangesLostError, match="in the feed"):
        _ = change.value
    # The same bytes again are another content, as far as anybody can tell by their hash.
    store.save("b", TEXT * 20)
    with pytest.raises(ChangesLostError, match="in the feed"):
        _ = change.value
    assert [change.key for change in store.changes() if change.kind == "put"] == ["a", "b"]


def test_a_value_that_another_key_holds_on_to(store):
    store.save("a", TEXT * 20)
    store.save("b", TEXT * 20)
    store.delete("a")
    (change, _, _) = store.changes()
    assert change.value == TEXT * 20


def test_values_after_the_feed_and_after_the_store(new_store):
    store = new_store("closing")
    store.save_many({"a": 1, "b": TEXT * 20})
    with store.changes() as feed:
        small, large = feed
    assert large.value == TEXT * 20
    store.close()
    assert small.value == 1
    with pytest.raises(StoreClosedError):
        _ = large.value


def test_a_damaged_content_is_reported(store, monkeypatch):
    store.save("a", TEXT * 20)
    (change,) = store.changes()
    (path,) = list_files(store._engine.disk, store._engine.log_path).values()
    at = path.read_bytes().index(b"\x28\xb5\x2f\xfd")  # where the frame begins
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\0")
    store._engine.raw_cache.clear()
    with pytest.raises(CorruptionError) as caught:
        _ = change.value
    assert caught.value.segment == 1


# -- compaction ---------------------------------------------------------------------------------


def newest(changes):
    last = {}
    for change in changes:
        last[change.key] = change
    return {key: (change.position, change.time, change.kind) for key, change in last.items()}


def test_after_compaction_the_latest_change_of_every_key_is_there(small, clock):
    for seed in range(6):
        small.save_many({f"old{seed}/{number}": number for number in range(5)})
        churn(small, seed, 40)
        clock.now += 1
    before = list(small.changes())
    floor = 0
    for _ in range(3):
        small.compact()
        after = list(small.changes())
        positions = [change.position for change in after]
        assert positions == sorted(set(positions))
        assert set(positions) <= {change.position for change in before}
        # What is dropped is a deletion behind which nothing is left to delete.
        with small._engine.index.reading() as txn:
            floor = reading.get_floor(txn)
        old, new = newest(before), newest(after)
        for key in old.keys() - new.keys():
            assert old[key][2] == "delete"
            assert old[key][0].seq <= floor
        assert {key: old[key] for key in new} == new
        for change in after:
            if change.kind == "put" and newest(after)[change.key][0] == change.position:
                assert change.value == small.load(change.key)
    assert len(before) > len(after)


def test_every_position_resumes_in_compacted_copies(small):
    for seed in range(4):
        churn(small, seed, 40, keys=30)
        small.compact()
    changes = list(small.changes())
    with small._engine.index.reading() as txn:
        floor = reading.get_floor(txn)
        kinds = {row.kind for row in reading.files_now(txn)[1].values()}
    assert kinds == {1, 2}
    resumed = 0
    for place, change in enumerate(changes):
        if change.position.seq <= floor:
            with pytest.raises(ChangesLostError, match="dropped"):
                small.changes(change.position)
            continue
        rest = [later.position for later in small.changes(change.position)]
        assert rest == [later.position for later in changes[place + 1 :]]
        resumed += 1
    assert resumed


@pytest.mark.parametrize("pause", range(1, 120, 17))
def test_compaction_between_two_pieces(small, pause):
    """Whoever is under way misses nothing and hears nothing twice."""
    for seed in range(4):
        churn(small, seed, 30)
    feed = small.changes(consumer="under way")
    state, seen = {}, []

    def follow(changes):
        for change in changes:
            seen.append(change.position)
            state[change.key] = (change.kind, change.position)

    follow(itertools.islice(feed, pause))
    small.compact()
    churn(small, 9, 10)
    follow(itertools.islice(feed, 5))
    small.compact()
    follow(feed)
    assert seen == sorted(set(seen))
    there = {key for key, (kind, _) in state.items() if kind == "put"}
    assert there == set(small.keys())
    for key in there:
        assert small.entry(key).version.startswith(f"{state[key][1].seq}@")


def drop_tombstones(store):
    """Let compaction drop deletions; the floor."""
    for number in range(100):
        store.save(f"k{number}", os.urandom(60))
    for number in range(0, 100, 2):
        store.delete(f"k{number}")
    for number in range(40):
        store.save(f"other{number % 3}", os.urandom(60))
    for _ in range(3):
        store.compact()
    with store._engine.index.reading() as txn:
        return reading.get_floor(txn)


def test_below_the_floor_is_refused_and_the_beginning_is_not(small):
    first = small.position()
    floor = drop_tombstones(small)
    assert floor
    for since in ((1, 0), (floor - 1, COMMIT_END), (floor, 0)):
        with pytest.raises(ChangesLostError, match=r"dropped.*snapshot"):
            small.changes(since)
    assert first[0] == 0
    for since in (None, first, 0):
        state = {change.key for change in small.changes(since) if change.kind == "put"}
        assert state >= set(small.keys())
    assert list(small.changes(floor))


def test_a_reader_from_the_beginning_minds_only_what_is_dropped_behind_its_back(small):
    floor = drop_tombstones(small)
    feed = small.changes()
    assert next(feed).position.seq < floor
    assert len(list(feed)) > 2 * 11  # over many pieces, below the floor as it was at the beginning
    late = small.changes()
    next(late)
    assert drop_tombstones(small) > floor
    with pytest.raises(ChangesLostError, match="dropped"):
        list(late)


# -- damage -------------------------------------------------------------------------------------


def test_a_batch_that_does_not_check_ends_the_feed_there(store):
    store.save("a", "one")
    store.save("b", "two")
    store.save("c", "three")
    (path,) = list_files(store._engine.disk, store._engine.log_path).values()
    at = path.read_bytes().index(b"two")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"tWo")
    feed = store.changes()
    with pytest.raises(CorruptionError) as caught:
        list(feed)
    assert (caught.value.segment, caught.value.offset) == (1, at - 1 - 32 - 56)
    feed = store.changes()
    assert next(feed).key == "a"
    for _ in range(2):
        with pytest.raises(CorruptionError):
            next(feed)
    assert feed.position[:2] == (1, 0)
    # What was passed is not read, and what stands behind it is found.
    assert [change.key for change in store.changes(2)] == ["c"]
    assert list(store.changes(3)) == []
    with pytest.raises(CorruptionError):
        list(store.changes((2, 0)))


def test_a_missing_file_of_the_log_is_reported(small):
    churn(small, 1, 100)
    files = list_files(small._engine.disk, small._engine.log_path)
    path = files[2]
    data = path.read_bytes()
    small._engine.disk.close(small._engine.files.fds.pop(2))
    path.unlink()
    with pytest.raises(CorruptionError) as caught:
        list(small.changes())
    assert caught.value.segment == 2
    path.write_bytes(data)


def test_a_prefix_is_text(store):
    with pytest.raises(InvalidKeyError):
        store.changes(prefix=b"a")


# -- after a repair, and a restore --------------------------------------------------------------


def test_after_a_repair_that_lost_something_everybody_begins_anew(tmp_path, new_store, clock):
    store = new_store("damaged", upkeep_interval=math.inf)
    for number in range(6):
        store.save_many({f"k{number}": number, f"m{number}": number})
    store.save("last", 1)
    changes = list(store.changes())
    keys(store.changes(consumer="me"))
    store.close()
    (path,) = (tmp_path / "damaged" / "log").iterdir()
    at = path.read_bytes().index(b"k3")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xfa\xfa")
    (tmp_path / "damaged" / "INDEX").unlink()
    assert not LMDBStore.repair(tmp_path / "damaged", clock=clock).dry_run
    store = new_store("damaged", upkeep_interval=math.inf)
    for change in changes[:-1]:
        with pytest.raises(ChangesLostError):
            store.changes(change.position)
    # From the beginning all is told that could be saved, in its order, and at most once.
    told = list(store.changes())
    assert [change.position for change in told] == sorted({change.position for change in told})
    last = {change.key: change.kind for change in told}
    assert {key for key, kind in last.items() if kind == "put"} == set(store.keys())
    assert {change.key for change in changes} - {"k3"} <= last.keys()
    assert store.verify(deep=True).problems == ()


def test_a_restore_refuses_positions_that_came_after_its_backup(tmp_path, new_store, clock):
    store = new_store("original", upkeep_interval=math.inf)
    store.save("a", 1)
    with store.changes(consumer="me") as feed:
        before = keys(feed)
    kept = store.position()
    store.backup(tmp_path / "backups")
    store.save("b", 2)
    lost = store.position()
    store.close()
    LMDBStore.restore(tmp_path / "backups", tmp_path / "restored")
    restored = new_store("restored", upkeep_interval=math.inf)
    restored.save_many({"c": 1, "d": 1})
    restored.save("e", 1)
    assert before == ["a"]
    assert keys(restored.changes(kept)) == ["c", "d", "e"]
    assert keys(restored.changes(consumer="me")) == ["c", "d", "e"]
    with pytest.raises(ChangesLostError, match="history"):
        restored.changes(lost)
    assert restored.verify(deep=True).problems == ()


@given(
    st.builds(
        Position,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, COMMIT_END) | st.just(COMMIT_END),
        st.integers(0, (1 << 64) - 1),
    )
)
def test_a_position_and_its_text(position):
    assert Position.parse(str(position)) == position
